"""One differentiable way through the codec: encode, quantise, decode, with the model's own layers.

    waveforms ─pad─► acoustic encoder ─┬─► projection ─► two tanh ─► rounding or noise ─► decoder ─► waveforms
    features ──────► semantic encoder ─┘    (latents)                      └─► codes

``Xcodec2Model.forward`` would do, but it does not return what is rounded, and it can only round. With ``rounding=1``
the result is that of :class:`llasa.codec.xcodec2.XCodec2` with the same weights, padding included, to the last bit
for one clip: what is trained is what will speak.

**Rounding** hides from the encoder how it could do better: only the straight-through estimate of its gradient is
left, and an untrained codec then settles on one to three codes. So a training begins with uniform noise of a step's
width in rounding's place (Ballé et al. 2017, arXiv 1611.01704), which is differentiable and as lossy, and phases
rounding in.

Cost: for the nano shape on one CPU core 0.3 s forward and 0.45 s backward for 8 clips of 1 s.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import Xcodec2Model

from llasa.codec.features import KaldiFilterBank
from llasa.codec.xcodec2 import uses_features


@dataclass
class Reconstruction:
    """What a batch became. ``frames`` is ``samples // hop + 1``: the codec's frame rule."""

    waveforms: torch.Tensor
    """float32 [clips, samples]: as long as what came in"""
    codes: torch.Tensor
    """int64 [clips, frames]: those of true rounding, whatever the decoder was given"""
    latents: torch.Tensor
    """float32 [clips, frames, levels]: the projected values, before the two tanh that bound them and the rounding"""
    semantic: torch.Tensor | None = None
    """A semantic loss. None: see :func:`reconstruct`"""


PARTS = ("all", "decoder")


def trained_parameters(model: Xcodec2Model, part: str) -> list[nn.Parameter]:
    """Those that a training of ``part`` ("all" or "decoder") moves; they alone require a gradient afterwards.

    "decoder" leaves the codes of every clip as they are: a store of codes and a language model stay valid.
    The semantic encoder is never trained (transformers computes it without gradients, as its authors froze it), and
    its adapter not where it has nothing to adapt.
    """
    assert part in PARTS, part
    moved: list[nn.Module] = [model.quantizer.project_out, model.acoustic_decoder]
    if part == "all":
        moved += [model.acoustic_encoder, model.fc_encoder, model.quantizer.project_in]
        if uses_features(model):
            moved.append(model.semantic_adapter)
    model.requires_grad_(False)
    for module in moved:
        module.requires_grad_(True)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def semantic_features(
    model: Xcodec2Model, filter_bank: KaldiFilterBank, waveforms: torch.Tensor
) -> torch.Tensor | None:
    """float32 [clips, samples] → what :func:`reconstruct` wants, float32 [clips, frames, 160]; None if it is unused."""
    if not uses_features(model):
        return None
    margin = model.config.hop_length // 2
    with torch.no_grad():
        return filter_bank(nn.functional.pad(_padded(model, waveforms), (margin, margin)))


def reconstruct(
    model: Xcodec2Model,
    waveforms: torch.Tensor,
    features: torch.Tensor | None,
    *,
    rounding: float = 1.0,
    generator: torch.Generator | None = None,
) -> Reconstruction:
    """float32 [clips, samples] at the codec's rate, in [-1, 1] → the same through the codec.

    ``features`` are :func:`semantic_features`' of the same clips. Each of a frame's eight values is rounded with the
    chance ``rounding``, with the gradient passed straight through, and gets uniform noise of a step's width
    otherwise. ``generator`` draws both, on the waveforms' device; it is not used where ``rounding`` is 1.

    May stand under autocast: the values that are rounded are float32's all the same. ``semantic`` is None:
    transformers' model lacks the decoder of semantic features that X-Codec 2's authors trained with it.
    """
    latents = _latents(model, waveforms, features)
    quantizer = model.quantizer.quantizer
    with torch.autocast(waveforms.device.type, enabled=False):
        bounded = quantizer.bound(latents)  # twice, as it was trained
        with torch.no_grad():
            _, codes = quantizer(bounded)
        values = quantizer.bound(bounded)
        decided = values.detach().round()
        if rounding < 1:
            drawn = torch.rand((2, *values.shape), generator=generator, device=values.device)
            decided = torch.where(drawn[0] < rounding, decided, values.detach() + drawn[1] - 0.5)
        # Not values + (decided - values): that may miss the level by a last bit, and the decoder would hear it.
        quantised = decided + (values - values.detach())
        hidden = model.quantizer.project_out(quantised / (quantizer.levels // 2))
    decoded = model.acoustic_decoder(hidden)[:, 0, : waveforms.shape[1]].float()
    return Reconstruction(decoded, codes.long(), latents)


def _latents(model: Xcodec2Model, waveforms: torch.Tensor, features: torch.Tensor | None) -> torch.Tensor:
    """The projected values, float32 [clips, frames, levels]."""
    padded = _padded(model, waveforms)
    if features is None:
        assert not uses_features(model), "this model's semantic encoder needs features"
        width = model.config.semantic_model_config.feature_projection_input_dim
        features = padded.new_zeros(len(padded), padded.shape[1] // model.config.hop_length, width)
    model.semantic_encoder.eval()  # frozen: without dropout, and without the masks of its own training
    with torch.no_grad():
        semantic = model.semantic_encoder(features).last_hidden_state
    semantic = model.semantic_adapter(semantic.transpose(1, 2))
    acoustic = model.acoustic_encoder(padded[:, None])
    hidden = model.fc_encoder(torch.cat([semantic, acoustic], dim=1).transpose(1, 2))
    with torch.autocast(waveforms.device.type, enabled=False):
        return model.quantizer.project_in(hidden.float())


def _padded(model: Xcodec2Model, waveforms: torch.Tensor) -> torch.Tensor:
    """By the codec's frame rule: a whole extra frame where the length divides."""
    hop = model.config.hop_length
    return nn.functional.pad(waveforms, (0, hop - waveforms.shape[1] % hop))
