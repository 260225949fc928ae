import torch

from llasa.config import SamplingConfig
from llasa.generation.sampling import END, Chooser, CodeRules, code_logits, mixed, pick_columns
from llasa.tokens.vocabulary import SpeechVocabulary
from tests.model.tiny import tiny_speech_model

VOCABULARY = SpeechVocabulary(speech_start=4, speech_end=5, first_code=10, num_codes=6)
CPU = torch.device("cpu")


def allowed(rules: CodeRules, place: int, may_end: bool) -> list[int]:
    logits = rules.apply(torch.randn(2, 7), [place, place], [may_end, may_end])
    finite = torch.isfinite(logits)
    assert (finite[0] == finite[1]).all()
    return finite[0].nonzero().flatten().tolist()


def test_each_place_of_a_frame_has_its_codes_and_end_where_it_may():
    rules = CodeRules(6, ((0, 2), (2, 6)), CPU)
    assert allowed(rules, 0, may_end=False) == [1, 2]
    assert allowed(rules, 1, may_end=False) == [3, 4, 5, 6]
    assert allowed(rules, 0, may_end=True) == [END, 1, 2]
    whole = CodeRules(6, ((0, 6),), CPU)
    assert allowed(whole, 0, may_end=False) == [1, 2, 3, 4, 5, 6]
    assert allowed(whole, 0, may_end=True) == [END, 1, 2, 3, 4, 5, 6]


def test_rows_have_rules_of_their_own_and_keep_what_is_allowed():
    logits = torch.randn(3, 7)
    ruled = CodeRules(6, ((0, 2), (2, 6)), CPU).apply(logits.clone(), [0, 1, 0], [True, False, False])
    assert torch.isfinite(ruled).int().tolist() == [
        [1, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 1, 1, 1],
        [0, 1, 1, 0, 0, 0, 0],
    ]
    kept = torch.isfinite(ruled)
    torch.testing.assert_close(ruled[kept], logits[kept])


def test_columns_of_a_sliced_head_are_those_of_the_whole():
    speech = tiny_speech_model(spread=0.5)
    hidden = torch.randn(3, 32)
    whole = pick_columns(speech.model.lm_head(hidden), speech.vocabulary)
    torch.testing.assert_close(code_logits(speech.model, hidden, speech.vocabulary), whole)
    assert whole.shape == (3, 65)
    torch.testing.assert_close(whole[:, END], speech.model.lm_head(hidden)[:, speech.vocabulary.speech_end])


def test_codes_are_drawn_as_often_as_they_are_likely():
    """Fails when the distribution is shifted by one column, or draws of one seed or place repeat."""
    logits = torch.tensor([[0.0, 1.0, float("-inf"), 2.0, -1.0]])
    chooser = Chooser(SamplingConfig(temperature=0.5), CPU)
    for draws in ([(seed, 7) for seed in range(4000)], [(7, number) for number in range(4000)]):
        drawn = chooser.choose(logits.expand(4000, -1).clone(), draws, [(1, 5)] * 4000)
        shares = torch.bincount(drawn, minlength=5) / 4000
        torch.testing.assert_close(shares, (logits[0] / 0.5).softmax(-1), atol=0.02, rtol=0)
        assert shares[2] == 0


def test_a_draw_depends_on_its_seed_and_place_and_hardly_on_the_last_bits():
    chooser = Chooser(SamplingConfig(temperature=1.0), CPU)
    logits = torch.randn(64, 65_537, generator=torch.Generator().manual_seed(0))
    draws, spans = [(3, number) for number in range(64)], [(1, 65_537)] * 64
    chosen = chooser.choose(logits.clone(), draws, spans)
    backwards = chooser.choose(logits.flip(0).clone(), draws[::-1], spans).flip(0)
    assert chosen.tolist() == backwards.tolist()
    assert len({mixed(seed, number) for seed in range(100) for number in range(100)}) == 10_000
    noise = 1e-5 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    assert (chooser.choose(logits + noise, draws, spans) == chosen).all(), (
        "the point of a cumulative distribution would move"
    )


def test_rows_in_other_places_draw_for_themselves():
    """Fails when a row's draws depend on how wide another's place is."""
    chooser, rules = Chooser(SamplingConfig(temperature=1.0), CPU), CodeRules(6, ((0, 2), (2, 6)), CPU)
    logits = rules.apply(torch.randn(2, 7), [0, 1], [True, False])
    for number in range(50):
        draws = [(1, number), (2, number)]
        both = chooser.choose(logits.clone(), draws, rules.spans([0, 1]))
        alone = [chooser.choose(logits[i : i + 1], draws[i : i + 1], rules.spans([i])) for i in (0, 1)]
        assert both.tolist() == torch.cat(alone).tolist()


def test_a_penalty_lowers_what_was_said():
    chooser = Chooser(SamplingConfig(repetition_penalty=2.0), CPU)
    said = torch.tensor([[True, True, False, False]])
    assert chooser.penalise(torch.tensor([[4.0, -4.0, 4.0, -4.0]]), said).tolist() == [[2.0, -8.0, 4.0, -4.0]]
