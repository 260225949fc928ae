"""The evaluation's page: self-contained, escaped, small; and in a real browser it sorts, filters and plays."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from llasa.audio import decode_audio
from llasa.entry import compose_config
from llasa.evaluation.page import write_page
from llasa.evaluation.report import build_report
from tests.browser import CHROMIUM, chromium, contrast
from tests.corpus.recordings import speech_like, write_audio

NASTY = """<script>document.title="owned"</script> "quoted" 'it' & <img src=x onerror=alert(1)>"""
SENTENCES = 12


def word_counts(errors: int, length: int) -> dict[str, int]:
    return {"errors": errors, "length": length, "substitutions": errors, "deletions": 0, "insertions": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two checkpoints and the codec, twelve sentences; clip n is 0.4 + n/20 s long and has n wrong of 20 words."""
    root = tmp_path_factory.mktemp("report")
    systems = [{"name": "first", "kind": "checkpoint", "checkpoint": NASTY, "fingerprint": "0" * 32},
               {"name": "second <b>", "kind": "checkpoint", "checkpoint": "b", "fingerprint": "1" * 32},
               {"name": "codec resynthesis", "kind": "codec"}]  # fmt: skip
    rows = []
    for place, system in enumerate(systems):
        for number in range(SENTENCES):
            file = Path("audio") / str(place) / f"{number}.wav"
            seconds = 0.4 + number / 20
            write_audio(root / file, speech_like(seconds, number, 16_000), 16_000)
            wrong = (number, SENTENCES - 1 - number, 0)[place]
            rows.append(clip(number, system["name"], str(file), seconds, wrong))
    config = compose_config("evaluate", ["checkpoints=[a,b]", "store=data/x", "output=x", "resamples=200"])
    report = build_report(
        rows, systems, config, sentences=SENTENCES, texts=None, asr="base", speaker_model=None, device="cpu",
        store={"path": NASTY, "split": "test"}, reference="codec resynthesis", notes=[NASTY], versions={},
        provenance={"commit": "0" * 40},
    )  # fmt: skip
    write_page(root / "index.html", report, root, 50)
    write_page(root / "few.html", report, root, 4)
    return root


def clip(number: int, system: str, file: str, seconds: float, wrong: int) -> dict[str, Any]:
    text = NASTY if number == 7 else f"Frase numero {'abcdefghijkl'[number]} perché"
    return {
        "id": f"row-{number}", "system": system, "file": file, "seconds": seconds, "text": text,
        "heard": text + " e poi", "language": "it", "speaker": "s<1>", "words": word_counts(wrong, 20),
        "characters": word_counts(wrong, 100), "repeated_words": wrong // 5, "skipped_words": 0,
        "similarity": None if system.startswith("codec") else 0.9 - number / 100, "relative_speed": 1.1,
        "dnsmos": {"ovrl": 3.1, "sig": 3.3, "bak": 3.9}, "finish_reason": "length" if wrong == 11 else "stop",
        "generation_seconds": 0.2, "decode_seconds": 0.1,
    }  # fmt: skip


class Page(HTMLParser):
    """Tags with their attributes, in order."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_loads_nothing_and_escapes_everything(folder):
    """Fails when a text, a name or a path reaches the page as it is."""
    content = (folder / "index.html").read_text(encoding="utf-8")
    page = Page(content)
    assert len(page.all("script")) == 1
    assert "onerror" not in {key for _, attributes in page.tags for key in attributes}
    sources = [a["src"] for tag in ("audio", "img") for a in page.all(tag)]
    assert len(sources) == 3 * SENTENCES * 2
    assert all(source.startswith("data:") for source in sources)
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:|//)|@import|url\(", content)
    assert "second &lt;b&gt;" in content
    assert "second <b>" not in content
    assert "s<1>" not in content
    assert not page.all("link") or page.all("link")[0]["href"] == "data:,"


def test_sounds_are_those_of_the_files(folder):
    page = Page((folder / "index.html").read_text(encoding="utf-8"))
    for audio in page.all("audio")[:6]:
        number = int(audio["aria-label"].rpartition("-")[2])
        kind, data = audio["src"].removeprefix("data:").split(";base64,")
        assert kind in ("audio/ogg", "audio/flac")
        waveform, rate = decode_audio(base64.b64decode(data))
        assert len(waveform) / rate == pytest.approx(0.4 + number / 20, abs=0.02)
        original, _ = soundfile.read(folder / "audio" / "0" / f"{number}.wav", dtype="float32")
        length = min(len(waveform), len(original))
        assert np.corrcoef(waveform[:length], original[:length])[0, 1] > 0.9
    assert (folder / "index.html").stat().st_size < 36 * 25_000


def test_a_page_of_few_clips_says_so(folder):
    content = (folder / "few.html").read_text(encoding="utf-8")
    assert len(Page(content).all("audio")) == 12
    assert "4 of 12 sentences, worst first: the 2 worst" in content


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with chromium("--autoplay-policy=no-user-gesture-required") as browser:
        yield browser


@pytest.fixture
def page(browser, folder) -> Iterator[Any]:
    """The page, opened as a file, where any request and any word on the console is a failure."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on(
        "request", lambda request: None if request.url.startswith(("data:", "file:")) else said.append(request.url)
    )
    opened.goto((folder / "index.html").as_uri())
    yield opened
    assert said == []
    assert opened.title() == "first against second <b>"
    opened.close()


def numbers(page: Any) -> list[int]:
    """The ranks of the sentences that are shown, from top to bottom."""
    return [int(text) for text in page.locator("#clips tbody tr:visible td.number").all_inner_texts()]


def test_a_click_sorts_by_the_chosen_metric(page):
    """Fails when `aria-sort` changes and the rows do not, or the other way round."""
    heads = page.locator("#clips thead th")
    assert heads.all_inner_texts()[1:] == ["Sentence", "first", "second <b>", "codec resynthesis"]
    assert heads.nth(0).get_attribute("aria-sort") == "ascending"
    assert numbers(page) == list(range(1, SENTENCES + 1))

    def wrong(column: int) -> list[float]:
        return [
            float(cell.get_attribute("data-cer")) for cell in page.locator(f"#clips tbody td:nth-child({column})").all()
        ]

    heads.nth(2).get_by_role("button").click()
    assert heads.nth(2).get_attribute("aria-sort") == "descending"
    assert heads.nth(0).get_attribute("aria-sort") is None
    assert wrong(3) == [n / 100 for n in range(SENTENCES)][::-1]
    heads.nth(2).get_by_role("button").click()
    assert heads.nth(2).get_attribute("aria-sort") == "ascending"
    assert wrong(3) == [n / 100 for n in range(SENTENCES)]
    assert wrong(4) == [n / 100 for n in range(SENTENCES)][::-1]

    heads.nth(3).get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert heads.nth(3).get_attribute("aria-sort") == "descending"
    assert wrong(4) == [n / 100 for n in range(SENTENCES)][::-1]

    page.select_option("#order", "similarity")
    assert heads.nth(3).get_attribute("aria-sort") == "ascending", "the least like first"
    shown = [
        float(cell.get_attribute("data-similarity")) for cell in page.locator("#clips tbody td:nth-child(4)").all()
    ]
    assert shown == sorted(shown)
    assert shown[0] == pytest.approx(0.79)
    heads.nth(1).get_by_role("button").click()
    texts = page.locator("#clips tbody .said").all_inner_texts()
    assert texts[0].startswith("<script>")
    assert texts[1:] == sorted(texts[1:])


def test_the_filter_filters(page):
    page.fill("#filter", "PERCHE")
    assert page.locator("#clips tbody tr:visible").count() == SENTENCES - 1
    assert page.inner_text("#count") == "11 of 12 sentences"
    page.fill("#filter", "numero c")
    assert page.locator("#clips tbody tr:visible .said").all_inner_texts() == ["Frase numero c perché"]
    page.fill("#filter", "zzz")
    assert numbers(page) == []
    page.fill("#filter", "")
    assert len(numbers(page)) == SENTENCES
    assert page.inner_text("#count") == "12 sentences"


def test_every_sound_and_picture_can_be_loaded_and_played(page):
    durations = page.evaluate(
        """() => Promise.all([...document.querySelectorAll("audio")].map(audio => new Promise((resolve, reject) => {
            audio.addEventListener("loadedmetadata", () => resolve([audio.duration, Number(audio.dataset.seconds)]));
            audio.addEventListener("error", () => reject(audio.ariaLabel));
            audio.load();
        })))"""
    )
    assert len(durations) == 3 * SENTENCES
    for found, expected in durations:
        assert found == pytest.approx(expected, abs=0.05)
    widths = page.evaluate(
        """async () => { const all = [...document.querySelectorAll("img")];
            for (const image of all) image.loading = "eager";
            await Promise.all(all.map(image => image.decode()));
            return all.map(image => image.naturalWidth); }"""
    )
    assert len(widths) == 3 * SENTENCES
    assert min(widths) > 10
    first = page.locator("#clips tbody tr").first
    first.locator(".spectrogram").nth(0).click(position={"x": 2, "y": 10})
    page.wait_for_function("document.querySelector('audio').currentTime > 0.05")
    first.locator(".spectrogram").nth(1).click(position={"x": 2, "y": 10})
    page.wait_for_function("document.querySelectorAll('audio')[1].currentTime > 0.05")
    assert page.evaluate("document.querySelectorAll('audio')[0].paused"), "one at a time"


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_hangs_over_the_edge_of_a_screen(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    players = page.locator("#clips tbody tr").first.locator("audio")
    assert players.count() == 3
    assert players.first.bounding_box()["width"] >= 200
    assert page.locator("#clips thead").is_visible(), "to sort by"


def test_light_and_dark_are_readable(browser, folder):
    """Contrast of text and background, by the formula of WCAG 2: 4.5 is its limit for text."""
    for scheme in ("light", "dark"):
        opened = browser.new_page(color_scheme=scheme)
        opened.goto((folder / "index.html").as_uri())
        for selector in ("h1", ".meta", ".note", "#summary b", "#summary small", "mark", ".chips span", ".chips .bad"):
            ink, paper = opened.evaluate(COLOURS, selector)
            assert contrast(ink, paper) >= 4.5, (scheme, selector, ink, paper)
        opened.close()


COLOURS = """selector => {
    const parts = colour => colour.match(/[\\d.]+/g).map(Number);
    let element = document.querySelector(selector), ink = parts(getComputedStyle(element).color), paper;
    for (; element; element = element.parentElement) {
        paper = parts(getComputedStyle(element).backgroundColor);
        if (paper.length < 4 || paper[3] > 0) break;
    }
    return [ink.slice(0, 3), paper.slice(0, 3)];
}"""
