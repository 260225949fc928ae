"""Kill preprocess.py at random moments and see that the store comes out the same, byte for byte.

    python experiments/preprocess_recorded/kills.py --kills 20 [--output FILE.json]

The corpus is every recorded Italian prompt of `asterisk-core-sounds-it-g722` (see experiments/demo), through Codec2.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def contents(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()}


def start(corpus: Path, store: Path, workers: int) -> subprocess.Popen:
    command = [
        sys.executable, str(ROOT / "preprocess.py"), "dataset=folder", f"dataset.path={corpus}", "lang=it",
        "codec=codec2", f"store={store}", "shard_rows=25", f"runner.workers={workers}",
    ]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--corpus", type=Path, required=True, help="a folder corpus")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    generator = random.Random(0)
    report: dict = {"kills": [], "stores": 0, "identical": 0}
    with tempfile.TemporaryDirectory() as folder:
        reference = Path(folder) / "reference"
        begin = time.monotonic()
        process = start(arguments.corpus, reference, 1)
        process.communicate()
        assert process.returncode == 0
        seconds = time.monotonic() - begin
        expected = contents(reference)
        report |= {"files": len(expected), "uninterrupted_seconds": round(seconds, 1)}
        while len(report["kills"]) < arguments.kills:
            store, workers = Path(folder) / "store", 1 + report["stores"] % 2
            shutil.rmtree(store, ignore_errors=True)
            for _ in range(4):
                process = start(arguments.corpus, store, workers)
                try:
                    process.wait(generator.uniform(0.2, 1.0) * seconds)
                    break
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()
                    made = len(list(store.glob("*/?????.parquet")))
                    report["kills"].append({"workers": workers, "shards_then": made})
            process = start(arguments.corpus, store, workers)
            _, errors = process.communicate()
            assert process.returncode == 0, errors
            report["stores"] += 1
            report["identical"] += contents(store) == expected
            print(f"{len(report['kills'])} kills, {report['identical']} of {report['stores']} stores identical")
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")
    if report["identical"] != report["stores"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
