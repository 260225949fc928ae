"""Recorded Italian for the demo: the prompts of Debian's Asterisk packages, as a folder corpus.

`asterisk-core-sounds-it-g722` holds about 600 prompts in one voice (16 kHz, CC-BY 3.0), `asterisk-core-sounds-it`
their transcripts. Installed packages are used as they are; otherwise apt downloads both files into a folder of ours.
Nothing is installed, root is not needed, and none of it enters the repository.
"""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llasa.audio import write_wav

PACKAGES = ("asterisk-core-sounds-it", "asterisk-core-sounds-it-g722")
SAMPLE_RATE, BYTES_PER_SECOND = 16_000, 8000
SOUNDS = "usr/share/asterisk/sounds"
TRANSCRIPTS = "usr/share/doc/asterisk-core-sounds-it/core-sounds-it.txt.gz"


def find_packages(cache: Path) -> Path | None:
    """The root under which both packages' files lie: the system, ``cache``, or a fresh download; else none."""
    for root in (Path("/"), cache / "files"):
        if complete(root):
            return root
    return download_packages(cache) if shutil.which("apt-get") and shutil.which("dpkg-deb") else None


def complete(root: Path) -> bool:
    return (root / TRANSCRIPTS).is_file() and any((root / SOUNDS).glob("it*/*.g722"))


def download_packages(cache: Path) -> Path | None:
    """Download and unpack both packages into ``cache``, with package lists of our own where the system has none."""
    cache.mkdir(parents=True, exist_ok=True)
    for folder in ("lists/partial", "archives/partial"):
        (cache / "apt" / folder).mkdir(parents=True, exist_ok=True)
    private = [f"Dir::State::lists={(cache / 'apt/lists').resolve()}", f"Dir::Cache={(cache / 'apt').resolve()}"]
    options = [argument for option in private for argument in ("-o", option)]
    if not apt("download", *PACKAGES, folder=cache) and not (
        apt(*options, "update", folder=cache) and apt(*options, "download", *PACKAGES, folder=cache)
    ):
        return None
    for package in PACKAGES:
        for archive in cache.glob(f"{package}_*.deb"):
            subprocess.run(["dpkg-deb", "-x", str(archive), str(cache / "files")], check=True)
    return cache / "files" if complete(cache / "files") else None


def apt(*arguments: str, folder: Path) -> bool:
    try:
        result = subprocess.run(
            ["apt-get", "-q", *arguments], cwd=folder, capture_output=True, text=True, timeout=180, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return result.returncode == 0


def transcripts(root: Path) -> Iterator[tuple[str, str]]:
    """(prompt, text) of what is a whole sentence as spoken.

    The file has a byte-order mark, `;` comments, `[…]` for sounds, remarks in `(…)`, beginnings and ends of
    sentences with `...`, and `?` where an accent was lost.
    """
    lines = gzip.decompress((root / TRANSCRIPTS).read_bytes()).decode("utf-8-sig").splitlines()
    for line in lines:
        key, colon, text = line.partition(":")
        text = text.strip()
        if not colon or line.startswith(";") or not text or re.search(r"[][()?…]|\.\.", text):
            continue
        yield key.strip(), text


def sentences(
    root: Path, *, min_words: int, max_words: int, min_seconds: float, max_seconds: float
) -> list[tuple[Path, str]]:
    """(file, text) of the prompts of that length, each text once, in the order of their names."""
    folder = next(iter(sorted((root / SOUNDS).glob("it*"))))
    chosen: dict[str, tuple[Path, str]] = {}
    for key, text in sorted(transcripts(root)):
        file = folder / f"{key}.g722"
        if not min_words <= len(text.split()) <= max_words or any(c.isdigit() for c in text) or not file.is_file():
            continue
        if min_seconds <= file.stat().st_size / BYTES_PER_SECOND <= max_seconds:
            chosen.setdefault(text.lower(), (file, text))
    return list(chosen.values())


def decode_g722(file: Path) -> np.ndarray:
    """float32 [samples] at 16 kHz of a raw G.722 file; empty if it is."""
    import av

    with av.open(str(file), format="g722") as container:
        pcm = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    return np.concatenate([np.zeros(0, np.int16), *pcm]).astype(np.float32) / 32768


def write_corpus(folder: Path, chosen: list[tuple[Path, str]]) -> None:
    """A folder corpus: `wavs/` and `metadata.csv` in LJSpeech's form."""
    (folder / "wavs").mkdir(parents=True, exist_ok=True)
    lines = []
    for file, text in chosen:
        write_wav(folder / "wavs" / f"{file.stem}.wav", decode_g722(file), SAMPLE_RATE)
        lines.append(f"{file.stem}|{text}\n")
    (folder / "metadata.csv").write_text("".join(lines), encoding="utf-8")
