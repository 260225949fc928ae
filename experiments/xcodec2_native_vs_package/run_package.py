"""Codes and waveforms of the authors' package, and values on the way to them. In the package's environment.

    .venv-xcodec2/bin/python experiments/xcodec2_native_vs_package/run_package.py FOLDER

Reads what `make_weights.py` left in FOLDER, writes `package.npz` there: for each clip n the arrays `n/features`
[frames, 160], `n/semantic` and `n/acoustic` [frames, 1024], `n/values` [frames, 8] (what the quantizer bounds and
rounds), `n/codes` [frames], and for these codes `n/decoder` [frames, 1024] and `n/waveform` [samples].
"""

import os
import platform
import sys
import time
from importlib.metadata import version

import numpy as np
import torch
from xcodec2.modeling_xcodec2 import XCodec2Model


def main() -> None:
    os.chdir(sys.argv[1])  # where the package's "facebook/w2v-bert-2.0" is a folder
    model, loading = XCodec2Model.from_pretrained("published", output_loading_info=True)
    print({kind: len(names) for kind, names in loading.items()})
    seen = {}

    def keep(name, pick):
        return lambda module, inputs, output: seen.__setitem__(name, pick(inputs, output)[0].detach().numpy().copy())

    model.semantic_model.register_forward_hook(keep("features", lambda inputs, output: inputs[0]))
    model.semantic_model.register_forward_hook(keep("semantic", lambda inputs, output: output.hidden_states[16]))
    model.CodecEnc.register_forward_hook(keep("acoustic", lambda inputs, output: output))
    model.generator.quantizer.project_in.register_forward_hook(keep("values", lambda inputs, output: output))
    model.generator.backbone.register_forward_hook(keep("decoder", lambda inputs, output: output))

    results = {}
    started = time.perf_counter()
    for number, clip in enumerate(np.load("clips.npz").values()):
        codes = model.encode_code(torch.from_numpy(clip)[None])  # [1, 1, frames]
        waveform = model.decode_code(codes)  # [1, 1, samples]
        found = seen | {"codes": codes[0, 0].numpy(), "waveform": waveform[0, 0].numpy()}
        results |= {f"{number}/{name}": array for name, array in found.items()}
        print(f"clip {number}: {len(clip)} samples, {codes.shape[-1]} codes", flush=True)
    np.savez("package.npz", **results)
    packages = ("xcodec2", "torch", "transformers", "torchtune", "vector-quantize-pytorch", "numpy")
    print(
        f"{time.perf_counter() - started:.0f} s; Python {platform.python_version()}",
        *(f"{p} {version(p)}" for p in packages),
    )


if __name__ == "__main__":
    main()
