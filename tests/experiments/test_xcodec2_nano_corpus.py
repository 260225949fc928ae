"""experiments/xcodec2_nano/corpus.py on packages made here, and the judge on a corpus of noise: no download."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from experiments.xcodec2_nano import corpus
from experiments.xcodec2_nano.judge import ORIGINAL, distance, open_codec, read_rows, table, through
from llasa.errors import UserError

RATE = corpus.SAMPLE_RATE
LISTING = """\ufeff; a comment
activated: Attivato.
beep: [segnale]
again: {sentence}
lost-accent: La conferenza ? piena.
tail: ... e poi basta così
two-keys: Il messaggio è stato two-thens: poi premere
"""


LETTERS = str.maketrans("0123456789", "abcdefghij")


def write_package(root: Path, source: str, *, names: int) -> None:
    """Unpacked Asterisk prompts: ``names`` sentences of noise, numbered in words, and what is no speech."""
    av = pytest.importorskip("av")
    language = source.removeprefix("asterisk-")
    sounds = root / f"usr/share/asterisk/sounds/{language}_X"
    texts = {f"s{i}": f"Questa frase ha la lettera {chr(97 + i % 26)}{chr(97 + i // 26)}." for i in range(names)}
    random = np.random.default_rng(len(source) + ord(source[-1]))
    files = {**texts, "activated": "", "beep": "", "silence/1": "", "again": ""}
    for name in files:
        path = sounds / f"{name}.g722"
        path.parent.mkdir(parents=True, exist_ok=True)
        pcm = (random.standard_normal(RATE * 2) * 3000).astype(np.int16)
        with av.open(str(path), "w", format="g722") as container:
            stream = container.add_stream("g722", rate=RATE, layout="mono")
            frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
            frame.sample_rate = RATE
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    listing = LISTING.format(sentence=texts["s0"]) + "".join(f"{name}: {text}\n" for name, text in texts.items())
    doc = root / f"usr/share/doc/asterisk-core-sounds-{language}/core-sounds-{language}.txt.gz"
    doc.parent.mkdir(parents=True)
    doc.write_bytes(gzip.compress(listing.encode()))


def sources_of(*names: str) -> list[corpus.Source]:
    return [source for source in corpus.SOURCES if source.name in names]


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    for source in sources_of(corpus.HELDOUT_SENTENCES, corpus.HELDOUT_VOICE):
        write_package(folder / "files" / source.packages[-1], source.name, names=40)
    return folder


@pytest.fixture(scope="module")
def made(packages, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    corpus.write_corpus(folder, packages, sources_of(corpus.HELDOUT_SENTENCES, corpus.HELDOUT_VOICE))
    return folder


def ids(folder: Path) -> set[str]:
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return {json.loads(line)["id"] for line in lines}


def test_texts_are_only_what_is_said_word_for_word() -> None:
    """Fails when remarks, lost accents, parts of sentences or a line that ran into the next count as texts."""
    texts = corpus.asterisk_texts(LISTING.format(sentence="Ancora una volta.").lstrip("\ufeff"))
    assert texts == {"activated": "Attivato.", "again": "Ancora una volta."}


def test_nothing_held_out_is_trained_on(made) -> None:
    """Fails when a held-out sentence, another take of one, or anything of the held-out voice is in the training."""
    train, italian, voice = (ids(made / name) for name in corpus.CORPORA)
    assert len(italian) == len(voice) == corpus.NUM_HELDOUT
    assert not train & italian
    assert all(name.startswith(corpus.HELDOUT_SENTENCES) for name in train | italian)
    assert all(name.startswith(corpus.HELDOUT_VOICE) for name in voice)
    assert set((made / "heldout.txt").read_text().split()) == italian
    # The same sentence twice, and one of the two is held out by its name's hash.
    takes = {"asterisk-it/s0", "asterisk-it/again"}
    assert len(takes & italian) == 1
    # 40 sentences and "activated"; the tone and the pause are no speech.
    assert not takes & train
    assert len(train | italian) == 41


def test_the_choice_depends_on_names_alone(made, packages, tmp_path) -> None:
    """The same packages give the same bytes, whatever else is in the corpus. Fails when anything is drawn at random,
    or depends on the order in which a folder lists its files."""
    again = tmp_path / "again"
    corpus.write_corpus(again, packages, list(reversed(sources_of(corpus.HELDOUT_SENTENCES, corpus.HELDOUT_VOICE))))
    files = sorted(path.relative_to(made) for path in made.rglob("*.flac"))
    assert len(files) > 2 * corpus.NUM_HELDOUT
    assert files == sorted(path.relative_to(again) for path in again.rglob("*.flac"))
    order = [json.loads(line)["id"] for line in (made / "train/metadata.jsonl").read_text().splitlines()]
    assert order == sorted(order)
    same = [*files, Path("heldout.txt"), *(Path(name, "metadata.jsonl") for name in corpus.CORPORA)]
    assert [(made / path).read_bytes() for path in same] == [(again / path).read_bytes() for path in same]


def test_choice_is_by_names_not_by_order() -> None:
    """Fails when the order, or what else there is to choose from, decides beyond the names' hashes."""
    names = [f"n{number}" for number in range(3 * corpus.NUM_HELDOUT)]
    clips = [
        (corpus.Recording(name, Path(), f"una frase lunga {name.translate(LETTERS)}", "", "it"), np.zeros(2 * RATE))
        for name in names
    ]
    chosen = {recording.id for recording in corpus.choose(clips)}
    assert chosen == {recording.id for recording in corpus.choose(clips[::-1])}
    without = next(name for name in names if name not in chosen)
    assert chosen == {recording.id for recording in corpus.choose([c for c in clips if c[0].id != without])}
    short = [(recording, waveform[:RATE]) for recording, waveform in clips if recording.id in chosen]
    rest = [clip for clip in clips if clip[0].id not in chosen]
    assert not chosen & {recording.id for recording in corpus.choose(short + rest)}


def test_g722_keeps_length_and_band(made, packages) -> None:
    """Fails when G.722 is read at another rate or loses samples: 2 s of noise up to 8 kHz."""
    file = next(packages.rglob("s1.g722"))
    waveform = corpus.read(file)
    assert abs(len(waveform) - 2 * RATE) <= 32
    assert corpus.band_levels([waveform])["bandwidth_hz"] > 7_000
    stored = [path for path in made.rglob("s1.flac") if path.parent.name == corpus.HELDOUT_SENTENCES]
    samples, rate = soundfile.read(stored[0], dtype="float32")
    assert rate == RATE
    assert np.abs(samples - corpus.read(next(p for p in packages.rglob("s1.g722") if "-it-" in str(p)))).max() < 1e-4


def test_a_folder_of_somebody_else_is_left_alone(tmp_path, monkeypatch, capsys) -> None:
    """Fails when the script removes what it did not write."""
    (tmp_path / "train").mkdir()
    (tmp_path / "train/precious.txt").write_text("mine")
    monkeypatch.setattr("sys.argv", ["corpus.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="not empty"):
        corpus.main()
    assert (tmp_path / "train/precious.txt").read_text() == "mine"


def test_band_of_telephone_speech_is_seen() -> None:
    """Fails when the measure of the band does not tell 8 kHz recordings from 16 kHz ones."""
    from llasa.audio import resample

    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32) * 0.1
    narrow = resample(resample(noise, RATE, 8_000), 8_000, RATE)
    assert corpus.band_levels([narrow])["bandwidth_hz"] < 4_500 < 7_900 < corpus.band_levels([noise])["bandwidth_hz"]
    assert corpus.band_levels([narrow])["above_4khz_db"] < -30
    assert corpus.band_levels([noise])["above_4khz_db"] == pytest.approx(-3, abs=0.2)  # half of white noise


def test_judge_reads_the_sets_and_codecs(made) -> None:
    """Fails when rows lose their language, when clips and recordings are mixed up, or codes of some are not counted."""
    rows = read_rows(made / "heldout_it")
    assert len(rows) == corpus.NUM_HELDOUT
    assert {row.language for row in rows} == {"it"}
    assert open_codec(ORIGINAL) is None
    codec = open_codec("codec2")
    recordings = [np.sin(np.arange(length) / 10).astype(np.float32) / 2 for length in (8_000, 16_000, 24_000)]
    clips, facts = through(codec, recordings)
    assert [len(clip) for clip in clips] == [8_000, 16_000, 24_000]
    assert facts["num_codes"] == sum(codec.num_codes(len(recording)) for recording in recordings)
    assert 0 < facts["codes"] <= facts["num_codes"]
    assert facts["speed"] > 0
    with pytest.raises(UserError, match="no codec nowhere"):
        open_codec("nowhere")


def test_distance_is_that_of_the_band() -> None:
    """Fails when what is lost above 4 kHz counts in the distance below it, or does not count in the whole one."""
    from llasa.audio import resample

    noise = np.random.default_rng(1).standard_normal(RATE).astype(np.float32) * 0.1
    narrow = resample(resample(noise, RATE, 8_000), 8_000, RATE)
    assert distance(noise, noise, RATE) == 0
    assert distance(narrow, noise, RATE) > 5
    assert distance(narrow, noise, 8_000) < 1


def test_table_has_a_row_for_each_codec() -> None:
    """Fails when a number stands in another column: each has one of its own."""
    row = {"cer": 0.1, "cer_interval": [0.05, 0.2], "mel_db": 3.5, "mel_4khz_db": 2.5, "dnsmos": 3.25, "voice": 0.875}
    coded = row | {"codes": 1234, "num_codes": 5678, "perplexity": 999.6, "speed": 42.0}
    results = {ORIGINAL: {"heldout_it": row, "heldout_voice": row}, "tiny": {"heldout_it": coded, "heldout_voice": row}}
    lines = table(results).splitlines()
    expected = "| tiny | 0.100 (0.050 to 0.200) | 3.50 (2.50) | 3.25 | 0.875 | 1,234 of 5,678, 1,000 | 42.0 |"
    assert lines.count(expected) == 1
    assert sum(line.startswith("| original |") for line in lines) == 2
