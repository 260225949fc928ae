"""The native model, with the package's weights loaded from their own format, beside the package. Here (.venv).

    .venv/bin/python experiments/xcodec2_native_vs_package/compare.py FOLDER [PYTHON]

Reads what `make_weights.py` and `run_package.py` left in FOLDER. With PYTHON, the interpreter of the package's
environment, `codec=xcodec2_package` is run on the clips as well and must give the package's codes and waveforms.
"""

import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from llasa.codec.features import KaldiFilterBank
from llasa.codec.xcodec2 import XCodec2
from llasa.codec.xcodec2_package import XCodec2Package

STAGES = ("features", "semantic", "acoustic", "values", "decoder", "waveform")
COLUMNS = ("features", "semantic", "acoustic", "values", "rounded value", "decoder", "waveform")


def native_results(codec: XCodec2, clip: np.ndarray, codes: np.ndarray) -> dict[str, np.ndarray]:
    """One clip through `Xcodec2Model.encode`, and the package's codes through `Xcodec2Model.decode`."""
    model, seen = codec.model, {}

    def keep(name, pick):
        return lambda module, inputs, output: seen.__setitem__(name, pick(output)[0].numpy().copy())

    hooks = [
        model.semantic_encoder.register_forward_hook(keep("semantic", lambda output: output.last_hidden_state)),
        model.acoustic_encoder.register_forward_hook(keep("acoustic", lambda output: output.transpose(1, 2))),
        model.quantizer.project_in.register_forward_hook(keep("values", lambda output: output)),
        model.acoustic_decoder.norm.register_forward_hook(keep("decoder", lambda output: output)),
    ]
    with torch.inference_mode():
        waveform = torch.nn.functional.pad(torch.from_numpy(clip), (0, codec.hop - len(clip) % codec.hop))[None]
        features = KaldiFilterBank()(torch.nn.functional.pad(waveform, (codec.hop // 2, codec.hop // 2)))
        seen["features"] = features[0].numpy()
        seen["codes"] = model.encode(waveform[:, None], input_features=features).audio_codes[0, 0].numpy()
        decoded = model.decode(torch.from_numpy(codes.astype(np.int64))[None, None]).audio_values
        seen["waveform"] = decoded[0, 0].numpy()
    for hook in hooks:
        hook.remove()
    return seen


def decided(codec: XCodec2, values: np.ndarray) -> np.ndarray:
    """What is rounded, from the projection's outputs; its distance from a boundary is that of the fraction from 0.5."""
    quantizer = codec.model.quantizer.quantizer
    return quantizer.bound(quantizer.bound(torch.from_numpy(values))).numpy()


def compare_pipe(folder: Path, python: str, clips: list[np.ndarray], package: np.lib.npyio.NpzFile) -> None:
    codec = XCodec2Package(
        checkpoint=str(folder / "published"),
        semantic_checkpoint=str(folder / "facebook" / "w2v-bert-2.0"),
        python=python,
        device="cpu",
    )
    codes = codec.encode(clips)
    waveforms = codec.decode(codes)
    same = sum(np.array_equal(clip, package[f"{number}/codes"]) for number, clip in enumerate(codes))
    sound = sum(np.array_equal(clip, package[f"{number}/waveform"]) for number, clip in enumerate(waveforms))
    print(f"codec=xcodec2_package: {same} clips with the package's codes, {sound} with its waveform, bit for bit")


@torch.no_grad()
def spoil(codec: XCodec2, clip: np.ndarray, codes: np.ndarray, waveform: np.ndarray) -> None:
    """What the comparison says of a model that is wrong in one place."""

    def report(what: str) -> None:
        found = native_results(codec, clip, codes)
        noise = (found["waveform"].astype(float) - waveform).std()
        snr = 20 * np.log10(waveform.astype(float).std() / noise)
        print(f"{what}: {(found['codes'] == codes).sum()} of {len(codes)} codes, waveform at {snr:.0f} dB", flush=True)

    def neighbours(projection: torch.nn.Linear) -> None:
        projection.weight.copy_(projection.weight.unflatten(0, (-1, 2, 32)).transpose(1, 2).flatten(0, 2))

    print("\nspoiled on purpose, clip 3:")
    report("nothing yet")
    attention = codec.model.acoustic_decoder.layers[11].self_attn
    neighbours(attention.q_proj)
    report("queries of the last of the decoder's 12 layers in the package's order")
    neighbours(attention.k_proj)
    report("queries and keys in the package's order")
    layers = codec.model.semantic_encoder.encoder.layers
    last, layers[15] = layers[15], layers[14]
    report("layer 15 of the semantic encoder in the place of layer 16")
    layers[15] = last
    for name, parameter in codec.model.acoustic_encoder.named_parameters():
        if name.endswith("act.beta"):
            parameter.zero_()
    report("Snake's beta at its first value, as the package has it from transformers 4.49 on")


def main() -> None:
    folder = Path(sys.argv[1])
    clips = list(np.load(folder / "clips.npz").values())
    package = np.load(folder / "package.npz")
    started = time.perf_counter()
    codec = XCodec2(checkpoint=str(folder / "published"), device="cpu")
    size = sum(parameter.numel() for parameter in codec.model.parameters())
    print(f"loaded in {time.perf_counter() - started:.1f} s: {size:,} parameters")
    print("\n| samples | codes | equal | " + " | ".join(COLUMNS) + " | SNR of the waveform |")
    print("|---|---|---|" + "---|" * (len(COLUMNS) + 1))
    equal = total = 0
    largest = dict.fromkeys(COLUMNS, 0.0)
    for number, clip in enumerate(clips):
        theirs = {name: package[f"{number}/{name}"] for name in (*STAGES, "codes")}
        ours = native_results(codec, clip, theirs["codes"])
        differences = {}
        for stage in STAGES:
            assert ours[stage].shape == theirs[stage].shape, (stage, ours[stage].shape, theirs[stage].shape)
            differences[stage] = float(np.abs(ours[stage] - theirs[stage]).max())
        differences["rounded value"] = float(
            np.abs(decided(codec, ours["values"]) - decided(codec, theirs["values"])).max()
        )
        same = int((ours["codes"] == theirs["codes"]).sum())
        noise = (ours["waveform"].astype(float) - theirs["waveform"]).std()
        snr = 20 * np.log10(theirs["waveform"].astype(float).std() / noise) if noise else np.inf
        cells = [f"{differences[stage]:.1e}" for stage in COLUMNS]
        print(
            f"| {len(clip)} | {len(theirs['codes'])} | {same} | " + " | ".join(cells) + f" | {snr:.0f} dB |", flush=True
        )
        equal, total = equal + same, total + len(theirs["codes"])
        largest = {stage: max(largest[stage], differences[stage]) for stage in largest}
    print(f"| all | {total} | {equal} | " + " | ".join(f"{value:.1e}" for value in largest.values()) + " | |")

    codes = np.concatenate([package[f"{number}/codes"] for number in range(len(clips))])
    digits = codes[:, None] // 4 ** np.arange(8) % 4
    fewest = min(len(np.unique(digit)) for digit in digits.T)
    print(f"\n{len(np.unique(codes))} different codes; every digit takes at least {fewest} of 4 values")
    for stage in ("semantic", "acoustic", "values", "decoder", "waveform"):
        print(f"rms of {stage}: {np.sqrt(np.mean(np.square(package[f'9/{stage}']))):.3g}")
    fractions = np.concatenate([decided(codec, package[f"{number}/values"]) for number in range(len(clips))]) % 1
    print(f"nearest value to a rounding boundary: {np.abs(fractions - 0.5).min():.1e}")

    batched = codec.encode(clips)
    same = [np.array_equal(codes, package[f"{number}/codes"]) for number, codes in enumerate(batched)]
    print(f"codec=xcodec2, all clips in one call: {sum(same)} of {len(same)} clips with the package's codes")
    if len(sys.argv) > 2:
        compare_pipe(folder, sys.argv[2], clips, package)
    spoil(codec, clips[3], package["3/codes"], package["3/waveform"])
    packages = ("torch", "transformers", "numpy")
    print(
        f"{time.perf_counter() - started:.0f} s; Python {platform.python_version()}",
        *(f"{p} {version(p)}" for p in packages),
    )


if __name__ == "__main__":
    main()
