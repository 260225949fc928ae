"""Tar files of samples: any order of their members, damage, languages, and how much of them is in memory."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import tracemalloc
from pathlib import Path

import fsspec
import numpy as np
import pytest

from llasa.audio import decode_audio
from llasa.corpus import webdataset
from llasa.corpus.webdataset import WebDatasetSource
from llasa.errors import RejectedRow, UserError
from tests.corpus.recordings import audio_bytes, speech_like


def sample(key: str, audio: bytes = b"sound", suffix: str = "mp3", **changes) -> list[tuple[str, bytes]]:
    """The members of a sample with Emilia's fields."""
    fields = {
        "id": key,
        "wav": f"{key}.mp3",
        "text": f"Testo {key}.",
        "duration": 3.5,
        "speaker": f"speaker-{key}",
        "language": "de",
        "dnsmos": 3.25,
        "phone_count": 40,
        **changes,
    }
    return [(f"{key}.json", json.dumps(fields).encode()), (f"{key}.{suffix}", audio)]


def write_tar(path: Path, samples: list[list[tuple[str, bytes]]], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in [member for members in samples for member in members]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def source(path: Path | str, **changes) -> WebDatasetSource:
    return WebDatasetSource(**{"path": str(path), "language": "de", **changes})


def results(source: WebDatasetSource, start: int = 0, stop: int | None = None) -> list:
    """Each row's id, or the reason and detail of its refusal."""
    found = []
    rows = source.rows("train", start, source.splits()["train"] if stop is None else stop)
    for expected, (number, fetch) in enumerate(rows):
        assert number == expected
        try:
            found.append(fetch().id)
        except RejectedRow as reason:
            found.append((reason.reason, reason.detail))
    return found


def test_a_row_has_what_emilia_says_of_it(tmp_path):
    clips = [audio_bytes(speech_like(0.5, seed, 24_000), 24_000, "MP3") for seed in (1, 2)]
    write_tar(
        tmp_path / "DE-0.tar", [sample("a", clips[0]), sample("b", clips[1], language="DE", speaker=None, dnsmos=None)]
    )
    rows = [fetch() for _, fetch in source(tmp_path).rows("train", 0, 1)]
    assert [row.audio for row in rows] == clips
    assert [(row.id, row.text, row.speaker, row.language, row.measures) for row in rows] == [
        ("a", "Testo a.", "speaker-a", "de", {"dnsmos": 3.25}), ("b", "Testo b.", "", "de", {}),
    ]  # fmt: skip
    waveform, rate = decode_audio(rows[0].audio)
    assert (rate, round(len(waveform) / rate, 1)) == (24_000, 0.5)


def test_files_are_found_in_folders_by_pattern_and_by_name(tmp_path):
    for number, name in enumerate(["DE/b.tar", "DE/a.tar", "FR/c.tar.gz"]):
        write_tar(
            tmp_path / name, [sample(f"{number}-0"), sample(f"{number}-1")], "w:gz" if name.endswith("gz") else "w"
        )
    (tmp_path / "DE" / "notes.txt").write_text("no tar")
    assert results(source(tmp_path)) == ["1-0", "1-1", "0-0", "0-1", "2-0", "2-1"]
    assert results(source(tmp_path / "{LANGUAGE}")) == ["1-0", "1-1", "0-0", "0-1"]
    assert len(results(source(tmp_path / "{LANGUAGE}", language=None))) == 6
    assert results(source(tmp_path / "*" / "[ab].tar")) == ["1-0", "1-1", "0-0", "0-1"]
    assert results(source(tmp_path / "FR" / "c.tar.gz")) == ["2-0", "2-1"]
    everything = source(tmp_path)
    assert everything.splits() == {"train": 3}
    assert results(everything, 1, 3) == ["0-0", "0-1", "2-0", "2-1"]
    assert results(pickle.loads(pickle.dumps(everything))) == results(everything)
    assert results(source(tmp_path, limit=3)) == ["1-0", "1-1", "0-0"]


@pytest.mark.parametrize("path", ["", "nothing", "*.zip", "empty.tar"])
def test_no_tar_files_are_refused(tmp_path, path):
    (tmp_path / "notes.txt").write_text("no tar")
    with pytest.raises(UserError, match=r"there are no tar files at .*; check dataset.path"):
        source(tmp_path / path)


def test_the_description_follows_the_files_and_not_their_place(tmp_path):
    write_tar(tmp_path / "one" / "a.tar", [sample("a")])
    first = source(tmp_path / "one").describe()
    assert json.loads(json.dumps(first)) == first
    (tmp_path / "one").rename(tmp_path / "two")
    assert source(tmp_path / "two").describe() == first == source(tmp_path / "two" / "*.tar").describe()
    write_tar(tmp_path / "two" / "a.tar", [sample("b")])
    assert source(tmp_path / "two").describe() != first


# --- members ---------------------------------------------------------------------------------------------------------


def test_the_members_of_a_sample_come_in_any_order_and_format(tmp_path):
    swapped = sample("b")[::-1]
    extra = [*sample("c.01", suffix="flac"), ("c.01.txt", b"not needed"), ("c.01.png", b"neither")]
    folder = [(f"x/{name}", content) for name, content in sample("d", suffix="WAV")]
    write_tar(tmp_path / "a.tar", [sample("a"), swapped, [("._b.json", b"{")], extra, folder])
    rows = [fetch() for _, fetch in source(tmp_path).rows("train", 0, 1)]
    assert [row.id for row in rows] == ["a", "b", "c.01", "d"]
    assert all(row.audio == b"sound" for row in rows)


def test_a_sample_that_lacks_something_is_refused_alone(tmp_path):
    broken = [
        sample("a"),
        sample("b")[:1],
        sample("c")[1:],
        sample("d", language="fr"),
        [("e.json", b"{not json"), ("e.mp3", b"x")],
        [("f.json", b'["a list"]'), ("f.mp3", b"x")],
        [("g.json", b'{"text": 5}'), ("g.mp3", b"x")],
        [("h.json", b"\xff\xfe"), ("h.mp3", b"x")],
        [("i.json", b"[" * 100_000), ("i.mp3", b"x")],
        sample("j"),
        sample("j"),
    ]
    write_tar(tmp_path / "a.tar", broken)
    found = results(source(tmp_path))
    assert [row if isinstance(row, str) else row[0] for row in found] == [
        "a", "missing_audio", "missing_text", "other_language", "malformed_row", "malformed_row", "malformed_row",
        "malformed_row", "malformed_row", "j", "j",
    ]  # fmt: skip
    assert found[1] == ("missing_audio", "no recording beside b.json")
    assert found[2] == ("missing_text", "no c.json beside the recording")
    assert found[3] == ("other_language", "d is in 'fr'")
    assert all(len(detail) < 200 for _, detail in found[1:9])


def test_without_a_language_every_row_keeps_its_own(tmp_path):
    write_tar(tmp_path / "a.tar", [sample("a"), sample("b", language="EN")])
    rows = [fetch() for _, fetch in source(tmp_path, language=None).rows("train", 0, 1)]
    assert [(row.id, row.language) for row in rows] == [("a", "de"), ("b", "en")]


def test_a_member_beyond_all_measure_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "MAX_MEMBER_BYTES", 1000)
    write_tar(tmp_path / "a.tar", [sample("a"), sample("b", audio=b"x" * 1001), sample("c", audio=b"x" * 1000)])
    assert results(source(tmp_path)) == ["a", ("unreadable_audio", "b has a member of 1,001 bytes"), "c"]


def test_a_language_that_emilia_lacks_is_refused():
    with pytest.raises(
        UserError, match=r"^emilia has no language 'it'; it has de, en, fr; choose .* dataset=webdataset"
    ):
        source("hf://datasets/x/y", name="emilia", language="it", languages=["de", "en", "fr"])


# --- damage ----------------------------------------------------------------------------------------------------------


def damaged(tmp_path: Path, change) -> list:
    """The results of three tars of four samples, after ``change`` of the second's content."""
    samples = [[sample(f"{tar}-{row}", audio=bytes([tar, row]) * 1500) for row in range(4)] for tar in range(3)]
    files = [write_tar(tmp_path / f"{tar}.tar", samples[tar]) for tar in range(3)]
    files[1].write_bytes(change(bytearray(files[1].read_bytes())))
    found = results(source(tmp_path))
    assert found[:4] == ["0-0", "0-1", "0-2", "0-3"]
    assert found[-4:] == ["2-0", "2-1", "2-2", "2-3"]
    assert sum(row[0] == "damaged_file" for row in found if not isinstance(row, str)) == 1
    assert found[-5][1].startswith("1.tar ends here: ")
    return found[4:-5]


# A sample takes 512 + 512 bytes for its JSON object and 512 + 3072 for its sound.
@pytest.mark.parametrize(
    ("length", "whole"),
    [
        (0, 0),
        (100, 0),
        (512, 0),
        (1024, 0),
        (1500, 0),
        (2000, 0),
        (4608, 1),
        (4700, 1),
        (5120, 1),
        (6400, 1),
        (9216, 2),
        (18000, 3),
    ],
)
def test_of_a_tar_that_is_cut_off_the_rows_before_are_kept(tmp_path, length, whole):
    assert damaged(tmp_path, lambda content: content[:length]) == [f"1-{row}" for row in range(whole)]


def test_a_tar_without_its_end_mark_keeps_all_its_rows(tmp_path):
    assert damaged(tmp_path, lambda content: content[: 4 * 4608]) == ["1-0", "1-1", "1-2", "1-3"]


def test_of_a_tar_with_a_damaged_header_the_rows_before_are_kept(tmp_path):
    def change(content: bytearray) -> bytearray:
        content[2 * 4608 + 10] ^= 0xFF  # of the third sample's JSON object
        return content

    assert damaged(tmp_path, change) == ["1-0", "1-1"]


@pytest.mark.parametrize("content", [b"no tar at all" * 1000, b"\x1f\x8b\x08" + b"rubbish" * 1000, b"\xff" * 5000])
def test_what_is_no_tar_costs_one_line(tmp_path, content):
    assert damaged(tmp_path, lambda _: content) == []


def test_of_a_compressed_tar_that_is_cut_off_the_rows_before_are_kept(tmp_path):
    noise = np.random.default_rng(0)
    file = write_tar(tmp_path / "a.tar.gz", [sample(f"{row}", audio=noise.bytes(100_000)) for row in range(4)], "w:gz")
    file.write_bytes(file.read_bytes()[:250_000])
    found = results(source(tmp_path))
    assert found[:2] == ["0", "1"]
    assert [row[0] for row in found[2:]] == ["damaged_file"]


class Unreachable(io.BytesIO):
    def read(self, size: int = -1) -> bytes:
        if self.tell() >= 2**16:
            raise ConnectionError("gone")
        return super().read(size)


def test_a_network_that_fails_costs_the_run_and_no_row(tmp_path, monkeypatch):
    file = write_tar(tmp_path / "a.tar", [sample(f"{row}", audio=b"x" * 20_000) for row in range(9)])
    tars = source(tmp_path)
    monkeypatch.setattr(type(tars.fs), "open", lambda *arguments, **options: Unreachable(file.read_bytes()))
    rows = tars.rows("train", 0, 1)
    assert next(rows)[1]().id == "0"
    with pytest.raises(UserError, match=r"^cannot reach .*/a.tar: gone; check the network"):
        list(rows)


# --- elsewhere, and memory -------------------------------------------------------------------------------------------


def test_tars_in_an_object_store(tmp_path):
    memory = fsspec.filesystem("memory")
    for number in range(2):
        memory.put(str(write_tar(tmp_path / f"{number}.tar", [sample(f"{number}-0")])), f"/bucket/DE/{number}.tar")
    try:
        for path in ("memory://bucket/{LANGUAGE}", "memory://bucket", "memory://bucket/*/*.tar"):
            assert results(source(path)) == ["0-0", "1-0"]
        assert results(source("memory://bucket/DE/1.tar")) == ["1-0"]
        with pytest.raises(UserError, match="there are no tar files at memory://bucket/FR"):
            source("memory://bucket/{LANGUAGE}", language="fr")
    finally:
        memory.rm("/bucket", recursive=True)


def test_memory_does_not_grow_with_the_tar(tmp_path):
    """40 MB of sound in samples of 200 kB, then 5,000 members of a few bytes."""
    noise = np.random.default_rng(0)
    write_tar(tmp_path / "a.tar", [sample(f"{row}", audio=noise.bytes(200_000)) for row in range(200)])
    write_tar(tmp_path / "b.tar", [sample(f"{row}") for row in range(2500)])
    tars = source(tmp_path)
    for index, count in ((0, 200), (1, 2500)):
        tracemalloc.start()
        assert sum(len(fetch().audio) > 0 for _, fetch in tars.rows("train", index, index + 1)) == count
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * 2**20
