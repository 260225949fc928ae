"""What is heard while a model trains is what its checkpoint says, and the training does not notice."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

import llasa.training.job as job_module
from llasa.audio import decode_audio
from llasa.config import FinetuneConfig, SamplesConfig, SamplingConfig
from llasa.corpus.espeak import SENTENCES, EspeakSource
from llasa.entry import compose_config
from llasa.errors import UserError
from llasa.generation.decoding import Decoder
from llasa.generation.engine import Request
from llasa.generation.run import infer
from llasa.generation.synthesizer import Synthesizer
from llasa.model.activation_checkpointing import apply_activation_checkpointing
from llasa.model.finetune import apply_finetune
from llasa.pictures import mel_picture
from llasa.tracking import Tracker
from llasa.training.run import train
from llasa.training.samples import SamplesCallback, Sentence, load_recognizer, shipped_sentences
from llasa.training.speaking import EngineInTraining, as_at_inference, generators_kept
from llasa.types import Speech
from tests.conftest import SMALL_LLAMA, write_toy_store
from tests.model.tiny import tiny_speech_model

ROOT = Path(__file__).resolve().parents[2]
FAST = [*SMALL_LLAMA, "optimizer=adamw", "optimizer.lr=1e-2", "trainer.rows_per_step=1", "trainer.rows_per_device=1",
        "trainer.log_every=1", "checkpoint.every=0", "samples.max_seconds=0.5"]  # fmt: skip
MEDIA: list[tuple[int, dict, dict]] = []


class RecordingTracker(Tracker):
    """The real one, which also remembers the sounds and pictures that it was given."""

    def log_media(self, step, audio=None, images=None):
        MEDIA.append((step, audio, images))
        super().log_media(step, audio=audio, images=images)


@pytest.fixture(autouse=True)
def media(monkeypatch):
    MEDIA.clear()
    monkeypatch.setattr(job_module, "Tracker", RecordingTracker)
    return MEDIA


def run(store, folder, *overrides):
    return train(compose_config("train", [*FAST, f"store={store}", f"output_dir={folder}", *overrides]))


def lines(folder, key):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if key in line]


def assert_what_infer_says(folder, step, *overrides):
    """The sentences in a file, spoken by infer.py with the samples' settings, are the samples' bytes."""
    samples = folder / "samples" / f"step-{step:06d}"
    texts = "".join(path.read_text() for path in sorted(samples.glob("*.txt")))
    assert texts.count("\n") == 3
    (folder / "texts.txt").write_text(texts)
    infer(compose_config("infer", [f"checkpoint={folder}/checkpoint", f"texts={folder}/texts.txt", "device=cpu",
                                   f"output={folder}/inferred", "sampling.max_seconds=0.5", "sampling.retries=0",
                                   *overrides]))  # fmt: skip
    for path in sorted(samples.glob("*.wav")):
        assert path.read_bytes() == (folder / "inferred" / path.name).read_bytes()


# --- what is heard ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(espeak_store, tmp_path_factory):
    """Two steps with samples after each, and what the tracker was given."""
    folder = tmp_path_factory.mktemp("samples") / "run"
    MEDIA.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_module, "Tracker", RecordingTracker)
        run(espeak_store, folder, "trainer.max_steps=2", "samples.every=1", "samples.seed=7")
    return folder, list(MEDIA)


def test_samples_sound_as_the_checkpoint_of_their_step(trained):
    """Fails with another seed, and when the weights are those of another step."""
    folder, _ = trained
    first, last = ([path.read_bytes() for path in sorted((folder / "samples").glob(f"step-00000{step}/*.wav"))]
                   for step in (1, 2))  # fmt: skip
    assert len(first) == len(last) == 3
    assert first != last, "the model learns between the samples"
    assert len(set(last)) == 3
    assert_what_infer_says(folder, 2, "seed=7")


def test_files_metrics_and_media_agree(trained):
    """Fails when a sound, a picture or a number belongs to another sentence or step."""
    folder, media = trained
    expected = (SENTENCES / "it.txt").read_text(encoding="utf-8").splitlines()[:3]
    assert [step for step, _, _ in media] == [1, 2]
    measured = lines(folder, "samples/seconds")
    assert [line["step"] for line in measured] == [1, 2]
    assert [line["step"] for line in lines(folder, "loss")] == [1, 2]
    for (step, audio, images), line in zip(media, measured, strict=True):
        samples = folder / "samples" / f"step-{step:06d}"
        assert sorted(path.name for path in samples.iterdir()) == [
            f"0{i}.{suffix}" for i in (1, 2, 3) for suffix in ("png", "txt", "wav")
        ]
        assert list(audio) == ["samples/01", "samples/02", "samples/03"]
        assert list(images) == [f"{name}/mel" for name in audio]
        seconds = []
        for (name, (waveform, rate, text)), sentence in zip(audio.items(), expected, strict=True):
            path = samples / name.rpartition("/")[2]
            assert text == sentence == path.with_suffix(".txt").read_text().strip()
            written, rate_written = soundfile.read(path.with_suffix(".wav"), dtype="float32")
            assert rate == rate_written == 8_000
            np.testing.assert_allclose(written, np.clip(waveform, -1, 1), atol=1e-4)
            assert np.abs(waveform).max() > 1e-3
            np.testing.assert_array_equal(images[f"{name}/mel"], mel_picture(waveform, rate))
            np.testing.assert_array_equal(np.array(Image.open(path.with_suffix(".png"))), images[f"{name}/mel"])
            seconds.append(len(waveform) / rate)
        assert 0 < line["samples/seconds"] == pytest.approx(np.mean(seconds), abs=1e-3)
        assert line["samples/stopped"] == pytest.approx(np.mean([s < 0.5 for s in seconds]), abs=1e-3)
        assert "samples/cer" not in line


@pytest.mark.parametrize("steps", [[], ["samples.every=0"], ["samples.every=4"]])
def test_no_samples_where_none_are_due(espeak_store, tmp_path, steps):
    run(espeak_store, tmp_path / "run", "trainer.max_steps=1", *steps)
    assert not (tmp_path / "run/samples").exists()
    assert lines(tmp_path / "run", "samples/seconds") == []


def test_adapters_speak_as_their_merged_checkpoint(trained, espeak_store, tmp_path):
    """Fails when the adapters' dropout stays on (training mode)."""
    base = [f"model.checkpoint={trained[0]}/checkpoint", "model.architecture=null"]
    lora = ["finetune=lora", "finetune.dropout=0.5", "trainer.max_steps=1", "samples.every=1", "optimizer.lr=0.1"]
    run(espeak_store, tmp_path / "run", *base, *lora, "samples.seed=7")
    assert_what_infer_says(tmp_path / "run", 1, "seed=7")
    of_base = trained[0] / "samples/step-000002/01.wav"
    assert (tmp_path / "run/samples/step-000001/01.wav").read_bytes() != of_base.read_bytes()


# --- what the training notices ---------------------------------------------------------------------------------------


def test_losses_and_weights_are_those_without_samples(trained, espeak_store, tmp_path):
    """Bit by bit, with dropout, which draws from torch's generator. Fails without `generators_kept`, when the model
    stays in evaluation mode, and when attention is not put back (sdpa rounds otherwise)."""
    settings = ["finetune=lora", "finetune.dropout=0.5", f"model.checkpoint={trained[0]}/checkpoint",
                "model.architecture=null", "trainer.max_steps=3",
                "trainer.activation_checkpointing=full"]  # fmt: skip
    for every in (0, 1):
        run(espeak_store, tmp_path / str(every), *settings, f"samples.every={every}")
    assert len(list((tmp_path / "1/samples").glob("*/*.wav"))) == 9
    without, beside = ([line["loss"] for line in lines(tmp_path / str(every), "loss")] for every in (0, 1))
    assert without == beside
    assert len(set(without)) == 3
    a, b = (load_file(tmp_path / str(every) / "checkpoint/model.safetensors") for every in (0, 1))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_model_is_put_back_exactly(tmp_path):
    """Also after an error. Fails when all modules end in one mode, or with another `forward` or attention."""
    speech = tiny_speech_model(attn="sdpa_varlen", spread=0.2)
    model = apply_finetune(speech.model, FinetuneConfig(name="lora", rank=4, dropout=0.25), None).get_base_model()
    apply_activation_checkpointing(model, "full")
    model.train()
    model.model.layers[0].eval()
    modes, forward = [module.training for module in model.modules()], model.forward
    assert set(modes) == {True, False}
    for error in (None, RuntimeError):
        try:
            with as_at_inference(model):
                assert model.forward.__func__ is LlamaForCausalLM.forward
                assert (model.training, model.config._attn_implementation) == (False, "sdpa")
                if error:
                    raise error
        except RuntimeError:
            assert error
        assert [module.training for module in model.modules()] == modes
        assert model.forward is forward
        assert (model.config._attn_implementation, model.config.use_cache) == ("sdpa_varlen", False)


def test_generators_go_on_where_they_were():
    def draw():
        return torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002 - the one that is kept

    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    expected = [draw(), draw()]
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    found = [draw()]
    with contextlib.suppress(KeyError), generators_kept("cpu"):
        draw()
        torch.manual_seed(5)
        raise KeyError
    assert [*found, draw()] == expected


def test_bf16_is_the_arithmetic_of_a_training_in_bf16():
    """The codec's and the caller's stays as it was. Fails without autocast around the generation."""
    speech = tiny_speech_model(spread=0.5)
    seen = []
    speech.model.model.layers[-1].mlp.register_forward_hook(lambda module, given, result: seen.append(result.dtype))
    requests = [Request(speech.prompt.prompt(text), 4) for text in ("Ciao", "Come stai oggi?")]
    for precision in ("bf16", "fp32"):
        engine = EngineInTraining(device="cpu", precision=precision, synced=False)
        engine.generate(speech, requests, SamplingConfig(temperature=0.0))
        assert not torch.is_autocast_enabled("cpu")
    assert seen[0] == torch.bfloat16
    assert seen[-1] == torch.float32


@pytest.mark.slow
def test_compiled_layers_speak_uncompiled_and_go_on(espeak_store, tmp_path):
    """Fails when the layers' compiled code is called with a cache: it would be compiled again for each length."""
    for every in (0, 1):
        settings = ["kernels.compile=true", "trainer.max_steps=3", f"samples.every={every}"]
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        run(espeak_store, tmp_path / str(every), *settings)
        if every == 0:
            graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs > 0
    assert [line["loss"] for line in lines(tmp_path / "0", "loss")] == [
        line["loss"] for line in lines(tmp_path / "1", "loss")
    ]
    assert_what_infer_says(tmp_path / "1", 3)


# --- several processes -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_the_first_of_two_processes_is_heard(espeak_store, tmp_path, parallel):
    """Fails when both write, when one waits for the other for ever, and when weights in shares speak otherwise or, with
    fsdp, learn otherwise (to the last bit) for having spoken."""
    settings = ["trainer.max_steps=2", f"parallel={parallel}", f"store={espeak_store}", "trainer.rows_per_step=2"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {name: value for name, value in os.environ.items() if name != "WORLD_SIZE"} | {"OMP_NUM_THREADS": "1"}
    for every in (1, 0) if parallel == "fsdp" else (1,):
        arguments = [*FAST, *settings, f"samples.every={every}", f"output_dir={tmp_path}/{every}"]
        result = subprocess.run(
            [sys.executable, *launcher, "train.py", *arguments],
            cwd=ROOT, capture_output=True, text=True, env=environment, check=False, timeout=200,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr[-3000:]
        assert "warning" not in result.stderr
        assert result.stdout.count("step-000001") == result.stdout.count("step-000002") == every
    assert [line["step"] for line in lines(tmp_path / "1", "samples/seconds")] == [1, 2]
    assert_what_infer_says(tmp_path / "1", 2)
    if parallel == "fsdp":
        beside, without = (load_file(tmp_path / str(every) / "checkpoint/model.safetensors") for every in (1, 0))
        assert all(torch.equal(beside[name], without[name]) for name in without)


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_codec_that_is_not_there_costs_the_samples_only(toy_store, tmp_path, capsys):
    """Fails when the error passes, and when the codec is asked for again at every step."""
    run(toy_store, tmp_path / "run", "trainer.max_steps=3", "samples.every=1")
    errors = capsys.readouterr().err
    assert errors.count("warning: ") == 1
    assert "warning: the codec cannot be built (there is no codec named 'toy'" in errors
    assert [line["step"] for line in lines(tmp_path / "run", "loss")] == [1, 2, 3]
    assert (tmp_path / "run/checkpoint/model.safetensors").is_file()
    assert not (tmp_path / "run/samples").exists()


def test_a_model_that_cannot_speak_goes_on_training(espeak_store, tmp_path, capsys, monkeypatch):
    """Memory that runs out in the middle of a generation. Fails when the model is left in evaluation mode."""

    def step(self):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(Decoder, "step", step)
    run(espeak_store, tmp_path / "run", "trainer.max_steps=3", "samples.every=1")
    errors = capsys.readouterr().err
    assert errors.count("warning: ") == 1
    assert "warning: the model cannot speak (CUDA out of memory.); training goes on without samples" in errors
    assert len(lines(tmp_path / "run", "loss")) == 3


def test_a_disk_without_room_costs_these_files_only(espeak_store, tmp_path, capsys, media):
    """A file stands where the folder of one step should. Fails when the numbers or the later samples are lost too."""
    blocked = tmp_path / "run/samples/step-000001"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("")
    run(espeak_store, tmp_path / "run", "trainer.max_steps=2", "samples.every=1")
    errors = capsys.readouterr().err
    assert errors.count("warning: the samples of step 1 cannot be written to") == errors.count("warning: ") == 1
    assert [line["step"] for line in lines(tmp_path / "run", "samples/seconds")] == [1, 2]
    assert [step for step, _, _ in media] == [1, 2]
    assert (tmp_path / "run/samples/step-000002/03.png").is_file()


@pytest.mark.parametrize(
    ("message", "override"),
    [
        ("samples.texts: text='…' has nothing to say", "samples.texts=['Ciao','…']"),
        ("samples.texts: the prompt alone has", f"samples.texts=[{'ciao ' * 400}]"),
        ("samples.asr=/nowhere/whisper is no folder", "samples.asr=/nowhere/whisper"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(espeak_store, tmp_path, message, override):
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        run(espeak_store, tmp_path / "run", override)
    assert not (tmp_path / "run").exists()


# --- which sentences -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def synthesizer():
    speech = tiny_speech_model(spread=0.5)
    speech = replace(speech, card=replace(speech.card, max_length=512))
    engine = EngineInTraining(device="cpu", precision="fp32", synced=False)
    return Synthesizer(speech, None, engine, "it")


def test_three_sentences_of_a_language_and_one_of_each_of_several(synthesizer, capsys):
    """Fails when a language beyond the fifth speaks, and when one without a list is passed over in silence."""
    sampling = SamplingConfig()
    de = (SENTENCES / "de.txt").read_text(encoding="utf-8").splitlines()
    assert shipped_sentences(["de"], False, synthesizer, sampling) == [Sentence(line, "de") for line in de[:3]]
    several = shipped_sentences(["xx", "it", "de", "en", "fr", "es", "pl"], True, synthesizer, sampling)
    assert [sentence.language for sentence in several] == ["it", "de", "en", "fr", "es"]
    assert several[1].text == de[0]
    assert capsys.readouterr().err.count("note: no samples in xx") == 1


def test_sentences_that_leave_no_room_are_passed_over(synthesizer, capsys):
    lengths = [len(synthesizer.request(line, SamplingConfig()).prompt)
               for line in (SENTENCES / "it.txt").read_text(encoding="utf-8").splitlines()]  # fmt: skip
    speech = synthesizer.speech
    short = Synthesizer(speech, None, synthesizer.engine, "it")
    short.speech = replace(speech, card=replace(speech.card, max_length=sorted(lengths)[4] + 3))
    found = shipped_sentences(["it"], False, short, SamplingConfig())
    fitting = [length for length in lengths if length <= sorted(lengths)[4]][:3]
    assert [len(short.request(sentence.text, SamplingConfig()).prompt) for sentence in found] == fitting
    short.speech = replace(speech, card=replace(speech.card, max_length=min(lengths)))
    assert shipped_sentences(["it"], False, short, SamplingConfig()) == []
    assert "too long for a model that trains on" in capsys.readouterr().err


def test_a_language_without_sentences_trains_without_samples(tmp_path, capsys):
    store = write_toy_store(tmp_path / "store", languages=("sv",))
    lang = ["lang.code=sv", "lang.name=Swedish", "lang.corpus_config=swedish"]
    run(store, tmp_path / "run", *lang, "trainer.max_steps=1", "samples.every=1")
    errors = capsys.readouterr().err
    assert errors.count("note: no samples in sv, which has no sentences of its own here") == 1
    assert "warning" not in errors


def test_each_text_is_read_in_its_language(synthesizer):
    """Fails when the first language reads all numbers."""
    texts = ["3", "3"]
    greedy = SamplingConfig(temperature=0.0, max_seconds=0.2)
    requests = [synthesizer.request(text, greedy, language=language)
                for text, language in zip(texts, ("it", "de"), strict=True)]  # fmt: skip
    decoded = [synthesizer.speech.tokenizer.decode(request.prompt) for request in requests]
    assert "tre" in decoded[0]
    assert "drei" in decoded[1]
    together = synthesizer.generate(texts, greedy, languages=["it", "de"])
    expected = synthesizer.engine.generate(synthesizer.speech, requests, greedy)
    assert [result.codes.tolist() for result in together] == [result.codes.tolist() for result in expected]
    assert together[0].codes.tolist() != together[1].codes.tolist()


# --- with a recogniser -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("LLASA_TEST_ASR"), reason="LLASA_TEST_ASR names no Whisper folder")
def test_the_error_rate_is_that_of_what_was_to_be_said(synthesizer, tmp_path):
    """Real sentences, and the same sounds under each other's texts. Fails when a sound meets another's text."""
    recognizer = load_recognizer(os.environ["LLASA_TEST_ASR"])
    source = EspeakSource(language="en", voices=["m3"], words_per_minute=150, validation=0, test=0, limit=2)
    texts, rates = [], {}
    results = []
    for index in range(2):
        row = source.row("train", index)
        texts.append(row.text)
        waveform, rate = decode_audio(row.audio)
        results.append(Speech(waveform, rate, np.zeros(1), "stop", len(waveform) / rate))
    for name, order in (("right", [0, 1]), ("swapped", [1, 0])):
        sentences = [Sentence(texts[index], "en") for index in order]
        folder = tmp_path / name
        callback = SamplesCallback(SamplesConfig(), sentences, synthesizer, SamplingConfig(), folder, "cpu", recognizer)
        callback.tracker = Tracker(folder, compose_config("train", ["logger=none"]).logger, {})
        callback._record(5, results)
        callback.tracker.close()
        rates[name] = lines(folder, "samples/cer")[0]["samples/cer"]
    assert rates["right"] < 0.35 < 0.6 < rates["swapped"]
