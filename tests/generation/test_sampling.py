import torch

from llasa.generation.sampling import CodeConstraint
from llasa.tokens.vocabulary import SpeechVocabulary

VOCABULARY = SpeechVocabulary(speech_start=4, speech_end=5, first_code=10, num_codes=6)
RANGES = ((0, 2), (2, 6))


def allowed(prompt_length: int, length: int) -> list[int]:
    constraint = CodeConstraint(VOCABULARY, RANGES, prompt_length=prompt_length)
    scores = constraint(torch.zeros(2, length, dtype=torch.long), torch.randn(2, 20))
    finite = torch.isfinite(scores)
    assert (finite[0] == finite[1]).all()
    return finite[0].nonzero().flatten().tolist()


def test_each_place_of_a_frame_has_its_codes_and_end_only_follows_whole_frames():
    assert allowed(7, 7) == [10, 11]  # the first code: speech cannot be empty
    assert allowed(7, 8) == [12, 13, 14, 15]
    assert allowed(7, 9) == [5, 10, 11]
    assert allowed(7, 10) == [12, 13, 14, 15]
    assert allowed(7, 11) == [5, 10, 11]


def test_scores_of_what_is_allowed_are_untouched():
    scores = torch.randn(1, 20)
    constrained = CodeConstraint(VOCABULARY, RANGES, prompt_length=0)(torch.zeros(1, 2, dtype=torch.long), scores)
    torch.testing.assert_close(constrained[0, [5, 10, 11]], scores[0, [5, 10, 11]])
