"""The sentences of an evaluation's page: which ones, and of each a row with all systems' sound, picture and numbers."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from difflib import SequenceMatcher
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from llasa.audio import decode_audio, resample
from llasa.corpus.recognition import plain_words
from llasa.evaluation.report import METRICS
from llasa.pictures import mel_picture

Row = dict[str, Any]
OPUS_RATES = (8000, 12_000, 16_000, 24_000, 48_000)
PICTURE_HEIGHT, PICTURE_COLOURS, SECONDS_PER_PIXEL = 88, 32, 0.015
ON_CLIPS = ("wer", "cer", "similarity", "dnsmos_ovrl", "relative_speed")
"""Metrics that stand under every player."""
SORTED_BY = ("cer", "wer", "similarity", "dnsmos_ovrl", "relative_speed", "repeated_words", "skipped_words")
"""Metrics of a clip by which its column can be sorted, beside its seconds."""


def rank(report: dict[str, Any]) -> list[str]:
    """Ids of the sentences, worst first: by the worst checkpoint's character errors, then by clips that never
    stopped, then by voice and sound."""
    checkpoints = {system["name"] for system in report["systems"] if system["kind"] == "checkpoint"}
    of_id: dict[str, list[Row]] = {}
    for row in report["clips"]:
        if row["system"] in checkpoints:
            of_id.setdefault(row["id"], []).append(row)
    metrics = {metric.key: metric for metric in METRICS}

    def worst(name: str, key: str, sign: int) -> float:
        found = [value for row in of_id[name] if (value := metrics[key].of(row)) is not None]
        return max((sign * value for value in found), default=0.0)

    keys = (("cer", 1), ("unfinished", 1), ("similarity", -1), ("dnsmos_ovrl", -1))
    return sorted(of_id, key=lambda name: [-worst(name, key, sign) for key, sign in keys])


def choose(ranking: Sequence[str], count: int) -> list[str]:
    """The worst half of ``count``, and as many evenly from the rest: only the worst would be no fair impression."""
    if count >= len(ranking):
        return list(ranking)
    half = math.ceil(count / 2)
    rest, others = ranking[half:], count - half
    return [*ranking[:half], *(rest[index * len(rest) // others] for index in range(others))]


def clips_about(shown: int, total: int) -> str:
    if shown == total:
        return "Worst first."
    worst = math.ceil(shown / 2)
    return f"{shown} of {total} sentences, worst first: the {worst} worst, the others from all over the rest."


def orders(report: dict[str, Any]) -> str:
    """What a system's column is sorted by: metrics that a clip has, the first of them chosen."""
    metrics = {metric.key: metric for metric in METRICS}
    there = [key for key in SORTED_BY if any(metrics[key].of(row) is not None for row in report["clips"])]
    options = [(key, metrics[key].title) for key in there] + [("seconds", "Seconds")]
    return "".join(f'<option value="{key}">{escape(label)}</option>' for key, label in options)


def heads(systems: Sequence[str]) -> str:
    names = ["#", "Sentence", *systems]
    return "".join(
        f'<th scope="col" role="columnheader"{" aria-sort=ascending" if column == 0 else ""}>'
        f'<button type="button">{escape(name)}</button></th>'
        for column, name in enumerate(names)
    )


def line(number: int, name: str, systems: Sequence[str], rows: dict[tuple[str, str], Row], folder: Path) -> str:
    """A sentence: its text, and a cell with sound, picture and numbers for each system."""
    mine = [rows.get((name, system)) for system in systems]
    any_row = next(row for row in mine if row is not None)
    longest = max(row["seconds"] for row in mine if row is not None)
    about = " · ".join(part for part in (name, any_row["speaker"], any_row["language"]) if part)
    return (
        f'<tr role="row"><td role="cell" class="number" data-value="{number}">{number}</td>'
        f'<td role="cell" class="sentence" data-value="{escape(any_row["text"])}">'
        f'<p class="said" lang="{escape(any_row["language"])}">{escape(any_row["text"])}</p>'
        f'<p class="meta">{escape(about)}</p></td>'
        + "".join(
            cell(system, row, longest, folder) if row else '<td role="cell" class="none" data-value="">–</td>'
            for system, row in zip(systems, mine, strict=True)
        )
        + "</tr>"
    )


def cell(system: str, row: Row, longest: float, folder: Path) -> str:
    """Numbers to sort by stand in ``data-KEY``."""
    values = {metric.key: metric.of(row) for metric in METRICS} | {"seconds": row["seconds"]}
    data = "".join(
        f' data-{key.replace("_", "-")}="{"" if values[key] is None else f"{values[key]:.6g}"}"'
        for key in (*SORTED_BY, "seconds")
    )
    chips = [f"{row['seconds']:.1f} s"] + [
        f"{metric.title} {metric.show(values[metric.key])}"
        for metric in METRICS
        if metric.key in ON_CLIPS and values[metric.key] is not None
    ]
    flags = [
        text
        for text, there in (
            ("never stopped", row["finish_reason"] == "length"),
            (f"{row['repeated_words']} repeated", bool(row["repeated_words"])),
            (f"{row['skipped_words']} skipped", bool(row["skipped_words"])),
        )
        if there
    ]
    heard = "" if row["heard"] is None else f'<p class="heard" lang="{escape(row["language"])}">{difference(row)}</p>'
    label = escape(f"{system}: {row['id']}")
    waveform, rate = decode_audio(folder / row["file"])
    return (
        f'<td role="cell" data-label="{escape(system)}"{data}>'
        f'<button class="spectrogram" type="button" style="width:{100 * row["seconds"] / longest:.1f}%" '
        f'aria-label="Play {label}"><img alt="" loading="lazy" src="{picture_uri(waveform, rate)}"><i></i></button>'
        f'<audio controls preload="none" data-seconds="{row["seconds"]:.4f}" aria-label="{label}" '
        f'src="{audio_uri(waveform, rate)}"></audio>'
        f'<p class="chips">{"".join(f"<span>{escape(chip)}</span>" for chip in chips)}'
        f"{''.join(f'<span class=bad>{escape(flag)}</span>' for flag in flags)}</p>{heard}</td>"
    )


def difference(row: Row) -> str:
    """What was heard, wrong words marked and missing ones struck through. Aligned for the eye, by the longest runs that
    agree; the errors that are counted are of the alignment with the fewest."""
    said = plain_words(row["text"], row["language"]).split()
    words = row["heard"].split()
    tokens = [
        (token, index) for index, word in enumerate(words) for token in plain_words(word, row["language"]).split()
    ]
    matcher = SequenceMatcher(None, said, [token for token, _ in tokens], autojunk=False)
    wrong: set[int] = set()
    missing: dict[int, list[str]] = {}
    for kind, start, stop, heard_start, heard_stop in matcher.get_opcodes():
        if kind == "equal":
            continue
        wrong |= {tokens[place][1] for place in range(heard_start, heard_stop)}
        if kind in ("delete", "replace"):
            before = tokens[heard_start][1] if heard_start < len(tokens) else len(words)
            missing.setdefault(before, []).extend(said[start:stop])
    shown = []
    for index in range(len(words) + 1):
        if index in missing:
            shown.append(f"<del>{escape(' '.join(missing[index]))}</del>")
        if index < len(words):
            word = escape(words[index])
            shown.append(f"<mark>{word}</mark>" if index in wrong else word)
    return " ".join(shown) or "<em>nothing</em>"


def audio_uri(waveform: np.ndarray, sample_rate: int) -> str:
    """float32 [samples] → Opus in Ogg, or FLAC where this libsndfile cannot write Opus."""
    import soundfile

    buffer = io.BytesIO()
    if "OPUS" in soundfile.available_subtypes("OGG"):
        rate = sample_rate if sample_rate in OPUS_RATES else 48_000
        samples = np.clip(resample(waveform, sample_rate, rate), -1, 1)
        soundfile.write(buffer, samples, rate, format="OGG", subtype="OPUS")
        kind = "audio/ogg"
    else:
        soundfile.write(buffer, np.clip(waveform, -1, 1), sample_rate, format="FLAC", subtype="PCM_16")
        kind = "audio/flac"
    return f"data:{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def picture_uri(waveform: np.ndarray, sample_rate: int) -> str:
    """A mel spectrogram in few colours: a third of the size, and nobody sees it."""
    from PIL import Image

    picture = mel_picture(waveform, sample_rate, height=PICTURE_HEIGHT, seconds_per_pixel=SECONDS_PER_PIXEL)
    buffer = io.BytesIO()
    few = Image.fromarray(picture).quantize(PICTURE_COLOURS, dither=Image.Dither.NONE)
    few.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
