"""`train_codec.py` from recordings to a checkpoint that `preprocess.py` takes; in one process and in two."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from llasa.audio import read_audio
from llasa.codec.xcodec2 import XCodec2, load_model
from llasa.codec_training.trainer import CodecTrainer
from llasa.corpus.run import preprocess
from llasa.entry import compose_config
from llasa.errors import UserError
from tests.codec_training.corpora import RATE, arguments, column, metrics, run, write_recordings
from tests.corpus.recordings import write_folder_corpus

ROOT = Path(__file__).resolve().parents[2]


def command(*words, launcher=()):
    environment = {name: value for name, value in os.environ.items() if name != "WORLD_SIZE"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *launcher, *words], cwd=ROOT, capture_output=True, text=True, env=environment, check=False,
        timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def fine_tuned(recordings_corpus, tiny_codec, tmp_path_factory):
    """Ten steps of the command, with everything that is measured and heard."""
    folder = tmp_path_factory.mktemp("fine") / "run"
    settings = [f"codec_model.checkpoint={tiny_codec}", "heldout.every=5", "heldout.speakers=[bruno]",
                "heldout.share=0.2", "heldout.heard=1", "codec_model.lr=2e-3", "logger=tensorboard"]  # fmt: skip
    result = command("train_codec.py", *arguments(recordings_corpus, folder, *settings))
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"checkpoint: {folder / 'checkpoint'}" in result.stdout
    return folder


def test_it_learns_and_says_how_far_it_is(fine_tuned):
    """Fails when nothing is updated, when lines are lost, and when held-out voices are trained on."""
    assert len(column(fine_tuned, "loss")) == len(column(fine_tuned, "stft")) == 10
    lines = [line for line in metrics(fine_tuned) if "heldout/mel" in line]
    assert [line["step"] for line in lines] == [5, 10]
    assert {"heldout/mel_db", "heldout/codes", "heldout/perplexity", "heldout_voices/mel"} <= lines[-1].keys()
    assert lines[1]["heldout/mel"] < lines[0]["heldout/mel"] - 0.01
    last = metrics(fine_tuned)[-2]
    assert {"lr", "grad_norm", "steps_per_second", "codes", "perplexity", "audio_hours", "skipped"} <= last.keys()
    sounds = sorted(path.name for path in (fine_tuned / "samples/step-000010").glob("*.wav"))
    assert [name.partition("-clip")[0] for name in sounds] == ["heldout-01", "heldout_voices-01"]
    assert sorted(path.name for path in (fine_tuned / "samples/original").glob("*.wav")) == sounds
    assert not list((fine_tuned / "samples").glob("step-*/*.tmp"))
    record = json.loads((fine_tuned / "provenance.json").read_text())
    assert record["resolved"] == {"device": "cpu", "precision": "fp32", "processes": 1}
    card = (fine_tuned / "checkpoint/README.md").read_text()
    assert "| it / anna |" in card
    assert "it / bruno" not in card
    assert "voices bruno" in card


def test_what_is_heard_is_what_the_saved_codec_says(fine_tuned):
    """Fails when the samples are those of the weights of the last step and the checkpoint's the averaged ones (or the
    other way round), and when training's way through the codec is not the codec's."""
    codec = XCodec2(checkpoint=str(fine_tuned / "checkpoint"), device="cpu")
    for path in (fine_tuned / "samples/original").glob("*.wav"):
        original, heard = read_audio(path, RATE), read_audio(fine_tuned / "samples/step-000010" / path.name, RATE)
        spoken = codec.decode(codec.encode([original]))[0][: len(original)]
        np.testing.assert_allclose(np.clip(spoken, -1, 1), heard, atol=2 / 32768)


def test_the_checkpoint_holds_averaged_weights(fine_tuned, tiny_codec):
    saved = load_file(fine_tuned / "checkpoint/model.safetensors")
    state = torch.load(fine_tuned / "state/checkpoint-10/training.pt", weights_only=True)
    before = load_file(tiny_codec / "model.safetensors")
    for name, tensor in state["ema"].items():
        assert torch.equal(saved[name], tensor), name
    changed = [name for name in state["ema"] if not torch.equal(state["ema"][name], state["model"][name])]
    assert len(changed) > 100
    assert not any(name.startswith("semantic_encoder.") for name in state["ema"])
    assert all(torch.equal(saved[name], before[name]) for name in before if name.startswith("semantic_encoder."))


def test_the_average_keeps_as_much_as_it_is_told(recordings_corpus, tiny_codec, tmp_path):
    """Fails when the shares of the average and of the last weights change places."""
    settings = [f"codec_model.checkpoint={tiny_codec}", "trainer.max_steps=3", "checkpoint.every=1"]
    run(recordings_corpus, tmp_path / "run", *settings, "trainer.ema_decay=0.15")
    states = [
        torch.load(tmp_path / f"run/state/checkpoint-{step}/training.pt", weights_only=True) for step in (1, 2, 3)
    ]
    for before, after, decay in zip(states, states[1:], (0.15, 0.15), strict=False):
        for name, average in after["ema"].items():
            expected = decay * before["ema"][name] + (1 - decay) * after["model"][name]
            torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-7)
    start = load_file(tiny_codec / "model.safetensors")
    name = "acoustic_decoder.head.linear.weight"  # the first step keeps a tenth, whatever is asked for
    expected = 0.1 * start[name] + 0.9 * states[0]["model"][name]
    torch.testing.assert_close(states[0]["ema"][name], expected, rtol=1e-5, atol=1e-7)


def test_the_checkpoint_makes_a_store(fine_tuned, tmp_path):
    """Fails when what is saved is no codec to `preprocess.py`."""
    corpus = write_folder_corpus(tmp_path / "corpus", 4, seed=0, seconds=1.0)
    settings = ["dataset=folder", f"dataset.path={corpus}", "lang=it", "codec=xcodec2", f"store={tmp_path / 'store'}",
                f"codec.checkpoint={fine_tuned / 'checkpoint'}", "filters.characters_per_second=null"]  # fmt: skip
    manifest = preprocess(compose_config("preprocess", settings))
    assert manifest["codec"]["checkpoint"] == str(fine_tuned / "checkpoint")
    codes = np.concatenate(pq.read_table(tmp_path / "store/train")["codes"].to_pylist())
    assert len(codes) > 100
    assert len(np.unique(codes)) > 20


def test_only_the_decoder(recordings_corpus, tiny_codec, tmp_path):
    """Fails when the encoder moves: the codes of all stores would change."""
    run(recordings_corpus, tmp_path, f"codec_model.checkpoint={tiny_codec}", "codec_model.train=decoder",
        "trainer.max_steps=2")  # fmt: skip
    before, after = load_model(str(tiny_codec)).state_dict(), load_model(str(tmp_path / "checkpoint")).state_dict()
    moved = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"acoustic_decoder", "quantizer"}
    assert torch.equal(before["quantizer.project_in.weight"], after["quantizer.project_in.weight"])
    assert "latent" not in metrics(tmp_path)[0]


def test_accumulated_parts_are_the_whole_step(recordings_corpus, tiny_codec, tmp_path):
    """Fails when gradients are added instead of averaged, or a clip is taken twice."""
    settings = [f"codec_model.checkpoint={still(tiny_codec, tmp_path)}", "trainer.clips_per_step=4", "losses.stft=0",
                "trainer.max_steps=3"]  # fmt: skip
    run(recordings_corpus, tmp_path / "whole", *settings, "trainer.clips_per_device=4")
    run(recordings_corpus, tmp_path / "parts", *settings, "trainer.clips_per_device=1")
    for key in ("loss", "grad_norm"):
        assert column(tmp_path / "parts", key) == pytest.approx(column(tmp_path / "whole", key), rel=1e-4), key


def still(checkpoint, folder):
    """The model without dropout, which no two ways to divide a step draw alike."""
    model = load_model(str(checkpoint))
    model.config.activation_dropout = 0.0
    model.save_pretrained(folder / "still")
    return folder / "still"


@pytest.mark.slow
def test_two_processes_learn_what_one_does(recordings_corpus, tiny_codec, tmp_path):
    """Fails when the processes take the same clips, or do not average gradients, of discriminators too; and when the
    logged losses are the first process's."""
    settings = [f"codec_model.checkpoint={still(tiny_codec, tmp_path)}", "trainer.clips_per_step=4", "losses.stft=0",
                "trainer.clips_per_device=4", "trainer.max_steps=4", "checkpoint.every=2", "adversary=small",
                "adversary.feature_matching=0", "adversary.start=1"]  # fmt: skip
    run(recordings_corpus, tmp_path / "one", *settings)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    result = command("train_codec.py", *arguments(recordings_corpus, tmp_path / "two", *settings), launcher=launcher)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("checkpoint: ") == 1
    assert json.loads((tmp_path / "two/provenance.json").read_text())["resolved"]["processes"] == 2
    for key in ("loss", "mel", "adversarial", "adversary/loss", "grad_norm", "adversary/grad_norm"):
        assert column(tmp_path / "two", key) == pytest.approx(column(tmp_path / "one", key), rel=2e-3), key
    one, two = (load_file(tmp_path / name / "checkpoint/model.safetensors") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-4, rtol=1e-3)


def test_a_step_that_is_no_number_changes_nothing_and_many_end_the_run(
    recordings_corpus, tiny_codec, tmp_path, monkeypatch
):
    """Fails when such a gradient reaches the weights or the running mean, or is not counted."""
    original = CodecTrainer._backward

    def backward(self, waveforms, *rest):
        if self.step in (2, 3) or self.step >= 6:
            waveforms = waveforms.clone()
            waveforms[0, 5] = float("nan")
        return original(self, waveforms, *rest)

    monkeypatch.setattr(CodecTrainer, "_backward", backward)
    with pytest.raises(UserError, match="the losses or gradients of 3 steps in a row, up to step 9, are not numbers"):
        run(recordings_corpus, tmp_path, f"codec_model.checkpoint={tiny_codec}", "trainer.max_skipped=3",
            "checkpoint.every=2")  # fmt: skip
    assert column(tmp_path, "skipped") == [0, 0, 1, 2, 2, 2, 3, 4]
    assert [line["loss"] is None for line in metrics(tmp_path)] == [False, False, True, True, False, False, True, True]
    two, four, six, eight = (
        torch.load(tmp_path / f"state/checkpoint-{step}/training.pt", weights_only=True) for step in (2, 4, 6, 8)
    )
    for kind in ("model", "ema"):
        assert all(torch.equal(two[kind][name], four[kind][name]) for name in two[kind])
        assert all(torch.equal(six[kind][name], eight[kind][name]) for name in six[kind])
        assert not all(torch.equal(four[kind][name], six[kind][name]) for name in four[kind])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["recordings.clip_seconds=4"], r"recordings\.clip_seconds=4 is more than the longest .*1\.80 s; use shorter"),
        (["codec_model.checkpoint=/no/such"], r"^codec_model\.checkpoint=/no/such: no such folder; set codec_model\."),
        (["heldout.speakers=[brun]"], r"no speaker 'brun'; did you mean bruno\?"),
        (["heldout.speakers=[anna,bruno]"], r"all recordings are held out"),
        (["filters.min_sample_rate=44100"], r"no recording of folder can be used \(12 low_sample_rate\); .*16000 Hz"),
        (["dataset=llasa_memmap"], r"llasa_memmap|memmap|tokenizer"),
        (["heldout.ids=/no/such"], r"heldout\.ids=/no/such cannot be read"),
        (["filters.max_seconds=0.35"], r"no recording of folder can be used \(12 too_long\)"),
    ],
)
def test_mistakes_are_told_before_the_first_step(recordings_corpus, tiny_codec, tmp_path, overrides, message):
    """Fails when one of them ends in a traceback or leaves metrics behind."""
    with pytest.raises(UserError, match=message):
        run(recordings_corpus, tmp_path, f"codec_model.checkpoint={tiny_codec}", *overrides)
    assert not (tmp_path / "metrics.jsonl").exists()
    assert not (tmp_path / ".recordings.partial").exists()


def test_a_checkpoint_of_another_kind_is_refused(recordings_corpus, tmp_path):
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama/config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match=r"codec_model\.checkpoint=.*: a model of type 'llama', not 'xcodec2'"):
        run(recordings_corpus, tmp_path / "run", f"codec_model.checkpoint={tmp_path / 'llama'}")


def test_clips_that_processes_cannot_share_are_refused(recordings_corpus, tiny_codec, tmp_path, monkeypatch):
    from llasa.codec_training.run import require_whole_shares

    config = compose_config("train_codec", arguments(recordings_corpus, tmp_path, "trainer.clips_per_step=2"))
    require_whole_shares(config)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match=r"trainer\.clips_per_step=2 cannot be shared by 3 processes"):
        require_whole_shares(config)


def test_from_scratch_in_fp16(recordings_corpus, tmp_path):
    """Fails when the nano is stored as it is trained, or is not fitted to the clips (its codes would be few)."""
    run(recordings_corpus, tmp_path, "codec_model=xcodec2_nano", "trainer.max_steps=1", "heldout.every=1")
    file = tmp_path / "checkpoint/model.safetensors"
    assert file.stat().st_size < 12e6
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}
    codec = XCodec2(checkpoint=str(tmp_path / "checkpoint"), device="cpu")
    assert codec.spec.codebook_size == 65_536
    (codes,) = codec.encode([read_audio(write_recordings(tmp_path, {"a": 2.0}) / "a.wav", RATE)])
    assert len(codes) == 101
    assert len(np.unique(codes)) > 50


@pytest.mark.slow  # half a minute of compilation
def test_compiled_activations_change_the_time_alone(recordings_corpus, tiny_codec, tmp_path):
    """Through a measurement and the saved checkpoint, too."""
    settings = [f"codec_model.checkpoint={tiny_codec}", "heldout.every=5", "heldout.share=0.2", "trainer.max_steps=5"]
    for name, compile in (("plain", "false"), ("fused", "true")):
        run(recordings_corpus, tmp_path / name, *settings, f"trainer.compile={compile}")
    for key in ("loss", "heldout/mel"):
        plain, fused = (column(tmp_path / name, key) for name in ("plain", "fused"))
        assert len(plain) in (1, 5)
        assert fused == pytest.approx(plain, rel=1e-3)
    codes = [XCodec2(checkpoint=str(tmp_path / name / "checkpoint"), device="cpu") for name in ("plain", "fused")]
    original = np.sin(np.arange(RATE) / 9, dtype=np.float32) * 0.3
    plain, fused = (codec.encode([original])[0] for codec in codes)
    assert (plain == fused).mean() > 0.9
