"""All of the recorded Italian prompts as a folder corpus: `python experiments/preprocess_recorded/corpus.py FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def main(folder: Path) -> None:
    from experiments.demo.recorded_italian import SOUNDS, find_packages, transcripts, write_corpus

    packages = find_packages(folder.parent / "asterisk")
    if packages is None:
        sys.exit("error: the packages asterisk-core-sounds-it and -it-g722 are not to be had through apt")
    sounds = next(iter(sorted((packages / SOUNDS).glob("it*"))))
    found = [(sounds / f"{name}.g722", text) for name, text in transcripts(packages)]
    write_corpus(folder, [(file, text) for file, text in found if file.is_file()])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
