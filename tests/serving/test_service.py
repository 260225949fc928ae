"""The service over the real engine, tiny untrained models, and codecs that stream (Codec2) or are windowed (tones)."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest

from llasa.codec.codec2 import Codec2
from llasa.config import SamplingConfig, ServeConfig, ServiceLimitsConfig
from llasa.entry import compose_config
from llasa.errors import UserError
from llasa.generation.continuation import chunk_characters
from llasa.generation.engine_hf import TransformersEngine
from llasa.generation.longform import Pauses, speak_long
from llasa.generation.streaming import open_stream
from llasa.generation.synthesizer import Synthesizer
from llasa.model.checkpoint import save_checkpoint
from llasa.serving.joining import Joiner
from llasa.serving.script import Script
from llasa.serving.service import Busy, Failed, SpeechOrder, SpeechService, Stopping, TimedOut
from llasa.text.chunks import split_text
from tests.generation.test_longform import ToneCodec
from tests.model.tiny import CODEC, build_tiny
from tests.serving.test_scheduler import Gated, Watched, until

SAMPLED = SamplingConfig(temperature=1.0, max_seconds=1.0)
GREEDY = SamplingConfig(temperature=0.0, max_seconds=0.5)
TEXTS = ["Ciao, come stai?", "Il gatto dorme.", "Ho 21 anni.", "Buona notte a tutti"]
LONG = "# Uno\nIl gatto dorme sul letto. Poi si alza.\n\nFuori piove, e fa freddo. Arriva la sera.\n# Due\nBuona notte."


class WatchedEngine(TransformersEngine):
    """The real engine, whose batches are of a given kind, and are remembered."""

    kind = Watched

    def __init__(self, **settings):
        super().__init__(**settings)
        self.opened, self.asked = [], []

    def open(self, speech, *, capacity):
        self.opened.append(self.kind(speech, slots=self.batch_size, capacity=capacity))
        return self.opened[-1]

    def generate(self, speech, requests, sampling):
        self.asked += requests
        return super().generate(speech, requests, sampling)


class GatedEngine(WatchedEngine):
    kind = Gated


def synthesizer(spec, codec, *, max_length=1000, engine=None, slots=4):
    speech = build_tiny(spec, spread=0.5)
    speech.model.eval()
    speech.card = replace(speech.card, max_length=max_length, languages=("it",))
    return Synthesizer(speech, codec, engine or WatchedEngine(batch_size=slots), "it")


@pytest.fixture(scope="module")
def toy():
    return synthesizer(CODEC, ToneCodec())


@pytest.fixture(scope="module")
def codec2():
    codec = Codec2()
    return synthesizer(codec.spec, codec)


def with_engine(speaker, engine):
    return Synthesizer(speaker.speech, speaker.codec, engine, speaker.language)


def config(**settings):
    limits = ServiceLimitsConfig(**settings.pop("limits", {}))
    return ServeConfig(
        **{"checkpoint": "tiny", "engine": {}, "sampling": SAMPLED, "shutdown_seconds": 20, "limits": limits} | settings
    )


@asynccontextmanager
async def serving(speaker, **settings):
    service = SpeechService(speaker, config(**settings))
    service.start()
    try:
        yield service
    finally:
        for batch in speaker.engine.opened:
            if isinstance(batch, Gated):
                batch.let()
        service._scheduler._stopping = True
        await service._scheduler.close(0)
        await service.close()


class LateMark:
    """A watermark in the large: everything comes a third of a second late and upside down."""

    def __init__(self, rate=None):
        self.held = np.zeros(rate // 3 if rate else 0, np.float32)

    def open_stream(self, sample_rate):
        return LateMark(sample_rate)

    def push(self, piece):
        joined = np.concatenate([self.held, -piece])
        given, self.held = joined[: len(piece)], joined[len(piece) :]
        return given

    def finish(self):
        return self.held


def order(text="Ciao, come stai?", seed=0, sampling=SAMPLED, **settings):
    return SpeechOrder(
        text, **{"voice": None, "language": None, "speaker": None} | settings, sampling=sampling, seed=seed
    )


async def hear(service, wanted):
    """The whole waveform, and why it ended."""
    async with await service.open(wanted) as stream:
        pieces = [piece async for piece in stream]
    assert all(len(piece) and piece.dtype == np.float32 for piece in pieces)
    assert stream.seconds == pytest.approx(sum(map(len, pieces)) / stream.sample_rate)
    return np.concatenate([np.zeros(0, np.float32), *pieces]), stream.finish_reason


@pytest.mark.parametrize("name", ["toy", "codec2"])
@pytest.mark.parametrize("sampling", [SAMPLED, GREEDY])
def test_what_is_spoken_together_is_what_is_spoken_alone(request, name, sampling):
    """Fails when pieces go to another stream, are lost, or a codec's stream is not finished."""
    speaker = request.getfixturevalue(name)
    orders = [order(TEXTS[seed % 4], seed, sampling) for seed in range(6)]

    async def run():
        async with serving(speaker) as service:
            return await asyncio.gather(*(hear(service, each) for each in orders)), service.num_codes

    heard, num_codes = asyncio.run(run())
    assert num_codes > 100
    for each, (waveform, reason) in zip(orders, heard, strict=True):
        alone = np.concatenate(list(speaker.stream(each.text, sampling, seed=each.seed)))
        np.testing.assert_array_equal(waveform, alone)
        assert reason in ("stop", "length", "loop")


def chunk_by_chunk(speaker, sampling, seed):
    """Of `infer.py`: the requests of the chunks of ``LONG``, and what they became."""
    engine = WatchedEngine(batch_size=1)
    results = []
    inherited = engine.generate
    engine.generate = lambda *arguments: results.extend(found := inherited(*arguments)) or found
    once = replace(sampling, retries=0)
    parts = list(speak_long(with_engine(speaker, engine), LONG, once, seed=seed))
    return engine.asked, results, parts


@pytest.mark.parametrize("max_length", [260, 1000])
def test_a_long_text_is_its_chunks_one_by_one(max_length):
    """Fails when a chunk does not continue what `infer.py`'s does, has another seed, or another pause before it."""
    sampling = replace(SAMPLED, max_seconds=3.0)
    speaker = synthesizer(CODEC, ToneCodec(), max_length=max_length)
    requests, results, parts = chunk_by_chunk(speaker, sampling, 7)
    assert len(requests) >= 4
    assert "stop" in {result.finish_reason for result in results}
    spoken: list = []

    class Noting(Watched):
        def add(self, index, request, sampling):
            spoken.append((request.prompt.tolist(), request.seed, request.max_codes, request.min_codes))
            super().add(index, request, sampling)

    class NotingEngine(WatchedEngine):
        kind = Noting

    async def run():
        async with serving(with_engine(speaker, NotingEngine(batch_size=2))) as service:
            return await hear(service, order(LONG, 7, sampling))

    waveform, reason = asyncio.run(run())
    assert spoken == [(r.prompt.tolist(), r.seed, r.max_codes, r.min_codes) for r in requests]
    worst = max((result.finish_reason for result in results), key=["stop", "length", "loop"].index)
    assert reason == worst
    card = speaker.speech.card
    settings = {"language": "it", "speaker": card.speaker_for(None)}
    chunks = split_text(LONG, "it", chunk_characters(speaker.speech, LONG, sampling, **settings))
    joiner, expected = Joiner(16_000), []
    for number, (chunk, result) in enumerate(zip(chunks, results, strict=True)):
        if number:
            joiner.next_chunk(chunk.before)
        decoder = open_stream(speaker.codec)
        expected += [joiner.push(decoder.push(result.codes)), joiner.push(decoder.finish()), joiner.end()]
    np.testing.assert_array_equal(waveform, np.concatenate(expected))
    assert len(waveform) / 16_000 == pytest.approx(sum(len(p.waveform) for p in parts) / 16_000, abs=0.1 * len(chunks))


def test_of_several_chunks_the_worst_end_is_told(toy):
    """Fails when the last one's counts, or speech that had to end before its text is said to be whole."""
    for seconds, reasons, expected in (
        (60, ["stop"], "stop"),
        (60, ["loop", "stop"], "loop"),
        (60, ["length", "stop"], "length"),
        (60, ["length", "loop", "stop"], "loop"),
        (1, ["stop"], "length"),
    ):
        script = Script(toy, order(LONG, sampling=replace(SAMPLED, max_seconds=3.0)), None, seconds)
        for reason in reasons:
            codes = np.resize([0, 16], min(50, script.request().max_codes)).astype(np.uint16)
            script.heard(codes, reason)
        assert script.finish_reason == expected
        assert script.more == (seconds == 60)


def test_the_chunks_of_a_text_do_not_wait_for_those_who_came_later(toy):
    """One place, others wait. Fails when a stream that began is held up between two chunks."""
    engine = GatedEngine(batch_size=1)
    sampling = replace(SAMPLED, max_seconds=3.0)

    async def run():
        async with serving(with_engine(toy, engine)) as service:
            first = asyncio.ensure_future(hear(service, order(LONG, 7, sampling)))
            await until(lambda: service.num_running == 1)
            others = [asyncio.ensure_future(hear(service, order(seed=seed))) for seed in range(3)]
            await until(lambda: service.num_waiting == 3)
            engine.opened[0].let(100_000)
            await asyncio.gather(first, *others)

    asyncio.run(run())
    added = engine.opened[0].added
    assert len(added) >= 5
    assert added[-3:] == [0, 1, 2]


def test_speech_is_bounded_whatever_the_text(toy):
    """Fails when only a chunk is bounded, or the end is not told."""
    sampling = replace(SAMPLED, max_seconds=3.0)

    async def run():
        async with serving(toy, limits={"audio_seconds": 4.0}) as service:
            async with await service.open(order(LONG, 7, sampling)) as stream:
                async for _ in stream:
                    pass
            assert stream.num_codes == 200
            assert stream.finish_reason == "length"
            assert 3.9 < stream.seconds < 4 + 5 * max(vars(Pauses()).values())
            _, reason = await hear(service, order(seed=1, sampling=replace(sampling, text_bounds=False)))
            return reason

    assert asyncio.run(run()) in ("stop", "length")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"text": "a" * 4097}, "4,097 characters, more than 4,096"),
        ({"text": " … "}, "nothing to say"),
        ({"text": "\0 \u200d"}, "nothing to say"),
        ({"text": "Ciao \ud800!"}, "half of a surrogate pair"),
        ({"text": "你好，今天天气很好"}, "letters"),
        ({"language": "xx"}, "language 'xx'.*choose one of it"),
        ({"speaker": "anna"}, "without speaker tags"),
        ({"voice": "nobody"}, "no voice 'nobody'.*known voices: default"),
        ({"voice": "../../etc/passwd"}, "no voice"),
    ],
)
def test_mistakes_are_told_before_anything_is_spoken(codec2, tmp_path, settings, match):
    """Fails when a mistake comes out of the stream, or takes a place with it."""

    async def run():
        async with serving(codec2, voices_folder=str(tmp_path / "voices")) as service:
            with pytest.raises(UserError, match=match) as mistake:
                await service.open(order(**settings))
            assert str(tmp_path) not in str(mistake.value)
            assert service.ended == Counter(mistake=1)
            assert service.num_running == service.num_streams == service.num_steps == 0

    asyncio.run(run())


def test_odd_text_is_spoken_or_refused(toy):
    """Control characters, half a surrogate pair, marks without end: nothing but ``UserError``."""
    odd = ["a\ud800b", "ciao\0ciao", "a" + "\u0301" * 500, "‮ciao‬", "\r\n\r\nciao\u2028", "9" * 400, "a" * 3000]

    async def run():
        async with serving(toy, limits={"audio_seconds": 0.5}) as service:
            for text in odd:
                try:
                    await hear(service, order(text))
                except UserError:
                    continue
            assert service.num_running == service.num_streams == 0
            assert not service.ended["failed"]

    asyncio.run(run())


def test_a_full_service_refuses_at_once(toy):
    """Fails when those who are still being prepared are not counted, or a refusal is not."""
    engine = GatedEngine(batch_size=1)

    async def run():
        async with serving(with_engine(toy, engine), limits={"queue": 2}) as service:
            prepared, inherited = [], service._prepare
            service._prepare = lambda wanted: prepared.append(wanted) or inherited(wanted)
            opening = [asyncio.ensure_future(service.open(order(seed=seed))) for seed in range(6)]
            results = await asyncio.gather(*opening, return_exceptions=True)
            assert [isinstance(result, Busy) for result in results] == [False] * 3 + [True] * 3
            assert service.ended["busy"] == len(prepared) == 3
            for stream in results[:3]:
                stream.close()
            assert service.num_running + service.num_waiting == 0
            engine.opened[0].let(100_000)
            assert len((await hear(service, order()))[0])

    asyncio.run(run())


@pytest.mark.parametrize("steps", [0, 30])
@pytest.mark.parametrize("how", ["leaves", "is cancelled"])
def test_a_client_that_leaves_frees_its_place(codec2, how, steps):
    """Before the first piece and after it. Fails when speech goes on for nobody."""
    engine = GatedEngine(batch_size=1)

    async def client(service, stream):
        async with stream:
            if how == "is cancelled":
                async for _ in stream:
                    pass
            elif steps:
                await anext(stream)

    async def run():
        async with serving(with_engine(codec2, engine)) as service:
            stream = await service.open(order())
            other = asyncio.ensure_future(hear(service, order(seed=5)))
            await until(lambda: service.num_waiting == service.num_running == 1)
            task = asyncio.ensure_future(client(service, stream))
            if steps:
                engine.opened[0].let(steps)
                await until(lambda: stream.num_codes)
            if how == "is cancelled":
                await asyncio.sleep(0.02)
                task.cancel()
            await asyncio.wait([task])
            assert service.num_running + service.num_waiting == 1
            assert service.ended == Counter(cancelled=1)
            engine.opened[0].let(100_000)
            assert len((await other)[0])
            assert sum(seeds == [0] for seeds in engine.opened[0].steps) <= steps + 1
            assert service.num_streams == 0

    asyncio.run(run())


def test_what_takes_too_long_is_ended(toy):
    """The engine hangs, so that only the stream itself can tell. Fails when it waits for the scheduler's word."""
    engine = GatedEngine(batch_size=1)

    async def run():
        async with serving(with_engine(toy, engine), limits={"request_seconds": 0.3}) as service:
            began = time.monotonic()
            with pytest.raises(TimedOut):
                await hear(service, order())
            assert time.monotonic() - began < 5
            assert service.ended == Counter(timed_out=1)
            engine.opened[0].let(100_000)

    asyncio.run(run())


def test_pieces_are_not_crumbs(codec2):
    """Fails when each frame of 20 ms is a piece of its own, or a piece is held back that ends."""

    async def run():
        async with (
            serving(codec2) as service,
            await service.open(order(sampling=replace(GREEDY, max_seconds=1.5, text_bounds=False))) as stream,
        ):
            return [len(piece) async for piece in stream]

    lengths = asyncio.run(run())
    assert sum(lengths) > 4 * 1600
    assert all(length >= 1600 for length in lengths[1:-1])
    assert len(lengths) <= 10


def test_a_slow_reader_holds_up_nobody_and_misses_nothing(toy):
    """Fails when codes are only taken from the batch as they are read."""

    async def run():
        async with serving(with_engine(toy, WatchedEngine(batch_size=1))) as service:
            async with await service.open(order(LONG, 7, replace(SAMPLED, max_seconds=3.0))) as slow:
                first = await anext(slow)
                quick = await hear(service, order(TEXTS[1], 1))
                assert service.num_running == 0
                pieces = [first, *[piece async for piece in slow]]
            return pieces, quick, await hear(service, order(LONG, 7, replace(SAMPLED, max_seconds=3.0)))

    pieces, quick, again = asyncio.run(run())
    np.testing.assert_array_equal(np.concatenate(pieces), again[0])
    np.testing.assert_array_equal(quick[0], np.concatenate(list(toy.stream(TEXTS[1], SAMPLED, seed=1))))


def test_readers_that_do_not_read_are_bounded(toy, monkeypatch):
    """Fails when only places in the batch are counted: each open stream holds a decoder."""
    monkeypatch.setattr("llasa.serving.service.READERS_PER_PLACE", 2)

    async def run():
        async with serving(with_engine(toy, WatchedEngine(batch_size=1)), limits={"queue": 1}) as service:
            streams = []
            for seed in range(4):
                streams.append(await service.open(order(seed=seed, sampling=GREEDY)))
                await until(lambda: service.num_running + service.num_waiting == 0)
            with pytest.raises(Busy):
                await service.open(order())
            streams[0].close()
            assert len((await hear(service, order()))[0])
            for stream in streams:
                stream.close()
            assert service.num_streams == 0

    asyncio.run(run())


class FailingCodec(ToneCodec):
    """Breaks at a clip with a certain first code."""

    refused: int | None = None

    def _decode(self, frames):
        if len(frames) and frames[0, 0] == self.refused:
            raise RuntimeError("/secret/weights are broken")
        return super()._decode(frames)


def test_a_codec_that_breaks_costs_its_own_stream(caplog):
    """Fails when the place is kept, the thread lost, or the client told what broke."""
    codec = FailingCodec()
    speaker = synthesizer(CODEC, codec)
    alone = speaker.generate(["Ciao, come stai?"] * 2, SAMPLED, seed=0)
    codec.refused = int(alone[0].codes[0])
    healthy = next(
        seed for seed in range(50) if speaker.generate(["Io"], SAMPLED, seed=seed)[0].codes[0] != codec.refused
    )

    async def run():
        async with serving(speaker) as service:
            results = await asyncio.gather(
                hear(service, order()), hear(service, order("Io", healthy)), return_exceptions=True
            )
            assert isinstance(results[0], Failed)
            assert "secret" not in str(results[0])
            assert "secret" in caplog.text
            assert len(results[1][0])
            assert service.num_running == service.num_streams == 0
            assert service.ended["failed"] == 1

    asyncio.run(run())


def test_close_lets_speech_end_and_be_read(codec2):
    """Fails when codes that are spoken are not read any more, or new orders are taken."""

    async def run():
        service = SpeechService(codec2, config())
        assert not service.ready
        with pytest.raises(Stopping):
            await service.open(order())
        service.start()
        assert service.ready
        async with await service.open(order(TEXTS[0], 3)) as stream:
            first = await anext(stream)
            closing = asyncio.ensure_future(service.close())
            await asyncio.sleep(0.05)
            assert not service.ready
            assert service.alive
            with pytest.raises(Stopping):
                await service.open(order())
            await until(lambda: not service._scheduler.alive)
            await asyncio.sleep(0.05)
            assert not closing.done()
            pieces = [first, *[piece async for piece in stream]]
        await asyncio.wait_for(closing, 5)
        await service.close()
        np.testing.assert_array_equal(
            np.concatenate(pieces), np.concatenate(list(codec2.stream(TEXTS[0], SAMPLED, seed=3)))
        )

    asyncio.run(run())


def test_close_ends_what_takes_too_long(toy):
    engine = GatedEngine(batch_size=1)

    async def run():
        service = SpeechService(with_engine(toy, engine), config(shutdown_seconds=0.1))
        service.start()
        clients = [asyncio.ensure_future(hear(service, order(seed=seed))) for seed in range(3)]
        await until(lambda: service.num_running + service.num_waiting == 3)
        closing = asyncio.ensure_future(service.close())
        await asyncio.sleep(0.2)
        engine.opened[0].let(100_000)
        await asyncio.wait_for(closing, 10)
        results = await asyncio.wait_for(asyncio.gather(*clients, return_exceptions=True), 5)
        assert [type(result) for result in results] == [Stopping] * 3
        assert service.ended == Counter(stopped=3)

    asyncio.run(run())


def test_from_a_config(tmp_path, codec2):
    """The whole way from a folder on the disk, with the codec that its card names."""
    speech = codec2.speech
    save_checkpoint(tmp_path / "checkpoint", speech.model, speech.tokenizer, speech.card)
    settings = [f"checkpoint={tmp_path}/checkpoint", "engine.batch_size=2", "device=cpu", "sampling=greedy"]
    composed = compose_config("serve", [*settings, f"voices_folder={tmp_path}/voices"])
    service = SpeechService.from_config(composed)
    assert (service.sample_rate, service.codec_name, service.languages) == (8000, "codec2", ["it"])
    assert (service.default_language, service.speakers, service.batch_size) == ("it", [], 2)

    async def run():
        service.start()
        sampling = replace(composed.sampling, max_seconds=0.4)
        waveform, _ = await hear(service, order(sampling=sampling))
        await service.close()
        return waveform, np.concatenate(list(codec2.stream("Ciao, come stai?", sampling)))

    heard, alone = asyncio.run(run())
    np.testing.assert_array_equal(heard, alone)
    with pytest.raises(UserError, match="nowhere"):
        SpeechService.from_config(replace(composed, checkpoint=str(tmp_path / "nowhere")))


def test_clients_that_come_go_and_hang_up_leave_nothing_behind(toy):
    """Whoever stays hears what they would hear alone. Fails when a place, a stream or a thread is lost."""
    chance = random.Random(1)
    before = threading.active_count()
    sampling = replace(SAMPLED, max_seconds=1.0)
    fates: Counter[str] = Counter()

    async def client(service, number):
        await asyncio.sleep(1.5 * chance.random())
        text = LONG if chance.random() < 0.1 else chance.choice([*TEXTS, " … "])
        hearing = asyncio.ensure_future(hear(service, order(text, number, sampling)))
        if chance.random() < 0.3:
            await asyncio.wait([hearing], timeout=0.2 * chance.random())
            hearing.cancel()
        try:
            waveform, reason = await hearing
        except (asyncio.CancelledError, UserError, Busy) as error:
            fates[type(error).__name__] += 1
            return
        fates["heard"] += 1
        if text != LONG:
            np.testing.assert_array_equal(waveform, np.concatenate(list(toy.stream(text, sampling, seed=number))))
        assert reason

    async def run():
        speaker = with_engine(toy, WatchedEngine(batch_size=6))
        async with serving(speaker, limits={"queue": 40}) as service:
            await asyncio.gather(*(client(service, number) for number in range(80)))
            [batch] = speaker.engine.opened
            await until(lambda: len(batch) == 0)
            assert service.num_running == service.num_waiting == service.num_streams == 0
            assert service.alive
            # An order that is cancelled while it is prepared has never been one.
            assert fates["heard"] <= sum(service.ended.values()) <= 80

    asyncio.run(run())
    assert sum(fates.values()) == 80
    assert fates["heard"] >= 10
    assert fates["CancelledError"] >= 3
    assert threading.active_count() <= before


@pytest.mark.parametrize("text", [TEXTS[0], LONG])
def test_everything_that_is_heard_is_marked(toy, text):
    """Fails when chunks are marked one by one, pauses are not, or the mark's end is lost."""
    sampling = replace(GREEDY, max_seconds=3.0)

    async def run():
        async with serving(toy) as service:
            plain, _ = await hear(service, order(text, sampling=sampling))
        service = SpeechService(toy, config(), LateMark())
        service.start()
        marked, _ = await hear(service, order(text, sampling=sampling))
        await service.close()
        return plain, marked, service.sample_rate // 3

    plain, marked, late = asyncio.run(run())
    assert len(plain) > late
    assert len(marked) == len(plain) + late
    np.testing.assert_array_equal(marked[late:], -plain)
