"""Licences of what a model is made of, as far as they are known, and what follows from them for the model.

Known are the parts that this project's configs name; everything else is unknown and stays so until a person says it.
This is a list of what the publishers state, not legal advice.

Sources: Llasa: https://huggingface.co/HKUSTAudio/Llasa-1B · XCodec2: the same owner's xcodec2, confirmed in
https://github.com/zhenye234/X-Codec-2.0/issues/11 · CML-TTS: https://arxiv.org/abs/2306.10097 · MLS:
https://www.openslr.org/94 · Emilia: https://huggingface.co/datasets/amphion/Emilia-Dataset · Llama 3:
https://www.llama.com/llama3_2/license · Common Voice: https://commonvoice.mozilla.org
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNKNOWN = "unknown"

RANK = (
    "cc0-1.0",
    "mit",
    "apache-2.0",
    "cc-by-3.0",
    "cc-by-4.0",
    "cc-by-sa-3.0",
    "cc-by-sa-4.0",
    "llama3.1",
    "llama3.2",
)
"""Licences that allow commercial use, the least restrictive first."""


@dataclass(frozen=True)
class Part:
    """Something that a model is made of. ``restricts``: whether its licence reaches the model's weights."""

    role: str
    name: str
    license: str
    note: str = ""
    restricts: bool = True

    @property
    def non_commercial(self) -> bool:
        return is_non_commercial(self.license)


MODELS: tuple[tuple[str, str, str], ...] = (
    # pattern of the name, licence, note
    (r"HKUSTAudio/Llasa-", "cc-by-nc-4.0", "made from Llama, whose community licence holds too"),
    (r"meta-llama/(Meta-)?Llama-3\.2-", "llama3.2", "with the Llama 3.2 acceptable use policy"),
    (r"meta-llama/(Meta-)?Llama-3\.1-", "llama3.1", "with the Llama 3.1 acceptable use policy"),
    (r"HKUSTAudio/xcodec2", "cc-by-nc-4.0", "its code is MIT"),
)
CODECS: dict[str, tuple[str, str, bool]] = {
    # licence, note, whether it reaches the model
    "xcodec2": ("cc-by-nc-4.0", "as HKUSTAudio/xcodec2 is published; its code is MIT", True),
    "xcodec2_package": ("cc-by-nc-4.0", "as HKUSTAudio/xcodec2 is published; its code is MIT", True),
    "xcodec2_nano": ("cc-by-sa-4.0", "trained on CC-BY-SA recordings, named in its card", True),
    "codec2": ("lgpl-2.1", "software without trained weights", False),
}
DATA: dict[str, tuple[str, str, bool]] = {
    "cml_tts": ("cc-by-4.0", "", True),
    "mls": ("cc-by-4.0", "", True),
    "common_voice": ("cc0-1.0", "", True),
    "emilia": ("cc-by-nc-4.0", "its YODAS part is cc-by-4.0", True),
    "espeak": ("gpl-3.0", "synthetic speech; the licence is the synthesiser's", False),
}


def base_part(checkpoint: str | None) -> Part:
    """What training started from: a hub's name, a folder with a card, or nothing."""
    if checkpoint is None:
        return Part("model", "trained from scratch", "none", "no weights of others", restricts=False)
    for pattern, license, note in MODELS:
        if re.match(pattern, checkpoint):
            return Part("model", checkpoint, license, note)
    stated = license_of_card(Path(checkpoint) / "README.md")
    return Part("model", checkpoint, stated or UNKNOWN, "as its card states" if stated else "")


def codec_part(codec: dict[str, Any]) -> Part:
    """``codec`` is a codec's spec as a dictionary."""
    name, checkpoint = codec.get("name", ""), codec.get("checkpoint", "")
    license, note, restricts = CODECS.get(name, (UNKNOWN, "", True))
    # Weights of somebody else, who may have stated another licence.
    if name != "codec2" and checkpoint and not re.match(r"HKUSTAudio/xcodec2", checkpoint):
        license, note = license_of_card(Path(checkpoint) / "README.md") or UNKNOWN, ""
    return Part("codec", f"{name} ({checkpoint})" if checkpoint else name, license, note, restricts)


def data_part(source: dict[str, Any], store: Path | None = None) -> Part:
    """``source`` is what a store's manifest says of its corpus; the store's own card counts first."""
    name = str(source.get("name", UNKNOWN))
    stated = license_of_card(store / "README.md") if store is not None else None
    if stated:
        return Part("data", name, stated, "as the store's card states")
    license, note, restricts = DATA.get(name, (UNKNOWN, "", True))
    return Part("data", name, license, note, restricts)


def license_of_card(path: Path) -> str | None:
    """The licence in the header of a card, if there is one that says it."""
    import yaml

    try:
        match = re.match(r"---\n(.*?)\n---", path.read_text(encoding="utf-8"), re.DOTALL)
        header = yaml.safe_load(match[1]) if match else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    found = header.get("license") if isinstance(header, dict) else None
    return found if isinstance(found, str) and found not in (UNKNOWN, "other") else None


def is_non_commercial(license: str) -> bool:
    return "-nc" in license.lower()


def suggestion(parts: Sequence[Part]) -> str:
    """The licence that follows from the parts: the most restrictive of theirs; unknown where one of them is, or where
    no single licence can be said to cover the others."""
    licenses = {part.license for part in parts if part.restricts}
    non_commercial = {license for license in licenses if is_non_commercial(license)}
    if not licenses or not licenses - non_commercial <= set(RANK) or len(non_commercial) > 1:
        return UNKNOWN
    return non_commercial.pop() if non_commercial else max(licenses, key=RANK.index)


def warnings(parts: Sequence[Part], license: str) -> list[str]:
    """What somebody has to know who uses or publishes the model under ``license``."""
    found = []
    restricting = [part for part in parts if part.restricts]
    forbidding = [part for part in restricting if part.non_commercial]
    if forbidding:
        names = ", ".join(f"{part.role} {part.name} ({part.license})" for part in forbidding)
        found.append(f"Not for commercial use: {names}.")
        if license != UNKNOWN and not is_non_commercial(license):
            found.append(f"The stated licence {license} allows what these parts forbid.")
    unknown = [f"{part.role} {part.name}" for part in restricting if part.license == UNKNOWN]
    if unknown:
        found.append(f"The licence of {', '.join(unknown)} is not known: find it out before you publish.")
    if license == UNKNOWN:
        found.append("The licence of this model is unknown: state it with license=….")
    return found
