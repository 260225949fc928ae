"""vLLM against the transformers engine, code for code. Runs where vLLM is installed: requirements/vllm.txt.

The reference is :class:`TransformersEngine`, which has tests of its own; the models are tiny and say something else to
each prompt. Greedy choices are clear ones (see MARGIN), so that another order of additions does not turn them.
"""

import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llasa.codec.base import CodecSpec
from llasa.config import ArchitectureConfig, KernelsConfig, ModelConfig, SamplingConfig
from llasa.errors import UserError
from llasa.generation.engine import Request
from llasa.generation.engine_hf import TransformersEngine
from llasa.generation.engine_vllm import VllmEngine
from llasa.model.checkpoint import save_checkpoint
from llasa.model.llama import build_for_training
from tests.model.tiny import CODEC

HERE = importlib.util.find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not HERE, reason="needs vLLM (requirements/vllm.txt)")

ONE_RANGE = CodecSpec("plain", "plain-1", 16_000, 50.0, 64, ((0, 64),))
GREEDY = SamplingConfig(temperature=0.0, loop_seconds=0)
SAMPLED = SamplingConfig(temperature=1.1, top_k=40, top_p=0.97, min_p=0.01, repetition_penalty=1.3, loop_seconds=0)
TEXTS = ["Ciao", "Come stai oggi?", "Io", "La luna è alta nel cielo", "Sì", "Buona notte a tutti", "E poi?"]
MARGIN = 1e-4
"""Between the logits of the best two, at the least. Those of the two engines differ by 4e-5 at most, as measured on the
model of two ranges, so that no choice with a greater margin than 8e-5 can turn."""


def save_model(folder: Path, codec: CodecSpec = CODEC, *, tied: bool = True) -> Path:
    """As `tests.model.tiny.save_tiny`, with heads as wide as vLLM's attention has kernels for."""
    torch.manual_seed(0)
    architecture = ArchitectureConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
        tie_word_embeddings=tied,
    )
    config = ModelConfig(name="tiny", architecture=architecture, lr=1e-3, max_length=256)
    kernels = KernelsConfig(name="torch", attn="sdpa", loss_chunk_size=7)
    speech = build_for_training(config, kernels, codec, "cpu", "fp32")
    save_checkpoint(folder, speech.model, speech.tokenizer, replace(speech.card, max_length=256))
    return folder


class Pair:
    """Both engines with one checkpoint; the next pair ends this one's vLLM."""

    current: "Pair"

    def __init__(self, folder: Path, batch_size: int = 3) -> None:
        self.vllm, self.hf = VllmEngine(batch_size=batch_size), TransformersEngine(batch_size=batch_size)
        self.contract, self.speech = self.vllm.load(str(folder), "cpu"), self.hf.load(str(folder), "cpu")
        self.folder, self.frame = folder, self.contract.card.codec.codes_per_frame
        Pair.current = self

    def request(self, text: str, **settings) -> Request:
        voice = settings.pop("voice", None)
        return Request(self.contract.prompt.prompt(text, voice), **{"max_codes": 40} | settings)

    def codes(self, count: int, seed: int = 0) -> np.ndarray:
        """Of a voice."""
        generator, ranges = np.random.default_rng(seed), self.contract.card.codec.code_ranges
        return np.array([generator.integers(*ranges[place % self.frame]) for place in range(count)])

    def requests(self) -> list[Request]:
        """Ragged prompts and limits, with and without a voice (of more than a block of vLLM's cache, and shared), with
        codes of their own to continue, and with a minimum."""
        voice = self.codes(60)
        made = [self.request(text, max_codes=20 + 4 * number, seed=number) for number, text in enumerate(TEXTS)]
        made += [self.request(text, voice=voice, seed=7) for text in TEXTS[:3]]
        made.append(self.request("E ancora", voice=self.codes(30), num_spoken=10, seed=3))
        made.append(self.request("Più lunga", min_codes=30, seed=4))
        return made

    def generate(self, requests: list[Request], sampling: SamplingConfig):
        return self.vllm.generate(self.contract, requests, sampling)

    def require_same(self, requests: list[Request], sampling: SamplingConfig):
        results = self.generate(requests, sampling)
        reference = self.hf.generate(self.speech, requests, sampling)
        assert len(results) == len(requests) > 0
        for ours, theirs in zip(results, reference, strict=True):
            np.testing.assert_array_equal(ours.codes, theirs.codes)
            assert ours.codes.dtype == theirs.codes.dtype
            assert ours.finish_reason == theirs.finish_reason
        return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Codes of two places, as those of Codec2, which has four."""
    return save_model(tmp_path_factory.mktemp("two") / "checkpoint")


@pytest.fixture
def pair(folder):
    current = getattr(Pair, "current", None)
    return current if current is not None and current.folder == folder else Pair(folder)


def smallest_margin(pair: Pair, requests: list[Request], results) -> float:
    """Between the logits of the best two that were allowed, over all choices of a greedy run."""
    from llasa.generation.sampling import CodeRules, pick_columns

    rules = CodeRules(pair.contract.vocabulary.num_codes, pair.contract.card.codec.code_ranges, torch.device("cpu"))
    margins = []
    for request, result in zip(requests, results, strict=True):
        ids = np.concatenate([request.prompt, pair.contract.vocabulary.codes_to_ids(result.codes)])
        with torch.inference_mode():
            logits = pair.speech.model(torch.from_numpy(ids)[None]).logits[0, len(request.prompt) - 1 :]
        columns = pick_columns(logits, pair.contract.vocabulary)
        places = [number % pair.frame for number in range(len(columns))]
        enough = max(request.min_codes, 0 if request.num_spoken else 1)
        may_end = [place == 0 and number >= enough for number, place in enumerate(places)]
        best = rules.apply(columns, places, may_end).topk(2).values
        margins.append(float((best[:, 0] - best[:, 1]).min()))
    return min(margins)


def require_same_greedy(pair: Pair) -> None:
    requests = pair.requests()
    results = pair.require_same(requests, GREEDY)
    assert len({tuple(result.codes) for result in results}) > 8
    margin = smallest_margin(pair, requests, results)
    print(f"smallest margin of {sum(len(result.codes) for result in results)} choices: {margin:.5f}")
    assert margin > MARGIN


def require_same_sampled(pair: Pair) -> None:
    requests = pair.requests()
    results = pair.require_same(requests, SAMPLED)
    assert {result.finish_reason for result in results} == {"stop", "length"}
    assert len(results[-1].codes) >= 30
    plain = pair.generate(requests, replace(SAMPLED, repetition_penalty=1.0))
    assert any(a.codes.tolist() != b.codes.tolist() for a, b in zip(results, plain, strict=True))


@needs_vllm
def test_greedy_codes_are_those_of_transformers(pair):
    """Fails when the processor forgets the place in the frame, when END may come at once, or a real code is cut off."""
    require_same_greedy(pair)


@needs_vllm
def test_sampled_codes_are_those_of_transformers(pair):
    """Fails when the penalty counts the voice or misses the utterance's own codes, or numbers are not the seed's."""
    require_same_sampled(pair)


@needs_vllm
def test_the_seed_decides_and_neighbours_do_not(pair):
    """Fails when numbers are drawn for the batch instead of the request."""
    requests = pair.requests()
    together = pair.generate(requests, SAMPLED)
    for request, result in zip(requests, together, strict=True):
        alone = pair.generate([request], SAMPLED)[0]
        np.testing.assert_array_equal(alone.codes, result.codes)
    other = pair.generate([replace(request, seed=100 + request.seed) for request in requests], SAMPLED)
    assert sum(a.codes.tolist() != b.codes.tolist() for a, b in zip(together, other, strict=True)) > 8


@needs_vllm
def test_no_code_before_end_is_lost(pair):
    """Fails when ``max_tokens`` leaves no token for END, or the last code goes with it."""
    requests = [replace(request, max_codes=60) for request in pair.requests()]
    ended = [
        (request, result)
        for request, result in zip(requests, pair.generate(requests, SAMPLED), strict=True)
        if result.finish_reason == "stop" and request.min_codes < len(result.codes) > pair.frame
    ]
    assert ended
    for request, result in ended:
        count = len(result.codes)
        exact, shorter = pair.generate(
            [replace(request, max_codes=count), replace(request, max_codes=count - pair.frame)], SAMPLED
        )
        assert (exact.codes.tolist(), exact.finish_reason) == (result.codes.tolist(), "stop")
        assert (shorter.codes.tolist(), shorter.finish_reason) == (result.codes[: -pair.frame].tolist(), "length")
        longer = replace(request, min_codes=count + pair.frame, max_codes=count + 20)
        assert len(pair.generate([longer], SAMPLED)[0].codes) >= longer.min_codes


@needs_vllm
def test_loops_are_ended(pair):
    """Fails when the detector is not asked."""
    sampling = SamplingConfig(temperature=0.0, loop_seconds=0.2, repetition_penalty=0.1)  # what was said is likelier
    requests = [pair.request(text, max_codes=120, min_codes=120) for text in TEXTS]
    results = pair.require_same(requests, sampling)
    assert "loop" in {result.finish_reason for result in results}
    assert pair.vllm.num_unfinished == 0


@needs_vllm
def test_a_stream_gives_the_codes_of_generate_as_they_come(pair):
    """Fails when parts are held back to the end, or hold parts of a frame."""
    requests = pair.requests()
    whole = pair.generate(requests, SAMPLED)
    parts = list(pair.vllm.stream(pair.contract, requests, SAMPLED))
    for index, result in enumerate(whole):
        own = [part for part in parts if part.index == index]
        assert len(own) > 1
        assert all(len(part.codes) in (0, pair.frame) for part in own)
        assert [part.finish_reason for part in own] == [None] * (len(own) - 1) + [result.finish_reason]
        np.testing.assert_array_equal(np.concatenate([part.codes for part in own]), result.codes)


@needs_vllm
def test_streams_read_in_turn_share_the_engine(pair):
    """Fails when a step throws away what it computes for another stream, or mixes rows of different sampling."""
    kinds = [GREEDY, SAMPLED]
    requests = [pair.requests()[:4], pair.requests()[4:8]]
    streams = [pair.vllm.stream(pair.contract, r, s) for r, s in zip(requests, kinds, strict=True)]
    parts: list[list] = [[], []]
    live = {0, 1}
    while live:
        for number in list(live):
            part = next(streams[number], None)
            if part is None:
                live.remove(number)
            else:
                parts[number].append(part)
    for own, asked, sampling in zip(parts, requests, kinds, strict=True):
        for index, result in enumerate(pair.generate(asked, sampling)):
            codes = np.concatenate([part.codes for part in own if part.index == index])
            np.testing.assert_array_equal(codes, result.codes)


@needs_vllm
def test_a_batch_takes_and_gives_up_requests_between_steps(pair):
    """As :class:`llasa.generation.decoding.Decoder`, each in its own way. Fails when a part bears another's index."""
    requests = [pair.request(text, seed=number) for number, text in enumerate(TEXTS[:4])]
    ways = [SAMPLED, GREEDY, replace(SAMPLED, repetition_penalty=1.0), SAMPLED]
    found = []
    for engine, speech in ((pair.vllm, pair.contract), (pair.hf, pair.speech)):
        batch = engine.open(speech, capacity=256)
        codes = [[] for _ in requests]
        for index in (0, 1):
            batch.add(index, requests[index], ways[index])
        for step in range(200):
            if step == 3:
                batch.add(2, requests[2], ways[2])
            if step == 5:
                batch.cancel(0)
                batch.add(3, requests[3], ways[3])
            if not len(batch):
                break
            for part in batch.step():
                codes[part.index] += part.codes.tolist()
        assert batch.free == 3
        assert len(codes[0]) < 40
        found.append(codes[1:])
    assert pair.vllm.num_unfinished == 0
    assert found[0] == found[1]


@needs_vllm
def test_closing_a_stream_frees_its_requests(pair):
    """Fails when the generator leaves its requests to vLLM."""
    requests = pair.requests()
    before = pair.generate(requests, GREEDY)
    stream = pair.vllm.stream(pair.contract, requests, GREEDY)
    for _ in range(3):
        next(stream)
    assert pair.vllm.num_unfinished > 0
    stream.close()
    assert pair.vllm.num_unfinished == 0
    for a, b in zip(before, pair.generate(requests, GREEDY), strict=True):
        np.testing.assert_array_equal(a.codes, b.codes)


@needs_vllm
def test_the_process_is_as_it_was(pair):
    """Fails when what vLLM does to its process stays: children would preload its libraries."""
    assert "LD_PRELOAD" not in os.environ
    assert "LOCAL_WORLD_SIZE" not in os.environ
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)


@needs_vllm
def test_speech_that_does_not_fit_is_refused_and_nothing_stays(pair):
    """Fails when vLLM is left to cut it."""
    fitting, too_long = pair.request("Ciao"), pair.request("Ciao", max_codes=400)
    with pytest.raises(UserError, match=r"engine=vllm was made for 256; split the text"):
        pair.generate([fitting, too_long], GREEDY)
    assert pair.vllm.num_unfinished == 0


@needs_vllm
def test_a_request_that_was_preempted_goes_on_where_it_was(tmp_path, monkeypatch):
    """A cache too small for the batch. Fails when a row that comes back starts its numbers or its penalty anew."""
    from llasa.generation import vllm_sampling, vllm_start

    come_back = []
    new_row = vllm_sampling.CodeProcessor._new_row

    def noting(self, params, prompt_ids, output_ids):
        come_back.append(len(output_ids))
        return new_row(self, params, prompt_ids, output_ids)

    monkeypatch.setattr(vllm_sampling.CodeProcessor, "_new_row", noting)
    bytes_of = vllm_start.cache_bytes
    monkeypatch.setattr(vllm_start, "cache_bytes", lambda config, length, batch: bytes_of(config, length, 1))
    pair = Pair(save_model(tmp_path / "checkpoint"), batch_size=3)
    requests = [pair.request(text, max_codes=150, min_codes=150, seed=number) for number, text in enumerate(TEXTS[:3])]
    pair.require_same(requests, SAMPLED)
    assert any(come_back), "nothing was preempted"


@needs_vllm
def test_a_head_counts_whatever_the_config_says(tmp_path):
    """vLLM sees to it (0.32), as transformers does, whose reading is the reference."""
    own = save_model(tmp_path / "checkpoint", tied=False)
    config = json.loads((own / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    (own / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    pair = Pair(own)
    pair.require_same(pair.requests(), GREEDY)


@needs_vllm
def test_a_codec_of_one_range_is_spoken_as_well(tmp_path):
    """Fails when a frame of one code is not whole at once."""
    pair = Pair(save_model(tmp_path / "checkpoint", ONE_RANGE, tied=False))
    require_same_greedy(pair)
    require_same_sampled(pair)


@needs_vllm
def test_what_vllm_cannot_load_is_one_line(tmp_path):
    """Fails when a library's traceback gets through."""
    engine = VllmEngine(batch_size=1)
    folder = save_model(tmp_path / "checkpoint")
    with pytest.raises(UserError, match=r"device=cuda, and this vLLM is for cpu; use device=cpu"):
        engine.load(str(folder), "cuda")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mistral"}))
    with pytest.raises(UserError, match="is a mistral model; use a Llama"):
        engine.load(str(folder), "cpu")
    (folder / "config.json").write_text(json.dumps(config))
    weights = (folder / "model.safetensors").rename(tmp_path / "weights")
    with pytest.raises(UserError, match=r"vLLM cannot load .*checkpoint: .*; try engine=hf"):
        engine.load(str(folder), "cpu")
    weights.rename(folder / "model.safetensors")
    pair = Pair(folder)
    pair.require_same(pair.requests(), GREEDY)  # a failure leaves nothing in the way


def test_an_adapter_wants_merging(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="holds an adapter, and engine=vllm wants whole weights"):
        VllmEngine(batch_size=1).load(str(tmp_path), "cpu")


@pytest.mark.skipif(HERE, reason="vLLM is installed")
def test_without_vllm_the_requirements_are_named(tmp_path):
    with pytest.raises(UserError, match=r"vLLM is not installed here; .* requirements/vllm\.txt"):
        VllmEngine(batch_size=1).load(str(tmp_path), "cpu")


@pytest.mark.parametrize(("key", "value"), [("batch_size", 0), ("gpu_memory", 0.0), ("gpu_memory", 1.5)])
def test_settings_are_checked(key, value):
    with pytest.raises(UserError, match=f"engine.{key}"):
        VllmEngine(**{"batch_size": 1} | {key: value})
