"""The page in a real browser (Chromium, headless), against the real server with a tiny model behind it.

The model takes its steps when a test lets it (:class:`Pace`), so what has to happen before the end of the speech is
told from what happens after it by the order of events and not by the clock.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from llasa.codec.codec2 import Codec2
from llasa.generation.decoding import Decoder
from llasa.generation.engine_hf import TransformersEngine
from llasa.generation.synthesizer import Synthesizer
from llasa.serving.service import SpeechService
from llasa.serving.tempo import available_speeds
from tests.browser import chromium, contrast, needs_chromium
from tests.corpus.recordings import audio_bytes, speech_like
from tests.serving.http_server import save_speaker, serve_config, serving, wait_until

pytestmark = needs_chromium
MICROPHONE = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
"""One that beeps."""
TEXT = "Il gatto dorme sul letto, e la luna dorme con lui"
"""So long that nobody reads it in `SECONDS`: whatever the seed, the model may not end before."""
SECONDS = 1.0
STEPS = round(SECONDS * Codec2().spec.tokens_per_second)
KEY = "a-key-of-sixteen-or-more"


class Pace:
    """What the steps of a batch wait for."""

    def __init__(self) -> None:
        self.changed, self.left, self.seconds = threading.Condition(), None, 0.0
        self.broken = False

    def take(self) -> None:
        time.sleep(self.seconds)
        with self.changed:
            assert self.changed.wait_for(lambda: self.left != 0, timeout=20), "nobody let it go on"
            if self.left is not None:
                self.left -= 1
        if self.broken:
            raise RuntimeError("on purpose")

    def let(self, steps: int | None = None, seconds: float = 0.0) -> None:
        """Take so many steps, and then none; none = any number. Each waits for ``seconds``."""
        with self.changed:
            self.left, self.seconds = steps, seconds
            self.changed.notify_all()


class PacedEngine(TransformersEngine):
    def __init__(self, pace: Pace, **settings) -> None:
        super().__init__(**settings)
        self.pace = pace

    def open(self, speech, *, capacity):
        pace = self.pace

        class Paced(Decoder):
            def step(self):
                pace.take()
                return super().step()

        return Paced(speech, slots=self.batch_size, capacity=capacity)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_speaker(tmp_path_factory.mktemp("page") / "checkpoint")


def paced_server(checkpoint: Path, pace: Pace, *overrides: str, places: int = 4):
    config = serve_config(checkpoint, f"sampling.max_seconds={SECONDS}", "voice_uploads=true", *overrides)
    engine = PacedEngine(pace, batch_size=places)
    speech = engine.load(str(checkpoint), "cpu")
    return serving(config, SpeechService(Synthesizer(speech, Codec2(), engine, "it"), config))


@pytest.fixture(scope="module", autouse=True)
def every_frame_a_piece():
    """So that what has come can be told from the steps that were let."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llasa.serving.stream.PIECE_SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def pace():
    pace = Pace()
    yield pace
    pace.let()


@pytest.fixture(scope="module")
def server(checkpoint, pace):
    with paced_server(checkpoint, pace) as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    with chromium(*MICROPHONE) as browser:
        yield browser


@pytest.fixture
def opened(browser):
    """Opens pages; whatever they complain about, and whatever goes to another host, fails the test."""
    contexts, complaints, hosts = [], [], set()

    def complain(message) -> None:
        # An answer of 4xx is a complaint of the browser's and no mistake of the page's.
        if not message.text.startswith("Failed to load resource"):
            complaints.append(message.text)

    def open_page(url: str, *, width: int = 1100, script: str = "", **settings):
        context = browser.new_context(viewport={"width": width, "height": 800}, accept_downloads=True, **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", complain)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: hosts.add(request.url.split("/page")[0].split("/v1")[0].rstrip("/")))
        if script:
            page.add_init_script(script)
        page.goto(url)
        page.locator("body[data-ready]").wait_for()
        open_page.hosts = {url, *getattr(open_page, "hosts", ())}
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert {host for host in hosts if not host.startswith("blob:")} <= open_page.hosts


@pytest.fixture
def page(opened, server, pace):
    pace.let()
    yield opened(server.url)
    pace.let()


def speak(page, text: str = TEXT) -> None:
    page.locator("#text").fill(text)
    page.locator("#speak").click()


def stage(page, state: str):
    page.locator(f"#stage[data-state={state}]").wait_for()


def spoken(page) -> None:
    page.locator("#status", has_text="Spoken").wait_for()


def events(page) -> list[str]:
    return page.evaluate("performance.getEntriesByType('mark').map(mark => mark.name)")


def drawn(page) -> dict[str, float]:
    """Of the picture: share of pixels that are not empty, and number of colours; left and right half."""
    return page.evaluate("""() => {
        const canvas = document.getElementById('picture'), half = Math.floor(canvas.width / 2);
        const copy = Object.assign(document.createElement('canvas'), {width: canvas.width, height: canvas.height});
        const context = copy.getContext('2d', {willReadFrequently: true});
        context.drawImage(canvas, 0, 0);
        const look = x => {
            const pixels = new Uint32Array(context.getImageData(x, 0, half, canvas.height).data.buffer);
            return {filled: pixels.filter(p => p >>> 24 > 0).length / pixels.length, colours: new Set(pixels).size};
        };
        return {left: look(0), right: look(half)};
    }""")


def downloaded(page, press) -> tuple[str, bytes]:
    with page.expect_download() as download:
        press()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


# --- speaking -------------------------------------------------------------------------------------------------------


def test_speech_is_heard_and_drawn_before_it_ends_and_waits_where_it_comes_too_slowly(page, pace, server):
    """Fails when the page reads the whole answer before it plays or draws, or does not play the rest after a wait."""
    pace.let(round(0.6 * STEPS))
    speak(page)
    stage(page, "playing")
    assert "all-audio" not in events(page)
    # All that is there has been heard. (On a machine that is held up the page also waits before.)
    page.locator("#time", has_text=re.compile(r"^0\.[56] / 0\.[56] s$")).wait_for()
    stage(page, "waiting")
    position = float(page.locator("#position").input_value()) / 1000
    assert 0.5 * SECONDS < position < 0.65 * SECONDS
    assert server.service.num_running == 1
    halves = drawn(page)
    assert halves["left"]["colours"] > 30
    assert halves["left"]["filled"] > 2 * halves["right"]["filled"]
    pace.let()
    stage(page, "ended")
    assert [event for event in events(page) if event != "playing"] == ["first-audio", "all-audio"]
    assert events(page).count("playing") >= 2
    assert page.locator("#time").inner_text() == f"{SECONDS:.1f} / {SECONDS:.1f} s"
    assert drawn(page)["right"]["filled"] > 0.3
    assert page.locator("#stop").is_hidden()
    assert float(page.locator("#first-sound").inner_text().removesuffix(" s")) < 10
    assert float(page.locator("#factor").inner_text()) > 0


RECORD = """
    window.started = [];
    const start = AudioBufferSourceNode.prototype.start;
    AudioBufferSourceNode.prototype.start = function (when, ...rest) {
        const { sampleRate, length } = this.buffer;
        window.started.push({ when, sampleRate, length, context: this.context.sampleRate,
                              samples: Array.from(this.buffer.getChannelData(0), x => Math.round(32768 * x)) });
        return start.call(this, when, ...rest);
    };
"""


def test_pieces_meet_on_the_sample_and_the_wav_holds_what_was_heard(opened, server, pace):
    """Fails when a piece begins a sample late, when a byte is lost between two reads, or the header of the WAV lies."""
    pace.let(round(0.6 * STEPS))  # more than the page waits for at most
    page = opened(server.url, script=RECORD)
    speak(page)
    stage(page, "playing")
    for there in ("0.6", "0.7", "0.8"):
        page.locator("#time", has_text=f"/ {there} s").wait_for()
        pace.let(STEPS // 10)
    pace.let()
    stage(page, "ended")
    nodes = page.evaluate("window.started")
    assert len(nodes) > 1
    assert {node["sampleRate"] for node in nodes} == {node["context"] for node in nodes} == {8000}
    gaps = [b["when"] - a["when"] - a["length"] / 8000 for a, b in itertools.pairwise(nodes)]
    # On a machine that is held up the sound waits, which is told, and else it goes on without a gap.
    assert sum(abs(gap) > 1e-9 for gap in gaps) == events(page).count("playing") - 1
    heard = np.concatenate([node["samples"] for node in nodes]).astype(np.int16)
    name, content = downloaded(page, page.locator("#download").click)
    assert name == "il-gatto-dorme-sul-letto-e-la-luna-dorme.wav"
    waveform, rate = soundfile.read(io.BytesIO(content), dtype="int16")
    assert (len(waveform), rate) == (round(SECONDS * 8000), 8000)
    assert np.array_equal(waveform, heard)
    assert np.abs(waveform).max() > 100


def test_samples_may_be_split_between_two_reads(page):
    """Fails when the odd byte of a read is lost: all that follows would be noise."""
    samples = page.evaluate("""async () => {
        const { pcmPieces } = await import(new URL('page/server.js', location));
        const bytes = new Uint8Array(Int16Array.from([1, -2, 300, -32768, 5]).buffer);
        const body = new ReadableStream({start(c) {
            for (const [a, b] of [[0, 1], [1, 4], [4, 4], [4, 9], [9, 10]]) c.enqueue(bytes.slice(a, b));
            c.close();
        }});
        const found = [];
        for await (const piece of pcmPieces(new Response(body))) found.push(...piece);
        return found;
    }""")
    assert samples == [1, -2, 300, -32768, 5]


@pytest.mark.parametrize("frequency", [125, 1000, 3500])
def test_the_spectrogram_shows_a_tone_where_it_is(page, frequency):
    """Fails when the transform, the filters or the order of bands is wrong: mel by O'Shaughnessy, 0 dB = full scale."""
    columns, bands, count = page.evaluate(
        """async frequency => {
            const { Clip } = await import(new URL('page/clip.js', location));
            const { BANDS, Spectrogram } = await import(new URL('page/spectrogram.js', location));
            const clip = new Clip(8000);
            const turn = 2 * Math.PI * frequency / 8000;
            clip.append(Int16Array.from({length: 8000}, (_, i) => 3276.8 * Math.sin(turn * i)));
            clip.finish();
            const spectrogram = new Spectrogram(clip);
            while (spectrogram.update(100));
            return [[...spectrogram.columns.slice(0, spectrogram.count * BANDS)], BANDS, spectrogram.count];
        }""",
        frequency,
    )
    assert count == 101
    decibels = 100 * (np.array(columns).reshape(count, bands)[50] / 255 - 1)
    centre = 2595 * np.log10(1 + frequency / 700) / (2595 * np.log10(1 + 4000 / 700)) * (bands + 1) - 1
    assert int(decibels.argmax()) == pytest.approx(centre, abs=1)
    assert decibels.max() == pytest.approx(-22, abs=3)  # a filter's mean is below the peak
    far = np.abs(np.arange(bands) - centre) > 20
    assert decibels[far].max() < -70


def test_a_browser_without_the_rate_of_the_model_plays_too(opened, server, pace):
    """Fails when there is no sound without a context of the model's own rate."""
    pace.let()
    only_its_own = """
        const Own = AudioContext;
        window.AudioContext = class extends Own {
            constructor(options) {
                if (options?.sampleRate) throw new DOMException("no such rate", "NotSupportedError");
                super(options);
                window.rate = this.sampleRate;
            }
        };
    """
    page = opened(server.url, script=only_its_own)
    speak(page)
    stage(page, "ended")
    assert page.evaluate("window.rate") > 8000
    assert page.locator("#time").inner_text() == f"{SECONDS:.1f} / {SECONDS:.1f} s"


def test_other_formats_are_the_same_speech(page, server):
    """Fails when the page forgets the seed: then something else is said."""
    speak(page)
    spoken(page)
    before, _ = soundfile.read(io.BytesIO(downloaded(page, page.locator("#download").click)[1]), dtype="int16")
    page.locator("#format").select_option("flac")
    name, content = downloaded(page, page.locator("#download").click)
    assert name.endswith(".flac")
    after, rate = soundfile.read(io.BytesIO(content), dtype="int16")
    assert rate == 8000
    assert np.array_equal(before, after)


def test_settings_reach_the_server_and_come_back_from_the_history(page, server):
    """Fails when a control is not sent, or "use these settings again" leaves one out."""
    page.locator("#sampling summary").click()
    assert page.locator("#speed").is_visible() == (available_speeds() is not None)
    page.locator("#temperature").fill("0.5")
    page.locator("#top_p").fill("0.9")
    page.locator("#min_p").fill("0.05")
    page.locator("#repetition_penalty").fill("1.1")
    page.locator("#top_k").fill("50")
    page.locator("#seed").fill("17")
    page.locator("#language").select_option("en")
    with page.expect_request("**/v1/audio/speech") as request:
        speak(page, "The cat sleeps")
    sent = json.loads(request.value.post_data)
    expected = {
        "temperature": 0.5, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.1, "top_k": 50, "seed": 17,
        "language": "en", "model": "llasa", "voice": "default", "response_format": "pcm", "stream_format": "audio",
    }  # fmt: skip
    assert expected.items() <= sent.items()
    spoken(page)
    page.locator("#defaults").click()
    page.locator("#dice").click()
    page.locator("#language").select_option("it")
    page.locator("#text").fill("")
    assert page.locator("#temperature").input_value() == "0.8"
    page.get_by_role("button", name="Use these settings again").click()
    with page.expect_request("**/v1/audio/speech") as request:
        page.locator("#speak").click()
    assert json.loads(request.value.post_data) == sent
    spoken(page)


def test_the_history_plays_downloads_and_forgets(page):
    """Fails when an entry loses its sound, both have one seed, or texts are kept that nobody asked to keep."""
    speak(page, "Il gatto dorme")
    spoken(page)
    speak(page, "La luna è alta")
    spoken(page)
    stage(page, "ended")
    entries = page.locator("#entries > li")
    assert [text.strip() for text in entries.locator(".said").all_inner_texts()] == ["La luna è alta", "Il gatto dorme"]
    seeds = {text.split("seed ")[1] for text in entries.locator(".meta").all_inner_texts()}
    assert len(seeds) == 2, "a new one each time"
    page.get_by_role("button", name="Play: Il gatto dorme").click()
    stage(page, "playing")
    assert entries.nth(1).get_attribute("aria-current") == "true"
    stage(page, "ended")
    name, content = downloaded(page, page.get_by_role("button", name="Download: Il gatto dorme").click)
    assert name == "il-gatto-dorme.wav"
    assert soundfile.info(io.BytesIO(content)).frames > 0
    assert page.evaluate("localStorage.length") == 0
    page.locator("#remember").check()
    page.reload()
    page.locator("body[data-ready]").wait_for()
    assert page.locator("#entries > li").count() == 2
    page.get_by_role("button", name="Speak again: La luna è alta").click()
    stage(page, "playing")
    spoken(page)
    assert page.locator("#entries > li").count() == 2
    page.get_by_role("button", name="Remove: Il gatto dorme").click()
    assert page.locator("#entries > li").count() == 1
    page.locator("#remember").uncheck()
    assert page.evaluate("localStorage.length") == 0
    page.get_by_role("button", name="Clear").click()
    assert page.locator("#history").is_hidden()


def test_stop_gives_the_place_in_the_batch_back(page, pace, server):
    """Fails when the request goes on: the batch would keep it to its end."""
    pace.let(seconds=0.05)  # ten seconds of it
    cancelled = server.service.ended["cancelled"]
    speak(page)
    page.locator("#entries > li").wait_for()
    assert server.service.num_running == 1
    page.locator("#stop").focus()
    page.keyboard.press("Escape")
    wait_until(lambda: server.service.num_running == 0, 5)
    wait_until(lambda: server.service.ended["cancelled"] == cancelled + 1, 5)
    assert page.locator("#status").inner_text() == "Stopped."
    assert page.locator("#stage").get_attribute("data-state") == "paused"
    assert page.evaluate("document.activeElement.id") == "speak"
    assert "not to its end" in page.locator("#entries .meta").inner_text()
    pace.let()
    page.locator("#play").click()  # what there is can be heard
    stage(page, "ended")
    speak(page)  # and the next is spoken
    spoken(page)


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_errors_are_shown_as_the_server_says_them(page, server):
    """Fails when the page has words of its own for them, or none."""
    message = page.request.post(
        f"{server.url}/v1/audio/speech", data={"model": "llasa", "input": "???", "response_format": "pcm"}
    ).json()["error"]["message"]
    speak(page, "???")
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert alert.inner_text() == message
    assert page.locator("#history").is_hidden()
    speak(page)
    spoken(page)
    assert alert.count() == 0


def test_what_is_missing_or_too_long_is_said_without_asking_the_server(page):
    page.locator("#speak").click()
    assert page.get_by_role("alert").inner_text() == "Type what is to be said."
    assert page.evaluate("document.activeElement.id") == "text"
    page.locator("#text").fill("è" * 4100)
    assert page.locator("#count").inner_text() == "4,100 of 4,096 characters"
    assert page.locator("#text").get_attribute("aria-invalid") == "true"
    page.locator("#text").press("Control+Enter")
    assert page.get_by_role("alert").inner_text() == "The text is 4 characters too long."
    assert page.locator("#stage").get_attribute("data-state") == "empty"


def test_what_was_spoken_before_an_engine_broke_is_kept(opened, checkpoint):
    """Fails when a stream that breaks off looks whole, or when a server that is gone is no error."""
    pace = Pace()
    with paced_server(checkpoint, pace) as server:
        page = opened(server.url)
        pace.let(STEPS // 2)
        speak(page)
        page.locator("#time", has_text="/ 0.5 s").wait_for()
        pace.broken = True
        pace.let()
        page.get_by_role("alert").wait_for()
        assert page.get_by_role("alert").inner_text().startswith("The connection broke off")
        assert "not to its end" in page.locator("#entries .meta").inner_text()
        assert page.locator("#seconds").inner_text() == "0.5 s"
        stage(page, "ended")
    speak(page)
    page.get_by_role("alert").filter(has_text="cannot be reached").wait_for()


def test_a_busy_server_is_asked_again_when_it_says(opened, checkpoint):
    """Fails when a 429 is an error at once, or the page does not wait."""
    pace = Pace()
    with paced_server(checkpoint, pace, "limits.queue=0", places=1) as server:
        first, second = opened(server.url), opened(server.url)
        speak(first)  # so that the server knows how long it takes
        spoken(first)
        pace.let(0)
        speak(first)
        wait_until(lambda: server.service.num_running == 1)
        speak(second)
        second.locator("#status", has_text=re.compile(r"Trying again in \d+ s")).wait_for()
        assert second.locator("#stop").is_visible()
        assert second.locator("#error").is_hidden()
        pace.let()
        spoken(first)
        spoken(second)


def test_a_key_is_asked_for_and_kept_for_the_tab(opened, checkpoint, tmp_path):
    """Fails when a wrong key is kept, or the right one is not sent."""
    (tmp_path / "keys").write_text(KEY)
    with paced_server(checkpoint, Pace(), f"api_keys={tmp_path / 'keys'}") as server:
        page = opened(server.url)
        dialog = page.get_by_role("dialog", name="API key")
        dialog.wait_for()
        page.get_by_label("Key", exact=True).fill("not-the-right-key-at-all")
        page.keyboard.press("Enter")
        dialog.get_by_text("does not accept this key").wait_for()
        page.get_by_label("Key", exact=True).fill(KEY)
        dialog.get_by_role("button", name="Use it").click()
        speak(page)
        spoken(page)
        assert page.evaluate("[sessionStorage.length, localStorage.length]") == [1, 0]


# --- voices ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # records in real time: on a machine with other work the page now and then shows no recording in 15 s
def test_a_voice_is_uploaded_or_recorded_and_then_speaks(page, server):
    """Fails when consent can be left out, or the recording is no file that the server can read."""
    page.get_by_role("button", name="Add a voice").click()
    dialog = page.get_by_role("dialog", name="Add a voice")
    recording = audio_bytes(speech_like(1.6, 1), 16_000)
    dialog.locator("#file").set_input_files({"name": "la nonna.wav", "mimeType": "audio/wav", "buffer": recording})
    dialog.get_by_text("la nonna.wav · 1.6 s").wait_for()
    assert dialog.get_by_label("Name").input_value() == "la-nonna"
    save = dialog.get_by_role("button", name="Save the voice")
    save.click()
    assert dialog.get_by_role("alert").inner_text() == "Write what is said in the recording."
    dialog.get_by_label("What is said in it").fill("ciao a tutti, come state")
    save.click()
    assert "consent" in dialog.get_by_role("alert").inner_text()
    dialog.get_by_role("checkbox").check()
    save.click()
    dialog.wait_for(state="hidden")
    page.locator("#voice option[value=la-nonna]:checked").wait_for(state="attached")
    speak(page)
    spoken(page)
    assert "la-nonna" in page.locator("#entries .meta").first.inner_text()

    page.get_by_role("button", name="Add a voice").click()
    dialog.get_by_role("button", name="Record").click()
    dialog.get_by_text(re.compile(r"1\.[5-9] of ")).wait_for()
    dialog.get_by_role("button", name="Stop").click()
    dialog.get_by_text(re.compile(r"Recorded · \d\.\d s")).wait_for()
    dialog.get_by_role("button", name="Give me something to read").click()
    assert "treno" in dialog.get_by_label("What is said in it").input_value()
    dialog.get_by_label("Name").fill("beep")
    dialog.get_by_role("checkbox").check()
    save.click()
    dialog.wait_for(state="hidden")
    assert page.locator("#voice option").all_inner_texts() == ["default", "beep", "la-nonna"]
    assert {voice.name for voice in server.service.voices()} == {"beep", "la-nonna"}

    page.get_by_role("button", name="Add a voice").click()  # the name is taken: the server's words
    dialog.locator("#file").set_input_files({"name": "beep.wav", "mimeType": "audio/wav", "buffer": recording})
    dialog.get_by_label("What is said in it").fill("ciao a tutti, come state")
    dialog.get_by_role("checkbox").check()
    save.click()
    dialog.get_by_text("there is a voice 'beep' already").wait_for()
    page.keyboard.press("Escape")
    assert dialog.is_hidden()


# --- for everybody --------------------------------------------------------------------------------------------------


def test_it_can_be_used_with_the_keyboard_alone(page, pace):
    """Fails when a control cannot be reached, shows no focus, or does not answer to keys."""
    page.locator("#text").focus()
    page.keyboard.type(TEXT)
    page.keyboard.press("Control+Enter")
    spoken(page)
    stage(page, "ended")
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        name, ring = page.evaluate("""() => {
            const element = document.activeElement, style = getComputedStyle(element);
            return [element.id || element.getAttribute('aria-label') || element.textContent.trim(),
                    style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2];
        }""")
        assert ring, f"no focus to be seen on {name}"
        reached.append(name)
        if name == "position":
            break
    assert {"language", "voice", "voice-add", "speak", "Sampling", "position"} <= set(reached)
    assert page.locator("#position").get_attribute("aria-valuetext") == "1.0 of 1.0 seconds"
    page.keyboard.press("ArrowLeft")
    assert page.locator("#position").get_attribute("aria-valuetext") == "0.8 of 1.0 seconds"
    page.keyboard.press("Home")
    assert page.locator("#position").get_attribute("aria-valuetext") == "0.0 of 1.0 seconds"
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    stage(page, "playing")
    page.keyboard.press("Space")
    stage(page, "paused")
    box = page.locator("#position").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 20)
    told = page.locator("#position").get_attribute("aria-valuetext")
    assert float(told.split()[0]) == pytest.approx(SECONDS / 2, abs=0.1)


def test_every_control_has_a_name(page):
    """Fails when a button has only an icon, or a field no label."""
    speak(page)
    spoken(page)
    page.locator("#sampling summary").click()
    page.locator("#voice-add").wait_for()
    snapshot = page.locator("body").aria_snapshot()
    controls = re.findall(r"- (button|combobox|slider|spinbutton|textbox|checkbox|link)\b(.*)", snapshot)
    assert len(controls) > 20
    assert [f"{role}{rest}" for role, rest in controls if not rest.strip().startswith('"')] == []
    for role in ("banner", "main", "navigation", "status", "heading"):
        assert f"- {role}" in snapshot, role
    page.locator("#voice-add").click()
    inside = re.findall(r"- (button|textbox|checkbox)\b(.*)", page.get_by_role("dialog").aria_snapshot())
    assert len(inside) >= 7
    assert [f"{role}{rest}" for role, rest in inside if not rest.strip().startswith('"')] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_ink_stands_out_from_its_ground(opened, server, scheme, pace):
    """Fails when a text has less than 4.5 to 1 of contrast (WCAG AA), or both schemes look alike."""
    pace.let()
    page = opened(server.url, color_scheme=scheme)
    speak(page, "???")
    page.get_by_role("alert").wait_for()
    pairs = page.evaluate(COLOURS)
    speak(page)
    spoken(page)
    page.locator("#sampling summary").click()
    page.mouse.move(5, 5)
    page.wait_for_timeout(250)  # the colour of the button that the pointer left
    pairs += page.evaluate(COLOURS)
    page.locator("#voice-add").click()
    pairs += page.evaluate(COLOURS)
    assert len(pairs) > 80
    poor = {f"{what}: {contrast(ink, ground):.1f}" for what, ink, ground in pairs if contrast(ink, ground) < 4.5}
    assert poor == set()
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in re.findall(r"\d+", ground)) > 380) == (scheme == "light")


COLOURS = """() => {
    const parts = colour => colour.match(/[\\d.]+/g).map(Number);
    const shown = element => element.checkVisibility({visibilityProperty: true}) && !element.closest('.unseen');
    const texts = [...document.querySelectorAll('body *')].filter(element => shown(element) && !element.disabled &&
        [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()) && element.tagName !== 'OPTION');
    return texts.map(element => {
        let ground = [0, 0, 0, 0];
        for (let below = element; below && !ground[3]; below = below.parentElement) {
            const colour = parts(getComputedStyle(below).backgroundColor);
            ground = colour.length < 4 ? [...colour, 1] : colour;
        }
        const name = `${element.tagName}#${element.id}.${element.className} ${element.textContent.trim().slice(0, 20)}`;
        return [name, parts(getComputedStyle(element).color).slice(0, 3), ground.slice(0, 3)];
    });
}"""


def test_it_fits_a_phone(opened, server, pace):
    """Fails when anything makes the page scroll sideways at 360 pixels."""
    pace.let()
    page = opened(server.url, width=360, has_touch=True, reduced_motion="reduce")

    def outside() -> list[str]:
        """The page itself, and controls and texts beyond its edge, where a card would cut them off."""
        return page.evaluate("""() => {
            const controls = [...document.querySelectorAll('button, select, input, textarea, output, p, dd')]
                .filter(e => e.checkVisibility() && !e.closest('#examples') && !e.matches('.unseen'))
                .filter(e => e.getBoundingClientRect().right > innerWidth - 12);
            return [...(document.documentElement.scrollWidth > innerWidth ? ['page'] : []), ...controls.map(e => e.id)];
        }""")

    assert outside() == []
    page.locator("#sampling summary").tap()
    speak(page, "Lunghissimaparolachenonfiniscemai" * 2)
    page.locator("#stop").wait_for()
    assert outside() == []
    spoken(page)
    assert outside() == []
    page.locator("#voice-add").tap()
    assert outside() == []
    box = page.get_by_role("dialog").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360
    small = page.evaluate("""() => [...document.querySelectorAll('button, select')].filter(e => e.checkVisibility() &&
        !e.classList.contains('link')).filter(e => e.getBoundingClientRect().height < 34).map(e => e.outerHTML)""")
    assert small == []
