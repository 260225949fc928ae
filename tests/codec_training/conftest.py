import pytest

from tests.codec.tiny_xcodec2 import save_tiny_xcodec2
from tests.codec_training.corpora import write_recordings


@pytest.fixture(scope="session")
def tiny_codec(tmp_path_factory):
    return save_tiny_xcodec2(tmp_path_factory.mktemp("tiny") / "codec")


@pytest.fixture(scope="session")
def recordings_corpus(tmp_path_factory):
    """Twelve recordings of 0.7 to 1.8 s by two speakers."""
    lengths = {f"clip-{i:02d}": 0.7 + i / 10 for i in range(12)}
    speakers = {name: "anna" if number % 3 else "bruno" for number, name in enumerate(lengths)}
    return write_recordings(tmp_path_factory.mktemp("recordings"), lengths, speakers)
