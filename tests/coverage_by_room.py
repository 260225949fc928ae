"""What share of the lines of each room of llasa/ the tests ran; fails below 90 % of all, or 80 % of a room.

python tests/coverage_by_room.py          # after pytest --cov
"""

import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

GOAL, OF_A_ROOM = 0.9, 0.8


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "coverage.json"
        subprocess.run([sys.executable, "-m", "coverage", "json", "-q", "-o", str(report)], check=True)
        files = json.loads(report.read_text())["files"]
    lines: Counter[str] = Counter()
    covered: Counter[str] = Counter()
    for name, file in files.items():
        parts = Path(name).parts
        room = parts[1] if len(parts) > 2 else "llasa/*.py"
        for key in (room, "all"):
            lines[key] += file["summary"]["num_statements"]
            covered[key] += file["summary"]["covered_lines"]
    low = []
    for room in sorted(lines, key=lambda room: (room == "all", room)):
        share = covered[room] / lines[room]
        print(f"{room:>16} {share:6.1%} of {lines[room]:,} lines")
        if share < (GOAL if room == "all" else OF_A_ROOM):
            low.append(room)
    sys.exit(f"too little is tested: {', '.join(low)}" if low else 0)


if __name__ == "__main__":
    main()
