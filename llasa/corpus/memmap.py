"""Corpora of LLaSA's first trainers: rows of token ids in memmap files, read back to text and codes.

    SPLIT_input_ids.memmap                    int32 [rows, length], without a header, padded at the end
    SPLIT_input_ids_shape.npy                 [rows, length]
    SPLIT_rankR_partialP_input_ids.memmap     the same in parts, one for each GPU and pass
    SPLIT_input_ids_N.memmap                  the same in numbered parts (…_N_shape.npy)

    row   <|TEXT_UNDERSTANDING_START|> text <|TEXT_UNDERSTANDING_END|>
          <|SPEECH_GENERATION_START|> codes <|SPEECH_GENERATION_END|> padding

The layout is that of `create_dataset.py` and `train_tts.py` in Deep-unlearning/LLaSA_training and
SebastianBodza/LLaSA_training and of `get_memmap_from_token.py` in zhenye234/LLaSA_training; the public corpus in it is
HKUSTAudio/Llasa_opensource_speech_data_160k_hours_tokenized. Rows inside a chat template are read too. What does not
fit 2,048 tokens was cut when it was written: by the first the text, so that what is said is not what is written, by the
last the codes and their end, so that a model would never learn to stop. Such rows are rejected.

A row is read when it is asked for, so memory does not grow with the files. No audio is needed or there.
"""

from __future__ import annotations

import functools
import hashlib
import re
import threading
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llasa.config import require
from llasa.corpus.sources import EncodedRow, IndexedSource, require_limit
from llasa.errors import RejectedRow, UserError, first_line
from llasa.paths import is_local, location

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SUFFIX = ".memmap"
FILE_NAME = re.compile(r"(?P<split>.+?)(?P<rank>_rank.*_partial.*)?_input_ids(?P<chunk>_\d+)?\.memmap")
STORE_SPLITS = {"val": "validation", "valid": "validation", "dev": "validation"}
"""The store's names of splits; others stay as they are."""
ID = np.dtype("<i4")

TEXT_START, TEXT_END = "<|TEXT_UNDERSTANDING_START|>", "<|TEXT_UNDERSTANDING_END|>"
SPEECH_START, SPEECH_END = "<|SPEECH_GENERATION_START|>", "<|SPEECH_GENERATION_END|>"
FIRST_CODE = "<|s_0|>"
MARKERS = (TEXT_START, TEXT_END, SPEECH_START, SPEECH_END)
ADDED_TOKENS = (
    "<|TEXT_GENERATION_START|>",
    "<|TEXT_GENERATION_END|>",
    *MARKERS,
    "<|SPEECH_UNDERSTANDING_START|>",
    "<|SPEECH_UNDERSTANDING_END|>",
    FIRST_CODE,
)
"""In the order in which the trainers add them to a text tokenizer; after the last come the other codes."""


@dataclass(frozen=True, slots=True)
class MemmapFile:
    """One file of rows; small, so that a source with thousands of them goes to another process as it is."""

    path: Path
    name: str
    """Below the corpus folder, without its ending."""
    rows: int
    length: int

    def row(self, index: int) -> np.ndarray:
        """Ids of one row, int32 [length]. Read, not mapped: mapped pages would count as this process's memory."""
        return np.fromfile(self.path, ID, self.length, offset=index * self.length * ID.itemsize)


class LlasaMemmapSource(IndexedSource):
    """A folder of memmap files, as codes with their text.

    Args:
        path: the folder. folders: a pattern of folders in it (``emilia_en_*``) where the files are there.
        tokenizer: hub name or folder of the tokenizer that wrote the text, with or without the speech tokens.
        limit: keep only the first so many rows of each split.

    The text is the transcript as it was given; the codes are of XCodec2 in all public corpora of this format, but a
    file does not say so.

    Raises:
        UserError: there are no such files, or they do not fit their shapes, or a split is there in two forms.
    """

    def __init__(
        self,
        *,
        path: str,
        tokenizer: str,
        language: str,
        folders: str | None = None,
        name: str = "llasa_memmap",
        limit: int | None = None,
    ) -> None:
        require_limit(limit)
        require(bool(tokenizer), "dataset.tokenizer", tokenizer, "name the tokenizer that wrote the text")
        self.name, self.language, self.tokenizer, self.limit = name, language, tokenizer, limit
        self.files = find_files(location(path), folders)
        self.starts = {
            split: [0, *accumulate(file.rows for file in files)] for split, files in self.files.items()
        }  # row numbers at which the files of a split begin, and its end

    def describe(self) -> dict[str, Any]:
        """Loads the tokenizer too: one that is not there must not come into the plan of a store."""
        ids = load_tokenizer(self.tokenizer).ids
        return {
            "name": self.name,
            "tokenizer": self.tokenizer,
            "speech_start": ids[SPEECH_START],
            "first_code": ids[FIRST_CODE],
            "files": {split: [[f.name, f.rows, f.length] for f in files] for split, files in self.files.items()},
            "rows": self.splits(),
            "fingerprint": fingerprint(self.files),
        }

    def splits(self) -> dict[str, int]:
        return {split: min(starts[-1], self.limit or starts[-1]) for split, starts in self.starts.items()}

    def row(self, split: str, index: int) -> EncodedRow:
        starts = self.starts[split]
        assert 0 <= index < starts[-1]
        number = bisect_right(starts, index) - 1
        file, row = self.files[split][number], index - starts[number]
        text, codes = load_tokenizer(self.tokenizer).read(file.row(row))
        return EncodedRow(id=f"{file.name}-{row}", text=text, codes=codes, speaker="", language=self.language)


class RowReader:
    """Rows of token ids to text and codes.

    The speech tokens have the ids they have in ``tokenizer``; those it lacks (a plain Llama 3 lacks all) have the ids
    they got when they were added to it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.get_added_vocab()
        missing = [token for token in ADDED_TOKENS if token not in added]
        known = added | {token: len(tokenizer) + i for i, token in enumerate(missing)}
        self.ids = {token: known[token] for token in ADDED_TOKENS}
        self.not_text = frozenset(added.values())
        self.size = len(tokenizer)

    def read(self, row: np.ndarray) -> tuple[str, np.ndarray]:
        """Ids [length] → the text, and codes int32 [num_codes] that are not yet checked against a codebook.

        Raises:
            RejectedRow: the row was cut, holds no speech, or is damaged.
        """
        text_start, text_end, speech_start, speech_end = (np.flatnonzero(row == self.ids[m]) for m in MARKERS)
        first_code = self.ids[FIRST_CODE]
        if len(speech_start) == 0:
            raise RejectedRow("no_speech", f"no {SPEECH_START}")
        if max(map(len, (text_start, text_end, speech_start, speech_end))) > 1:
            raise RejectedRow("malformed_row", "more than one sentence")
        if len(speech_end) == 0:
            raise RejectedRow("truncated_codes", f"no {SPEECH_END}: cut at the length of the row")
        if len(text_start) == 0:
            raise RejectedRow("empty_text", f"no {TEXT_START}")
        if len(text_end) == 0:
            raise RejectedRow("truncated_text", f"no {TEXT_END}: cut to make room for the codes")
        (a, b, c, d) = (int(place[0]) for place in (text_start, text_end, speech_start, speech_end))
        if not a < b < c < d:
            raise RejectedRow("malformed_row", "text and speech are not in order")
        text, codes, rest = row[a + 1 : b].tolist(), row[c + 1 : d] - first_code, row[d + 1 :]
        strange = [token for token in text if not 0 <= token < self.size or token in self.not_text]
        if strange:
            raise RejectedRow("malformed_row", f"the id {strange[0]} in the text")
        if (rest >= first_code).any():
            raise RejectedRow("malformed_row", f"codes after {SPEECH_END}")
        if len(codes) == 0:
            raise RejectedRow("no_speech", "no codes")
        if codes.min() < 0:
            raise RejectedRow("broken_codes", f"the id {codes.min() + first_code} among the codes")
        return self.tokenizer.decode(text, clean_up_tokenization_spaces=False), codes


_loading = threading.Lock()


def load_tokenizer(name: str) -> RowReader:
    """The reader with the tokenizer ``name``, loaded once in a process. Any thread may call this.

    Raises:
        UserError: there is none of that name.
    """
    with _loading:
        return _load_tokenizer(name)


@functools.cache
def _load_tokenizer(name: str) -> RowReader:
    from transformers import AutoTokenizer

    try:
        return RowReader(AutoTokenizer.from_pretrained(name))
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot load the tokenizer {name}: {first_line(error)}",
            remedy="pass dataset.tokenizer=… a folder or hub name of a LLaSA or Llama 3 checkpoint",
        ) from error


def find_files(root: Path, pattern: str | None) -> dict[str, list[MemmapFile]]:
    """The files of each split, under the store's names, in natural order (rank 2 before rank 10).

    Raises:
        UserError: see :class:`LlasaMemmapSource`.
    """
    if not is_local(root):
        raise UserError(f"memmap files are read on this machine, not from {root}", remedy="download them first")
    if not root.is_dir():
        raise UserError(f"there is no folder at {root}", remedy="pass dataset.path=FOLDER")
    folders = [root] if pattern is None else sorted(filter(Path.is_dir, root.glob(pattern)), key=natural_order)
    found: dict[str, list[MemmapFile]] = {}
    for folder in folders:
        forms: dict[str, tuple[str, ...]] = {}
        for path in sorted(folder.glob(f"*{SUFFIX}"), key=natural_order):
            match = FILE_NAME.fullmatch(path.name)
            if match is None:
                continue
            split = STORE_SPLITS.get(match["split"], match["split"])
            form = (match["split"], *(kind for kind in ("rank", "chunk") if match[kind]))
            if forms.setdefault(split, form) != form:
                raise UserError(
                    f"{folder} holds the split {split} twice, {found[split][-1].path.name} is one and {path.name} the "
                    "other",
                    remedy="move one of them away: they may hold the same rows",
                )
            found.setdefault(split, []).append(open_file(path, root))
    if not found:
        raise UserError(
            f"{root} has no files SPLIT_input_ids{SUFFIX}"
            + (f" in folders {pattern!r}" if pattern else ", SPLIT_rankR_partialP_… or SPLIT_input_ids_N…"),
            remedy="check dataset.path; where they lie in folders below it, pass dataset.folders='*'",
        )
    return found


def open_file(path: Path, root: Path) -> MemmapFile:
    """The file at ``path``, after a check that its shape is there and fits.

    Raises:
        UserError: it does not.
    """
    shape_file = path.with_name(path.name.removesuffix(SUFFIX) + "_shape.npy")
    remedy = "download or make both files again"
    try:
        shape = np.load(shape_file, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path} has no {shape_file.name} beside it", remedy=remedy) from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{shape_file} is damaged ({error})", remedy=remedy) from None
    if shape.shape != (2,) or shape.dtype.kind not in "iu" or shape[0] < 0 or shape[1] < 1:
        raise UserError(f"{shape_file} holds no number of rows and length of a row: {shape.tolist()}", remedy=remedy)
    rows, length = map(int, shape)
    size = path.stat().st_size
    if size != rows * length * ID.itemsize:
        raise UserError(
            f"{path} has {size:,} bytes, {rows:,} rows of {length:,} ids are {rows * length * ID.itemsize:,}",
            remedy=remedy,
        )
    return MemmapFile(path, str(path.relative_to(root)).removesuffix(SUFFIX), rows, length)


def natural_order(path: Path) -> list[tuple[int, str]]:
    """Sorts numbers in a name by their value."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def fingerprint(splits: Mapping[str, Sequence[MemmapFile]]) -> str:
    """Changes with the files' names, shapes and first, middle and last rows: the whole would be hours of reading."""
    digest = hashlib.sha256()
    for split, files in splits.items():
        for file in files:
            digest.update(f"{split} {file.name} {file.rows} {file.length}\n".encode(errors="surrogateescape"))
            for index in sorted({0, file.rows // 2, file.rows - 1}) if file.rows else []:
                digest.update(file.row(index).tobytes())
    return digest.hexdigest()[:16]
