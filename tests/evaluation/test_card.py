"""Model cards and their publication: what is known is told with its interval, what is not is not claimed."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from llasa.audio import write_wav
from llasa.config import EvaluateConfig, PushConfig, SamplingConfig
from llasa.entry import compose_config
from llasa.errors import UserError
from llasa.evaluation.card import gather, model_card, write_card
from llasa.evaluation.licenses import Part, base_part, codec_part, data_part, suggestion, warnings
from llasa.evaluation.publish import check_hand_over, files_to_publish, hand_over, in_bytes, publish_checkpoint
from llasa.evaluation.report import build_report
from llasa.training.run import train
from tests.conftest import SMALL_LLAMA, write_toy_store
from tests.corpus import test_publish as store_hub
from tests.model.tiny import save_tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of two steps on a store of two languages, with a checkpoint."""
    folder = tmp_path_factory.mktemp("card")
    store = write_toy_store(folder / "store", languages=("it", "de"))
    train(
        compose_config(
            "train",
            [
                *SMALL_LLAMA,
                "lang=multilingual",
                f"store={store}",
                f"output_dir={folder}/run",
                "trainer.max_steps=2",
                "trainer.log_every=1",
                "packing.max_length=256",
                "heldout.every=0",
                "samples.every=0",
            ],
        )
    )
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy that a test may write into."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def change(run: Path, checkpoint: str | None = None, source: str | None = None, codec: str | None = None) -> None:
    """As if the run had begun elsewhere, or its store or codec were others."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    if checkpoint:
        config["model"] |= {"checkpoint": checkpoint, "architecture": None}
    if source:
        store = Path(shutil.copytree(config["store"], run.parent / "other store"))
        manifest = json.loads((store / "manifest.json").read_text())
        (store / "manifest.json").write_text(
            json.dumps(manifest | {"source": {"name": source, "path": f"me/{source}"}})
        )
        config["store"] = str(store)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    if codec:
        card = json.loads((run / "checkpoint/llasa.json").read_text())
        card["codec"] |= {"name": codec, "checkpoint": ""}
        (run / "checkpoint/llasa.json").write_text(json.dumps(card))


def evaluated(run: Path, output: Path, count: int = 12) -> dict:
    """A report of ``count`` sentences that the checkpoint and the codec have said, half of the former's one error."""
    rows = []
    for system, errors in (("run/checkpoint", 1), ("codec resynthesis", 0)):
        for i in range(count):
            file = f"audio/{system.replace('/', '-')}/{i}.wav"
            write_wav(output / file, np.sin(np.arange(800 + i) / 7).astype(np.float32) / 2, 8000)
            words = {"errors": errors * (i % 2), "length": 5}
            rows.append(
                {
                    "system": system, "id": str(i), "text": f"Frase | numero {i}.", "file": file, "seconds": 0.1,
                    "words": words, "characters": {"errors": words["errors"], "length": 25},
                    "similarity": 0.5 + i / 100, "dnsmos": None, "relative_speed": None, "finish_reason": "stop",
                    "repeated_words": 0, "skipped_words": 0, "generation_seconds": None, "decode_seconds": None,
                }
            )  # fmt: skip
    config = EvaluateConfig(
        checkpoint=str(run / "checkpoint"), store="x", output=str(output), engine={}, sampling=SamplingConfig(),
        resamples=200, confidence=0.9,
    )  # fmt: skip
    systems = [
        {"name": "run/checkpoint", "kind": "checkpoint", "checkpoint": str(run / "checkpoint")},
        {"name": "codec resynthesis", "kind": "codec"},
    ]
    store = {"split": "dev", "rows": count, "source": {"name": "toy"}}
    facts = {"sentences": count, "store": store, "notes": ["A note of the report."], "asr": "base"}
    return build_report(rows, systems, config, **facts)


# --- what a card says ------------------------------------------------------------------------------------------------


def test_the_header_is_what_the_hub_reads(run, tmp_path):
    """By the hub's own client. Fails when a metric loses its value or a key is of another kind than the hub's."""
    change(run, "HKUSTAudio/Llasa-1B", "mls", "codec2")
    report = evaluated(run, tmp_path / "report")
    path = write_card(run / "checkpoint", report, tmp_path / "report")
    data = ModelCard.load(path).data
    assert path == run / "checkpoint/README.md"
    assert sorted(data.language) == ["de", "it"]
    assert (data.license, data.base_model) == ("cc-by-nc-4.0", "HKUSTAudio/Llasa-1B")
    assert (data.pipeline_tag, data.library_name, data.datasets) == ("text-to-speech", "transformers", ["me/mls"])
    assert data.tags == ["llasa", "text-to-speech", "codec2"]
    assert data.metrics == ["wer", "cer"]
    results = {result.metric_type: result for result in data.eval_results}
    assert {"wer", "cer", "similarity", "unfinished"} <= set(results)
    assert results["wer"].metric_value == pytest.approx(100 * 6 / 60)
    assert results["wer"].metric_args["low"] < 10 < results["wer"].metric_args["high"]
    assert results["wer"].dataset_name == "toy"
    assert results["wer"].dataset_split == "dev"
    assert results["similarity"].metric_value == pytest.approx(0.555)


def test_metrics_stand_with_their_intervals_and_ceilings(run, tmp_path):
    """Fails when an interval is left out, or is another system's."""
    report = evaluated(run, tmp_path / "report")
    text = write_card(run / "checkpoint", report, tmp_path / "report").read_text()
    mine, ceiling = (system["metrics"]["wer"] for system in report["systems"])
    line = next(line for line in text.splitlines() if line.startswith("| WER |"))
    shown = [f"{100 * mine[key]:.1f} %" for key in ("value", "low", "high")]
    assert line == f"| WER | {shown[0]} [{shown[1]}, {shown[2]}] | 0.0 % [0.0 %, 0.0 %] |"
    assert shown[0] == "10.0 %" != shown[1] != shown[2]
    assert ceiling["value"] == 0
    assert "| this model | codec resynthesis |" in text
    assert "12 sentences of the split `dev` of `toy`; in brackets intervals of 90%. Words were written" in text
    assert "- A note of the report." in text


def test_the_recipe_and_the_data_are_the_runs(run):
    text = write_card(run / "checkpoint", None).read_text()
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in metrics if "loss" in line][-1]
    config = yaml.safe_load((run / "config.yaml").read_text())
    for key, value in (
        ("steps", 2), ("tokens seen", f"{last['tokens']:,}"), ("last training loss", last["loss"]),
        ("learning rate", config["optimizer"]["lr"]), ("weights", "full"), ("seed", 0), ("tokens a row", 256),
    ):  # fmt: skip
        assert f"| {key} | {value} |" in text
    assert "trained from scratch" in text
    manifest = json.loads((Path(config["store"]) / "manifest.json").read_text())
    assert f"| toy | de, it | 20 | {manifest['seconds']:.1f} s | none |" in text
    assert "## Quality\n\nNot measured." in text
    assert "commit" in text


def test_samples_are_copied_and_linked(run, tmp_path):
    """Fails when the ceiling's clips are taken for the model's."""
    report = evaluated(run, tmp_path / "report")
    for _ in range(2):  # again: no more and no others
        text = write_card(run / "checkpoint", report, tmp_path / "report").read_text()
        files = sorted((run / "checkpoint/samples").iterdir())
        assert [file.name for file in files] == [f"0{i}.wav" for i in range(1, 6)]
    for file, index in zip(files, (0, 2, 4, 7, 9), strict=True):
        assert file.read_bytes() == (tmp_path / f"report/audio/run-checkpoint/{index}.wav").read_bytes()
        assert f"| [samples/{file.name}](samples/{file.name}) | Frase \\| numero {index}. |" in text


def test_a_moved_checkpoint_without_its_run_says_so(tmp_path):
    text = write_card(save_tiny(tmp_path / "alone"), {"systems": [{"name": "a", "metrics": {}}]}).read_text()
    for words in ("Not recorded: the run's folder", "data are not described here", "Not measured."):
        assert words in text
    assert ModelCard(text).data.license == "unknown"
    assert "language" not in yaml.safe_load(text.split("---")[1])


def test_a_store_that_is_gone_is_told(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"store": str(run / "no store")}))
    text = write_card(run / "checkpoint", None).read_text()
    assert "| data | the store no store | unknown | it is gone |" in text


@pytest.mark.parametrize("report", [{}, {"systems": []}, {"systems": [{"metrics": {"wer": {"value": 0.1}}}]}])
def test_a_report_that_lacks_something_is_no_error(run, report):
    text = write_card(run / "checkpoint", report).read_text()
    assert ("| WER | 10.0 % |" in text) == bool(report.get("systems"))


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is no checkpoint folder: it has no llasa\.json; pass the folder that train"):
        write_card(tmp_path, None)


# --- licences --------------------------------------------------------------------------------------------------------

SCRATCH = base_part(None)
FREE, UNFREE = data_part({"name": "cml_tts"}), data_part({"name": "emilia"})
CODEC2, XCODEC2 = codec_part({"name": "codec2"}), codec_part({"name": "xcodec2", "checkpoint": "HKUSTAudio/xcodec2-hf"})
LLASA, LLAMA = base_part("HKUSTAudio/Llasa-1B"), base_part("meta-llama/Llama-3.2-1B-Instruct")
NOBODYS = data_part({"name": "folder"})


@pytest.mark.parametrize(
    ("parts", "license", "names"),
    [
        ([SCRATCH, CODEC2, FREE], "cc-by-4.0", []),
        ([SCRATCH, CODEC2, data_part({"name": "common_voice"})], "cc0-1.0", []),
        ([LLAMA, CODEC2, FREE], "llama3.2", []),
        ([LLASA, CODEC2, FREE], "cc-by-nc-4.0", ["model HKUSTAudio/Llasa-1B"]),
        ([SCRATCH, XCODEC2, FREE], "cc-by-nc-4.0", ["codec xcodec2"]),
        ([SCRATCH, CODEC2, FREE, UNFREE], "cc-by-nc-4.0", ["data emilia"]),
        ([LLASA, XCODEC2, UNFREE], "cc-by-nc-4.0", ["model HKUSTAudio/Llasa-1B", "codec xcodec2", "data emilia"]),
        ([SCRATCH, CODEC2, data_part({"name": "espeak"})], "unknown", []),
        ([SCRATCH, CODEC2, FREE, NOBODYS], "unknown", []),
        ([LLASA, CODEC2, NOBODYS], "unknown", ["model HKUSTAudio/Llasa-1B"]),
    ],
)
def test_the_warning_appears_when_and_only_when_a_part_is_not_commercial(parts, license, names):
    """Fails when one of model, codec and data is not looked at, or an unknown part passes as free."""
    assert suggestion(parts) == license
    found = warnings(parts, license)
    commercial = [warning for warning in found if warning.startswith("Not for commercial use")]
    assert len(commercial) == bool(names)
    assert all(name in commercial[0] for name in names)
    assert sum("is unknown: state it" in warning for warning in found) == (license == "unknown")
    assert sum("is not known: find it out" in warning for warning in found) == (NOBODYS in parts)


def test_a_stated_licence_that_the_parts_forbid_is_warned_of():
    assert any("allows what these parts forbid" in warning for warning in warnings([LLASA], "mit"))
    assert not any("forbid" in warning for warning in warnings([LLASA], "cc-by-nc-sa-4.0"))
    assert warnings([FREE], "cc-by-4.0") == []


def test_weights_of_somebody_else_are_unknown(tmp_path):
    assert base_part("me/my-model").license == "unknown"
    assert codec_part({"name": "xcodec2", "checkpoint": "me/my-codec"}).license == "unknown"
    assert codec_part({"name": "toy"}).license == "unknown"
    assert base_part(str(tmp_path)).license == "unknown"
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# Card\n")
    assert base_part(str(tmp_path)) == Part("model", str(tmp_path), "cc-by-nc-4.0", "as its card states")
    assert data_part({"name": "folder"}, tmp_path).license == "cc-by-nc-4.0"


@pytest.mark.parametrize(
    ("changes", "license", "warned"),
    [
        ({"source": "cml_tts", "codec": "codec2"}, "cc-by-4.0", False),
        ({"source": "emilia", "codec": "codec2"}, "cc-by-nc-4.0", True),
        ({"source": "cml_tts", "codec": "xcodec2"}, "cc-by-nc-4.0", True),
        ({"source": "cml_tts", "codec": "codec2", "checkpoint": "HKUSTAudio/Llasa-1B"}, "cc-by-nc-4.0", True),
        ({"codec": "codec2"}, "unknown", False),
    ],
)
def test_the_card_of_a_run_warns_of_its_parts(run, changes, license, warned):
    change(run, **changes)
    text = write_card(run / "checkpoint", None).read_text()
    assert ModelCard(text).data.license == license
    assert ("> **Not for commercial use" in text) == warned
    assert f"| codec | {changes['codec']} |" in text
    stated = write_card(run / "checkpoint", None, license="cc-by-nc-sa-4.0").read_text()
    assert ModelCard(stated).data.license == "cc-by-nc-sa-4.0"
    assert "is unknown: state it" not in stated


# --- publishing ------------------------------------------------------------------------------------------------------


class Models(store_hub.Handler):
    """The hub of the stores' tests, with models instead of data sets at the addresses that models have."""

    def handle_request(self) -> None:
        self.path = re.sub(r"^/api/models/", "/api/datasets/", self.path)
        self.path = re.sub(r"^/([^/]+/[^/]+)(?=\.git/|/resolve/)", r"/datasets/\1", self.path)
        super().handle_request()

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def answer(self, value: Any = None, status: int = 200, **headers: str) -> None:
        if isinstance(value, dict) and "url" in value:
            value["url"] = value["url"].replace("/datasets/", "/")
        super().answer(value, status, **headers)

    def create(self, body: bytes) -> None:
        fields = json.loads(body)
        assert fields.get("type", "model") == "model"
        super().create(json.dumps(fields | {"type": "dataset"}).encode())

    def validate(self, body: bytes) -> None:
        fields = json.loads(body)
        assert fields["repoType"] == "model"
        super().validate(json.dumps(fields | {"repoType": "dataset"}).encode())


@pytest.fixture
def hub(monkeypatch) -> Iterator[store_hub.Hub]:
    monkeypatch.setattr(store_hub, "lfs", lambda path: path.endswith((".safetensors", ".wav")))
    monkeypatch.setattr(
        store_hub, "ROUTES", [(pattern, getattr(Models, method.__name__)) for pattern, method in store_hub.ROUTES]
    )
    monkeypatch.setattr(store_hub, "LICENSES", (*store_hub.LICENSES, "cc-by-nc-4.0"))
    server = store_hub.Hub()
    server.RequestHandlerClass = Models
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def run_program(hub: store_hub.Hub, home: Path, *calls: str) -> tuple[str, str]:
    """Output and errors of statements, in one process that may speak to the hub."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home / "home"),
        "HF_TOKEN": store_hub.TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(ROOT),
        "NO_PROXY": "127.0.0.1",
    }
    program = f"""
import sys
from pathlib import Path
from llasa.errors import UserError
from llasa.evaluation.publish import publish_checkpoint
for call in {calls}:
    try:
        exec(call)
    except UserError as error:
        print("error:", error, file=sys.stderr)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout, result.stderr


def call(folder: Path, name: str = "me/model", more: str = "") -> str:
    return f"publish_checkpoint(Path({str(folder)!r}), {name!r}{more})"


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_checkpoint_is_published_whole_and_again(hub, run, tmp_path):
    """Fails when a file is left out, weights go without LFS, or old samples stay. Refusals are in one line."""
    change(run, "HKUSTAudio/Llasa-1B", "mls", "codec2")
    write_card(run / "checkpoint", evaluated(run, tmp_path / "report"), tmp_path / "report")
    folder = run / "checkpoint"
    all_files = contents(folder)
    hub.files["me/other"], hub.private["me/other"] = {"model.bin": b"x"}, False
    hub.refuse = {"POST /api/repos/create theirs": 403}
    lost = f"Path({str(folder / 'samples/05.wav')!r}).unlink()"
    output, errors = run_program(
        hub, tmp_path, call(folder), lost, call(folder), call(folder, "me/other"), call(folder, "theirs")
    )
    assert output.count("warning: Not for commercial use: model HKUSTAudio/Llasa-1B") == 4
    assert output.count(f"published: {hub.url}/me/model\n") == 2
    assert len(hub.commits) == 2
    assert set(hub.commits[0]) == {f"+{name}" for name in all_files}
    assert {"README.md", "llasa.json", "model.safetensors", "config.json", "samples/05.wav"} <= set(all_files)
    assert hub.commits[1][-1] == "-samples/05.wav"
    sent = {name: content for name, content in hub.files["me/model"].items() if name != ".gitattributes"}
    assert sent == contents(folder) != all_files
    assert hub.private["me/model"] is True
    assert set(hub.objects.values()) >= {all_files["model.safetensors"], all_files["samples/05.wav"]}
    assert set(hub.files["me/other"]) == {"model.bin"}
    refusals = errors.splitlines()
    assert "me/other holds something else than a checkpoint of llasa; choose another name" in refusals[0]
    assert refusals[1].startswith("error: you may not write to theirs")
    assert len(refusals) == 2


def test_a_dry_run_lists_and_sends_nothing(run, tmp_path, monkeypatch, capsys):
    """Fails when it asks anybody anything: there is nobody, and the client is told to be offline."""

    def refuse(*_):
        raise AssertionError("a dry run opened a connection")

    change(run, "HKUSTAudio/Llasa-1B")
    before = contents(run)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert publish_checkpoint(run / "checkpoint", "me/model", dry_run=True).endswith("/me/model")
    output = capsys.readouterr().out
    size = (run / "checkpoint/model.safetensors").stat().st_size
    assert f"{in_bytes(size):>10}  model.safetensors\n" in output
    for words in ("README.md", "llasa.json", "licence: unknown", "warning: Not for commercial use", "nothing was sent"):
        assert words in output
    assert contents(run) == before
    with pytest.raises(UserError, match=r"push_to_hub='a b' is not valid"):
        publish_checkpoint(run / "checkpoint", "a b", dry_run=True)


def test_an_evaluation_hands_over_what_is_asked_for(run, tmp_path, capsys):
    def config(**fields: Any) -> EvaluateConfig:
        common = {"store": "x", "output": str(tmp_path / "report"), "engine": {}, "sampling": SamplingConfig()}
        return EvaluateConfig(**{"checkpoint": str(run / "checkpoint")} | common | fields)

    report = evaluated(run, tmp_path / "report")
    before = contents(run)
    check_hand_over(config())
    hand_over(config(), report)
    assert contents(run) == before
    dry = config(push_to_hub="me/model", push=PushConfig(dry_run=True), license="cc-by-nc-nd-4.0")
    check_hand_over(dry)
    hand_over(dry, report)
    assert ModelCard.load(run / "checkpoint/README.md").data.license == "cc-by-nc-nd-4.0"
    assert "licence: cc-by-nc-nd-4.0" in (output := capsys.readouterr().out)
    assert "samples/05.wav" in output
    with pytest.raises(UserError, match="is no checkpoint folder"):
        check_hand_over(config(checkpoint="HKUSTAudio/Llasa-1B", card=True))
    with pytest.raises(UserError, match=r"not logged in|switched off|does not know you"):
        check_hand_over(config(push_to_hub="me/model"))
    with pytest.raises(UserError, match=r"push_to_hub=me/model is for one checkpoint; pass checkpoint=DIR"):
        config(checkpoint=None, checkpoints=["a", "b"], push_to_hub="me/model")


def test_a_card_is_made_for_a_checkpoint_without_one(run):
    files = files_to_publish(run / "checkpoint")
    assert files["README.md"] == model_card(gather(run / "checkpoint")).encode()
    (run / "checkpoint/README.md").write_text("mine")
    assert files_to_publish(run / "checkpoint")["README.md"] == run / "checkpoint/README.md"


def test_a_folder_without_weights_is_refused(run):
    (run / "checkpoint/model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no weights \(\*\.safetensors\); let train\.py finish"):
        files_to_publish(run / "checkpoint")


@pytest.mark.parametrize(
    ("size", "text"), [(999, "999 B"), (1000, "1.0 kB"), (2_500_000, "2.5 MB"), (3e12, "3000.0 GB")]
)
def test_sizes_have_units(size, text):
    assert in_bytes(size) == text
