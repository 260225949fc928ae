"""The codec behind the pipe: its protocol with a stand-in for the package, and the package itself where there is one.

`make test` runs the real worker script, on this interpreter, with a module named `xcodec2` that stands in for the
package: everything but the model. The package needs an environment of its own (requirements/xcodec2.txt); the slow
test runs on the interpreter that LLASA_XCODEC2_PYTHON names, and fails if that cannot be used.
"""

import ast
import gc
import os
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from llasa.codec import xcodec2_package
from llasa.codec.base import Codec
from llasa.codec.xcodec2_package import WORKER, XCodec2Package
from llasa.errors import UserError

STAND_IN = '''
import os, sys
import torch

class XCodec2Model:
    """Codes are the loudness of the frames. Like the real one, it takes one clip, and w2v-bert from its folder."""
    device = torch.device("cpu")

    @classmethod
    def from_pretrained(cls, checkpoint, output_loading_info):
        print("a line that must not reach the answers")
        if not os.path.isdir("facebook/w2v-bert-2.0"):
            raise OSError("no facebook/w2v-bert-2.0\\nand a second line")
        if checkpoint.endswith("incomplete"):
            return cls(), {"missing_keys": ["b", "a"], "unexpected_keys": [], "mismatched_keys": []}
        return cls(), {"missing_keys": [], "unexpected_keys": ["c"], "mismatched_keys": []}

    def eval(self):
        return self

    def state_dict(self):
        return {"weight": torch.arange(100.0)}

    def encode_code(self, waveform):
        assert waveform.shape[0] == 1 and waveform.dtype == torch.float32
        if waveform.shape[1] == 13:
            raise RuntimeError("unlucky")
        padded = torch.nn.functional.pad(waveform, (0, 320 - waveform.shape[1] % 320))
        return (padded.unflatten(1, (-1, 320)).abs().amax(-1) * 1000).long()[:, None]

    def decode_code(self, codes):
        assert codes.shape[:2] == (1, 1) and codes.dtype == torch.int64
        return (codes / 1000).repeat_interleave(320, dim=-1).float()
'''


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Keyword arguments of a codec whose interpreter finds a stand-in for the package."""
    package = tmp_path / "site" / "xcodec2"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "modeling_xcodec2.py").write_text(STAND_IN)
    information = tmp_path / "site" / "xcodec2-0.1.5.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: xcodec2\nVersion: 0.1.5\n")
    # The worker itself runs, after a line that lets `-I` find the stand-in.
    source = WORKER.read_text()
    start = "import argparse\n"
    assert source.count(start) == 1
    worker = tmp_path / "worker.py"
    worker.write_text(source.replace(start, f"import sys\nsys.path.insert(0, {str(tmp_path / 'site')!r})\n{start}"))
    monkeypatch.setattr(xcodec2_package, "WORKER", worker)
    (tmp_path / "w2v").mkdir()
    (tmp_path / "weights").mkdir()
    return {
        "checkpoint": str(tmp_path / "weights"),
        "semantic_checkpoint": str(tmp_path / "w2v"),
        "python": sys.executable,
        "device": "cpu",
    }


def test_codes_and_waveforms_pass_the_pipe(stand_in):
    codec = XCodec2Package(**stand_in)
    spec = codec.spec
    assert (spec.name, spec.sample_rate, spec.tokens_per_second) == ("xcodec2_package", 16_000, 50.0)
    assert (spec.codebook_size, spec.code_ranges, spec.checkpoint) == (65_536, ((0, 65_536),), stand_in["checkpoint"])
    assert len(bytes.fromhex(spec.fingerprint)) == 32

    rng = np.random.default_rng(0)
    sizes = (0, 1, 319, 320, 321, 5_000, 200_000)
    clips = [(np.linspace(0, 1, size) * rng.uniform(-1, 1, size)).astype(np.float32) for size in sizes]
    codes = codec.encode(clips)
    for clip, found in zip(clips, codes, strict=True):
        padded = np.pad(clip, (0, 320 - len(clip) % 320)).reshape(-1, 320)
        np.testing.assert_array_equal(found, (np.abs(padded).max(axis=1) * np.float32(1000)).astype(np.int64))
        assert found.dtype == np.uint16
        assert len(found) == codec.num_codes(len(clip)) == len(clip) // 320 + 1
    assert len(np.unique(np.concatenate(codes))) > 500

    waveforms = codec.decode([*codes, np.zeros(0, dtype=np.uint16)])
    for found, waveform in zip(codes, waveforms, strict=False):
        assert waveform.dtype == np.float32
        np.testing.assert_array_equal(waveform, np.repeat(found.astype(np.float32) / np.float32(1000), 320))
    assert len(waveforms) == len(codes) + 1
    assert len(waveforms[-1]) == 0
    assert codec.encode([]) == []
    assert (codec.encoding_facts(), codec.agreement(clips)) == ({}, {})
    assert {name for name in vars(Codec) if not name.startswith("_")} <= set(dir(codec))


def test_its_fingerprint_is_repeatable_and_the_process_ends_with_it(stand_in):
    codec = XCodec2Package(**stand_in)
    again = XCodec2Package(**stand_in)
    assert again.spec.fingerprint == codec.spec.fingerprint
    process, folder = codec._process, Path(codec._working_folder.name)
    assert process.poll() is None
    assert (folder / "facebook" / "w2v-bert-2.0").resolve() == Path(stand_in["semantic_checkpoint"]).resolve()
    del codec
    gc.collect()
    assert process.poll() == 0
    assert not folder.exists()
    assert len(again.encode([np.zeros(640, dtype=np.float32)])[0]) == 3


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"python": "/no/such/python"}, r"codec\.python=/no/such/python cannot be run .*requirements/xcodec2\.txt"),
        ({"device": "quark"}, r"codec\.device=quark is not valid"),
        ({"checkpoint": "./nowhere"}, r"codec\.checkpoint=\./nowhere: no such folder"),
        ({"checkpoint": "a/b/c"}, r"codec\.checkpoint=a/b/c: no such folder"),
        ({"checkpoint": "incomplete"}, r"2 weights are missing or misshapen, first a; this is transformers"),
        ({"semantic_checkpoint": "/nowhere"}, r"codec\.semantic_checkpoint=/nowhere: no such folder"),
        ({"semantic_checkpoint": "facebook/w2v-bert-2.0"}, r"cannot load it \(no facebook/w2v-bert-2\.0\)"),
    ],
)
def test_what_the_user_can_fix(stand_in, changes, problem):
    with pytest.raises(UserError, match=problem) as error:
        XCodec2Package(**(stand_in | changes))
    assert "\n" not in str(error.value)


def test_an_environment_without_the_package(stand_in, monkeypatch):
    monkeypatch.setattr(xcodec2_package, "WORKER", WORKER)
    with pytest.raises(UserError, match=r"cannot load it \(No module named 'xcodec2'\); see requirements/xcodec2\.txt"):
        XCodec2Package(**stand_in)


def test_cuda_that_is_not_there(stand_in):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(UserError, match="device=cuda, but the package's torch sees no CUDA device"):
        XCodec2Package(**(stand_in | {"device": "cuda"}))


def test_a_process_that_fails_is_no_answer(stand_in, capfd):
    codec = XCodec2Package(**stand_in)
    with pytest.raises(RuntimeError, match="ended with status 1; its errors are above"):
        codec.encode([np.zeros(13, dtype=np.float32)])
    assert "RuntimeError: unlucky" in capfd.readouterr().err
    with pytest.raises(RuntimeError, match="ended with status 1"):
        codec.encode([np.zeros(320, dtype=np.float32)])


def test_refuses_what_is_no_clip_and_no_codes(stand_in):
    codec = XCodec2Package(**stand_in)
    with pytest.raises(ValueError, match=r"waveform 1 has shape \(1, 320\)"):
        codec.encode([np.zeros(320, dtype=np.float32), np.zeros((1, 320), dtype=np.float32)])
    for wrong in ([0, 65_536], [-1], [[1, 2]], [1.0, 2.0]):
        with pytest.raises(ValueError, match="codes 1 "):
            codec.decode([np.array([1]), np.array(wrong)])
    assert len(codec.decode([np.array([1])])[0]) == 320  # and it still answers


def test_the_worker_stands_alone():
    """The old environment has none of this project, and neither Hydra nor today's syntax may be needed there."""
    tree = ast.parse(WORKER.read_text(), feature_version=(3, 9))
    imported = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= {*sys.stdlib_module_names, "numpy", "torch", "xcodec2"}
    assert {"torch", "xcodec2", "json"} <= imported


MAKE_TINY = """
    import os, sys
    import torch
    from safetensors.torch import save_file
    from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertConfig, Wav2Vec2BertModel
    from xcodec2.configuration_bigcodec import BigCodecConfig
    from xcodec2.modeling_xcodec2 import XCodec2Model

    os.chdir(sys.argv[1])
    torch.manual_seed(0)
    semantic = Wav2Vec2BertModel(Wav2Vec2BertConfig(num_hidden_layers=17, intermediate_size=64))
    semantic.save_pretrained("facebook/w2v-bert-2.0")
    SeamlessM4TFeatureExtractor(padding_value=1.0).save_pretrained("facebook/w2v-bert-2.0")
    model = XCodec2Model(BigCodecConfig(architectures=["XCodec2Model"])).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("act.alpha", "act.bias")):
                parameter.normal_(0, 0.3)
        seen = []
        projection = model.generator.quantizer.project_in
        projection.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
        model.encode_code(torch.randn(1, 16000) * torch.rand(50).repeat_interleave(320))
        projection.weight.div_(seen[0].std(dim=0)[:, None])
        projection.bias.sub_(seen[0].mean(dim=0)).div_(seen[0].std(dim=0))
    model.config.save_pretrained("published")
    names = {"act.bias": "act.beta", "parametrizations.weight.original0": "weight_g"}
    names["parametrizations.weight.original1"] = "weight_v"
    weights = {}
    for name, tensor in model.state_dict().items():
        for here, published in names.items():
            name = name.replace(here, published)
        weights[name] = tensor.contiguous()
    save_file(weights, "published/model.safetensors", metadata={"format": "pt"})
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif("LLASA_XCODEC2_PYTHON" not in os.environ, reason="LLASA_XCODEC2_PYTHON names no interpreter")
def test_the_package_and_the_native_model_agree(tmp_path):
    """The real package, random weights in the published spelling; its sizes are fixed, only w2v-bert can be smaller."""
    import subprocess

    from llasa.codec.xcodec2 import XCodec2

    python = os.environ["LLASA_XCODEC2_PYTHON"]
    (tmp_path / "facebook").mkdir()
    subprocess.run([python, "-I", "-c", textwrap.dedent(MAKE_TINY), str(tmp_path)], check=True)
    package = XCodec2Package(
        checkpoint=str(tmp_path / "published"),
        semantic_checkpoint=str(tmp_path / "facebook" / "w2v-bert-2.0"),
        python=python,
        device="cpu",
    )
    native = XCodec2(checkpoint=str(tmp_path / "published"), device="cpu")
    rng = np.random.default_rng(0)
    clips = [(0.3 * rng.standard_normal(size)).astype(np.float32) for size in (320, 6_401, 12_000)]
    expected, found = package.encode(clips), native.encode(clips)
    assert [len(codes) for codes in expected] == [len(codes) for codes in found] == [2, 21, 38]
    assert len(np.unique(np.concatenate(expected))) > 50
    # Values closer to a rounding boundary than the last bits of float32 may fall on either side.
    assert (np.concatenate(expected) != np.concatenate(found)).mean() <= 0.02
    for ours, theirs in zip(native.decode(expected), package.decode(expected), strict=True):
        assert theirs.std() > 1e-3
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())
