"""Looking on: what is told is never taken back, and what nobody wants is not decoded."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentrag.decoding import Decoded
from latentrag.decoding.onlooker import num_settled
from latentrag.decoding.watch import num_decided, settled_length
from latentrag.errors import InputError
from latentrag.rag import Rag
from latentrag.types import Answer, Token
from tests.test_rag import FakeRetriever
from tests.toy import ToyGenerator, passages


class Notes:
    """Writes down what is told; loses interest in a question after so many tokens."""

    def __init__(self, patience: dict[int, int] | None = None) -> None:
        self.patience = patience or {}
        self.told: dict[int, list[tuple[Token, ...]]] = {}
        self.sources: dict[int, tuple] = {}

    def is_wanted(self, question: int) -> bool:
        told = self.told.get(question, [()])
        return len(told[-1]) < self.patience.get(question, 10**9)

    def retrieved(self, question, sources, version) -> None:
        assert question not in self.told
        self.sources[question] = (sources, version)

    def decided(self, question, tokens) -> None:
        self.told.setdefault(question, []).append(tokens)


def make(seed: int, *, sharpness: float = 2.0, vocabulary: int = 4) -> Rag:
    return Rag(FakeRetriever(passages(3)), ToyGenerator(vocabulary, seed=seed, sharpness=sharpness), k=3)


def check_told(notes: Notes, b: int, answer: Answer) -> None:
    told = notes.told.get(b, [])
    for before, after in zip([(), *told], told, strict=False):
        assert len(after) > len(before)
    for tokens in told:
        assert [token.text for token in tokens] == [token.text for token in answer.tokens[: len(tokens)]]
        for token, final in zip(tokens, answer.tokens, strict=False):
            assert token.log_prob == pytest.approx(final.log_prob, abs=1e-5)
            assert token.posterior == pytest.approx(final.posterior, abs=1e-5)
    sources, version = notes.sources[b]
    assert version == answer.memory_version
    assert [passage for passage, _ in sources] == [source.passage for source in answer.sources]
    assert [prior for _, prior in sources] == pytest.approx([source.prior for source in answer.sources])


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    variant=st.sampled_from(["sequence", "token"]),
    num_beams=st.integers(1, 4),
    length_penalty=st.sampled_from([0.0, 1.0, -1.0]),
    early_stopping=st.booleans(),
    min_tokens=st.integers(0, 3),
    stop=st.sampled_from([(), ("b",), ("ab", "ca"), ("bca",)]),
    sharpness=st.sampled_from([0.5, 4.0]),
)
def test_what_is_told_is_what_the_answer_begins_with(seed, variant, sharpness, **options) -> None:
    rag, notes = make(seed, sharpness=sharpness), Notes()
    x = ["one?", "another one?"]
    answers = rag.answer_watched(x, notes, variant=variant, max_tokens=6, **options)
    assert answers == rag.answer_batch(x, variant=variant, max_tokens=6, **options)  # looking on changes nothing
    for b, answer in enumerate(answers):
        check_told(notes, b, answer)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), num_beams=st.integers(1, 3))
def test_samples_are_certain_at_once_where_there_is_one(seed, num_beams) -> None:
    rag, notes = make(seed), Notes()
    options = {"sample": True, "seed": seed, "num_beams": num_beams, "max_tokens": 6}
    (answer,) = rag.answer_watched(["who?"], notes, **options)
    assert answer == rag.answer("who?", **options)
    check_told(notes, 0, answer)
    if num_beams == 1 and answer.hypotheses[0].finished:
        assert [len(tokens) for tokens in notes.told.get(0, [])] == list(range(1, len(answer.tokens) + 1))


@pytest.mark.parametrize("decoding", ["exact", "thorough", "fast"])
def test_the_first_tokens_are_told_long_before_the_end(decoding) -> None:
    """Thorough and Fast Decoding tell none; a greedy search tells each token when it has taken it."""
    rag, notes = make(3), Notes()
    (answer,) = rag.answer_watched(["who?"], notes, decoding=decoding, num_beams=1, min_tokens=7, max_tokens=9)
    assert len(answer.tokens) >= 7
    sizes = [len(tokens) for tokens in notes.told.get(0, [])]
    assert sizes == (list(range(1, len(sizes) + 1)) if decoding == "exact" else [])
    assert len(sizes) >= 6 or decoding != "exact"


@pytest.mark.parametrize("options", [{"num_beams": 1}, {"num_beams": 1, "sample": True}], ids=["search", "sample"])
def test_what_nobody_wants_is_not_decoded_further(options) -> None:
    x = ["one?", "another one?", "a third?"]
    rag = make(5)
    whole = rag.answer_batch(x, min_tokens=7, max_tokens=9, **{**options, "sample": False})
    notes = Notes({0: 2, 2: 0})
    answers = rag.answer_watched(x, notes, min_tokens=7, max_tokens=9, **options)
    assert [answer is None for answer in answers] == [True, False, True]
    assert (len(notes.told[0]), 2 in notes.told) == (2, False)
    if "sample" not in options:
        assert answers[1] == whole[1]
    steps = rag.generator.num_steps
    assert rag.answer_watched(x[:1], Notes({0: 2}), min_tokens=7, max_tokens=9, **options) == [None]
    assert rag.generator.num_steps - steps == 2  # the tokens after the first; nothing after the loss of interest


def test_options_that_leave_no_answer() -> None:
    with pytest.raises(InputError, match="ruled out by the options; lower min_tokens"):
        make(1, vocabulary=2).answer("who?", min_tokens=5, no_repeat_ngram_size=1)


def found(log_prob: float, *ids: int) -> Decoded:
    return Decoded(ids, log_prob, torch.zeros(1, len(ids)), finished=True)


def test_who_can_still_win_decides_what_is_certain() -> None:
    live, scores = [(1, 2, 3), (1, 2, 4), (5, 5, 5)], [-1.0, -2.0, -3.0]
    assert num_decided(live, scores, None, length_penalty=0.0) == 0
    assert num_decided(live, [-1.0, -2.0, float("-inf")], None, length_penalty=0.0) == 2
    # 5 5 5 is less probable than what is finished, and will not become more probable.
    assert num_decided(live, scores, found(-2.5, 1, 2, 0), length_penalty=0.0) == 2
    assert num_decided(live, scores, found(-1.5, 1, 0), length_penalty=0.0) == 1
    assert num_decided(live, scores, found(-0.5, 1, 0), length_penalty=0.0) == 2  # nothing can win any more
    assert num_decided(live, scores, found(-0.5, 1, 0), length_penalty=1.0) == 0  # with a bonus for length it can


@pytest.mark.parametrize(
    ("text", "stop", "length"),
    [
        ("James", (), 5),
        ("James ", (), 5),
        ("o '", (), 1),
        ("caf\ufffd", (), 3),
        ("", (), 0),
        ("one.", (), 3),
        ("one en", ("end",), 3),
        ("one en", ("x", "n end"), 5),
        ("one end two", ("end",), 3),
        ("enen", ("end",), 2),
    ],
)
def test_text_that_stays(text, stop, length) -> None:
    assert settled_length(text, stop) == length


def test_a_token_that_adds_nothing_waits_for_what_follows() -> None:
    assert num_settled(["A", ""], ()) == 1  # white space, until a word follows
    assert num_settled(["A", " ", "b"], ()) == 3
    assert num_settled(["", "A"], ()) == 2
    assert num_settled(["A", " b."], ()) == 1


@given(
    text=st.text("abc .", max_size=12), stop=st.text("ab ", min_size=1, max_size=4), more=st.text("abc .", max_size=6)
)
def test_settled_text_survives_whatever_follows(text, stop, more) -> None:
    from latentrag.decoding.evidence import before_stop

    kept = text[: settled_length(text, [stop])]
    assert before_stop(text + more, [stop]).startswith(kept)
