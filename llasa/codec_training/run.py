"""The job behind `train_codec.py`: recordings, model, steps, checkpoint.

RUN/config.yaml, provenance.json   what ran
RUN/recordings                     the corpus as samples (`recordings.folder` names another place)
RUN/metrics.jsonl                  a line every `trainer.log_every` steps, and for each measurement
RUN/samples                        held-out recordings, as they are and as the codec gives them back
RUN/state/checkpoint-N             what `resume=true` continues from
RUN/checkpoint                     the result, renewed with every state: what `codec.checkpoint=` takes
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from transformers import Xcodec2Model

from llasa.build import build
from llasa.codec.xcodec2 import fingerprint, load_model
from llasa.codec_training.activations import fuse_activations
from llasa.codec_training.clips import Clips
from llasa.codec_training.discriminators import Discriminators
from llasa.codec_training.forward import semantic_features, trained_parameters
from llasa.codec_training.heldout import divide
from llasa.codec_training.initialise import initialise
from llasa.codec_training.job import CodecJob
from llasa.codec_training.recordings import Recordings, make_recordings, open_recordings
from llasa.codec_training.shape import new_nano
from llasa.codec_training.state import load_state, resumable_state
from llasa.codec_training.trainer import CodecTrainer
from llasa.config import TrainCodecConfig
from llasa.device import (
    agree,
    first_decides,
    join_launcher,
    num_processes,
    part_processes,
    resolve_device,
    resolve_precision,
)
from llasa.errors import UserError
from llasa.model.loading import quiet_libraries
from llasa.training.run import objective
from llasa.training.state import SavedState

RECORDINGS = "recordings"
INITIAL_CLIPS = 16
"""That weights from scratch are fitted to."""


def train_codec(config: TrainCodecConfig) -> float:
    """Train as configured and return the last value of `config.objective`.

    Raises:
        UserError: no usable recordings or checkpoint, a folder that holds another run, …
    """
    join_launcher()
    quiet_libraries()
    device = resolve_device(config.device)
    precision = resolve_precision(config.trainer.precision, device)
    run = Path(agree(config.output_dir, device))
    require_whole_shares(config)
    settings = dataclasses.asdict(config)
    saved = first_decides(lambda: resumable_state(run, settings), device)
    model = build_model(config).to(device)
    recordings = prepare_recordings(config, run, model.config.sampling_rate, saved, device)
    others = heldout_folders(config, run, recordings, saved, device)
    division = divide(recordings, others, config.heldout)
    hop = model.config.hop_length
    clip_samples = round(config.recordings.clip_seconds * recordings.sample_rate / hop) * hop
    clips = Clips(recordings, division.train, config.recordings, clip_samples, config.seed)
    start = fingerprint(model) if config.codec_model.checkpoint is not None else None
    if config.codec_model.checkpoint is None and saved is None:
        fit_to_clips(model, clips, device)
    trained_parameters(model, config.codec_model.train)
    if config.trainer.compile:
        fuse_activations(model)
    discriminators = build_discriminators(config)
    trainer = CodecTrainer(
        model,
        discriminators.to(device) if discriminators is not None else None,
        clips,
        config,
        num_steps=config.trainer.max_steps,
        device=device,
        precision=precision,
    )
    if saved is not None:
        state = load_state(saved, device)
        if state["start"] != start:
            raise UserError(
                f"codec_model.checkpoint={config.codec_model.checkpoint} is not the model that {run} began with",
                remedy="put it back, or start a new run",
            )
        trainer.load_state_dict(state)
    job = CodecJob(config, run, trainer, recordings, division, start, saved, device)
    job.run({"device": device, "precision": precision, "processes": num_processes()}, settings)
    value = first_decides(lambda: objective(run, config.objective), device)
    part_processes()
    return value


def require_whole_shares(config: TrainCodecConfig) -> None:
    """Every process has as many clips of a step as the others."""
    if config.trainer.clips_per_step % num_processes():
        raise UserError(
            f"trainer.clips_per_step={config.trainer.clips_per_step} cannot be shared by {num_processes()} processes",
            remedy="use a multiple of their number",
        )


def build_model(config: TrainCodecConfig) -> Xcodec2Model:
    """In float32 on the CPU.

    Raises:
        UserError: the checkpoint is none, or of another kind.
    """
    checkpoint = config.codec_model.checkpoint
    if checkpoint is None:
        return new_nano(config.seed)
    try:
        return load_model(checkpoint)
    except UserError as error:  # which speaks of the codec that a store is made with
        raise UserError(str(error).replace("codec.checkpoint=", "codec_model.checkpoint=")) from error


def build_discriminators(config: TrainCodecConfig) -> Discriminators | None:
    """The same for the same seed; the global generator stays as it was."""
    if config.adversary.name == "none":
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 1)
        return Discriminators(channels=config.adversary.channels)


def prepare_recordings(
    config: TrainCodecConfig, run: Path, sample_rate: int, saved: SavedState | None, device: str
) -> Recordings:
    """The corpus on disk: the first process decodes, the others wait."""
    return decoded_once(recordings_folder(config, run), config.dataset, config, sample_rate, saved, device)


def heldout_folders(
    config: TrainCodecConfig, run: Path, recordings: Recordings, saved: SavedState | None, device: str
) -> dict[str, Recordings]:
    """`heldout.folders` by their names, on disk beside what is trained on."""
    found = {}
    for path in config.heldout.folders:
        name = Path(path).expanduser().resolve().name
        if name in found:
            raise UserError(f"heldout.folders: two are called {name!r}", remedy="rename one")
        node = {"_target_": "llasa.corpus.folder.FolderSource", "path": path, "language": config.lang.code}
        folder = recordings_folder(config, run) / name
        found[name] = decoded_once(folder, node, config, recordings.sample_rate, saved, device)
    return found


def recordings_folder(config: TrainCodecConfig, run: Path) -> Path:
    return run / RECORDINGS if config.recordings.folder is None else Path(config.recordings.folder).expanduser()


def decoded_once(
    folder: Path, dataset: dict[str, Any], config: TrainCodecConfig, rate: int, saved: SavedState | None, device: str
) -> Recordings:
    """What a resumed run has in its own folder is taken as it is, whatever became of the corpus."""

    def make() -> None:
        own = config.recordings.folder is None and saved is not None
        if not own or open_recordings(folder) is None:
            make_recordings(folder, build(dataset), config.filters, config.recordings.max_hours, rate)

    first_decides(make, device)
    recordings = open_recordings(folder)
    if recordings is None:
        raise UserError(f"there are no recordings in {folder}", remedy="all processes need the same disk")
    return recordings


def fit_to_clips(model: Xcodec2Model, clips: Clips, device: str) -> None:
    """Weights from scratch, fitted to the first clips (of a step that no training has)."""
    from llasa.codec.features import KaldiFilterBank

    waveforms = torch.from_numpy(clips.batch(2**32 - 1, range(INITIAL_CLIPS))).to(device)
    initialise(model, waveforms, semantic_features(model, KaldiFilterBank().to(device), waveforms))
