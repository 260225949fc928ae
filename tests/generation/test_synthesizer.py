import numpy as np
import pytest

from llasa.codec.codec2 import Codec2
from llasa.config import SamplingConfig
from llasa.errors import UserError
from llasa.generation.engine_hf import TransformersEngine
from llasa.generation.synthesizer import Synthesizer, Voice
from llasa.model.checkpoint import CheckpointCard
from llasa.tokens.prompt import PromptRules
from tests.corpus.recordings import speech_like, write_audio
from tests.model.tiny import build_tiny

GREEDY = SamplingConfig(temperature=0.0, max_seconds=0.1)


class WatchedEngine(TransformersEngine):
    """The real engine, which also keeps what it was asked for."""

    def generate(self, speech, prompts, sampling, max_codes, seed):
        self.prompts, self.max_codes = prompts, max_codes
        return super().generate(speech, prompts, sampling, max_codes, seed)


@pytest.fixture(scope="module")
def synthesizer():
    codec = Codec2()
    speech = build_tiny(codec.spec, spread=0.1)
    speech.model.eval()
    speech.card = CheckpointCard(PromptRules(), codec.spec, ("it",), 300)
    return Synthesizer(speech, codec, WatchedEngine(batch_size=4), "it")


def test_a_voice_stands_in_front_transcript_and_codes(synthesizer, tmp_path):
    write_audio(tmp_path / "voice.wav", speech_like(0.5, 1, 44_100), 44_100)
    voice = synthesizer.load_voice(str(tmp_path / "voice.wav"), "Ho 3 gatti.")
    assert voice.text == "Ho tre gatti."
    assert len(voice.codes) == synthesizer.codec.num_codes(4000)
    spoken = synthesizer.speak(["Ciao!"], GREEDY, voice=voice)[0]
    expected = synthesizer.speech.prompt.prompt("Ho tre gatti. Ciao!", voice.codes)
    np.testing.assert_array_equal(synthesizer.engine.prompts[0], expected)
    assert len(spoken.codes) <= 20, "0.1 s of new speech, the voice not among it"
    assert len(spoken.waveform) == len(spoken.codes) // 4 * 160


def test_the_room_left_bounds_the_speech(synthesizer):
    long = SamplingConfig(temperature=0.0, max_seconds=100)
    prompt = synthesizer.speech.prompt.prompt("Ciao!")
    synthesizer.speak(["Ciao!"], long)
    assert synthesizer.engine.max_codes == [(300 - len(prompt) - 1) // 4 * 4]
    voice = Voice("Ho tre gatti.", np.resize([0, 1024, 5120, 9216], 120))
    synthesizer.speak(["Ciao!"], long, voice=voice)
    with_voice = len(synthesizer.speech.prompt.prompt("Ho tre gatti. Ciao!")) + 120
    assert synthesizer.engine.max_codes == [(300 - with_voice - 1) // 4 * 4]
    with pytest.raises(UserError, match=r"trained on 300 in all; .* shorter voice"):
        synthesizer.speak(["Ciao!"], long, voice=Voice("Ho tre gatti.", np.resize([0, 1024, 5120, 9216], 400)))


def test_what_cannot_be_said_or_read_is_a_mistake(synthesizer, tmp_path):
    for text in ("", " … ", "😀"):
        with pytest.raises(UserError, match="nothing to say"):
            synthesizer.speak(["Ciao!", text], GREEDY)
    with pytest.raises(UserError, match="missing_audio"):
        synthesizer.load_voice(str(tmp_path / "none.wav"), "Ciao")
    write_audio(tmp_path / "voice.wav", speech_like(0.5, 1, 8000), 8000)
    with pytest.raises(UserError, match="voice_text"):
        synthesizer.load_voice(str(tmp_path / "voice.wav"), "…")
