"""XCodec2 on a tiny model with random weights: batched against single, and against transformers' own path."""

import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import SeamlessM4TFeatureExtractor

from llasa.codec.arithmetic import compiled, memory_for
from llasa.codec.padding import bucket_length
from llasa.codec.xcodec2 import XCodec2
from llasa.errors import UserError
from tests.codec.deep_xcodec2 import save_deep_xcodec2
from tests.codec.tiny_xcodec2 import save_tiny_xcodec2

HOP = 320


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_xcodec2(tmp_path_factory.mktemp("tiny_xcodec2"))


@pytest.fixture(scope="module")
def codec(folder):
    return XCodec2(checkpoint=str(folder), device="cpu")


@pytest.fixture(scope="module")
def clips():
    """65 clips of 0 to 0.5 s, of noise that changes its loudness every 20 ms: two or three of each number of frames."""
    rng = np.random.default_rng(7)
    lengths = [0, 1, HOP - 1, HOP, HOP + 1, *rng.integers(2, 8_000, size=60)]
    return [noise(length, seed=index) for index, length in enumerate(lengths)]


def noise(num_samples: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    loudness = np.repeat(rng.uniform(0, 0.3, num_samples // HOP + 1), HOP)[:num_samples]
    return (loudness * rng.standard_normal(num_samples)).astype(np.float32)


def encode_with_transformers(codec: XCodec2, waveform: np.ndarray) -> np.ndarray:
    """The slow twin: numpy features, attention masks of ones, ``Xcodec2Model.encode``, one clip."""
    padded = np.pad(waveform, (0, HOP - len(waveform) % HOP))
    features = SeamlessM4TFeatureExtractor(padding_value=1.0)(
        np.pad(padded, (HOP // 2, HOP // 2)), sampling_rate=16_000, return_tensors="pt"
    )
    with torch.inference_mode():
        outputs = codec.model.encode(
            torch.from_numpy(padded)[None, None],
            input_features=features["input_features"],
            input_features_mask=features["attention_mask"],
        )
    assert features["attention_mask"].all()
    return outputs.audio_codes[0, 0].numpy()


def test_spec(codec, folder):
    spec = codec.spec
    assert (spec.name, spec.sample_rate, spec.tokens_per_second) == ("xcodec2", 16_000, 50.0)
    assert (spec.codebook_size, spec.code_ranges, spec.code_dtype) == (65_536, ((0, 65_536),), np.uint16)
    assert spec.checkpoint == str(folder)
    assert len(bytes.fromhex(spec.fingerprint)) == 32
    assert not codec.model.training
    assert not any(parameter.requires_grad for parameter in codec.model.parameters())
    assert {parameter.dtype for parameter in codec.model.parameters()} == {torch.float32}
    assert sum(parameter.numel() for parameter in codec.model.parameters()) < 2_000_000


def test_codes_depend_on_the_sound(codec):
    one, other = codec.encode([noise(320 * 99, seed=1), noise(320 * 99, seed=2)])
    assert len(one) == 100
    assert len(np.unique(one)) > 80
    assert (one != other).mean() > 0.9
    levels = (one.astype(int)[:, None] // 4 ** np.arange(8)) % 4
    assert all(len(np.unique(dimension)) == 4 for dimension in levels.T)


@pytest.mark.parametrize("num_samples", [0, 1, 319, 320, 321, 639, 640, 641, 3_199, 3_200, 3_201, 16_000])
def test_frame_rule(codec, num_samples):
    codes = codec.encode([noise(num_samples)])[0]
    assert codes.dtype == np.uint16
    assert len(codes) == codec.num_codes(num_samples) == num_samples // HOP + 1


def test_equals_transformers(codec):
    waveforms = [noise(length, seed=length) for length in (1, 320, 5_000, 15_999, 16_000, 48_000)]
    expected = np.concatenate([encode_with_transformers(codec, waveform) for waveform in waveforms])
    codes = np.concatenate(codec.encode(waveforms))
    assert len(codes) == len(expected) > 270
    # The twin's features differ by 1e-5 (see test_features), so a code in some thousands may differ.
    assert (codes != expected).mean() <= 0.01


class Counting(XCodec2):
    """Counts the clips that are encoded alone."""

    alone = 0

    def _alone(self, waveform):
        self.alone += 1
        return super()._alone(waveform)


@pytest.fixture(scope="module")
def many_clips():
    """300 clips of 0.02 to 6 s, most of them short, of nearly as many lengths."""
    lengths = (320 * 300 ** (np.random.default_rng(1).uniform(0, 1, 300) ** 1.5)).astype(int)
    assert len(np.unique(lengths)) > 250
    return [noise(length, seed=1_000 + index) for index, length in enumerate(lengths)]


def assert_equal_codes(codes, expected) -> None:
    assert len(codes) == len(expected) > 0
    for one, other in zip(codes, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_batched_codes_equal_single_codes_bit_for_bit(folder, many_clips):
    codec = Counting(checkpoint=str(folder), device="cpu", batch_seconds=20)
    batched = codec.encode(many_clips)
    assert codec.alone < 60  # of 300: what is equal below is equal because batches are right
    assert_equal_codes(batched, [codec.encode([clip])[0] for clip in many_clips])
    assert len(np.unique(np.concatenate(batched))) > 5_000
    order = np.random.default_rng(0).permutation(len(many_clips))[:100]
    assert_equal_codes(codec.encode([many_clips[index] for index in order]), [batched[index] for index in order])


@pytest.mark.slow
def test_bf16_codes_do_not_depend_on_neighbours_or_row(folder, many_clips):
    codec = XCodec2(checkpoint=str(folder), device="cpu", precision="bf16", batch_seconds=4)
    lengths = [bucket_length(codec.num_codes(len(clip))) for clip in many_clips]
    assert {len(indices) for _, indices in codec._batches(lengths)} >= {1, 2, 4}
    batched = codec.encode(many_clips)
    order = np.random.default_rng(0).permutation(len(many_clips))
    assert_equal_codes(codec.encode([many_clips[index] for index in order]), [batched[index] for index in order])
    assert_equal_codes(batched[::5], [codec.encode([clip])[0] for clip in many_clips[::5]])
    assert len(np.unique(np.concatenate(batched))) > 5_000


def test_bf16_rows_are_alike(folder):
    """One clip in every row of the batch, beside loud, silent and short clips."""
    codec = XCodec2(checkpoint=str(folder), device="cpu", precision="bf16", batch_seconds=8)
    clip = noise(9_000, seed=5)
    others = [noise(15_900, seed=6), np.zeros(15_000, np.float32), noise(300, seed=7), 3 * noise(12_345, seed=8)]
    expected = codec.encode([clip])[0]
    for row in range(8):
        batch = [others[place % 4] for place in range(7)]
        batch.insert(row, clip)
        assert next(codec._batches([50] * 8)) == (50, list(range(8)))
        np.testing.assert_array_equal(codec.encode(batch)[row], expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_deep_model_encodes_batches_exactly(tmp_path, precision):
    """The published depth and ratios; see test_padding.py for the values, and for what happens without a hook."""
    deep = XCodec2(checkpoint=str(save_deep_xcodec2(tmp_path)), device="cpu", precision=precision, batch_seconds=4)
    rng = np.random.default_rng(2)
    waveforms = [noise(length, seed=index) for index, length in enumerate(rng.integers(1, 30_000, 24))]
    batched = deep.encode(waveforms)
    assert_equal_codes(deep.encode(waveforms[::-1])[::-1], batched)
    assert_equal_codes(batched[:8], [deep.encode([waveform])[0] for waveform in waveforms[:8]])
    codes = np.concatenate(batched)
    assert len(np.unique(codes)) > 0.8 * len(codes) > 800


def test_the_margin_grows_with_the_differences_that_are_seen(folder, clips):
    codec = Counting(checkpoint=str(folder), device="cpu")
    codec._margin = 0.0
    batched = codec.encode(clips)
    assert 1 <= codec.alone < 20
    assert 1e-8 < codec._margin < 1e-4
    assert_equal_codes(batched, [codec.encode([clip])[0] for clip in clips])


def test_agreement_of_bf16_with_fp32(codec, folder, clips):
    assert (codec.encoding_facts(), codec.agreement(clips)) == ({"precision": "fp32"}, {})
    coarse = XCodec2(checkpoint=str(folder), device="cpu", precision="bf16", batch_seconds=10)
    assert coarse.encoding_facts() == {"precision": "bf16"}
    assert coarse.spec == codec.spec
    assert coarse.agreement([]) == {}
    facts = coarse.agreement(clips)
    codes, exact = np.concatenate(coarse.encode(clips)).astype(int), np.concatenate(codec.encode(clips)).astype(int)
    assert (facts["clips"], facts["codes"]) == (65, len(codes))
    assert facts["equal_to_fp32"] == (codes == exact).mean()
    digits = (codes[:, None] // 4 ** np.arange(8) % 4) == (exact[:, None] // 4 ** np.arange(8) % 4)
    assert facts["equal_levels"] == pytest.approx(digits.mean())
    assert 0.7 < facts["equal_to_fp32"] < 1 > facts["equal_levels"] > 0.95
    assert facts["equal_in_another_order"] == 1.0
    assert (facts["batch_seconds"], facts["compile"], facts["device"]) == (10, False, "cpu")
    assert_equal_codes(codec.decode([codes]), coarse.decode([codes]))  # decoding knows no precision


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, r"codec\.precision=fp8 is not valid; choose one of fp32, bf16"),
        ({"batch_seconds": 0}, r"codec\.batch_seconds=0 is not valid; use a number above 0"),
        ({"batch_seconds": float("nan")}, r"codec\.batch_seconds=nan is not valid"),
        ({"batch_seconds": "many"}, r"codec\.batch_seconds=many is not valid"),
        ({"compile": "yes"}, r"codec\.compile=yes is not valid; use true or false"),
    ],
)
def test_bad_options_are_the_users_error(folder, options, message):
    with pytest.raises(UserError, match=message):
        XCodec2(checkpoint=str(folder), device="cpu", **options)


def test_on_a_cpu_every_clip_goes_alone_unless_asked_otherwise(folder):
    clips = [noise(length, seed) for seed, length in enumerate((3_000, 3_100, 40_000, 3_200, 41_000))]
    auto = XCodec2(checkpoint=str(folder), device="cpu", batch_seconds="auto")
    assert [len(indices) for _, indices in auto._batches([50, 50, 150, 50, 150])] == [1] * 5
    batched = XCodec2(checkpoint=str(folder), device="cpu", batch_seconds=60)
    assert sorted(len(indices) for _, indices in batched._batches([50, 50, 150, 50, 150])) == [2, 3]
    for mine, theirs in zip(auto.encode(clips), batched.encode(clips), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("clips", "remedy"), [(6, r"use codec\.batch_seconds=30 or less"), (1, r"or leave such long clips out")]
)
def test_a_full_gpu_is_the_users_error(clips, remedy):
    with (
        pytest.raises(UserError, match=rf"codec\.batch_seconds=60: no GPU memory .* {clips} x 10\.0 s; .*{remedy}"),
        memory_for(clips, 10.0, 60.0),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def test_compiled_functions_know_no_limit_of_shapes():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    double = compiled(lambda values: values * 2, backend=backend)
    for _ in range(2):
        for size in range(2, 22):
            assert double(torch.ones(size)).tolist() == [2.0] * size
    assert len(graphs) == 20


@pytest.mark.slow
def test_the_encoder_with_its_hooks_is_one_graph(codec, folder, clips):
    captured = XCodec2(checkpoint=str(folder), device="cpu", batch_seconds=4)
    captured.compile = True
    captured._batched_hidden = compiled(captured._hidden, backend="eager")
    assert_equal_codes(captured.encode(clips[:10]), codec.encode(clips[:10]))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_codes_equal_single_codes(codec, folder, clips, precision):
    compiled_codec = XCodec2(checkpoint=str(folder), device="cpu", batch_seconds=4, precision=precision, compile=True)
    batched = compiled_codec.encode(clips)
    assert_equal_codes(compiled_codec.encode(clips[::-1])[::-1], batched)
    if precision == "fp32":
        assert_equal_codes(batched, codec.encode(clips))
    else:
        assert 0.7 < (np.concatenate(batched) == np.concatenate(codec.encode(clips))).mean() < 1


def test_result_does_not_depend_on_order_or_batch_size(codec, clips, folder):
    expected = codec.encode(clips)
    order = np.random.default_rng(0).permutation(len(clips))
    shuffled = codec.encode([clips[index] for index in order])
    for position, index in enumerate(order):
        np.testing.assert_array_equal(shuffled[position], expected[index])

    small = XCodec2(checkpoint=str(folder), device="cpu", batch_seconds=0.5)
    batches = list(small._batches([25] * 5 + [26] * 2 + [10_000]))
    assert batches == [(10_000, [7]), (26, [5]), (26, [6]), (25, [0]), (25, [1]), (25, [2]), (25, [3]), (25, [4])]
    assert [indices for _, indices in small._batches([10] * 5)] == [[0, 1], [2, 3], [4]]
    for codes, again in zip(expected[:20], small.encode(clips[:20]), strict=True):
        np.testing.assert_array_equal(codes, again)


def test_a_code_that_batching_flips_is_decided_alone(folder):
    """Puts a rounding boundary between a value's batched and single results, so that plain batching is wrong."""
    codec = XCodec2(checkpoint=str(folder), device="cpu")
    waveforms = [noise(50 * HOP - 1, seed=seed) for seed in range(8)]
    padded = torch.from_numpy(np.stack([np.pad(waveform, (0, 1)) for waveform in waveforms]))
    features = codec.features(torch.nn.functional.pad(padded, (HOP // 2, HOP // 2)))
    project_in = codec.model.quantizer.project_in
    values: list[torch.Tensor] = []
    project_in.register_forward_hook(lambda module, inputs, output: values.append(output))

    def encode(rows: slice) -> torch.Tensor:
        with torch.inference_mode():
            return codec.model.encode(padded[rows, None], input_features=features[rows]).audio_codes[:, 0]

    def encode_both_ways() -> tuple[torch.Tensor, torch.Tensor]:
        return encode(slice(None)), torch.cat([encode(slice(row, row + 1)) for row in range(len(padded))])

    encode_both_ways()
    batched, single = values[0].double(), torch.cat(values[1:]).double()
    if torch.equal(batched, single):
        pytest.skip("this machine sums in the same order for every batch size")

    # The value whose two tanh give -0.5, where rounding jumps from -1 to 0.
    half_range = 3 * (1 + 1e-3) / 2
    shift = math.atanh(0.5 / half_range)
    boundary = math.atanh((0.5 - shift) / half_range) - shift
    bias = project_in.bias.clone()
    for position in (batched - single).abs().flatten().argsort(descending=True)[:10]:
        clip, frame, dimension = np.unravel_index(int(position), batched.shape)
        middle = (batched[clip, frame, dimension] + single[clip, frame, dimension]) / 2
        with torch.no_grad():
            project_in.bias.copy_(bias)
            project_in.bias[dimension] += boundary - middle
        plain, alone = encode_both_ways()
        if plain[clip, frame] != alone[clip, frame]:
            break
    assert plain[clip, frame] != alone[clip, frame], "plain batching is right too, so this proves nothing"
    encoded = codec.encode(waveforms)
    np.testing.assert_array_equal(np.stack(encoded), alone.numpy())
    for waveform, codes in zip(waveforms, encoded, strict=True):
        np.testing.assert_array_equal(codes, codec.encode([waveform])[0])


def test_encoding_leaves_the_random_state_alone(codec):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    codec.encode([noise(3_200)])
    assert torch.equal(torch.get_rng_state(), before)


def test_encoding_ignores_autocast_and_restores_the_precision(codec):
    waveform = noise(48_000)
    expected = codec.encode([waveform])[0]
    precision = torch.backends.cudnn.conv.fp32_precision
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(codec.encode([waveform])[0], expected)
    assert torch.backends.cudnn.conv.fp32_precision == precision


def test_empty_lists(codec):
    assert codec.encode([]) == []
    assert codec.decode([]) == []


def test_refuses_waveforms_with_channels(codec):
    with pytest.raises(ValueError, match=r"waveform 1 has shape \(1, 320\)"):
        codec.encode([noise(320), noise(320)[None]])


def test_decode_lengths_and_order(codec):
    rng = np.random.default_rng(0)
    codes = [rng.integers(0, 65_536, size=size).astype(np.uint16) for size in (7, 1, 0, 7, 40, 3, 7, 1)]
    decoded = codec.decode(codes)
    assert [len(waveform) for waveform in decoded] == [HOP * len(clip) for clip in codes]
    for clip, waveform in zip(codes, decoded, strict=True):
        assert waveform.dtype == np.float32
        assert np.isfinite(waveform).all()
        alone = codec.decode([clip])[0]
        if len(clip):
            assert alone.std() > 1e-4
        # 1e-6 of full scale: a wave is not rounded, so the order of summation shows in its last bits.
        np.testing.assert_allclose(waveform, alone, rtol=0, atol=1e-6)
    assert np.abs(decoded[0] - decoded[3]).max() > 1e-3


def test_decode_takes_what_encode_gives(codec):
    waveforms = [noise(5_000), noise(320, seed=1)]
    codes = codec.encode(waveforms)
    assert [len(waveform) for waveform in codec.decode(codes)] == [HOP * 16, HOP * 2]
    for as_given, as_lists in zip(codec.decode(codes), codec.decode([clip.tolist() for clip in codes]), strict=True):
        np.testing.assert_array_equal(as_given, as_lists)


@pytest.mark.parametrize(
    "codes",
    [
        np.array([0, 65_536]),
        np.array([-1, 5]),
        np.array([[1, 2]]),
        np.array([1.0, 2.0]),
        np.array([2**40], dtype=np.uint64),
    ],
)
def test_decode_refuses_other_codes(codec, codes):
    codec.decode([np.array([0, 65_535])])
    with pytest.raises(ValueError, match="codes 1 "):
        codec.decode([np.array([1, 2]), codes])


def test_fingerprint_belongs_to_the_weights(codec, folder, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    config |= {"transformers_version": "5.17.0", "_name_or_path": "somewhere", "dtype": "bfloat16"}
    (copy / "config.json").write_text(json.dumps(config))
    again = XCodec2(checkpoint=str(copy), device="cpu", name="renamed")
    assert again.spec.fingerprint == codec.spec.fingerprint
    assert next(again.model.parameters()).dtype == torch.float32

    other = XCodec2(checkpoint=str(save_tiny_xcodec2(tmp_path / "other", seed=1)), device="cpu")
    assert other.spec.fingerprint != codec.spec.fingerprint


@pytest.mark.parametrize("change", ["quantizer weight", "decoder bias", "configuration"])
def test_fingerprint_sees_changes(codec, folder, tmp_path, change):
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "changed"
    shutil.copytree(folder, copy)
    weights = load_file(copy / "model.safetensors")
    config = json.loads((copy / "config.json").read_text())
    if change == "quantizer weight":
        weights["quantizer.project_in.weight"][7, 63] += 0.01  # far beyond the first 64 values
    elif change == "decoder bias":
        weights["acoustic_decoder.head.linear.bias"][0] += 0.01
    else:
        config["semantic_model_config"]["hidden_act"] = "gelu"
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    (copy / "config.json").write_text(json.dumps(config))
    assert XCodec2(checkpoint=str(copy), device="cpu").spec.fingerprint != codec.spec.fingerprint


def edit_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is damaged"),
        (lambda folder: edit_config(folder, model_type="llama"), "a model of type 'llama', not 'xcodec2'"),
        (lambda folder: edit_config(folder, hidden_size="wide"), "cannot be loaded"),
        (lambda folder: edit_config(folder, hidden_size=32), "weights are missing or misshapen"),
        (lambda folder: edit_config(folder, num_hidden_layers=3), "8 weights are missing or misshapen"),
        (lambda folder: edit_config(folder, sampling_rate=24_000), "frames of 320 samples at 24000 Hz"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded"),
        (lambda folder: os.truncate(folder / "model.safetensors", 100_000), "cannot be loaded"),
    ],
)
def test_a_bad_folder_is_the_users_error(folder, tmp_path, damage, problem):
    copy = tmp_path / "bad"
    shutil.copytree(folder, copy)
    damage(copy)
    with pytest.raises(UserError, match=problem) as error:
        XCodec2(checkpoint=str(copy), device="cpu")
    assert "\n" not in str(error.value)
    assert f"codec.checkpoint={copy}" in str(error.value)
    assert "set codec.checkpoint=FOLDER" in str(error.value)


@pytest.mark.parametrize("checkpoint", ["/no/such/folder", "./nowhere", "~/nowhere/at/all", "a/b/c"])
def test_a_missing_folder_is_the_users_error(checkpoint):
    with pytest.raises(UserError, match=r"no such folder; set codec\.checkpoint=FOLDER"):
        XCodec2(checkpoint=checkpoint)


def test_an_unreachable_hub_is_the_users_error():
    script = (
        "from llasa.codec.xcodec2 import XCodec2; from llasa.errors import UserError\n"
        "try: XCodec2(checkpoint='HKUSTAudio/no-such-codec')\n"
        "except UserError as error: print(error)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    outcome = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert outcome.stdout.count("\n") == 1
    assert "codec.checkpoint=HKUSTAudio/no-such-codec: no such folder, and none from the hub" in outcome.stdout
    assert "set codec.checkpoint=FOLDER" in outcome.stdout


@pytest.mark.parametrize("device", ["quark", "cuda"])
def test_a_missing_device_is_the_users_error(folder, device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(UserError, match=f"device={device}"):
        XCodec2(checkpoint=str(folder), device=device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cuda_batched_codes_equal_single_codes(folder, codec, many_clips, precision):
    on_gpu = Counting(checkpoint=str(folder), device="cuda", precision=precision)
    assert on_gpu.spec.fingerprint == codec.spec.fingerprint
    batched = on_gpu.encode(many_clips)
    assert on_gpu.alone < 60
    order = np.random.default_rng(0).permutation(len(many_clips))
    assert_equal_codes(on_gpu.encode([many_clips[index] for index in order]), [batched[index] for index in order])
    assert_equal_codes(batched, [on_gpu.encode([clip])[0] for clip in many_clips])
    agreement = (np.concatenate(batched) == np.concatenate(codec.encode(many_clips))).mean()
    assert agreement > (0.99 if precision == "fp32" else 0.7)
    decoded = on_gpu.decode(batched[:20])
    np.testing.assert_allclose(decoded[-1], codec.decode(batched[:20])[-1], rtol=0, atol=1e-4)
    facts = on_gpu.agreement(many_clips[:50])
    assert facts == {} if precision == "fp32" else facts["equal_in_another_order"] == 1.0
