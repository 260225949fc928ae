"""The model card of a checkpoint: what it is, what it was made of, how well it speaks, and who may use it.

    CHECKPOINT/llasa.json · RUN/config.yaml · RUN/provenance.json · RUN/metrics.jsonl ─┐
    STORE/manifest.json ───────────────────────────────────────────────────────────────┼─► CHECKPOINT/README.md
    report.json and its clips (evaluate.py) ───────────────────────────────────────────┘    CHECKPOINT/samples/NN.wav

RUN is the folder above the checkpoint. What is not there is left out, or said to be unknown; nothing is guessed.
The header follows https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llasa.corpus.publish import hours, table
from llasa.corpus.store import MANIFEST
from llasa.errors import UserError
from llasa.evaluation.licenses import Part, base_part, codec_part, data_part, suggestion, warnings
from llasa.evaluation.report import METRICS
from llasa.model.checkpoint import CARD as CHECKPOINT_CARD
from llasa.model.checkpoint import CheckpointCard
from llasa.paths import location
from llasa.provenance import CONFIG, RECORD, write_atomically
from llasa.tracking import METRICS as RUN_METRICS

CARD = "README.md"
SAMPLES = "samples"
NUM_SAMPLES = 5
IN_PERCENT = ("wer", "cer", "unfinished")
"""Shares that the hub's metrics give in percent."""


@dataclass
class CardFacts:
    """All that a card is made of."""

    checkpoint: Path
    card: CheckpointCard
    config: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    """The last line of the run's metrics with a loss."""
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of the stores that are still there, by their place."""
    report: dict[str, Any] = field(default_factory=dict)
    system: dict[str, Any] = field(default_factory=dict)
    """This checkpoint's part of the report."""

    @property
    def parts(self) -> list[Part]:
        """What the model is made of, with licences."""
        base = base_part(self.base) if self.config else Part("model", "what it was trained from", "unknown")
        data = [data_part(m.get("source", {}), location(place)) for place, m in self.manifests.items()]
        missing = [place for place in stores_of(self.config) if place not in self.manifests]
        data += [Part("data", f"the store {Path(place).name}", "unknown", "it is gone") for place in missing]
        return [base, codec_part(self.card.codec.to_dict()), *data]

    @property
    def base(self) -> str | None:
        return self.config.get("model", {}).get("checkpoint")


def write_card(
    checkpoint: Path, report: dict[str, Any] | None, output: Path | None = None, *, license: str | None = None
) -> Path:
    """Write the card of a checkpoint folder, and copy a few of its clips beside it.

    Args:
        report: of :func:`llasa.evaluation.run.evaluate`, or none.
        output: the report's folder, from where its clips are copied; none = no samples.
        license: of the hub's list; none = what follows from the parts, if all of theirs are known.

    Raises:
        UserError: ``checkpoint`` is no folder of a checkpoint, or cannot be written to.
    """
    facts = gather(checkpoint, report)
    try:
        samples = copy_samples(facts, output) if output is not None else []
        write_atomically(checkpoint / CARD, model_card(facts, samples, license).encode())
    except OSError as error:
        raise UserError(f"cannot write into {checkpoint}: {error}", remedy="make it writable, or make space") from None
    return checkpoint / CARD


def gather(checkpoint: Path, report: dict[str, Any] | None = None) -> CardFacts:
    """Read what is known of a checkpoint.

    Raises:
        UserError: there is no such folder, or it holds no checkpoint of this project.
    """
    if not (checkpoint / CHECKPOINT_CARD).is_file():
        raise UserError(
            f"{checkpoint} is no checkpoint folder: it has no {CHECKPOINT_CARD}",
            remedy="pass the folder that train.py wrote, RUN/checkpoint",
        )
    config = read_config(checkpoint.parent / CONFIG)
    manifests = {place: read_json(location(place) / MANIFEST) for place in stores_of(config)}
    report = report or {}
    return CardFacts(
        checkpoint,
        CheckpointCard.load(str(checkpoint)),
        config,
        read_json(checkpoint.parent / RECORD),
        last_metrics(checkpoint.parent / RUN_METRICS),
        {place: manifest for place, manifest in manifests.items() if manifest},
        report,
        system_of(report, checkpoint),
    )


def read_config(path: Path) -> dict[str, Any]:
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}


def read_json(path: Path) -> dict[str, Any]:
    """A file's JSON, nothing where there is none or it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}


def last_metrics(path: Path) -> dict[str, Any]:
    """The last training step of a run."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    steps = (line for line in map(json.loads, reversed(lines)) if "loss" in line)
    return next(steps, {})


def stores_of(config: dict[str, Any]) -> list[str]:
    """Where a run's stores lay."""
    return list((config.get("stores") or {"store": config["store"]}).values()) if "store" in config else []


def system_of(report: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """The part of a report that is about a checkpoint; the only one of its kind, if it has been moved."""
    systems = [system for system in report.get("systems", []) if system.get("kind", "checkpoint") == "checkpoint"]
    mine = [s for s in systems if "checkpoint" in s and Path(s["checkpoint"]).resolve() == checkpoint.resolve()]
    return next(iter(mine or (systems if len(systems) == 1 else [])), {})


def copy_samples(facts: CardFacts, output: Path) -> list[tuple[str, str]]:
    """(file, text) of some of the checkpoint's clips, spread over the report's."""
    clips = [
        clip
        for clip in facts.report.get("clips", [])
        if clip.get("system") == facts.system.get("name") and clip.get("file") and (output / clip["file"]).is_file()
    ]
    count = min(NUM_SAMPLES, len(clips))
    chosen = [clips[index * len(clips) // count] for index in range(count)]
    folder = facts.checkpoint / SAMPLES
    shutil.rmtree(folder, ignore_errors=True)
    samples = []
    for number, clip in enumerate(chosen, start=1):
        folder.mkdir(exist_ok=True)
        file = f"{SAMPLES}/{number:02d}{Path(clip['file']).suffix}"
        shutil.copyfile(output / clip["file"], facts.checkpoint / file)
        samples.append((file, str(clip.get("text", ""))))
    return samples


def model_card(facts: CardFacts, samples: Sequence[tuple[str, str]] = (), license: str | None = None) -> str:
    """The text of the card."""
    import yaml

    parts = facts.parts
    license = license or suggestion(parts)
    header = yaml.safe_dump(header_of(facts, license), sort_keys=False, allow_unicode=True)
    sections = [
        f"# {title(facts)}",
        introduction(facts),
        "\n".join(f"> **{warning}**\n>" for warning in warnings(parts, license)).removesuffix("\n>"),
        use(facts),
        heard(samples),
        quality(facts),
        training_data(facts),
        recipe(facts),
        licenses(parts, license),
    ]
    return f"---\n{header}---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def title(facts: CardFacts) -> str:
    name = facts.config.get("model", {}).get("name", "LLaSA")
    return f"{name} for {facts.config.get('lang', {}).get('name', ', '.join(facts.card.languages) or 'speech')}"


def header_of(facts: CardFacts, license: str) -> dict[str, Any]:
    """The card's header, without what is not known."""
    data = [d for m in facts.manifests.values() if (d := hub_name(str(m.get("source", {}).get("path", ""))))]
    base = hub_name(facts.base or "")
    header: dict[str, Any] = {
        "language": list(facts.card.languages),
        "license": license,
        "base_model": base,
        "pipeline_tag": "text-to-speech",
        "library_name": "transformers",
        "datasets": list(dict.fromkeys(data)),
        "tags": ["llasa", "text-to-speech", facts.card.codec.name],
        "metrics": [key for key in ("wer", "cer") if key in measured(facts)],
        "model-index": model_index(facts),
    }
    return {key: value for key, value in header.items() if value}


def hub_name(text: str) -> str | None:
    """OWNER/NAME, if that is what a text is and not a folder here."""
    return text if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text) and not Path(text).exists() else None


def measured(facts: CardFacts) -> dict[str, dict[str, Any]]:
    """Metric → value, low and high of this checkpoint."""
    metrics = facts.system.get("metrics") or {}
    return {key: value for key, value in metrics.items() if (value or {}).get("value") is not None}


def model_index(facts: CardFacts) -> list[dict[str, Any]]:
    titles = {metric.key: metric.title for metric in METRICS}
    metrics = []
    for key, found in measured(facts).items():
        scale, unit = (100, " (%)") if key in IN_PERCENT else (1, "")
        entry = {"type": key, "name": titles.get(key, key) + unit, "value": round(scale * found["value"], 4)}
        if found.get("low") is not None and found.get("high") is not None:
            entry["args"] = {side: round(scale * found[side], 4) for side in ("low", "high")}
        metrics.append(entry)
    store = facts.report.get("store") or {}
    name = (store.get("source") or {}).get("name") or "a list of sentences"
    dataset = {"type": name.replace(" ", "-"), "name": name} | ({"split": store["split"]} if "split" in store else {})
    result = {"task": {"type": "text-to-speech", "name": "Text to speech"}, "dataset": dataset, "metrics": metrics}
    return [{"name": title(facts), "results": [result]}] if metrics else []


def introduction(facts: CardFacts) -> str:
    codec, base = facts.card.codec, facts.base
    begun = f"It was trained from `{base}`. " if base else "It was trained from scratch. " if facts.config else ""
    return (
        f"A Llama that continues text with speech codes of {codec.name} ({codec.tokens_per_second:g} a second, "
        f"{codec.sample_rate:,} Hz). Language: {', '.join(facts.card.languages) or 'not recorded'}. {begun}"
        f"The longest sequence it was trained on has {facts.card.max_length:,} tokens, prompt and speech together."
    )


def use(facts: CardFacts) -> str:
    return (
        "## Speak\n\nIn the folder of the code that made it:\n\n```\n"
        f'python infer.py checkpoint=PATH_OF_THIS_FOLDER text="…" output=speech.wav\n```\n\n'
        f"`{CHECKPOINT_CARD}` holds the prompt (its date included) and the codec. The voices are those of the data: "
        "do not imitate people without their consent, and tell listeners that the speech is synthetic."
    )


def heard(samples: Sequence[tuple[str, str]]) -> str:
    lines = [[f"[{file}]({file})", text.replace("|", "\\|")] for file, text in samples]
    return "## Samples\n\nNot chosen by ear.\n\n" + table(["sound", "text"], lines) if lines else ""


def quality(facts: CardFacts) -> str:
    """Metrics with their intervals: this checkpoint, and what was measured beside it as a ceiling."""
    report, mine = facts.report, measured(facts)
    if not mine:
        return "## Quality\n\nNot measured."
    shown = {metric.key: metric for metric in METRICS}
    ceilings = [system for system in report["systems"] if system.get("kind", "checkpoint") != "checkpoint"]
    systems = [facts.system, *ceilings]
    rows = []
    for key in mine:
        show = shown[key].show if key in shown else "{:.3g}".format
        cells = [interval((system.get("metrics") or {}).get(key), show) for system in systems]
        rows.append([shown[key].title if key in shown else key, *cells])
    names = ["this model", *(str(system.get("name", "")) for system in ceilings)]
    confidence = (report.get("config") or {}).get("confidence", 0.95)
    store = report.get("store") or {}
    where = f"the split `{store['split']}` of `{store['source'].get('name')}`" if store.get("source") else "a list"
    asr = f" Words were written down by {report['asr']}." if report.get("asr") else ""
    notes = "".join(f"\n- {note}" for note in report.get("notes", []))
    explained = "".join(f"\n- {shown[key].title}: {shown[key].about}" for key in mine if key in shown)
    return (
        f"## Quality\n\n{report.get('sentences', 'Some')} sentences of {where}; in brackets intervals of "
        f"{confidence:.0%}.{asr}\n\n{table(['', *names], rows)}\n{explained}{notes}"
    )


def interval(found: dict[str, Any] | None, show: Any) -> str:
    """`5.1 % [4.0 %, 6.3 %]`."""
    if not found or found.get("value") is None:
        return "–"
    bounds = [found.get("low"), found.get("high")]
    return show(found["value"]) + (f" [{show(bounds[0])}, {show(bounds[1])}]" if None not in bounds else "")


def training_data(facts: CardFacts) -> str:
    rows = []
    for manifest in facts.manifests.values():
        train = (manifest.get("splits") or {}).get("train", {})
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in (manifest.get("dropped") or {}).items())
        cells = [str((manifest.get("source") or {}).get("name", "unknown")), ", ".join(manifest.get("languages", []))]
        rows.append([*cells, f"{train.get('rows', 0):,}", hours(train.get("seconds", 0.0)), dropped or "none"])
    if not rows:
        return "## Data\n\nThe store it was trained on is not at hand, so its data are not described here."
    return "## Data\n\n" + table(["corpus", "language", "rows", "length", "dropped rows"], rows)


def recipe(facts: CardFacts) -> str:
    config, record = facts.config, facts.record
    if not config:
        return "## Recipe\n\nNot recorded: the run's folder is not around the checkpoint."
    optimizer, trainer = config.get("optimizer") or {}, config.get("trainer") or {}
    resolved, last = record.get("resolved") or {}, facts.last
    packages = ", ".join(f"{name} {version}" for name, version in (record.get("packages") or {}).items())
    rows = {
        "weights": (config.get("finetune") or {}).get("name"),
        "optimizer": resolved.get("optimizer") or optimizer.get("name"),
        "learning rate": optimizer.get("lr"),
        "schedule": (config.get("schedule") or {}).get("name"),
        "rows a step": trainer.get("rows_per_step"),
        "tokens a row": (config.get("packing") or {}).get("max_length"),
        "steps": last.get("step"),
        "tokens seen": f"{last['tokens']:,}" if "tokens" in last else None,
        "last training loss": last.get("loss"),
        "precision": resolved.get("precision"),
        "device": resolved.get("device"),
        "seed": config.get("seed"),
        "commit": record.get("commit"),
        "packages": packages or None,
    }
    return "## Recipe\n\n" + table(["", ""], [[key, str(value)] for key, value in rows.items() if value is not None])


def licenses(parts: Sequence[Part], license: str) -> str:
    rows = [[part.role, part.name, part.license, part.note] for part in parts]
    return (
        f"## Licence\n\n`{license}`. What it is made of, as its publishers state it (not checked again when this card "
        f"was written):\n\n{table(['', 'part', 'licence', 'note'], rows)}"
    )
