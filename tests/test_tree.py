"""The map of the tree names every file."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def named_files(page: str) -> set[str]:
    """Of each row the files of its first cell, a name without a folder standing in that of the name before."""
    files = set()
    for line in page.splitlines():
        folder = ""
        for name in re.findall(r"`([^`]+)`", line.split("|")[1]) if line.startswith("| `") else ():
            folder = name.rpartition("/")[0] if "/" in name.rstrip("/") else folder
            files.add(name if name.startswith(f"{folder}/") else f"{folder}/{name}".lstrip("/"))
    return files


def test_the_map_names_every_file_and_no_other():
    named = named_files((ROOT / "docs/tree.md").read_text(encoding="utf-8"))
    assert len(named) > 150
    gone = {name for name in named if not (ROOT / name).exists()}
    assert not gone
    folders = tuple(name for name in named if name.endswith("/") and name.startswith("llasa/"))
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "llasa").rglob("*.py") if path.name != "__init__.py"}
    missing = {module for module in modules if module not in named and not module.startswith(folders)}
    assert not missing
