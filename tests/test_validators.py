"""Every validator of the config accepts and rejects, and says what it wants."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from llasa import config as schemas
from llasa.entry import compose_config
from llasa.errors import UserError

LANG = {"code": "it", "name": "Italian", "corpus_config": "italian"}
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
MODEL = {"name": "m", "checkpoint": "owner/name", "lr": 1e-4, "max_length": 2048}
INFER = {"checkpoint": "x", "text": "Ciao"}
EVALUATE = {"checkpoint": "x", "store": "y", "output": "z"}
CODEC_MODEL = {"name": "m", "lr": 1e-4}
TRAIN_CODEC = {"output_dir": "x"}
EXPORT = {"checkpoint": "x", "output": "y"}
SERVE = {"checkpoint": "x"}
ARCHITECTURE = schemas.ArchitectureConfig(**SHAPE)

VALIDATORS: list[tuple[type, dict[str, Any], str, list[dict[str, Any]], list[dict[str, Any]]]] = [
    # schema, the rest of its fields, the key that the message names, accepted, rejected
    (schemas.LangConfig, LANG, "lang.code", [{"code": "de"}, {"code": "gsw"}], [{"code": "italian"}, {"code": "i"}]),
    *(
        (schemas.ArchitectureConfig, SHAPE, f"model.architecture.{key}", [{key: SHAPE[key]}], [{key: 0}, {key: -128}])
        for key in SHAPE
    ),
    (
        schemas.ArchitectureConfig,
        SHAPE,
        "model.architecture.hidden_size",
        [{"hidden_size": 8}, {"hidden_size": 136}],
        [{"hidden_size": 132}, {"hidden_size": 130}],
    ),
    (
        schemas.ArchitectureConfig,
        SHAPE,
        "model.architecture.num_key_value_heads",
        [{"num_key_value_heads": 1}, {"num_key_value_heads": 2}],
        [{"num_key_value_heads": 3}, {"num_key_value_heads": 8}],
    ),
    (
        schemas.ModelConfig,
        MODEL,
        "model.checkpoint",
        [{}, {"checkpoint": None, "architecture": ARCHITECTURE}],
        [{"checkpoint": None}, {"architecture": ARCHITECTURE}],
    ),
    (schemas.ModelConfig, MODEL, "model.lr", [{"lr": 1e-9}], [{"lr": 0.0}, {"lr": -1e-4}, {"lr": float("nan")}]),
    (schemas.ModelConfig, MODEL, "model.max_length", [{"max_length": 64}], [{"max_length": 63}]),
    (schemas.PackingConfig, {"max_length": 64}, "packing.max_length", [{"max_length": 64}], [{"max_length": 63}]),
    (
        schemas.PackingConfig,
        {"max_length": 64},
        "packing.mode",
        [{"mode": "group"}, {"mode": "pad_to_max"}],
        [{"mode": "padded"}],
    ),
    (schemas.PackingConfig, {"max_length": 64}, "packing.window", [{"window": 1}], [{"window": 0}]),
    (schemas.PackingConfig, {"max_length": 64}, "packing.workers", [{"workers": 0}], [{"workers": -1}]),
    (
        schemas.ScheduleConfig,
        {},
        "schedule.name",
        [{"name": "cosine"}, {"name": "wsd"}, {"name": "constant"}],
        [{"name": "cosin"}, {"name": ""}],
    ),
    (
        schemas.ScheduleConfig,
        {"name": "wsd"},
        "schedule.warmup",
        [{"warmup": 0.0}, {"warmup": 0.999, "decay": 0.0}],
        [{"warmup": 1.0, "decay": 0.0}, {"warmup": -0.1}],
    ),
    (
        schemas.ScheduleConfig,
        {"name": "wsd"},
        "schedule.decay",
        [{"decay": 0.0}, {"warmup": 0.25, "decay": 0.75}],
        [{"decay": -0.1}, {"warmup": 0.25, "decay": 0.8}],
    ),
    (
        schemas.ScheduleConfig,
        {"name": "cosine"},
        "schedule.min_ratio",
        [{"min_ratio": 0.0}, {"min_ratio": 1.0}],
        [{"min_ratio": 1.1}, {"min_ratio": -0.1}],
    ),
    (schemas.KernelsConfig, {}, "kernels.name", [{"name": "auto"}, {"name": "torch"}], [{"name": "triton"}]),
    (
        schemas.KernelsConfig,
        {"name": "auto"},
        "kernels.attn",
        [{"attn": "sdpa"}, {"attn": "flash_attention_2"}, {"attn": "flex_attention"}],
        [{"attn": "flash_attention"}],
    ),
    (
        schemas.KernelsConfig,
        {"name": "auto"},
        "kernels.liger_chunk_memory",
        [{"liger_chunk_memory": 1}],
        [{"liger_chunk_memory": 0}],
    ),
    (
        schemas.KernelsConfig,
        {"name": "auto"},
        "kernels.loss_chunk_size",
        [{"loss_chunk_size": 1}],
        [{"loss_chunk_size": 0}],
    ),
    (schemas.FinetuneConfig, {}, "finetune.name", [{"name": "full"}, {"name": "qlora"}], [{"name": "partial"}]),
    (
        schemas.FinetuneConfig,
        {"name": "full"},
        "finetune.train",
        [{"train": "all"}, {"train": "embeddings"}],
        [{"train": "head"}, {"train": "embeddings", "name": "lora"}],
    ),
    (schemas.FinetuneConfig, {"name": "lora"}, "finetune.rank", [{"rank": 1}], [{"rank": 0}]),
    (schemas.FinetuneConfig, {"name": "lora"}, "finetune.alpha", [{"alpha": 0.5}], [{"alpha": 0.0}]),
    (schemas.FinetuneConfig, {"name": "lora"}, "finetune.dropout", [{"dropout": 0.0}], [{"dropout": 1.0}]),
    (
        schemas.FinetuneConfig,
        {"name": "lora"},
        "finetune.embeddings",
        [{"embeddings": "none"}, {"embeddings": "lora"}, {"embeddings": "full"}],
        [{"embeddings": "some"}],
    ),
    (schemas.ParallelConfig, {}, "parallel.name", [{"name": "auto"}, {"name": "fsdp"}], [{"name": "dp"}]),
    (schemas.MixtureConfig, {}, "mixture.temperature", [{"temperature": 1.0}], [{"temperature": 0.5}]),
    (
        schemas.MixtureConfig,
        {},
        "mixture.weights",
        [{"weights": {}}, {"weights": {"it": 0.0, "de": 2.0}}],
        [{"weights": {"it": -1.0, "de": 2.0}}, {"weights": {"it": 0.0}}],
    ),
    (
        schemas.SanityConfig,
        {},
        "sanity.first_loss",
        [{"first_loss": "auto"}, {"first_loss": None}, {"first_loss": [3, 13.5]}],
        [{"first_loss": "low"}, {"first_loss": [5, 3]}, {"first_loss": 4}],
    ),
    (
        schemas.SanityConfig,
        {},
        "sanity.grad_norm_spike",
        [{"grad_norm_spike": None}, {"grad_norm_spike": 3.0}],
        [{"grad_norm_spike": 1.0}],
    ),
    (schemas.HeldOutConfig, {}, "heldout.every", [{"every": 0}, {"every": 1}], [{"every": -1}]),
    (schemas.HeldOutConfig, {}, "heldout.rows", [{"rows": 1}], [{"rows": 0}]),
    (schemas.SamplesConfig, {}, "samples.every", [{"every": 0}, {"every": 1}], [{"every": -1}]),
    (schemas.SamplesConfig, {}, "samples.max_seconds", [{"max_seconds": 0.5}], [{"max_seconds": 0.0}]),
    (schemas.SamplesConfig, {}, "samples.texts", [{"texts": None}, {"texts": ["Ciao"]}], [{"texts": []}]),
    (schemas.TrainerConfig, {}, "trainer.max_steps", [{"max_steps": None}, {"max_steps": 1}], [{"max_steps": 0}]),
    (schemas.TrainerConfig, {}, "trainer.epochs", [{"epochs": 0.1}], [{"epochs": 0.0}, {"epochs": float("inf")}]),
    (schemas.TrainerConfig, {}, "trainer.rows_per_device", [{"rows_per_device": 1}], [{"rows_per_device": 0}]),
    (
        schemas.TrainerConfig,
        {"rows_per_device": 4},
        "trainer.rows_per_step",
        [{"rows_per_step": 4}, {"rows_per_step": 12}],
        [{"rows_per_step": 6}, {"rows_per_step": 0}, {"rows_per_step": -4}],
    ),
    (schemas.TrainerConfig, {}, "trainer.parameters", [{"parameters": "bf16"}], [{"parameters": "fp16"}]),
    (
        schemas.TrainerConfig,
        {},
        "trainer.activation_checkpointing",
        [{"activation_checkpointing": "selective"}, {"activation_checkpointing": "full"}],
        [{"activation_checkpointing": "True"}],
    ),
    (schemas.TrainerConfig, {}, "trainer.log_every", [{"log_every": 1}], [{"log_every": 0}]),
    (
        schemas.TrainerConfig,
        {},
        "trainer.precision",
        [{"precision": "auto"}, {"precision": "bf16"}, {"precision": "fp32"}],
        [{"precision": "fp16"}],
    ),
    (schemas.CheckpointConfig, {}, "checkpoint.every", [{"every": 0}], [{"every": -1}]),
    (schemas.CheckpointConfig, {}, "checkpoint.keep", [{"keep": 1}], [{"keep": 0}]),
    (schemas.LoggerConfig, {}, "logger.name", [{"name": "none"}, {"name": "wandb"}], [{"name": "mlflow"}]),
    (
        schemas.LoggerConfig,
        {"name": "wandb"},
        "logger.artifacts",
        [{"artifacts": True}, {"artifacts": False, "name": "none"}],
        [{"artifacts": True, "name": "none"}, {"artifacts": True, "name": "tensorboard"}],
    ),
    (
        schemas.TrainConfig,
        {},
        "optimizer.lr",
        [{"optimizer": {"lr": 1e-3}}, {"optimizer": {"lr": 1}}, {"optimizer": {}}],
        [{"optimizer": {"lr": "fast"}}, {"optimizer": {"lr": 0}}],
    ),
    (schemas.TrainConfig, {}, "resume", [{"resume": True}, {"resume": "auto"}], [{"resume": "yes"}, {"resume": None}]),
    (schemas.TrainConfig, {}, "debug", [{"debug": None}, {"debug": "overfit_batch"}], [{"debug": "overfit"}]),
    (schemas.TrainConfig, {}, "seed", [{"seed": 0}, {"seed": 2**32 - 1}], [{"seed": -1}, {"seed": 2**32}]),
    *(
        (schemas.FiltersConfig, {}, f"filters.{key}", [{key: value} for value in good], [{key: value} for value in bad])
        for key, good, bad in (
            ("max_seconds", [None, 0.5], [0.0, -1.0, float("nan")]),
            ("min_seconds", [None, 0.0, 29.9], [-1.0, 30.0, float("nan")]),
            ("trim_silence", [None, 0.0, 10.0], [-0.1, 10.1]),
            ("trim_threshold", [0.1, 100.0], [0.0, 101.0]),
            ("min_sample_rate", [None, 1, 48_000], [0, -8000]),
            ("min_peak", [None, 0.0], [1.0, -0.1]),
            ("min_level", [None, -150.0, -0.1], [0.0, 20.0, -151.0]),
            ("max_clipped", [None, 0.0, 1.0], [-0.1, 1.1]),
            (
                "characters_per_second",
                [None, "auto", [5, 25.5], [0, 1]],
                ["fast", 12, [5], [25, 5], [5, 5], [-1, 5], [5, 20, 30], ["a", "b"], [False, True]],
            ),
            ("max_foreign_letters", [None, 0, 3], [-1]),
            ("min_levenshtein", [None, 0.0, 1.0], [-0.1, 90.0]),
            ("min_dnsmos", [None, 1.0, 5.0], [0.0, 5.1]),
            ("duplicates", ["audio", "both", "off", "text"], ["codes", "", "True"]),
        )
    ),
    (
        schemas.FiltersConfig,
        {},
        "filters.min_seconds",
        [{"min_seconds": 1.0, "max_seconds": 1.5}, {"min_seconds": 100.0, "max_seconds": None}],
        [{"min_seconds": 2.0, "max_seconds": 2.0}],
    ),
    (schemas.RunnerConfig, {}, "runner.name", [{"name": "local"}, {"name": "ray"}], [{"name": "locale"}]),
    (schemas.RunnerConfig, {"name": "local"}, "runner.workers", [{"workers": None}, {"workers": 1}], [{"workers": 0}]),
    (schemas.RunnerConfig, {"name": "ray"}, "runner.retries", [{"retries": 0}], [{"retries": -1}]),
    (schemas.PreprocessConfig, {}, "shard_rows", [{"shard_rows": 1}], [{"shard_rows": 0}]),
    (
        schemas.PreprocessConfig,
        {},
        "shards",
        [{"shards": text} for text in (None, "7", "0-99", "5-5", "1/1", "2/8")],
        [{"shards": text} for text in ("", "all", "9-3", "0/8", "9/8", "-3", "1-", "1-2-3", "½", "1/2/3", "1 - 2")],
    ),
    (schemas.PreprocessConfig, {}, "decode_threads", [{"decode_threads": 1}], [{"decode_threads": 0}]),
    (
        schemas.PreprocessConfig,
        {},
        "decode_processes",
        [{"decode_processes": None}, {"decode_processes": 0}, {"decode_processes": 8}],
        [{"decode_processes": -1}],
    ),
    (
        schemas.SplitConfig,
        {},
        "split.heldout",
        [{"heldout": 0.0}, {"heldout": 0.2}],
        [{"heldout": -0.1}, {"heldout": 0.3}],
    ),
    (schemas.SplitConfig, {}, "split.rows", [{"rows": None}, {"rows": 1}], [{"rows": 0}]),
    (
        schemas.SplitConfig,
        {},
        "split.name",
        [{"name": "dev"}, {"name": "test_2"}],
        [{"name": "train"}, {"name": "a/b"}],
    ),
    (schemas.SplitConfig, {}, "split.by", [{"by": "off"}, {"by": "row"}], [{"by": "speakers"}]),
    (schemas.VerifyConfig, {}, "verification.rows", [{"rows": 1}, {"rows": 128}], [{"rows": 0}, {"rows": 129}]),
    (schemas.VerifyConfig, {}, "verification.seed", [{"seed": 0}, {"seed": 2**32 - 1}], [{"seed": -1}]),
    (
        schemas.VerifyConfig,
        {},
        "verification.min_equal_codes",
        [{"min_equal_codes": 0.0}, {"min_equal_codes": 1.0}],
        [{"min_equal_codes": 1.1}, {"min_equal_codes": -0.1}],
    ),
    (
        schemas.VerifyConfig,
        {},
        "verification.max_mel_distance",
        [{"max_mel_distance": 0.1}],
        [{"max_mel_distance": 0.0}, {"max_mel_distance": float("nan")}],
    ),
    (
        schemas.VerifyConfig,
        {},
        "verification.min_share",
        [{"min_share": 1.0}, {"min_share": 0.01}],
        [{"min_share": 0.0}, {"min_share": 1.1}],
    ),
    (
        schemas.SamplingConfig,
        {},
        "sampling.temperature",
        [{"temperature": 0.0}, {"temperature": 1.5}],
        [{"temperature": -0.1}],
    ),
    (schemas.SamplingConfig, {}, "sampling.top_k", [{"top_k": 0}, {"top_k": 50}], [{"top_k": -1}]),
    (schemas.SamplingConfig, {}, "sampling.top_p", [{"top_p": 1.0}, {"top_p": 0.01}], [{"top_p": 0.0}, {"top_p": 1.1}]),
    (
        schemas.SamplingConfig,
        {},
        "sampling.min_p",
        [{"min_p": 0.0}, {"min_p": 0.99}],
        [{"min_p": -0.1}, {"min_p": 1.0}],
    ),
    (
        schemas.SamplingConfig,
        {},
        "sampling.repetition_penalty",
        [{"repetition_penalty": 1.0}, {"repetition_penalty": 1.3}],
        [{"repetition_penalty": 0.0}, {"repetition_penalty": 100.0}],
    ),
    (schemas.SamplingConfig, {}, "sampling.loop_seconds", [{"loop_seconds": 0.0}], [{"loop_seconds": -1.0}]),
    (schemas.SamplingConfig, {}, "sampling.retries", [{"retries": 0}, {"retries": 3}], [{"retries": -1}]),
    *(
        (schemas.LongConfig, {}, f"long.pause_{name}", [{f"pause_{name}": 0.0}], [{f"pause_{name}": -0.1}])
        for name in ("comma", "sentence", "paragraph", "chapter")
    ),
    (
        schemas.LongConfig,
        {},
        "long.max_characters",
        [{"max_characters": None}, {"max_characters": 10}],
        [{"max_characters": 9}],
    ),
    (schemas.InferConfig, INFER, "stream_format", [{"stream_format": "pcm"}], [{"stream_format": "mp3"}]),
    (schemas.SamplingConfig, {}, "sampling.max_seconds", [{"max_seconds": 0.1}], [{"max_seconds": 0.0}]),
    (schemas.InferConfig, INFER, "seed", [{"seed": 7}], [{"seed": -1}]),
    (
        schemas.InferConfig,
        {"checkpoint": "x"},
        "text",
        [{"text": "Ciao"}, {"texts": "file.txt"}, {"text_file": "book.txt"}],
        [{}, {"text": "Ciao", "texts": "file.txt"}, {"text": "Ciao", "text_file": "book.txt"}],
    ),
    (
        schemas.InferConfig,
        INFER,
        "voice_text",
        [{"voice": "a.wav", "voice_text": "Ciao"}, {"voice": "anna"}, {}],
        [{"voice_text": "Ciao"}],
    ),
    (
        schemas.InferConfig,
        {"checkpoint": "x"},
        "stream",
        [{"text": "Ciao", "stream": True}, {"text_file": "book.txt", "stream": True, "output": "-"}],
        [{"texts": "file.txt", "stream": True}, {"text": "Ciao", "output": "-"}],
    ),
    (schemas.ServeConfig, SERVE, "port", [{"port": 0}, {"port": 65535}], [{"port": -1}, {"port": 65536}]),
    (
        schemas.ServeConfig,
        SERVE,
        "port",
        [{"port": 0, "workers": 1}, {"port": 80, "workers": 2}],
        [{"port": 0, "workers": 2}],
    ),
    (schemas.ServeConfig, SERVE, "workers", [{"workers": 8}], [{"workers": 0}]),
    (schemas.ServeConfig, SERVE, "shutdown_seconds", [{"shutdown_seconds": 0.0}], [{"shutdown_seconds": -1.0}]),
    *(
        (schemas.ServiceLimitsConfig, {}, f"limits.{name}", [{name: 1}], [{name: 0}])
        for name in ("characters", "audio_seconds", "request_seconds", "body_bytes", "upload_bytes")
    ),
    *(
        (schemas.ServiceLimitsConfig, {}, f"limits.{name}", [{name: 0}], [{name: -1}])
        for name in ("queue", "requests_per_minute")
    ),
    (schemas.EvaluateConfig, EVALUATE, "seed", [{"seed": 7}], [{"seed": -1}]),
    (schemas.EvaluateConfig, EVALUATE, "limit", [{"limit": 1}, {"limit": None}], [{"limit": 0}]),
    (
        schemas.EvaluateConfig,
        EVALUATE,
        "confidence",
        [{"confidence": 0.9}],
        [{"confidence": 0.0}, {"confidence": 1.0}, {"confidence": 95.0}],
    ),
    (schemas.EvaluateConfig, EVALUATE, "resamples", [{"resamples": 100}], [{"resamples": 99}]),
    (schemas.EvaluateConfig, EVALUATE, "page_clips", [{"page_clips": 0}], [{"page_clips": -1}]),
    (
        schemas.CodecModelConfig,
        CODEC_MODEL,
        "codec_model.train",
        [{"train": "decoder", "checkpoint": "x"}, {"train": "all"}],
        [{"train": "encoder"}, {"train": "decoder"}],
    ),
    (schemas.CodecModelConfig, CODEC_MODEL, "codec_model.dtype", [{"dtype": "fp16"}], [{"dtype": "bf16"}]),
    (schemas.CodecModelConfig, CODEC_MODEL, "codec_model.lr", [{"lr": 1e-5}], [{"lr": 0.0}, {"lr": -1.0}]),
    (schemas.CodecModelConfig, CODEC_MODEL, "codec_model.noise_steps", [{"noise_steps": 0}], [{"noise_steps": -1}]),
    (schemas.CodecModelConfig, CODEC_MODEL, "codec_model.mixed_steps", [{"mixed_steps": 9}], [{"mixed_steps": -1}]),
    (
        schemas.CodecModelConfig,
        CODEC_MODEL,
        "codec_model.latent_penalty",
        [{"latent_penalty": 1.0}],
        [{"latent_penalty": -0.1}, {"latent_penalty": float("nan")}],
    ),
    (
        schemas.RecordingsConfig,
        {},
        "recordings.clip_seconds",
        [{"clip_seconds": 0.2}],
        [{"clip_seconds": 0.1}, {"clip_seconds": 61.0}],
    ),
    (schemas.RecordingsConfig, {}, "recordings.max_hours", [{"max_hours": 0.1}], [{"max_hours": 0.0}]),
    (
        schemas.RecordingsConfig,
        {},
        "recordings.gain_db",
        [{"gain_db": [0.0, 0.0]}],
        [{"gain_db": [2.0, -10.0]}, {"gain_db": [1.0]}],
    ),
    (
        schemas.RecordingsConfig,
        {},
        "recordings.min_level",
        [{"min_level": None}, {"min_level": -60.0}],
        [{"min_level": 1.0}],
    ),
    (schemas.CodecHeldOutConfig, {}, "heldout.share", [{"share": 0.0}], [{"share": -0.1}, {"share": 0.6}]),
    (schemas.CodecHeldOutConfig, {}, "heldout.every", [{"every": 0}], [{"every": -1}]),
    (schemas.CodecHeldOutConfig, {}, "heldout.recordings", [{"recordings": 1}], [{"recordings": 0}]),
    (schemas.CodecHeldOutConfig, {}, "heldout.heard", [{"heard": 0}], [{"heard": -1}]),
    (
        schemas.CodecLossesConfig,
        {},
        "losses.mel",
        [{"mel": 0.0, "stft": 1.0}],
        [{"mel": -1.0}, {"mel": 0.0, "stft": 0.0}],
    ),
    (schemas.CodecLossesConfig, {"recognizer": "x"}, "losses.phonetic", [{"phonetic": 2.0}], [{"phonetic": -1.0}]),
    (
        schemas.CodecLossesConfig,
        {},
        "losses.recognizer",
        [{"phonetic": 1.0, "recognizer": "openai/whisper-tiny"}, {}],
        [{"phonetic": 1.0}, {"recognizer": "openai/whisper-tiny"}],
    ),
    (schemas.CodecLossesConfig, {}, "losses.stft", [{"stft": 0.0}], [{"stft": -1.0}, {"stft": float("inf")}]),
    (schemas.AdversaryConfig, {}, "adversary.name", [{"name": "none"}, {"name": "full"}], [{"name": "huge"}]),
    (schemas.AdversaryConfig, {"name": "small"}, "adversary.start", [{"start": 0}], [{"start": -1}]),
    (schemas.AdversaryConfig, {"name": "small"}, "adversary.lr", [{"lr": 1e-4}], [{"lr": 0.0}]),
    (
        schemas.AdversaryConfig,
        {"name": "small"},
        "adversary.adversarial",
        [{"adversarial": 0.0}],
        [{"adversarial": -1.0}],
    ),
    (
        schemas.AdversaryConfig,
        {"name": "small"},
        "adversary.feature_matching",
        [{"feature_matching": 0.0}],
        [{"feature_matching": float("nan")}],
    ),
    (schemas.AdversaryConfig, {"name": "small"}, "adversary.channels", [{"channels": 4}], [{"channels": 0}]),
    (schemas.CodecTrainerConfig, {}, "trainer.max_steps", [{"max_steps": 1}], [{"max_steps": 0}]),
    (
        schemas.CodecTrainerConfig,
        {"clips_per_step": 4},
        "trainer.clips_per_device",
        [{"clips_per_device": 2}],
        [{"clips_per_device": 0}],
    ),
    (
        schemas.CodecTrainerConfig,
        {"clips_per_device": 4},
        "trainer.clips_per_step",
        [{"clips_per_step": 8}],
        [{"clips_per_step": 6}, {"clips_per_step": 0}],
    ),
    (
        schemas.CodecTrainerConfig,
        {},
        "trainer.betas",
        [{"betas": [0.8, 0.99]}],
        [{"betas": [0.9]}, {"betas": [0.9, 1.0]}],
    ),
    (schemas.CodecTrainerConfig, {}, "trainer.weight_decay", [{"weight_decay": 0.0}], [{"weight_decay": -0.1}]),
    (schemas.CodecTrainerConfig, {}, "trainer.max_grad_norm", [{"max_grad_norm": 5.0}], [{"max_grad_norm": 0.0}]),
    (schemas.CodecTrainerConfig, {}, "trainer.ema_decay", [{"ema_decay": 0.0}], [{"ema_decay": 1.0}]),
    (schemas.CodecTrainerConfig, {}, "trainer.max_skipped", [{"max_skipped": 1}], [{"max_skipped": 0}]),
    (schemas.CodecTrainerConfig, {}, "trainer.log_every", [{"log_every": 1}], [{"log_every": 0}]),
    (schemas.CodecTrainerConfig, {}, "trainer.precision", [{"precision": "bf16"}], [{"precision": "fp16"}]),
    (schemas.TrainCodecConfig, TRAIN_CODEC, "seed", [{"seed": 7}], [{"seed": -1}]),
    (schemas.TrainCodecConfig, TRAIN_CODEC, "resume", [{"resume": "auto"}], [{"resume": "yes"}]),
    (
        schemas.ExportConfig,
        EXPORT,
        "format",
        [{"format": "merged"}, {"format": "codec_onnx"}, {"format": "codec_torch_export"}],
        [{"format": "onnx"}, {"format": ""}],
    ),
    (
        schemas.ExportConfig,
        EXPORT,
        "dtype",
        [{"dtype": None}, {"dtype": "bf16"}, {"dtype": "fp16"}, {"dtype": "fp32"}],
        [{"dtype": "int8"}, {"dtype": "fp32", "format": "codec_onnx"}],
    ),
    (
        schemas.ExportConfig,
        {"output": "y"},
        "checkpoint",
        [{"checkpoint": "x"}, {"checkpoint": None, "format": "codec_onnx", "codec": {"name": "xcodec2"}}],
        [{"checkpoint": None}, {"checkpoint": None, "format": "codec_onnx"}],
    ),
    (
        schemas.ExportConfig,
        EXPORT,
        "codec",
        [{"codec": {"name": "xcodec2"}, "format": "codec_onnx"}],
        [{"codec": {"name": "xcodec2"}}],
    ),
    (
        schemas.ExportConfig,
        EXPORT,
        "converter",
        [{"converter": "a.py", "format": "gguf"}, {"converter": None}],
        [{"converter": "a.py"}, {"converter": None, "format": "gguf"}],
    ),
]


def cases(accepted: bool) -> list[Any]:
    rows = []
    for schema, base, key, good, bad in VALIDATORS:
        for change in good if accepted else bad:
            name = f"{schema.__name__}-{key}-" + ",".join(f"{k}={v}" for k, v in change.items() if k != "architecture")
            rows.append(pytest.param(schema, {**base, **change}, key, change, id=name))
    return rows


@pytest.mark.parametrize(("schema", "values", "key", "change"), cases(accepted=True))
def test_validators_accept(schema, values, key, change):
    config = schema(**values)
    assert {name: getattr(config, name) for name in change} == change


@pytest.mark.parametrize(("schema", "values", "key", "change"), cases(accepted=False))
def test_validators_reject_with_the_key_and_a_remedy(schema, values, key, change):
    with pytest.raises(UserError) as caught:
        schema(**values)
    message, _, remedy = str(caught.value).partition("; ")
    assert remedy
    leaf = key.rpartition(".")[2]
    if key in ("text", "voice_text"):
        assert re.search(rf"\b{key}=", remedy)
        return
    assert message.startswith(f"{key}="), message
    if leaf in change:
        assert repr(change[leaf]) in message


def test_every_validator_has_a_case():
    """The checks as written in llasa/config, so that a new one without a case fails here."""
    trees = [ast.parse(path.read_text()) for path in sorted(Path(schemas.__file__).parent.glob("*.py"))]
    written = []
    for schema in (node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)):
        for call in (node for node in ast.walk(schema) if isinstance(node, ast.Call)):
            name = getattr(call.func, "id", None)
            if name in ("require", "require_choice"):
                key = call.args[1 if name == "require" else 0]
                parts = key.values if isinstance(key, ast.JoinedStr) else [key]
                pattern = "".join(re.escape(part.value) if isinstance(part, ast.Constant) else r"\w+" for part in parts)
                written.append((schema.name, pattern))
    assert len(written) > 30
    covered = [(schema.__name__, key) for schema, _, key, _, _ in VALIDATORS]
    untested = [
        f"{schema}: {pattern}"
        for schema, pattern in written
        if not any(schema == name and re.fullmatch(pattern, key) for name, key in covered)
    ]
    assert untested == []
    assert all(good and bad for *_, good, bad in VALIDATORS)


def test_off_is_off_in_yaml_too():
    """YAML reads a bare `off` as false."""
    written = OmegaConf.create("duplicates: off")
    assert OmegaConf.to_object(OmegaConf.merge(schemas.FiltersConfig, written)).duplicates == "off"
    assert compose_config("preprocess", ["filters.duplicates=off"]).filters.duplicates == "off"


def test_a_filter_is_switched_off_with_null():
    off = ["min_seconds", "max_seconds", "trim_silence", "min_sample_rate", "min_peak", "min_level", "max_clipped",
           "characters_per_second", "max_foreign_letters", "min_levenshtein", "min_dnsmos", "min_votes"]  # fmt: skip
    filters = compose_config("preprocess", [f"filters.{key}=null" for key in off]).filters
    assert {field.name for field in fields(filters)} - {"trim_threshold", "duplicates"} == set(off)
    assert all(getattr(filters, key) is None for key in off)
    chosen = compose_config("preprocess", ["filters.characters_per_second=[4,25]"]).filters
    assert chosen.characters_per_second == [4, 25]


def test_validation_also_runs_on_what_was_composed():
    with pytest.raises(UserError, match=r"^sampling\.top_p=2\.0 is not valid; use a probability"):
        compose_config("infer", ["checkpoint=x", "text=Ciao", "sampling.top_p=2"])
    with pytest.raises(UserError, match=r"^model\.architecture\.num_attention_heads=0 is not valid"):
        compose_config("train", ["model=llasa_nano", "model.architecture.num_attention_heads=0"])
    with pytest.raises(UserError, match=r"^kernels\.attn='spda' is not valid; did you mean sdpa\?"):
        compose_config("train", ["kernels.attn=spda"])
