"""The report of a proof-read store as one page: checks, histograms, players with spectrograms, nothing to load.

Sounds are WAV and pictures PNG inside the file: 6 MB for 32 rows of 3 s at 8 kHz, 30 MB for 32 rows of 10 s at 16 kHz.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from llasa.audio import wav_bytes
from llasa.corpus.proofs import Proof, Sound
from llasa.pictures import spectrogram
from llasa.report_page import fact_list, write_report_page

TEMPLATE = Path(__file__).with_name("verify_page.html")
MAX_BARS = 40
PICTURE_COLUMNS, PICTURE_RANGE_DB, PICTURE_SHADES = 480, 70.0, 40
PALETTE = ("#07060f", "#2b1160", "#6a1c80", "#b13579", "#eb5f5f", "#fca26b", "#fdf0b5")
"""From silence to the loudest, evenly spaced."""


def write_page(path: Path, report: dict[str, Any], proofs: Sequence[Proof], sample_rate: int) -> None:
    """Write the page of ``report`` (see :mod:`llasa.corpus.verify`) with the sounds of ``proofs``."""
    rows = list(zip(report["rows"], proofs, strict=True))
    write_report_page(
        path,
        TEMPLATE,
        title=report["store"],
        verdict=verdict(report["checks"]),
        facts=facts(report),
        notes="".join(f'<p class="note">{escape(note)}</p>' for note in report["notes"]),
        checks=checks(report["checks"]),
        histograms=histograms(report["census"]),
        parts=parts(report["census"]["parts"]) + dropped(report["dropped"]),
        table=table(report["rows"]),
        clips="\n".join(clip(number, row, proof, sample_rate) for number, (row, proof) in enumerate(rows, start=1)),
        footer=footer(report),
    )


def verdict(checks: Sequence[dict[str, Any]]) -> str:
    done = [check for check in checks if check["passed"] is not None]
    failed = sum(not check["passed"] for check in done)
    left = f", {len(checks) - len(done)} not done" if len(done) < len(checks) else ""
    if failed:
        return f'<div class="verdict bad">✗ Failed: {failed} of {len(done)} checks{left}</div>'
    return f'<div class="verdict good">✓ Passed: all {len(done)} checks{left}</div>'


def facts(report: dict[str, Any]) -> str:
    census, codec = report["census"], report["codec"]
    named: list[tuple[object, str]] = [
        (f"{census['rows']:,}", "rows"),
        duration(report["seconds"]),
        (f"{report['codes']:,}", "codes"),
        (f"{census['speakers']:,}", "speakers" if census["speakers"] != 1 else "speaker"),
        (codec["name"], f"codec, {codec['sample_rate'] / 1000:g} kHz, {codec['tokens_per_second']:g} codes/s"),
        (f"{sum(report['dropped'].values()):,}", "rows dropped"),
    ]
    return fact_list(named)


def duration(seconds: float) -> tuple[str, str]:
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f}", "hours"
    return (f"{seconds / 60:.1f}", "minutes") if seconds >= 60 else (f"{seconds:.1f}", "seconds")


def checks(found: Sequence[dict[str, Any]]) -> str:
    marks = {True: ("good", "✓", "passed"), False: ("bad", "✗", "failed"), None: ("", "–", "not done")}
    items = []
    for check in found:
        kind, sign, word = marks[check["passed"]]
        items.append(
            f'<li id="check-{check["name"]}"{" class=failed" if check["passed"] is False else ""}>'
            f'<span class="mark {kind}" role="img" aria-label="{word}">{sign}</span>'
            f"<div><h3>{escape(check['question'])}</h3><p>{escape(check['found'])}</p>"
            f"<p><small>{escape(check['name'])}; expected: {escape(check['expected'])}</small></p></div></li>"
        )
    return f'<ul class="checks">{"".join(items)}</ul>'


# --- the whole store -------------------------------------------------------------------------------------------------


def histograms(census: dict[str, Any]) -> str:
    return "\n".join(
        [
            histogram("Duration", census["seconds"], "s", "seconds"),
            histogram("Speed of speech", census["characters_per_second"], "characters/s", "characters per second"),
            speakers(census["rows_of_speakers"], census["speakers"], census["rows"]),
        ]
    )


def histogram(title: str, data: dict[str, Any], unit: str, axis: str) -> str:
    """A panel with bars of equal width; each bar tells its range and count when pointed at."""
    counts = np.array(data["counts"] or [0])
    first = int(np.flatnonzero(counts).min(initial=len(counts) - 1))
    group = next(step for step in steps() if (len(counts) - first) / step <= MAX_BARS - 1)
    first -= first % group
    bars = np.add.reduceat(counts[first:], np.arange(0, len(counts) - first, group))
    low, width = first * data["bin"], group * data["bin"]
    left, bottom, right, top = 4, 150, 376, 10
    scale = (right - left) / len(bars)
    drawn = [
        f'<rect class="bar" x="{left + index * scale + 0.75:.1f}" y="{bottom - height:.1f}" '
        f'width="{max(0.5, scale - 1.5):.1f}" height="{height:.1f}">'
        f"<title>{low + index * width:g} to {low + (index + 1) * width:g} {unit}: {count:,} rows</title></rect>"
        for index, count in enumerate(bars.tolist())
        for height in [(bottom - top) * count / max(1, int(bars.max()))]
    ]
    span = len(bars) * width
    tick = next(step * data["bin"] for step in steps() if span / (step * data["bin"]) <= 7)
    marks = np.arange(np.ceil(low / tick - 1e-9) * tick, low + span + tick / 1000, tick)
    place = {mark: left + (mark - low) / span * (right - left) for mark in [*marks.tolist(), data["p50"]]}
    ends = {mark: "end" if place[mark] > right - 10 else "middle" for mark in marks.tolist()}
    ticks = "".join(
        f'<text x="{place[mark]:.1f}" y="167" text-anchor="{end}">{mark:g}</text>' for mark, end in ends.items()
    )
    summary = f"median {data['p50']:.1f}, 90 % from {data['p5']:.1f} to {data['p95']:.1f} {unit}"
    return (
        f'<section class="panel"><h3>{title}</h3><p class="meta">{summary}</p>'
        f'<svg viewBox="0 0 380 190" role="img" aria-label="{title} of all rows: {summary}">{"".join(drawn)}'
        f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
        f'<line class="middle" x1="{place[data["p50"]]:.1f}" x2="{place[data["p50"]]:.1f}" y1="{top}" y2="{bottom}"/>'
        f'{ticks}<text x="{right}" y="186" text-anchor="end">{axis}</text>'
        f'<text x="{left}" y="186">tallest bar: {int(bars.max()):,} rows</text></svg></section>'
    )


def steps() -> Iterable[int]:
    """1, 2, 5, 10, 20, 50, …"""
    for exponent in range(12):
        yield from (digit * 10**exponent for digit in (1, 2, 5))


def speakers(rows: dict[str, int], count: int, total: int) -> str:
    most = max(rows.values(), default=1)
    items = "".join(
        f'<li><span title="{escape(name)}">{escape(name) or "<em>not named</em>"}</span>'
        f'<i style="width:{100 * number / most:.1f}%"></i><b>{number:,}</b></li>'
        for name, number in rows.items()
    )
    rest = count - len(rows)
    more = f'<p class="meta">and {rest:,} more with {total - sum(rows.values()):,} rows</p>' if rest > 0 else ""
    title = f"{count:,} speaker" + ("s" if count != 1 else "")
    kind = "panel wide" if len(rows) > 8 else "panel"
    return (
        f'<section class="{kind}"><h3>Rows of each speaker</h3><p class="meta">{title}</p>'
        f'<ul class="names">{items}</ul>{more}</section>'
    )


def parts(found: Sequence[dict[str, Any]]) -> str:
    head = "".join(
        f'<th scope="col"{kind}>{name}</th>'
        for name, kind in (
            ("Split", ' class="word"'), ("Language", ' class="word"'), ("Rows", ""), ("Hours", ""), ("Codes", ""),
            ("Seconds a row", ""), ("Characters/s", ""),
        )
    )  # fmt: skip
    lines = "".join(
        f'<tr><td class="word">{escape(part["split"])}</td><td class="word">{escape(part["language"])}</td>'
        f"<td>{part['rows']:,}</td><td>{part['seconds'] / 3600:,.2f}</td><td>{part['codes']:,}</td>"
        f"<td>{part['seconds'] / max(1, part['rows']):.1f}</td>"
        f"<td>{part['characters'] / max(1e-3, part['seconds']):.1f}</td></tr>"
        for part in found
    )
    return (
        '<div class="scroll" style="margin-top:1.1rem" tabindex="0" role="region" aria-label="Splits and languages">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def dropped(reasons: dict[str, int]) -> str:
    if not reasons:
        return '<p class="soft">No row of the corpus was dropped.</p>'
    named = ", ".join(f"{count:,} {escape(reason)}" for reason, count in reasons.items())
    return f'<p class="soft">Dropped on the way: {named}.</p>'


# --- the sampled rows ------------------------------------------------------------------------------------------------

COLUMNS: tuple[tuple[str, str, str, str], ...] = (
    # key of the row, heading, number format, check that marks it
    ("seconds", "Seconds", ".2f", "lengths"),
    ("characters_per_second", "Char./s", ".1f", ""),
    ("equal_codes", "Equal codes", ".1%", "encoding"),
    ("mel_distance", "Mel, dB", ".1f", "mel"),
    ("nearest_other", "Next best, dB", ".1f", "contrast"),
    ("envelope", "Envelope", ".2f", "energy"),
    ("delay_seconds", "Delay, s", ".2f", "delay"),
    ("gain", "Gain, dB", "+.1f", "level"),
    ("cer", "CER", ".0%", "words"),
    ("source_cer", "CER source", ".0%", ""),
)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Columns without any value are left out."""
    columns = [column for column in COLUMNS if any(row[column[0]] is not None for row in rows)]
    named = any(row["speaker"] for row in rows)
    heads = [
        ("#", ""),
        ("Row", "word"),
        ("Text", "word"),
        *([("Speaker", "word")] * named),
        *((c[1], "") for c in columns),
    ]
    head = "".join(f'<th scope="col" class="{kind}"><button>{title}</button></th>' for title, kind in heads)
    lines = []
    for number, row in enumerate(rows, start=1):
        cells = [
            f'<td data-value="{number}"><a href="#row-{number}">{number}</a></td>',
            cell(
                f"{row['split']} {row['row']}",
                "word bad" if row["fails"] else "word",
                sort=f"{row['split']} {row['row']:09d}",
            ),
            f'<td class="text" data-value="{escape(row["text"])}">{escape(row["text"])}'
            + (f"<br><small>given: {escape(row['text_given'])}</small>" if row["text_given"] != row["text"] else "")
            + "</td>",
            *([cell(row["speaker"], "word")] * named),
        ]
        for key, _, form, check in columns:
            value = row[key]
            shown = "" if value is None else format(value, form).replace("%", " %").replace("100.0 %", "100 %")
            cells.append(cell(shown, "bad" if check in row["fails"] else "", sort="" if value is None else value))
        lines.append(f'<tr data-clip="row-{number}">{"".join(cells)}</tr>')
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Sampled rows">'
        f'<table id="rows-table"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )


def cell(text: str, kind: str = "", sort: object = None) -> str:
    return f'<td class="{kind}" data-value="{escape(str(text if sort is None else sort))}">{escape(text)}</td>'


def clip(number: int, row: dict[str, Any], proof: Proof, sample_rate: int) -> str:
    where = f"{row['shard']}, row {row['row']} of the corpus, {row['id']}"
    about = [where, row["speaker"], row["language"], f"{row['seconds']:.2f} s, {row['num_codes']:,} codes"]
    heard = "".join(
        f'<p class="heard"><small>heard in the {kind} ({100 * rate:.0f} % wrong):</small> {escape(text)}</p>'
        for kind, text, rate in (
            ("source", row["source_heard"], row["source_cer"]), ("decoded", row["heard"], row["cer"]),
        )
        if text is not None
    )  # fmt: skip
    wrong = "".join(f'<p class="heard bad">✗ {escape(problem)}</p>' for problem in row["problems"])
    if row["fails"]:
        wrong += f'<p class="heard bad">✗ fails: {escape(", ".join(row["fails"]))}</p>'
    sounds = [("Source", proof.source), ("Decoded", proof.decoded)]
    figures = "".join(figure(kind, number, sound, sample_rate) for kind, sound in sounds if sound is not None)
    return (
        f'<article id="row-{number}"{" class=fails" if row["fails"] else ""}><h3>#{number}</h3>'
        f'<p class="said">{escape(row["text"])}</p><p class="meta">{escape(" · ".join(part for part in about if part))}'
        f'</p>{heard}{wrong}<div class="pair">{figures}</div></article>'
    )


def figure(kind: str, number: int, sound: Sound, sample_rate: int) -> str:
    seconds = len(sound.pcm) / sample_rate
    picture = base64.b64encode(spectrogram_png(sound.pcm, sample_rate)).decode()
    audio = base64.b64encode(wav_bytes(sound.pcm, sample_rate)).decode()
    return (
        f"<figure><figcaption>{kind} <span>{seconds:.2f} s, {sound.level:.1f} dB</span></figcaption>"
        f'<button class="spectrogram" type="button" aria-label="Play row {number}, {kind.lower()}">'
        f'<img alt="" loading="lazy" src="data:image/png;base64,{picture}"><i></i></button>'
        f'<audio controls preload="none" data-seconds="{seconds:.4f}" aria-label="Row {number}, {kind.lower()}" '
        f'src="data:audio/wav;base64,{audio}"></audio></figure>'
    )


def footer(report: dict[str, Any]) -> str:
    settings = ", ".join(f"{key} {value}" for key, value in report["settings"].items() if value is not None)
    source = ", ".join(f"{key} {value}" for key, value in report["source"].items() if isinstance(value, str | int))
    lines = [
        f"Corpus: {source or 'not told'}.",
        f"Verification: {settings}" + (f", asr {report['asr']}." if report["asr"] else "."),
        f"Commit {report['provenance']['commit']}. All numbers: verify.json beside this page.",
    ]
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


# --- pictures --------------------------------------------------------------------------------------------------------


def spectrogram_png(pcm: np.ndarray, sample_rate: int) -> bytes:
    """int16 [samples] → a PNG of at most ``PICTURE_COLUMNS`` by 129 pixels, low frequencies at the bottom."""
    window = 1 << round(np.log2(0.032 * sample_rate))
    hop = max(round(0.004 * sample_rate), -(-len(pcm) // PICTURE_COLUMNS))
    power = spectrogram(pcm.astype(np.float32) / 32767, window, hop)
    rows = (power.shape[1] - 1) // 128
    power = power[:, : 128 * rows].reshape(len(power), 128, rows).mean(axis=2)
    decibels = 10 * np.log10(power + 1e-9)
    shades = np.clip(1 + (decibels - decibels.max()) / PICTURE_RANGE_DB, 0, 1)
    few = np.rint(shades * (PICTURE_SHADES - 1)) / (PICTURE_SHADES - 1)  # half the size, and nobody sees it
    return png_bytes(np.rint(255 * few).astype(np.uint8).T[::-1])


def png_bytes(shades: np.ndarray) -> bytes:
    """uint8 [height, width] → an 8-bit PNG in the colours of ``PALETTE``."""
    from PIL import Image

    anchors = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in PALETTE])
    at = np.linspace(0, 255, len(PALETTE))
    colours = np.stack([np.interp(np.arange(256), at, channel) for channel in anchors.T], axis=1).round()
    picture = Image.fromarray(shades)
    picture.putpalette(colours.astype(np.uint8).tobytes())
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return content.getvalue()
