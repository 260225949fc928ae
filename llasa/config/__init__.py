"""Schemas of the root configs, and their validation.

Each root, such as `train` or `infer`, is a dataclass that stands first in the `defaults` of its YAML file, so a wrong
key or type fails while Hydra composes, before anything is loaded. What the types cannot say is checked in
`__post_init__`, once, when :mod:`llasa.entry` turns the composed config into these objects; after that no code sees a
`DictConfig`.

Nodes typed `Any` are the leaves that people swap. They carry a `_target_`, stay plain dictionaries and are
built with `hydra.utils.instantiate` in the room that uses them.

Nothing here imports torch: `python train.py --help` has to answer at once.
"""

from __future__ import annotations

from pathlib import Path

from llasa.config.codec_training import (
    AdversaryConfig,
    CodecHeldOutConfig,
    CodecLossesConfig,
    CodecModelConfig,
    CodecTrainerConfig,
    RecordingsConfig,
    TrainCodecConfig,
)
from llasa.config.evaluation import EvaluateConfig, MetricsConfig, PushConfig
from llasa.config.exporting import ExportConfig
from llasa.config.inference import InferConfig, LongConfig, SamplingConfig
from llasa.config.monitoring import HeldOutConfig, SamplesConfig
from llasa.config.preprocessing import (
    FiltersConfig,
    PreprocessConfig,
    PublicationConfig,
    RunnerConfig,
    SplitConfig,
    VerifyConfig,
)
from llasa.config.serving import ServeConfig, ServiceLimitsConfig
from llasa.config.shared import LangConfig, LoggerConfig
from llasa.config.training import (
    ArchitectureConfig,
    CheckpointConfig,
    FinetuneConfig,
    KernelsConfig,
    MixtureConfig,
    ModelConfig,
    PackingConfig,
    ParallelConfig,
    SanityConfig,
    ScheduleConfig,
    TrainConfig,
    TrainerConfig,
)
from llasa.config.validation import require, require_choice

__all__ = [
    "CONF_DIR",
    "RAW_TEXT_KEYS",
    "REPOSITORY",
    "ROOTS",
    "AdversaryConfig",
    "ArchitectureConfig",
    "CheckpointConfig",
    "CodecHeldOutConfig",
    "CodecLossesConfig",
    "CodecModelConfig",
    "CodecTrainerConfig",
    "EvaluateConfig",
    "ExportConfig",
    "FiltersConfig",
    "FinetuneConfig",
    "HeldOutConfig",
    "InferConfig",
    "KernelsConfig",
    "LangConfig",
    "LoggerConfig",
    "LongConfig",
    "MetricsConfig",
    "MixtureConfig",
    "ModelConfig",
    "PackingConfig",
    "ParallelConfig",
    "PreprocessConfig",
    "PublicationConfig",
    "PushConfig",
    "RecordingsConfig",
    "RunnerConfig",
    "SamplesConfig",
    "SamplingConfig",
    "SanityConfig",
    "ScheduleConfig",
    "ServeConfig",
    "ServiceLimitsConfig",
    "SplitConfig",
    "TrainCodecConfig",
    "TrainConfig",
    "TrainerConfig",
    "VerifyConfig",
    "require",
    "require_choice",
]

REPOSITORY = Path(__file__).resolve().parents[2]
CONF_DIR = REPOSITORY / "conf"

ROOTS: dict[str, type] = {
    "train": TrainConfig,
    "train_codec": TrainCodecConfig,
    "preprocess": PreprocessConfig,
    "infer": InferConfig,
    "evaluate": EvaluateConfig,
    "serve": ServeConfig,
    "export": ExportConfig,
}

RAW_TEXT_KEYS = (
    "text",
    "text_file",
    "texts",
    "voice",
    "voice_text",
    "voices_folder",
    "speaker",
    "output",
    "checkpoint",
    "store",
    "output_dir",
    "dataset.path",
    "codec_model.checkpoint",
    "recordings.folder",
    "heldout.ids",
    "dataset.tokenizer",
    "dataset.folders",
    "asr",
    "api_keys",
    "examples",
    "reference",
    "converter",
    "verification.output",
)
"""Values the shell hands over as they are: free text and paths, in which Hydra's override grammar would
otherwise read a comma as a sweep and a bracket as a list."""
