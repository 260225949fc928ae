"""Starting vLLM in this process with the weights of a checkpoint; :mod:`llasa.generation.engine_vllm` drives it.

Imports and weights take half a minute. On a CPU the cache has room for a whole batch of the longest utterances; on a
GPU it is what `engine.gpu_memory` leaves.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from typing import TYPE_CHECKING, Any

import torch

from llasa.errors import UserError, first_line
from llasa.model.llama import TokenContract

if TYPE_CHECKING:
    from vllm import LLMEngine

REQUIREMENTS = "requirements/vllm.txt"
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process: a step is a call, and nothing is left behind
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the other runner, which CUDA would get, takes another kind of processor
    "VLLM_NO_USAGE_STATS": "1",  # or it reports to its makers
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""Unless the user has set them."""
CPU_BLOCK = 128
"""Places of a block of vLLM's cache on the CPU."""

running: LLMEngine | None = None
"""The one of this process. One that ends takes down what all of a process share, so a second could not last."""


def require_vllm() -> None:
    """Raises:
    UserError: vLLM is not installed, or does not import.
    """
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "engine=vllm, and vLLM is not installed here",
            remedy=f"make the environment that {REQUIREMENTS} describes and use its python, or use engine=hf",
        )
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"].upper())  # until vLLM sets up its own
    try:
        import vllm  # noqa: F401 whether it does
    except (ImportError, OSError, RuntimeError) as error:  # a library that is missing, or an operator of torchvision's
        raise UserError(
            f"engine=vllm, and vLLM does not import: {first_line(error)}",
            remedy=f"follow {REQUIREMENTS} to its last step, which removes what comes with vLLM and does not load",
        ) from error


def start_vllm(checkpoint: str, contract: TokenContract, device: str, batch_size: int, gpu_memory: float) -> LLMEngine:
    """vLLM with a checkpoint's weights, in this process; one that runs already is ended.

    What vLLM changes in the process for itself (the environment of children, `torch.set_num_threads`, torch's seed) is
    put back.

    Raises:
        UserError: see :meth:`VllmEngine.load`.
    """
    global running
    from vllm import EngineArgs, LLMEngine
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.platforms import current_platform

    from llasa.generation.vllm_sampling import CodeProcessor, processor_settings

    built_for = current_platform.device_type
    if built_for != device:
        remedy = f"use device={built_for}" if built_for in ("cpu", "cuda") else f"see {REQUIREMENTS}"
        raise UserError(f"device={device}, and this vLLM is for {built_for or 'neither'}", remedy=remedy)
    config = read_llama_config(checkpoint)
    length, cpu = contract.card.max_length, device == "cpu"
    if running is not None:
        running.engine_core.shutdown()
        running = None
    environment, set_num_threads, state = os.environ.copy(), torch.set_num_threads, torch.get_rng_state()
    try:
        running = LLMEngine.from_engine_args(
            EngineArgs(
                model=checkpoint,
                skip_tokenizer_init=True,
                generation_config="vllm",  # none of the checkpoint's: what is sampled is up to us
                dtype="float32" if cpu else "bfloat16",
                max_model_len=length,
                max_num_seqs=batch_size,
                enforce_eager=cpu,
                enable_prefix_caching=True,
                kv_cache_memory_bytes=cache_bytes(config, length, batch_size) if cpu else None,
                gpu_memory_utilization=gpu_memory,
                async_scheduling=False,  # the processor reads the ids of the last step
                logits_processors=[CodeProcessor],
                additional_config=processor_settings(contract.vocabulary, contract.card.codec),
                disable_log_stats=True,
                use_tqdm_on_load=False,
            )
        )
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        cleanup_dist_env_and_memory()
        raise UserError(
            f"vLLM cannot load {checkpoint}: {first_line(error)}", remedy="try engine=hf, which may say more"
        ) from error
    finally:
        torch.set_num_threads = set_num_threads
        torch.set_rng_state(state)
        for name in os.environ.keys() - environment.keys():
            if not name.startswith("VLLM_"):  # these it reads again later
                del os.environ[name]
        os.environ.update(environment)
    return running


def read_llama_config(checkpoint: str) -> Any:
    """Raises:
    UserError: no config, or not of a Llama.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        remedy = "check the name, or that the folder is whole"
        raise UserError(f"cannot load the model of {checkpoint}: {first_line(error)}", remedy=remedy) from error
    if config.model_type != "llama":
        raise UserError(f"{checkpoint} is a {config.model_type} model", remedy="use a Llama")
    return config


def cache_bytes(config: Any, length: int, batch_size: int) -> int:
    """Keys and values of ``batch_size`` sequences of ``length`` tokens in fp32, in whole blocks and one to spare."""
    width = config.num_key_value_heads * config.head_dim
    blocks = batch_size * -(-length // CPU_BLOCK) + 1
    return blocks * CPU_BLOCK * 2 * config.num_hidden_layers * width * 4
