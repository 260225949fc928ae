"""A codec training that is cut off and goes on is the one that was not, to the last bit."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llasa.codec_training.job import CodecJob
from llasa.errors import UserError
from tests.codec_training.corpora import arguments, column, metrics, run, write_recordings

ROOT = Path(__file__).resolve().parents[2]
SAME = ("loss", "mel", "stft", "latent", "grad_norm", "lr", "rounding", "codes", "perplexity", "skipped")


class Killed(BaseException):
    """The process is gone."""


def run_and_kill_after(step, *arguments):
    """Leave no time for anything after step ``step``."""
    original = CodecJob.refuse_too_many_skipped

    def refuse(self):
        original(self)
        if self.trainer.step == step:
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):  # noqa: PT012 - the patch is no statement
        patch.setattr(CodecJob, "refuse_too_many_skipped", refuse)
        run(*arguments)


def require_same(folder, whole, names=SAME):
    for key in names:
        assert column(folder, key) == column(whole, key), key
    assert column(folder, "step") == column(whole, "step")
    for place in ("state/checkpoint-10/training.pt",):
        a, b = (torch.load(path / place, weights_only=True) for path in (folder, whole))
        assert_equal(a, b)
    a, b = (load_file(path / "checkpoint/model.safetensors") for path in (folder, whole))
    assert all(torch.equal(a[name], b[name]) for name in b)


def assert_equal(a, b, place=""):
    assert type(a) is type(b), place
    if isinstance(a, dict):
        assert a.keys() == b.keys(), place
        for key in a:
            assert_equal(a[key], b[key], f"{place}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), place
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{place}[{index}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), place
    else:
        assert a == b, place


NOISY = ["codec_model.noise_steps=3", "codec_model.mixed_steps=4", "codec_model.latent_penalty=1",
         "trainer.log_every=2"]  # fmt: skip


@pytest.fixture(scope="module")
def whole(recordings_corpus, tiny_codec, tmp_path_factory):
    """Ten steps of fine-tuning, with noise, mixed rounding and the model's own dropout. Tests copy it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(recordings_corpus, folder, f"codec_model.checkpoint={tiny_codec}", *NOISY)
    assert column(folder, "step") == [2, 4, 6, 8, 10]
    assert len(set(column(folder, "loss"))) == 5
    assert column(folder, "rounding") == [0.0, 0.2, 0.6, 1.0, 1.0]
    return folder


def test_killed_after_seven_steps_and_resumed_equals_uninterrupted(recordings_corpus, tiny_codec, whole, tmp_path):
    """Fails when the running mean, an optimizer's state, the sums since the last line (a state of step 5 lies between
    two), the codes that were seen or the seed of a step are lost."""
    settings = [f"codec_model.checkpoint={tiny_codec}", *NOISY]
    run_and_kill_after(7, recordings_corpus, tmp_path, *settings)
    assert [path.name for path in (tmp_path / "state").glob("checkpoint-*")] == ["checkpoint-5"]
    assert column(tmp_path, "step") == [2, 4, 6]
    last = run(recordings_corpus, tmp_path, *settings, "resume=true")
    require_same(tmp_path, whole)
    assert last == column(whole, "loss")[-1]


def test_with_discriminators_from_scratch_too(recordings_corpus, tmp_path):
    """Fails when discriminators or their optimizer are not restored, and when the frozen semantic branch of a model
    from scratch is drawn anew."""
    settings = ["codec_model=xcodec2_nano", "adversary=small", "adversary.start=3", "trainer.clips_per_step=1",
                "trainer.clips_per_device=1", "trainer.max_steps=6", "checkpoint.every=4"]  # fmt: skip
    run(recordings_corpus, tmp_path / "whole", *settings)
    run_and_kill_after(5, recordings_corpus, tmp_path / "run", *settings)
    run(recordings_corpus, tmp_path / "run", *settings, "resume=true")
    for key in ("loss", "adversarial", "feature_matching", "adversary/loss", "adversary/grad_norm"):
        assert column(tmp_path / "run", key) == column(tmp_path / "whole", key), key
    assert len(column(tmp_path / "whole", "adversarial")) == 3
    states = (torch.load(tmp_path / name / "state/checkpoint-6/training.pt", weights_only=True)
              for name in ("run", "whole"))  # fmt: skip
    assert_equal(*states)


def test_a_run_is_resumed_as_it_was_or_not_at_all(recordings_corpus, tiny_codec, whole, tmp_path, capsys):
    """Fails when the config is not compared, and when what lies in a folder is overwritten."""
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    settings = [f"codec_model.checkpoint={tiny_codec}", *NOISY]
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="holds a run already; continue it with resume=true"):
        run(recordings_corpus, folder, *settings)
    with pytest.raises(UserError, match=r"codec_model\.lr=0\.0001 \(not 1\.0\), seed=0 \(not 3\); .*force=true"):
        run(recordings_corpus, folder, *settings, "resume=true", "seed=3", "codec_model.lr=1.0")
    with pytest.raises(UserError, match=r"codec_model\.train=all \(not decoder\); resume it as it was, or start a new"):
        run(recordings_corpus, folder, *settings, "resume=true", "force=true", "codec_model.train=decoder")
    with pytest.raises(UserError, match="has 10 steps behind it, and this config ends after 9"):
        run(recordings_corpus, folder, *settings, "resume=true", "force=true", "trainer.max_steps=9")
    with pytest.raises(UserError, match="there is nothing to resume in"):
        run(recordings_corpus, tmp_path / "other", *settings, "resume=true")
    assert (folder / "metrics.jsonl").read_bytes() == before
    capsys.readouterr()
    added = ["adversary=small", "adversary.start=11", "trainer.max_steps=12"]
    run(recordings_corpus, folder, *settings, "resume=true", "force=true", *added)
    told = capsys.readouterr().err
    assert "adversary.name=small (was none)" in told
    assert "trainer.max_steps=12 (was 10)" in told
    assert column(folder, "step") == [2, 4, 6, 8, 10, 12]
    assert len(column(folder, "adversarial")) == 1


def test_another_model_under_the_same_name_is_noticed(recordings_corpus, tiny_codec, whole, tmp_path):
    """Fails when the fingerprint of what a run began with is not compared: its frozen part would be another's."""
    from tests.codec.tiny_xcodec2 import save_tiny_xcodec2

    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    moved = Path(shutil.copytree(tiny_codec, tmp_path / "moved"))
    try:
        shutil.rmtree(tiny_codec)
        save_tiny_xcodec2(tiny_codec, seed=1)
        with pytest.raises(UserError, match=r"is not the model that .* began with; put it back"):
            run(recordings_corpus, folder, f"codec_model.checkpoint={tiny_codec}", *NOISY, "resume=true")
    finally:
        shutil.rmtree(tiny_codec)
        shutil.copytree(moved, tiny_codec)


def test_a_resumed_run_needs_the_corpus_no_more(tiny_codec, tmp_path):
    """Fails when the recordings are decoded anew: what a run has in its folder is what it goes on with."""
    corpus = write_recordings(tmp_path / "corpus", {f"clip-{i}": 1.0 for i in range(3)})
    settings = [f"codec_model.checkpoint={tiny_codec}", "trainer.max_steps=2", "checkpoint.every=1"]
    run_and_kill_after(2, corpus, tmp_path / "run", *settings)
    shutil.rmtree(corpus)
    run(corpus, tmp_path / "run", *settings, "resume=true")
    assert column(tmp_path / "run", "step") == [1, 2]


@pytest.mark.parametrize(
    ("number", "status"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 0)]
)
def test_interrupted_it_saves_and_says_how_to_go_on(recordings_corpus, tiny_codec, tmp_path, number, status):
    """Fails when a signal ends the run at once, or leaves no state."""
    settings = [f"codec_model.checkpoint={tiny_codec}", "trainer.max_steps=5000", "checkpoint.every=5000"]
    command = [sys.executable, "train_codec.py", *arguments(recordings_corpus, tmp_path, *settings)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 120
        while not (tmp_path / "metrics.jsonl").exists() or not (tmp_path / "metrics.jsonl").read_bytes():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(number)
        _, told = process.communicate(timeout=120)
    assert process.returncode == status, told
    step = int(next((tmp_path / "state").glob("checkpoint-*")).name.rpartition("-")[2])
    assert f"stopped after step {step}; continue with resume=true output_dir={tmp_path}" in told
    assert [line["step"] for line in metrics(tmp_path)] == list(range(1, step + 1))
