"""Recordings on disk, what is held out of them, and the clips that are drawn."""

import io
import json
import tarfile

import numpy as np
import pytest

from llasa.build import build
from llasa.codec_training.clips import Clips
from llasa.codec_training.heldout import divide
from llasa.codec_training.recordings import make_recordings, open_recordings
from llasa.codec_training.usage import CELL, CodeUsage, level_shares
from llasa.config import CodecHeldOutConfig, FiltersConfig, RecordingsConfig
from llasa.corpus.audio_folder import AudioFolderSource
from llasa.corpus.folder import FolderSource
from llasa.errors import UserError
from tests.codec_training.corpora import RATE, write_recordings
from tests.corpus.recordings import audio_bytes, speech_like, write_audio

FILTERS = FiltersConfig(max_seconds=None, min_sample_rate=16_000)
PLAIN = RecordingsConfig(gain_db=[0.0, 0.0], min_level=None)


def folder_source(path):
    return FolderSource(path=str(path), language="it")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Of 0.5, 1 and 3 s, the last one by another speaker."""
    folder = tmp_path_factory.mktemp("corpus")
    write_recordings(folder, {"a": 0.5, "b": 1.0, "c": 3.0}, {"a": "anna", "b": "anna", "c": "bruno"})
    return make_recordings(folder / "out", folder_source(folder), FILTERS, 100.0, RATE)


def test_samples_are_those_of_the_files_and_made_once(tmp_path, monkeypatch):
    """Fails when rows are mixed up, when a sample is off, and when what is there is decoded again."""
    corpus = write_recordings(tmp_path / "corpus", {f"r{i}": 0.4 + i / 10 for i in range(5)}, {"r1": "anna"})
    write_audio(corpus / "r2.wav", speech_like(0.8, 9, 24_000), 24_000)
    made = make_recordings(tmp_path / "out", folder_source(corpus), FILTERS, 100.0, RATE)
    assert [row.id for row in made.rows] == ["r0", "r1", "r2", "r3", "r4"]
    assert [row.length for row in made.rows] == [6400, 8000, 12800, 11200, 12800]
    assert [row.speaker for row in made.rows] == ["", "anna", "", "", ""]
    assert made.samples.dtype == np.dtype("<i2")
    np.testing.assert_allclose(made.waveform(made.rows[4]), speech_like(0.8, 4), atol=1 / 32768)
    np.testing.assert_array_equal(made.waveform(made.rows[3], 100, 50), made.waveform(made.rows[3])[100:150])
    monkeypatch.setattr("llasa.codec_training.recordings.decode_all", None)
    again = make_recordings(tmp_path / "out", folder_source(corpus), FILTERS, 100.0, RATE)
    assert again.rows == made.rows
    with pytest.raises(UserError, match="holds other recordings"):
        make_recordings(tmp_path / "out", folder_source(corpus), FILTERS, 99.0, RATE)


def test_what_cannot_be_used_is_counted_and_told(tmp_path):
    corpus = write_recordings(tmp_path / "corpus", {"good": 1.0, "short": 0.2, "low": 1.0, "torn": 1.0})
    write_audio(corpus / "low.wav", speech_like(1.0, 0, 8000), 8000)
    (corpus / "torn.wav").write_bytes(b"RIFF")
    made = make_recordings(tmp_path / "out", folder_source(corpus), FILTERS, 100.0, RATE)
    assert made.facts["left_out"] == {"too_short": 1, "low_sample_rate": 1, "unreadable_audio": 1}
    assert "1 recordings" in made.describe()
    assert "left out: 1 " in made.describe()


def test_a_cut_file_is_no_recordings(tmp_path):
    """Fails when the size of the samples is not compared: what a killed process left would be noise."""
    corpus = write_recordings(tmp_path / "corpus", {"a": 1.0})
    make_recordings(tmp_path / "out", folder_source(corpus), FILTERS, 100.0, RATE)
    with open(tmp_path / "out/samples.i16", "r+b") as file:
        file.truncate(1000)
    assert open_recordings(tmp_path / "out") is None
    assert make_recordings(tmp_path / "out", folder_source(corpus), FILTERS, 100.0, RATE).rows[0].length == 16_000


def test_a_stream_is_read_as_far_as_wanted(tmp_path):
    """Fails when a corpus that comes as a stream is read to its end, and when it needs a transcript it has not."""
    with tarfile.open(tmp_path / "speech.tar", "w") as tar:
        for number in range(8):
            content = audio_bytes(speech_like(1.0, number), RATE)
            for suffix, data in ((".json", json.dumps({"text": ""}).encode()), (".wav", content)):
                member = tarfile.TarInfo(f"clip{number}{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    source = build(
        {
            "_target_": "llasa.corpus.webdataset.WebDatasetSource",
            "path": str(tmp_path / "speech.tar"),
            "language": "it",
        }
    )
    assert source.unit == "file"
    made = make_recordings(tmp_path / "out", source, FILTERS, 3 / 3600, RATE)
    assert [row.id for row in made.rows] == ["clip0", "clip1", "clip2"]


def test_a_folder_without_metadata_is_a_corpus(tmp_path):
    for name in ("anna/1.wav", "anna/more/2.flac", "bruno/1.wav", "3.wav"):
        write_audio(tmp_path / name, speech_like(0.5, 0), RATE)
    (tmp_path / "notes.txt").write_text("no sound")
    source = AudioFolderSource(path=str(tmp_path), language="it")
    made = make_recordings(tmp_path / "out", source, FILTERS, 100.0, RATE)
    assert [(row.id, row.speaker) for row in made.rows] == [
        ("3", ""), ("anna/1", "anna"), ("anna/more/2", "anna"), ("bruno/1", "bruno"),
    ]  # fmt: skip
    before = source.describe()
    write_audio(tmp_path / "3.wav", speech_like(0.6, 1), RATE)
    assert AudioFolderSource(path=str(tmp_path), language="it").describe() != before
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there are no audio files in"):
        AudioFolderSource(path=str(tmp_path / "empty"), language="it")


def test_clips_follow_from_seed_step_and_number_alone(recordings):
    """Fails when a draw depends on those before it: then a resume would have to replay them."""
    first = Clips(recordings, recordings.rows, PLAIN, 8000, seed=0)
    drawn = {(step, index): first.clip(step, index) for step in range(4) for index in range(3)}
    again = Clips(recordings, recordings.rows, PLAIN, 8000, seed=0)
    for step, index in [(3, 2), (0, 0), (2, 1)]:
        np.testing.assert_array_equal(again.clip(step, index), drawn[step, index])
    np.testing.assert_array_equal(again.batch(1, range(3)), np.stack([drawn[1, index] for index in range(3)]))
    assert len({clip.tobytes() for clip in drawn.values()}) == 12
    other = Clips(recordings, recordings.rows, PLAIN, 8000, seed=1)
    assert not np.array_equal(other.clip(0, 0), drawn[0, 0])


def test_clips_are_pieces_of_recordings_as_often_as_these_are_long(recordings):
    """Fails when recordings are drawn instead of moments, or a clip runs over into the next recording."""
    clips = Clips(recordings, recordings.rows, PLAIN, 6400, seed=0)
    whole = [recordings.waveform(row) for row in recordings.rows]
    counts = np.zeros(3)
    for step in range(300):
        clip = clips.clip(step, 0)
        probe = clip[:40]
        found = [
            number
            for number, waveform in enumerate(whole)
            if any(
                np.array_equal(clip, waveform[start : start + 6400])
                for start in np.flatnonzero(waveform[: len(waveform) - 6399] == probe[0])
            )
        ]
        assert len(found) == 1
        counts[found[0]] += 1
    np.testing.assert_allclose(counts / 300, [0.5 / 4.5, 1 / 4.5, 3 / 4.5], atol=0.08)


def test_short_recordings_lie_between_zeros_and_silence_is_drawn_again(tmp_path):
    corpus = write_recordings(tmp_path / "corpus", {"short": 0.5, "long": 4.0})
    quiet = speech_like(4.0, 1)
    quiet[16_000:] *= 1e-4
    write_audio(corpus / "long.wav", quiet, RATE)
    made = make_recordings(tmp_path / "out", folder_source(corpus), FILTERS, 100.0, RATE)
    plain = [Clips(made, made.rows, PLAIN, 16_000, 0).clip(step, 0) for step in range(40)]
    assert min(np.abs(clip).max() for clip in plain) < 1e-3
    heard = RecordingsConfig(gain_db=[0.0, 0.0], min_level=-40.0)
    clips = Clips(made, made.rows, heard, 16_000, 0)
    loud = [clips.clip(step, 0) for step in range(40)]
    assert min(np.mean(clip**2) for clip in loud) >= 1e-4
    short = next(clip for clip in loud if np.count_nonzero(clip) <= 8000)
    start = np.flatnonzero(short)[0]
    inside = np.abs(short[start:]) > 0
    assert 7900 <= np.flatnonzero(inside)[-1] + 1 <= 8000
    assert clips.short_share() == pytest.approx(0.5 / 4.5)


def test_gain_is_random_and_never_clips(recordings):
    loud = RecordingsConfig(gain_db=[-10.0, 20.0], min_level=None)
    plain, changed = (Clips(recordings, recordings.rows, config, 8000, 0) for config in (PLAIN, loud))
    gains = []
    for step in range(40):
        before, after = plain.clip(step, 0), changed.clip(step, 0)
        assert np.abs(after).max() <= 0.99 + 1e-6
        gains.append(20 * np.log10(np.abs(after).max() / np.abs(before).max()))
    assert min(gains) < -5
    assert 4 < max(gains) <= 20
    assert np.std(gains) > 3


# --- held out ---------------------------------------------------------------------------------------------------------


def held(corpus, folders=None, **settings):
    division = divide(corpus, folders or {}, CodecHeldOutConfig(**settings))
    measured = {name: {row.id for row in part.rows} for name, part in division.measured.items()}
    return {row.id for row in division.train}, measured


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    lengths = {f"r{number:02d}": 0.5 for number in range(30)}
    write_recordings(folder, lengths, {name: f"voice{number % 3}" for number, name in enumerate(lengths)})
    return make_recordings(folder / "out", folder_source(folder), FILTERS, 100.0, RATE)


def test_nothing_is_trained_on_and_measured(many, tmp_path, capsys):
    """Fails when a held-out recording is trained on, in any of the ways to hold it out."""
    ids = {row.id for row in many.rows}
    voice = {row.id for row in many.rows if row.speaker == "voice1"}
    (tmp_path / "ids.txt").write_text("r00\nr03\n\nnot-there\n")
    train, measured = held(many, ids=str(tmp_path / "ids.txt"), speakers=["voice1"])
    assert measured == {"heldout": {"r00", "r03"}, "heldout_voices": voice}
    assert train == ids - voice - {"r00", "r03"}
    assert "1 of the 3 ids" in capsys.readouterr().err
    train, measured = held(many, share=0.2)
    assert 2 <= len(measured["heldout"]) <= 12
    assert train == ids - measured["heldout"]
    assert held(many, share=0.2) == (train, measured)
    assert held(many, share=0.0) == (ids, {})
    train, measured = held(many, share=0.3, recordings=2)
    assert len(measured["heldout"]) == 2 < 30 - len(train)
    (tmp_path / "ids.txt").write_text("nobody\n")
    with pytest.raises(UserError, match="none of its 1 ids is among the recordings; they look like 'r00'"):
        held(many, ids=str(tmp_path / "ids.txt"))


def test_folders_are_measured_instead_of_a_share(many, recordings):
    train, measured = held(many, {"elsewhere": recordings}, share=0.5)
    assert train == {row.id for row in many.rows}
    assert measured == {"elsewhere": {"a", "b", "c"}}


# --- code usage -------------------------------------------------------------------------------------------------------


def test_usage_counts_codes_and_levels():
    """Fails when a code is taken apart in another order than the quantizer's."""
    import torch

    usage = CodeUsage([4, 4, 2])
    assert usage.metrics() == {}
    usage.add(torch.tensor([[0, 0, 5, 5]]))
    assert usage.metrics() == {"codes": 2, "perplexity": 2.0}
    shares = level_shares(np.array([0, 0, 5, 5]), [4, 4, 2])
    assert [share.tolist() for share in shares] == [[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [1.0, 0.0]]
    picture = usage.picture()
    assert picture.shape == (3 * CELL, 4 * CELL, 3)
    assert picture[2, 2].sum() > picture[2, 3 * CELL + 2].sum()
    usage.add(torch.arange(32).repeat(10_000))
    assert usage.metrics()["codes"] == 32
    assert len(usage.state_dict()["codes"]) == 65_536
