import numpy as np
import pytest

from llasa.codec.codec2 import Codec2
from llasa.config import SamplingConfig
from llasa.errors import UserError
from llasa.generation.engine_hf import TransformersEngine
from llasa.generation.synthesizer import Synthesizer
from llasa.generation.voices import Voice
from llasa.model.checkpoint import CheckpointCard
from llasa.tokens.prompt import PromptRules
from tests.model.tiny import build_tiny

GREEDY = SamplingConfig(temperature=0.0, max_seconds=0.1)
FREE = SamplingConfig(temperature=0.0, max_seconds=100, text_bounds=False)
VOICE = Voice("Ho tre gatti.", np.resize([0, 1024, 5120, 9216], 120))


@pytest.fixture(scope="module")
def synthesizer():
    codec = Codec2()
    speech = build_tiny(codec.spec, spread=0.1)
    speech.model.eval()
    speech.card = CheckpointCard(PromptRules(), codec.spec, ("it",), 300)
    return Synthesizer(speech, codec, TransformersEngine(batch_size=4), "it")


def test_a_voice_stands_in_front_transcript_and_codes(synthesizer):
    request = synthesizer.request("Ciao!", GREEDY, voice=VOICE)
    expected = synthesizer.speech.prompt.prompt("Ho tre gatti. Ciao!", VOICE.codes)
    np.testing.assert_array_equal(request.prompt, expected)
    assert request.num_spoken == 0
    spoken = synthesizer.speak(["Ciao!"], GREEDY, voice=VOICE)[0]
    assert len(spoken.codes) <= 20, "0.1 s of new speech, the voice not among it"
    assert len(spoken.waveform) == len(spoken.codes) // 4 * 160


def test_the_room_left_bounds_the_speech(synthesizer):
    prompt = synthesizer.speech.prompt.prompt("Ciao!")
    assert synthesizer.request("Ciao!", FREE).max_codes == (300 - len(prompt) - 1) // 4 * 4
    with_voice = len(synthesizer.speech.prompt.prompt("Ho tre gatti. Ciao!")) + 120
    assert synthesizer.request("Ciao!", FREE, voice=VOICE).max_codes == (300 - with_voice - 1) // 4 * 4
    with pytest.raises(UserError, match=r"trained on 300 in all; .* shorter voice"):
        synthesizer.speak(["Ciao!"], FREE, voice=Voice("Ho tre gatti.", np.resize([0, 1024, 5120, 9216], 400)))


def test_the_text_bounds_the_speech_from_both_sides(synthesizer):
    """Fails when a bound is of letters of the text as given, or what was spoken already is not counted."""
    seconds = SamplingConfig(temperature=0.0, max_seconds=0.8)
    request = synthesizer.request("Ciao, come stai?", seconds)
    assert 0 < request.min_codes < request.max_codes == 160
    assert synthesizer.request("21", seconds).min_codes > synthesizer.request("Io", seconds).min_codes
    spoken = np.resize([0, 1024, 5120, 9216], 40)
    rest = synthesizer.request("Ciao, come stai?", seconds, spoken=spoken)
    assert (rest.max_codes, rest.min_codes, rest.num_spoken) == (120, request.min_codes - 40, 40)
    np.testing.assert_array_equal(rest.prompt[-40:], synthesizer.speech.vocabulary.codes_to_ids(spoken))


def test_speech_that_goes_on_is_the_same_as_in_one_go(synthesizer):
    whole = synthesizer.speak(["Ciao, come stai?"], GREEDY)[0]
    request = synthesizer.request("Ciao, come stai?", GREEDY, spoken=whole.codes[:8])
    rest = synthesizer.engine.generate(synthesizer.speech, [request], GREEDY)[0]
    assert rest.codes.tolist() == whole.codes[8:].tolist()


def test_the_pieces_of_a_stream_are_the_whole(synthesizer):
    sampling = SamplingConfig(temperature=1.0, max_seconds=0.6, retries=0)
    [whole] = synthesizer.speak(["Ciao, come stai?"], sampling, seed=5)
    pieces = list(synthesizer.stream("Ciao, come stai?", sampling, seed=5))
    assert len(pieces) > 3
    np.testing.assert_array_equal(np.concatenate(pieces), whole.waveform)


def test_what_cannot_be_said_is_a_mistake(synthesizer):
    for text in ("", " … ", "😀"):
        with pytest.raises(UserError, match="nothing to say"):
            synthesizer.speak(["Ciao!", text], GREEDY)
    with pytest.raises(UserError, match="letters"):
        synthesizer.speak(["你好，今天天气很好"], GREEDY)
    with pytest.raises(UserError, match="without speaker tags"):
        synthesizer.speak(["Ciao!"], GREEDY, speakers=["anna"])
