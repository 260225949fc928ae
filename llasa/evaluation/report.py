"""From rows of clips to the report: a value with its interval for every metric and system, and differences in pairs.

Every metric is a ratio of sums over clips (errors over words, values over their number), so one bootstrap over clips
serves them all, and two checkpoints are compared on the sentences that both have said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations
from typing import Any

from llasa.config import EvaluateConfig
from llasa.evaluation.statistics import bootstrap_interval, paired_difference, proportion_interval

Row = dict[str, Any]
FORMAT_VERSION = 1
MEASURING_PACKAGES = ("faster-whisper", "ctranslate2", "resemblyzer", "speechmos", "onnxruntime", "librosa", "jiwer")


@dataclass(frozen=True)
class Metric:
    """``parts`` gives a clip's share of numerator and denominator, none where it was not measured."""

    key: str
    title: str
    about: str
    better: str | None
    """lower or higher; none where neither is."""
    form: str
    """How Python formats a value."""
    parts: Callable[[Row], tuple[float, float] | None]
    is_share: bool = False
    """Of clips that are so or not: an interval then exists for none and all of them too."""

    def of(self, row: Row) -> float | None:
        """The value of one clip."""
        parts = self.parts(row)
        return parts[0] / parts[1] if parts is not None and parts[1] > 0 else None

    def show(self, value: float | None) -> str:
        """A value for people."""
        return "–" if value is None else format(value, self.form).replace("%", " %")


def rate(kind: str) -> Callable[[Row], tuple[float, float] | None]:
    return lambda row: None if row[kind] is None else (row[kind]["errors"], row[kind]["length"])


def value(key: str, part: str | None = None) -> Callable[[Row], tuple[float, float] | None]:
    def parts(row: Row) -> tuple[float, float] | None:
        found = row[key] if part is None or row[key] is None else row[key].get(part)
        return None if found is None or not math.isfinite(found) else (found, 1)

    return parts


def per_hundred_words(key: str) -> Callable[[Row], tuple[float, float] | None]:
    return lambda row: None if row[key] is None else (100 * row[key], row["words"]["length"])


def unfinished(row: Row) -> tuple[float, float] | None:
    return None if row["finish_reason"] is None else (float(row["finish_reason"] == "length"), 1)


def seconds_of(*keys: str) -> Callable[[Row], tuple[float, float] | None]:
    def parts(row: Row) -> tuple[float, float] | None:
        return None if any(row[key] is None for key in keys) else (sum(row[key] for key in keys), row["seconds"])

    return parts


METRICS: tuple[Metric, ...] = (
    Metric("wer", "WER", "word error rate: wrong, missing and added words over the words of the text", "lower", ".1%",
           rate("words")),
    Metric("cer", "CER", "character error rate", "lower", ".1%", rate("characters")),
    Metric("similarity", "SIM", "cosine of the speaker embeddings of clip and reference", "higher", ".3f",
           value("similarity")),
    Metric("dnsmos_ovrl", "DNSMOS", "predicted opinion score, 1 to 5, of the whole", "higher", ".2f",
           value("dnsmos", "ovrl")),
    Metric("dnsmos_sig", "SIG", "predicted opinion score of the speech signal", "higher", ".2f",
           value("dnsmos", "sig")),
    Metric("dnsmos_bak", "BAK", "predicted opinion score of the background", "higher", ".2f", value("dnsmos", "bak")),
    Metric("relative_speed", "Speed", "speed against the reference, 1 = the same, above 1 = faster", None, ".2f",
           value("relative_speed")),
    Metric("unfinished", "Never stopped", "share of clips that only the length limit ended", "lower", ".1%",
           unfinished, is_share=True),
    Metric("repeated_words", "Repeated", "repeated words per 100 words", "lower", ".1f",
           per_hundred_words("repeated_words")),
    Metric("skipped_words", "Skipped", "skipped words per 100 words", "lower", ".1f",
           per_hundred_words("skipped_words")),
    Metric("rtf", "RTF", "seconds of generation and decoding per second of speech", "lower", ".3f",
           seconds_of("generation_seconds", "decode_seconds")),
    Metric("generation_rtf", "RTF, model", "seconds of generation per second of speech", "lower", ".3f",
           seconds_of("generation_seconds")),
)  # fmt: skip


def summary(rows: Sequence[Row], config: EvaluateConfig) -> dict[str, dict[str, Any]]:
    """Metric → value, interval and number of clips, of one system's rows; without the metrics that none of them has."""
    result = {}
    for metric in METRICS:
        parts = [found for row in rows if (found := metric.parts(row)) is not None]
        over = sum(denominator for _, denominator in parts)
        if not parts or over <= 0:
            continue
        numerators, denominators = map(list, zip(*parts, strict=True))
        if metric.is_share:
            low, high = proportion_interval(round(sum(numerators)), len(parts), config.confidence)
        else:
            low, high = bootstrap_interval(
                numerators, denominators, confidence=config.confidence, resamples=config.resamples
            )
        result[metric.key] = {
            "value": sum(numerator for numerator, _ in parts) / over, "low": low, "high": high, "clips": len(parts)
        }  # fmt: skip
    return result


def compare(first: Sequence[Row], second: Sequence[Row], config: EvaluateConfig) -> dict[str, dict[str, Any]]:
    """Metric → difference (first minus second) on the sentences of both, its interval and p; of two and more."""
    others = {row["id"]: row for row in second}
    result = {}
    for metric in METRICS:
        both = [
            (mine, theirs)
            for row in first
            if row["id"] in others
            and (mine := metric.parts(row)) is not None
            and (theirs := metric.parts(others[row["id"]])) is not None
        ]
        if len(both) < 2 or min(sum(parts[1] for parts in side) for side in zip(*both, strict=True)) <= 0:
            continue
        found = paired_difference(
            [mine[0] for mine, _ in both],
            [theirs[0] for _, theirs in both],
            [mine[1] for mine, _ in both],
            b_denominators=[theirs[1] for _, theirs in both],
            confidence=config.confidence,
            resamples=config.resamples,
        )
        result[metric.key] = {key: getattr(found, key) for key in ("difference", "low", "high", "p")} | {
            "clips": len(both)
        }
    return result


def build_report(
    rows: Sequence[Row], systems: Sequence[dict[str, Any]], config: EvaluateConfig, **facts: Any
) -> dict[str, Any]:
    """The whole report, ready for JSON: ``systems`` say of each its ``name``, ``kind`` and what else is known."""
    mine = {system["name"]: [row for row in rows if row["system"] == system["name"]] for system in systems}
    checkpoints = [system["name"] for system in systems if system["kind"] == "checkpoint"]
    report = {
        "format_version": FORMAT_VERSION,
        **facts,
        "config": asdict(config),
        "metrics": {
            metric.key: {"title": metric.title, "about": metric.about, "better": metric.better} for metric in METRICS
        },
        "systems": [
            {
                **system,
                "clips": len(mine[system["name"]]),
                "seconds": sum(row["seconds"] for row in mine[system["name"]]),
                "metrics": summary(mine[system["name"]], config),
            }
            for system in systems
        ],
        "comparisons": [
            {"first": first, "second": second, "metrics": compare(mine[first], mine[second], config)}
            for first, second in combinations(checkpoints, 2)
        ],
        "clips": list(rows),
    }
    return finite(report)


def finite(value: Any) -> Any:
    """The same for JSON: plain numbers of at most 6 decimals, null for what is no number."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str):  # of numpy
        value = value.item()
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def measuring_versions() -> dict[str, str]:
    """Packages that the numbers depend on, beside those of :func:`llasa.provenance.provenance`."""
    versions = {}
    for name in MEASURING_PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def as_text(report: dict[str, Any]) -> str:
    """The summary as a table for a terminal: systems down, metrics across."""
    keys = [metric for metric in METRICS if any(metric.key in system["metrics"] for system in report["systems"])]
    lines = [["", *(metric.title for metric in keys)]]
    for system in report["systems"]:
        cells = (metric.show(system["metrics"].get(metric.key, {}).get("value")) for metric in keys)
        lines.append([system["name"], *cells])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.rjust(width) if place else cell.ljust(width) for place, (cell, width) in
                  enumerate(zip(line, widths, strict=True)))
        for line in lines
    )  # fmt: skip
