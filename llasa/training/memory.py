"""What a training step takes of a device's memory, from shapes alone.

model built without memory ─► bytes of weights, gradients, states (exact)
shape, rows, kernels       ─► bytes of activations (formulas, below)      ─► the moments of a step ─► the peak

Weights, gradients and states are counted on the real model on torch's meta device, adapters and all. Activations are
the tensors that autograd keeps for a layer of transformers 5.19's Llama; the tests compare them with what it keeps.
With T tokens in rows of S, h the hidden size, q and k the widths of all query and key heads, f the MLP's, and x bytes
a number of the residual stream (4 unless weights are bf16), b of the arithmetic (2 in bf16), a layer keeps

    norms, twice         4 T h      input in fp32                           4 T      1 / root mean square
                         x T h      normalised (for the gradient of its weight)
    linear layers' input b T h      of q, k, v together and of gate, up together; under autocast of fp32 weights each
                                    of the five makes its own copy
    attention            b T q      queries, and again its result           b T k    keys, and again values (b T q each
                         4 T heads  log-sum-exp                                      where heads are repeated: sdpa with
                         b T S      the mask: sdpa alone, and again in                a mask, eager)
                                    each layer                      b T q    sdpa_varlen's results, put together
    MLP                  b T f      gate, SiLU of gate, up, their product

Liger's layers and compiled ones keep neither what is normalised nor SiLU. Weights that do not learn keep no input.
Autocast also keeps a bf16 copy of every matrix that has run until its layer's backward pass is over (with
checkpointing: until the forward pass is).

A step is followed through four kinds of moments: the loss, each layer's backward pass (gradients come while
activations go), the embeddings' gradient at its end, and the optimizer's step. Fragmentation of the allocator comes
on top. FSDP's terms are estimates: what is gathered is 2 layers, and embeddings and head throughout.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from llasa.config import FinetuneConfig, KernelsConfig
from llasa.model.finetune import is_tied
from llasa.model.loss import loss_bytes
from llasa.training.cost import head_width
from llasa.training.optim import EIGHT_BIT

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import LlamaForCausalLM

FOUR_BIT = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of an NF4 number: 4 bits, a byte of scale for 64, and the scale of 256 of these (arXiv 2305.14314)."""
BLOCK, SMALL = 256, 4096
"""bitsandbytes: numbers that share a scale of their 8-bit states, and size below which states have 32 bits."""


@dataclass(frozen=True)
class Workload:
    """What a device computes at a time, and how."""

    rows: int
    length: int
    checkpointing: str
    """none, selective or full."""
    bf16: bool
    """The arithmetic, else fp32."""
    weights_bf16: bool
    """How weights are held. With FSDP and bf16 arithmetic, what is gathered is bf16 too."""
    attn: str
    kernel: str
    """liger or torch."""
    kernels: KernelsConfig
    finetune: FinetuneConfig
    accumulates: bool = False
    """Several micro-batches make a step, so gradients are there from the start of the later ones."""
    parallel: str = "single"
    processes: int = 1
    cpu_offload: bool = False

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @property
    def stream_bytes(self) -> int:
        return 2 if self.weights_bf16 else 4

    @property
    def bytes(self) -> int:
        return 2 if self.bf16 or self.weights_bf16 else 4

    @property
    def casts(self) -> bool:
        """Whether autocast makes copies: bf16 arithmetic of fp32 weights."""
        return self.bf16 and not self.weights_bf16

    @property
    def trains(self) -> str:
        """all, embeddings or adapters."""
        return self.finetune.train if self.finetune.name == "full" else "adapters"


@dataclass(frozen=True)
class LayerBytes:
    """Activations of one decoder layer: ``kept`` from forward to backward, ``alive`` while its backward runs."""

    kept: float
    alive: float


def layer_bytes(config: Any, work: Workload) -> LayerBytes:
    """The module's table, for a layer of a `LlamaConfig`."""
    x, b, h, f = work.stream_bytes, work.bytes, config.hidden_size, config.intermediate_size
    q, k = (n * head_width(config) for n in (config.num_attention_heads, config.num_key_value_heads))
    heads, eager = config.num_attention_heads, work.attn == "eager"
    fused = work.kernel == "liger" or work.kernels.compile
    repeated = work.attn in ("sdpa", "eager") and q != k
    kv = q if repeated else k
    norms = 2 * ((x if fused else 4) * h + 4)
    if work.trains == "all" and not fused:
        norms += 2 * x * h
    copies, inputs = work.casts or (work.trains == "adapters" and b == 2), 0
    if work.trains != "embeddings":
        inputs = (5 if copies else 2) * b * h + (b * q if copies and work.trains == "adapters" else 0) + b * f
    adapters = 7 * b * work.finetune.rank if work.trains == "adapters" else 0
    scores = (4 if b == 4 else 6) * heads * work.length if eager else 0
    mask = b * work.length if work.attn == "sdpa" else 0
    joined = b * q if work.attn == "sdpa_varlen" else 0
    attention = b * (q + 2 * kv + q) + joined + scores + mask + (0 if eager else 4 * heads)
    mlp = (2 if fused else 3) * b * f
    everything = norms + inputs + adapters + attention + mlp
    if work.checkpointing == "none":
        return LayerBytes(work.tokens * everything, work.tokens * everything)
    kept = alive = x * h
    alive = everything + (x * h if x == 2 else 0)
    if work.checkpointing == "selective":
        products = b * (q + 2 * k + h + 2 * f) + adapters
        kept += products + (0 if eager else b * q + 4 * heads)
        # Queries and keys before their rotation, values before they are repeated, and the output projection.
        alive += b * (q + k + h + (k if repeated else 0))
    return LayerBytes(work.tokens * kept, work.tokens * alive)


@dataclass
class ModelBytes:
    """Bytes of a model's parts. Per layer: the mean of its layers."""

    weights: float = 0
    gradients: float = 0
    states: float = 0
    layer_gradients: float = 0
    layer_matrices: float = 0
    """Numbers, not bytes: of all layers' matrices."""
    head_gradient: float = 0
    embedding_gradient: float = 0
    """0 where it is not trained; the tied head's counts in both."""
    rows_numbers: float = 0
    """Numbers, not bytes, of embeddings and head."""
    largest: float = 0
    """Bytes of the largest gradient in a layer."""
    tied: bool = False
    unknown_optimizer: str | None = None


def model_bytes(model: LlamaForCausalLM | PeftModel, optimizer: dict[str, Any], finetune: FinetuneConfig) -> ModelBytes:
    """Weights, gradients and states of a model, which may be on the meta device.

    Args:
        optimizer: the config's node, `auto` resolved.
    """
    total = ModelBytes()
    layers = model.config.num_hidden_layers
    total.tied = is_tied(model)
    for name, parameter in model.named_parameters():
        path, numbers = name.split("."), parameter.numel()
        in_layer = "layers" in path
        size = numbers * parameter.element_size()
        matrix = in_layer and parameter.ndim > 1 and not any(part.startswith("lora_") for part in path)
        total.weights += numbers * FOUR_BIT if matrix and finetune.name == "qlora" else size
        total.layer_matrices += numbers if matrix else 0
        embedding = bool({"embed_tokens", "lm_head"} & set(path))
        total.rows_numbers += numbers if embedding and parameter.ndim > 1 else 0
        if not parameter.requires_grad:
            continue
        total.gradients += size
        total.states += state_bytes_of(parameter, optimizer, embedding, total)
        if in_layer:
            total.layer_gradients += size / layers
            total.largest = max(total.largest, size)
        elif embedding and parameter.ndim > 1:
            if "lm_head" in path or total.tied:
                total.head_gradient += size
            if "embed_tokens" in path:
                total.embedding_gradient += size
    return total


def state_bytes_of(parameter: torch.Tensor, optimizer: dict[str, Any], embedding: bool, total: ModelBytes) -> float:
    """Bytes of an optimizer's states for one parameter, of its whole shape."""
    numbers, target = parameter.numel(), optimizer["_target_"]
    same_type, full = 2 * numbers * parameter.element_size(), 8 * numbers
    if target == EIGHT_BIT or target.endswith("8bit"):
        wide = numbers < SMALL or (embedding and optimizer.get("embeddings_32bit"))
        return full if wide else 2 * numbers + 2 * 4 * -(-numbers // BLOCK)
    if target.endswith("32bit"):
        return full
    if target.endswith("MuonAdamW"):
        return same_type / 2 if parameter.ndim > 1 and not embedding else same_type
    if target.startswith("torch.optim.Adam"):
        return same_type
    total.unknown_optimizer = target
    return full


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one device."""

    weights: float
    gradients: float
    states: float
    activations: float
    """Kept at the end of the forward pass; also the bf16 copies of weights, and what FSDP gathers."""
    loss: float
    moments: dict[str, float] = field(default_factory=dict)
    """What is there at each kind of moment."""

    @property
    def peak(self) -> float:
        return max(self.moments.values())

    @property
    def peak_moment(self) -> str:
        return max(self.moments, key=lambda name: self.moments[name])


def step_memory(config: Any, model: ModelBytes, work: Workload) -> StepMemory:
    """Follow a step through its moments. ``config`` is the model's `LlamaConfig`."""
    layers, shards = config.num_hidden_layers, work.processes if work.parallel == "fsdp" else 1
    x, b, h = work.stream_bytes, work.bytes, config.hidden_size
    layer = layer_bytes(config, work)
    adapted_head = work.trains == "adapters" and work.finetune.embeddings == "lora"
    loss = loss_bytes(
        "module" if adapted_head else work.kernel,
        work.tokens,
        config.vocab_size,
        h,
        work.kernels,
        b,
        trains_head=model.head_gradient > 0,
    )
    on_host = work.cpu_offload and work.parallel == "fsdp"
    weights, gradients, states = (0 if on_host else s / shards for s in (model.weights, model.gradients, model.states))
    resident = weights + states
    if work.parallel == "ddp":
        resident += gradients  # the buckets in which gradients travel, beside the gradients themselves
    one_layer = model.layer_matrices / layers
    gathered = (model.rows_numbers + 2 * one_layer) * b if shards > 1 else 0
    travelling = max(one_layer, model.rows_numbers) * 4 if shards > 1 else 0
    matrix_casts = 2 * one_layer if work.casts and shards == 1 and work.finetune.name != "qlora" else 0
    checkpointed = work.checkpointing != "none"
    # Frozen weights are cast again each time, and a checkpoint does not keep the copy.
    casts = 0 if checkpointed and work.trains != "all" else layers * matrix_casts
    if work.trains == "adapters" and work.bf16:
        casts += layers * model.layer_gradients / 2  # adapters are held in fp32
    shared = 2 * work.tokens * head_width(config) * x
    if checkpointed and work.attn in ("sdpa", "eager"):
        shared += work.tokens * work.length * (1 if work.attn == "sdpa" else x)
    last_norm = work.tokens * ((4 + x) * h + 4)
    activations = layers * layer.kept + shared + last_norm + casts + gathered

    before = gradients if work.accumulates else 0
    moments = {"loss": resident + before + activations + loss}
    width = 2 * config.intermediate_size * b + x * h
    if work.attn == "eager":
        width = max(width, 8 * config.num_attention_heads * work.length)
    working = work.tokens * width + (model.largest if work.accumulates or matrix_casts else 0)
    backward = []
    for number in range(layers):
        done = (layers - number) * model.layer_gradients + model.head_gradient
        held = gradients if work.accumulates else done / shards
        copies = matrix_casts * (1 if checkpointed else number + 1)
        backward.append(number * layer.kept + layer.alive + held + copies)
    # Autograd hands a tied matrix its two gradients as one sum, so the head's waits for the embeddings'.
    waiting = model.head_gradient / shards if model.tied and model.embedding_gradient and work.accumulates else 0
    moments["backward pass"] = resident + shared + gathered + travelling + working + waiting + max(backward)
    if model.embedding_gradient:
        # It comes as a tensor of its own, which is added to what is there already: the tied head's, or that of
        # earlier micro-batches.
        addend = model.embedding_gradient / shards if model.tied or work.accumulates else 0
        moments["gradient of the embeddings"] = (
            resident + gradients + gathered + travelling + waiting + addend + work.tokens * h * x
        )
    moments["optimizer step"] = resident + gradients
    return StepMemory(weights, gradients, states, activations, loss, moments)
