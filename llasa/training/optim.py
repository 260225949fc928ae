"""Optimizers: which parameters are treated how, what `optimizer=auto` is, and 8-bit states.

model ─► groups (matrices, embeddings, vectors) ─► the optimizer of the config's node

Bytes of states per parameter: AdamW 8 in fp32, 4 for bf16 parameters; AdamW32bit 8 whatever the parameters' type;
8-bit ones 2.03; Muon 4 (2) for matrices. None rounds bf16 parameters stochastically or compensates their rounding:
neither torch nor bitsandbytes does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from llasa.build import build
from llasa.errors import UserError
from llasa.training.muon import MuonAdamW

AUTO = "llasa.training.optim.auto"
EIGHT_BIT = "llasa.training.optim.eight_bit"
EMBEDDINGS = {"embed_tokens", "lm_head"}
"""Modules of a Llama with a row for each token."""


def parameter_groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    """What learns, by kind: "matrices", "embeddings" (input and output), "vectors" (norms, biases; not decayed).

    Frozen parameters are in none, and a kind without parameters is left out. Names and numbers of axes are the same
    when a model is wrapped by PEFT, DDP or FSDP2.
    """
    kinds: dict[str, list[torch.nn.Parameter]] = {"matrices": [], "embeddings": [], "vectors": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matrix = "embeddings" if EMBEDDINGS & set(name.split(".")) else "matrices"
            kinds[matrix if parameter.ndim > 1 else "vectors"].append(parameter)
    groups: list[dict[str, Any]] = [{"params": params, "kind": kind} for kind, params in kinds.items() if params]
    return [{**group, "weight_decay": 0.0} if group["kind"] == "vectors" else group for group in groups]


def resolve_optimizer(node: dict[str, Any], device: str, parallel: str = "single") -> dict[str, Any]:
    """A config node with `auto` replaced by what it becomes: 8-bit Adam on CUDA, fused AdamW elsewhere.

    8-bit Adam quarters the memory of the states. On a CPU it costs about 20 times as much time a step, and it does
    not know the sharded parameters of FSDP, which shares the states among the devices anyway.
    """
    if node["_target_"] != AUTO:
        return node
    if device == "cuda" and parallel != "fsdp":
        return {**node, "_target_": EIGHT_BIT, "algorithm": "Adam8bit"}
    settings = {key: value for key, value in node.items() if key != "embeddings_32bit"}
    return {**settings, "_target_": "torch.optim.AdamW", "fused": True}


def optimizer_name(node: dict[str, Any], device: str, parallel: str = "single") -> str:
    """What a config node becomes, as it is printed and recorded."""
    node = resolve_optimizer(node, device, parallel)
    if node["_target_"] == EIGHT_BIT:
        return f"{node['algorithm']} (embeddings {32 if node.get('embeddings_32bit') else 8} bit)"
    return node["_target_"].rpartition(".")[2]


def build_optimizer(
    model: torch.nn.Module, node: dict[str, Any], device: str, parallel: str = "single"
) -> torch.optim.Optimizer:
    """The optimizer of a config node for the parameters of ``model`` that learn."""
    return build(resolve_optimizer(node, device, parallel))(parameter_groups(model))


def check_optimizer(node: dict[str, Any], device: str, parallel: str = "single") -> None:
    """Try the node on a few parameters, so that a wrong setting is told before anything is written.

    Raises:
        UserError: the optimizer refuses its settings, or cannot work on the sharded parameters of FSDP.
    """
    model = torch.nn.ModuleDict({"embed_tokens": torch.nn.Embedding(2, 2), "layer": torch.nn.Linear(2, 2)})
    try:
        optimizer = build_optimizer(model, node, device, parallel)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"the optimizer refuses its settings: {error}", remedy="check optimizer.*") from error
    if parallel != "fsdp":
        return
    # bitsandbytes' kernels have no rule for DTensors and fail in the first step. Muon gathers each matrix for every
    # product of its iteration, and FSDP's saving of its state is untried.
    of_bitsandbytes = any(cls.__module__.startswith("bitsandbytes.") for cls in type(optimizer).mro())
    if of_bitsandbytes or isinstance(optimizer, MuonAdamW):
        raise UserError(
            f"the optimizer {optimizer_name(node, device)} does not work with parallel=fsdp",
            remedy="use optimizer=adamw (or auto) with it, or parallel=ddp",
        )


def auto(params: Iterable[dict[str, Any]], **settings: Any) -> torch.optim.Optimizer:
    """`optimizer=auto` for parameters that are on their device; see :func:`resolve_optimizer`."""
    groups = list(params)
    node = {"_target_": AUTO, "_partial_": True, **settings}
    return build(resolve_optimizer(node, groups[0]["params"][0].device.type))(groups)


def eight_bit(
    params: Iterable[dict[str, Any]], *, algorithm: str, embeddings_32bit: bool = False, **settings: Any
) -> torch.optim.Optimizer:
    """An optimizer of bitsandbytes with 8-bit states (Dettmers et al. 2021, arXiv 2110.02861).

    Tensors of fewer than 4,096 numbers keep 32-bit states.

    Args:
        algorithm: Adam8bit, AdamW8bit, PagedAdamW8bit, …
        embeddings_32bit: 32-bit states for embeddings and head. The paper advises it for input embeddings, whose rare
            tokens have gradients unlike the others'; transformers' trainer does so for its own 8-bit optimizers; the
            published LLaSA recipes do not.
    """
    from bitsandbytes import optim

    base = getattr(optim, algorithm, None)
    if base is None or not algorithm.endswith("8bit"):
        remedy = "use Adam8bit, AdamW8bit or PagedAdamW8bit"
        raise UserError(f"optimizer.algorithm={algorithm} is not valid", remedy=remedy)

    def get_config(self: Any, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
        config = base.get_config(self, gindex, pindex, group)
        return config | ({"optim_bits": 32} if embeddings_32bit and group.get("kind") == "embeddings" else {})

    # Not bitsandbytes' GlobalOptimManager: it remembers parameters by their address in a table of the whole process,
    # so the next model of a sweep would inherit the choice, and one whose parameters are replaced would lose it.
    return type(algorithm, (base,), {"get_config": get_config})(params, **settings)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes that the states take, tables that several parameters share counted once."""
    tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())
