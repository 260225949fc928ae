"""Hear the model while it trains: fixed sentences, spoken every so many steps.

    step N ─► the model as at inference ─► codes ─► the store's codec ─► RUN/samples/step-N/01.wav, 01.txt, 01.png
                                                                     └─► tracker: audio, mel pictures, samples/*

The sentences, the seed and the way to speak (that of infer.py) are always the same, so that what changes is the model.
What fails here costs the samples, never the run, and losses are those of a run without samples, bit by bit
(:mod:`llasa.training.speaking`).

Cost: as infer.py for one batch (at most `samples.max_seconds` of speech; the other processes of a ddp run wait), its
cache, and the codec in the device's memory from the first samples on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llasa.audio import write_wav
from llasa.config import SamplesConfig, SamplingConfig, TrainConfig
from llasa.config.shared import MULTILINGUAL
from llasa.corpus.espeak import SENTENCES
from llasa.corpus.recognition import Recognizer, character_error_rate
from llasa.device import agree, first_decides, is_first_process
from llasa.entry import group_config
from llasa.errors import UserError, first_line
from llasa.generation.run import build_codec
from llasa.generation.synthesizer import Synthesizer
from llasa.model.checkpoint import CheckpointCard, require_same_codec
from llasa.model.finetune import is_adapted
from llasa.model.llama import SpeechModel
from llasa.pictures import mel_picture, png_bytes
from llasa.tracking import Tracker
from llasa.training.speaking import EngineInTraining, generators_kept
from llasa.types import Speech

FOLDER = "samples"
NUM_SENTENCES = 3
MAX_LANGUAGES = 5


@dataclass(frozen=True)
class Sentence:
    text: str
    language: str
    """Decides how numbers and symbols are read, and what the recogniser listens for."""


def build_samples(
    config: TrainConfig,
    speech: SpeechModel,
    card: CheckpointCard,
    languages: Sequence[str],
    run: Path,
    *,
    device: str,
    precision: str,
    parallel: str,
) -> SamplesCallback | None:
    """The callback of `samples.*`; none where nothing is to be spoken, or another process does it.

    All processes must call it. Nothing is written; the callback's ``tracker`` is set when the run has one.

    Args:
        card: of the checkpoint that the run will end in: its training length bounds the speech.
        languages: codes that are trained on.
        precision: fp32 or bf16, of the training's arithmetic.
        parallel: single, ddp or fsdp.

    Raises:
        UserError: a text that cannot be spoken, or no recogniser at `samples.asr`.
    """
    settings = config.samples
    if settings.every == 0:
        return None
    base = speech.model.get_base_model() if is_adapted(speech.model) else speech.model
    engine = EngineInTraining(device=device, precision=precision, synced=parallel == "fsdp")
    synthesizer = Synthesizer(replace(speech, model=base, card=card), None, engine, languages[0])
    # At the first try: whether the model stops by itself is what the samples tell.
    bounds = {"max_seconds": settings.max_seconds, "retries": 0}
    sampling = SamplingConfig(**group_config("sampling", "default") | bounds)
    if settings.texts is not None:
        sentences = [Sentence(text, languages[0]) for text in settings.texts]
        for sentence in sentences:
            try:
                synthesizer.request(sentence.text, sampling)
            except UserError as error:
                raise UserError(f"samples.texts: {error}") from None
    else:
        sentences = shipped_sentences(languages, config.lang.code == MULTILINGUAL, synthesizer, sampling)
    if not sentences:
        return None
    # Loaded now, that a wrong name is told before the first step, and in the first process, which listens.
    loaded: list[Recognizer] = []
    if (asr := settings.asr) is not None:
        first_decides(lambda: loaded.append(load_recognizer(asr)), device)
    if parallel != "fsdp" and not is_first_process():
        return None
    engine.batch_size = len(sentences)
    heard_by = next(iter(loaded), None)
    return SamplesCallback(settings, sentences, synthesizer, sampling, run, device, heard_by, shared=engine.synced)


def shipped_sentences(
    languages: Sequence[str], multilingual: bool, synthesizer: Synthesizer, sampling: SamplingConfig
) -> list[Sentence]:
    """The first of each language's list that leave room for speech: three, or one of each of five languages.

    A language without a list, and one where nothing fits, is told in a line.
    """
    chosen: list[Sentence] = []
    for language in languages:
        if len(chosen) == MAX_LANGUAGES:
            break
        path = SENTENCES / f"{language}.txt"
        if not path.is_file():
            note(f"no samples in {language}, which has no sentences of its own here; samples.texts=[…] names some")
            continue
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
        fitting = [line for line in lines if fits(line, language, synthesizer, sampling)]
        if not fitting:
            length = synthesizer.speech.card.max_length
            note(f"no samples in {language}: its sentences are too long for a model that trains on {length:,} tokens")
        chosen += [Sentence(line, language) for line in fitting[: 1 if multilingual else NUM_SENTENCES]]
    return chosen


def fits(text: str, language: str, synthesizer: Synthesizer, sampling: SamplingConfig) -> bool:
    try:
        synthesizer.request(text, sampling, language=language)
    except UserError:
        return False
    return True


def load_recognizer(name: str) -> Recognizer:
    try:
        return Recognizer(name)
    except UserError as error:
        raise UserError(f"samples.{error}") from None


class SamplesCallback(TrainerCallback):
    """Speaks, writes and logs the samples.

    Attributes:
        tracker: of the first process, once the run has one.
        seconds: spent here so far, which are not the training's.
    """

    def __init__(
        self,
        config: SamplesConfig,
        sentences: Sequence[Sentence],
        synthesizer: Synthesizer,
        sampling: SamplingConfig,
        run: Path,
        device: str,
        recognizer: Recognizer | None,
        shared: bool = False,
    ) -> None:
        self.config, self.sentences, self.synthesizer, self.sampling = config, sentences, synthesizer, sampling
        self.folder, self.device, self.recognizer = run / FOLDER, device, recognizer
        self.tracker: Tracker | None = None
        self.seconds = 0.0
        self._shared = shared
        self._first = is_first_process()
        self._off = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._off or state.global_step % self.config.every:
            return
        start = time.perf_counter()
        with generators_kept(self.device):
            results = self._speak()
            if results:
                with self._or_off("the samples cannot be recorded"):
                    self._record(state.global_step, results)
        if self.device == "cuda":
            torch.cuda.empty_cache()  # of many small caches, no block of which fits a training step
        self.seconds += time.perf_counter() - start

    def _speak(self) -> list[Speech]:
        """In the first process what the sentences sound like now, else, or where it cannot be done, nothing."""
        if self._first and self.synthesizer.codec is None:
            with self._or_off("the codec cannot be built"):
                spec = self.synthesizer.speech.card.codec
                codec = build_codec(spec, None, self.device)
                require_same_codec(spec, codec.spec, "the store", "the codec")
                self.synthesizer.codec = codec
        if self._shared:
            self._off = agree(self._off, self.device)
        results: list[Speech] = []
        if not self._off:
            with self._or_off("the model cannot speak"):
                texts, languages = zip(*((s.text, s.language) for s in self.sentences), strict=True)
                seed = self.config.seed
                generated = self.synthesizer.generate(texts, self.sampling, seed=seed, languages=languages)
                if self._first:
                    results = self.synthesizer.decode(generated)
        return results

    def _record(self, step: int, results: Sequence[Speech]) -> None:
        """Files, whatever the logger is, and what the tracker gets."""
        audio = {
            f"{FOLDER}/{number:02d}": (result.waveform, result.sample_rate, sentence.text)
            for number, (sentence, result) in enumerate(zip(self.sentences, results, strict=True), start=1)
        }
        images = {f"{name}/mel": mel_picture(waveform, rate) for name, (waveform, rate, _) in audio.items()}
        metrics = {
            "step": step,
            "samples/seconds": round(float(np.mean([result.seconds for result in results])), 3),
            "samples/stopped": round(float(np.mean([result.finish_reason == "stop" for result in results])), 3),
        } | self._error_rate(results)
        folder = self.folder / f"step-{step:06d}"
        # A full disk costs these files alone.
        try:
            for name, (waveform, rate, text) in audio.items():
                path = folder / Path(name).name
                write_wav(path.with_suffix(".wav"), waveform, rate)
                path.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")
                path.with_suffix(".png").write_bytes(png_bytes(images[f"{name}/mel"]))
        except (OSError, soundfile.SoundFileError) as error:
            warn(f"the samples of step {step} cannot be written to {folder} ({first_line(error)})")
        if self.tracker is not None:
            self.tracker.log(metrics)
            self.tracker.log_media(step, audio=audio, images=images)
        shown = {name.partition("/")[2]: value for name, value in metrics.items() if name != "step"}
        tqdm.write(f"step {step}: {folder}, {', '.join(f'{name} {value:g}' for name, value in shown.items())}")

    def _error_rate(self, results: Sequence[Speech]) -> dict[str, float]:
        if self.recognizer is None:
            return {}
        try:
            rates = [
                character_error_rate(
                    sentence.text,
                    self.recognizer.transcribe(result.waveform, result.sample_rate, sentence.language),
                    sentence.language,
                )
                for sentence, result in zip(self.sentences, results, strict=True)
            ]
        except Exception as error:  # a recogniser is a library with a device of its own
            warn(f"samples.asr fails ({first_line(error)}) and is switched off")
            self.recognizer = None
            return {}
        return {"samples/cer": round(float(np.mean(rates)), 4)}

    @contextmanager
    def _or_off(self, failure: str) -> Iterator[None]:
        """What fails in the block ends the samples, with one warning."""
        try:
            yield
        except Exception as error:  # codecs and generation fail in many ways, and none may end the training
            self._off = True
            warn(f"{failure} ({first_line(error)}); training goes on without samples")


def warn(message: str) -> None:
    if is_first_process():
        tqdm.write(f"warning: {message}", file=sys.stderr)


def note(message: str) -> None:
    if is_first_process():
        print(f"note: {message}", file=sys.stderr)
