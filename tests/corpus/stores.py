"""What lies in the folder of a store."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq


def contents(root: Path) -> dict[str, bytes]:
    """Every file by its path below ``root``, but for the hub client's own."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files if ".cache" not in path.parts}


def stored_rows(root: Path, split: str = "train") -> list[dict]:
    return [row for file in sorted((root / split).glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
