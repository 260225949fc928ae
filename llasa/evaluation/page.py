"""The report as one page to read and to listen to: nothing to load, so it can be sent to somebody as it is.

Sound is Opus and pictures are PNG inside the file: about 25 kB for a clip of 4 s. ``clips`` of the sentences get
them, half of them the worst, half from all over the rest; the numbers of all stand in report.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from llasa.evaluation.page_clips import choose, clips_about, heads, line, orders, rank
from llasa.evaluation.report import METRICS, Metric
from llasa.report_page import fact_list, write_report_page

TEMPLATE = Path(__file__).with_name("page.html")
PANELS = ("wer", "cer", "similarity", "dnsmos_ovrl", "relative_speed", "unfinished")
"""Metrics that are drawn; the table above has all."""
NAMES = {"checkpoint": "checkpoint", "codec": "ceiling", "recording": "ceiling"}


def write_page(path: Path, report: dict[str, Any], folder: Path, clips: int) -> None:
    """Write the page of ``report`` (see :mod:`llasa.evaluation.report`); sounds are read from its files.

    Args:
        folder: what relative names of files are relative to.
        clips: sentences with sound.
    """
    systems = [system["name"] for system in report["systems"]]
    rows = {(row["id"], row["system"]): row for row in report["clips"]}
    ranking = rank(report)
    chosen = choose(ranking, clips)
    shown = [metric for metric in METRICS if any(metric.key in s["metrics"] for s in report["systems"])]
    write_report_page(
        path,
        TEMPLATE,
        title=title(report),
        facts=facts(report),
        notes="".join(f'<p class="note">{escape(note)}</p>' for note in report["notes"]),
        summary=summary(report, shown),
        panels="".join(panel(metric, report["systems"]) for metric in shown if metric.key in PANELS),
        comparisons=comparisons(report, shown),
        clips_about=escape(clips_about(len(chosen), len(ranking))),
        orders=orders(report),
        heads=heads(systems),
        clips="\n".join(line(number, name, systems, rows, folder) for number, name in enumerate(chosen, start=1)),
        footer=footer(report),
    )


def title(report: dict[str, Any]) -> str:
    return " against ".join(s["name"] for s in report["systems"] if s["kind"] == "checkpoint")


def facts(report: dict[str, Any]) -> str:
    store = report["store"]
    return fact_list(
        [
            (f"{report['sentences']:,}", "sentences"),
            (store["path"] if store else report["texts"], f"split {store['split']}" if store else "texts"),
            (Path(report["asr"]).name if report["asr"] else "none", "recogniser"),
            (report["reference"] or "none", "reference of voice and speed"),
            (report["device"], "device"),
        ]
    )


def summary(report: dict[str, Any], shown: Sequence[Metric]) -> str:
    arrows = {"lower": " ↓", "higher": " ↑", None: ""}
    words = {"lower": "; lower is better", "higher": "; higher is better", None: ""}
    head = "".join(
        f'<th scope="col"><abbr title="{escape(metric.about + words[metric.better])}">{escape(metric.title)}</abbr>'
        f'<span aria-hidden="true">{arrows[metric.better]}</span></th>'
        for metric in shown
    )
    body = "".join(
        f'<tr class="{system["kind"]}"><th scope="row">{escape(system["name"])}'
        f"<small>{NAMES[system['kind']]}, {system['clips']:,} clips, {system['seconds']:,.0f} s</small></th>"
        + "".join(number(metric, system["metrics"].get(metric.key)) for metric in shown)
        + "</tr>"
        for system in report["systems"]
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Summary"><table id="summary">'
        f'<thead><tr><th scope="col">System</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f'<p class="soft">Small: the interval of {report["config"]["confidence"]:.0%} confidence, by bootstrap over '
        "the clips. " + "; ".join(f"{escape(m.title)}: {escape(m.about)}" for m in shown) + ".</p>"
    )


def number(metric: Metric, found: dict[str, Any] | None) -> str:
    if found is None:
        return '<td class="none">–</td>'
    return f"<td><b>{metric.show(found['value'])}</b>{interval(metric, found)}</td>"


def interval(metric: Metric, found: dict[str, Any]) -> str:
    if found["low"] is None or found["high"] is None:
        return ""
    return f"<small>{metric.show(found['low']).removesuffix(' %')} … {metric.show(found['high'])}</small>"


def panel(metric: Metric, systems: Sequence[dict[str, Any]]) -> str:
    """A metric as a dot with its interval for each system, on one scale."""
    found = [(system, system["metrics"][metric.key]) for system in systems if metric.key in system["metrics"]]
    ends = [v for _, m in found for v in (m["value"], m["low"], m["high"]) if v is not None]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    if metric.better == "lower":
        low = 0.0  # errors have a natural end
    high = high if high > low else low + 1.0
    left, right, step = 6.0, 374.0, 44

    def place(value: float) -> float:
        return left + 8 + (value - low) / (high - low) * (right - left - 16)

    drawn = []
    for index, (system, m) in enumerate(found):
        y = 18 + index * step
        value = f"{metric.show(m['value'])}"
        drawn.append(f'<text x="{left}" y="{y}">{escape(system["name"][:44])}</text>')
        drawn.append(f'<text class="value" x="{right}" y="{y}" text-anchor="end">{value}</text>')
        drawn.append(f'<line class="axis" x1="{left}" x2="{right}" y1="{y + 12}" y2="{y + 12}"/>')
        if m["low"] is not None and m["high"] is not None:
            drawn.append(
                f'<line class="interval" x1="{place(m["low"]):.1f}" x2="{place(m["high"]):.1f}" '
                f'y1="{y + 12}" y2="{y + 12}"/>'
            )
        kind = "dot" if system["kind"] == "checkpoint" else "dot ceiling"
        drawn.append(f'<circle class="{kind}" cx="{place(m["value"]):.1f}" cy="{y + 12}" r="5"/>')
    told = ", ".join(f"{system['name']} {metric.show(m['value'])}" for system, m in found)
    better = {"lower": "lower is better", "higher": "higher is better", None: "1 is the reference"}[metric.better]
    return (
        f'<section class="panel"><h3>{escape(metric.title)}</h3><p class="meta">{escape(metric.about)}; {better}</p>'
        f'<svg viewBox="0 0 380 {step * len(found) + 4}" role="img" aria-label="{escape(metric.title)}: '
        f'{escape(told)}">{"".join(drawn)}</svg></section>'
    )


def comparisons(report: dict[str, Any], shown: Sequence[Metric]) -> str:
    """Each pair of checkpoints: difference, interval and p by metric."""
    if not report["comparisons"]:
        return ""
    sections = []
    for pair in report["comparisons"]:
        lines = []
        for metric in shown:
            found = pair["metrics"].get(metric.key)
            if found is None:
                continue
            winner = better_of(pair, metric, found, report["config"]["confidence"])
            sure = "" if found["p"] is None else f"{found['p']:.3f}" if found["p"] >= 0.001 else "< 0.001"
            lines.append(
                f'<tr><th scope="row">{escape(metric.title)}</th><td><b>{signed(metric, found["difference"])}</b></td>'
                f"<td>{signed(metric, found['low']).removesuffix(' %')} … {signed(metric, found['high'])}</td>"
                f"<td>{sure}</td>"
                f'<td class="word">{escape(winner)}</td></tr>'
            )
        head = "".join(
            f'<th scope="col"{kind}>{text}</th>'
            for text, kind in (
                ("Metric", ""), ("Difference", ""), ("Interval", ""), ("p", ""), ("Better", ' class="word"'),
            )
        )  # fmt: skip
        sections.append(
            f"<h3>{escape(pair['first'])} minus {escape(pair['second'])}</h3>"
            '<div class="scroll fit" tabindex="0" role="region" aria-label="Comparison"><table class="pairs">'
            f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        )
    limit = 1 - report["config"]["confidence"]
    about = (
        "On the sentences that both have said; p by permutation. Neither is shown to be better where the interval "
        f"holds 0 or p is {limit:.2g} or more."
    )
    return f'<h2 id="comparisons">In pairs</h2><p class="soft">{about}</p>{"".join(sections)}'


def better_of(pair: dict[str, Any], metric: Metric, found: dict[str, Any], confidence: float) -> str:
    """Who is better for certain: of a few sentences, interval and test may disagree, and then nobody is."""
    low, high, p = found["low"], found["high"], found["p"]
    if metric.better is None or None in (low, high, p):
        return ""
    if low <= 0 <= high or p >= 1 - confidence:
        return "not shown"
    return pair["first"] if (high < 0) == (metric.better == "lower") else pair["second"]


def signed(metric: Metric, value: float | None) -> str:
    return "–" if value is None else format(value, "+" + metric.form).replace("%", " %")


def footer(report: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    checkpoints = "; ".join(
        f"{system['name']}: {system['checkpoint']} ({system['fingerprint'][:16]})"
        for system in report["systems"]
        if system["kind"] == "checkpoint"
    )
    config = report["config"]
    sampling = ", ".join(f"{key} {value}" for key, value in config["sampling"].items())
    lines = [
        f"Checkpoints: {checkpoints}.",
        f"Sampling: {sampling}, seed {config['seed']}.",
        f"Measured with {versions or 'nothing installed'}; speaker model {report['speaker_model'] or 'none'}.",
        f"Commit {report['provenance']['commit']}. All numbers: report.json beside this page.",
    ]
    return "".join(f"<p>{escape(line)}</p>" for line in lines)
