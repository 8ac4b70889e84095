"""Decoders against the enumerated marginal of a toy generator."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latentrag.decoding import Decoded, fast, marginal_beam, thorough
from latentrag.errors import InputError
from latentrag.marginal import log_prior, sequence_log_likelihood, token_log_likelihood
from latentrag.options import DecodingOptions
from latentrag.types import Variant, singles
from tests.decoding.rescoring import rescored
from tests.toy import ToyGenerator, ToyPrepared, enumerate_marginal, passages

VARIANTS: list[Variant] = ["sequence", "token"]
MAX_TOKENS = 4
EVERY_PREFIX = 1 + 3 + 9 + 27 + 81  # of a vocabulary of three words and an end, four tokens long


def setting(seed: int, *, questions: int = 2, num_passages: int = 3) -> tuple[ToyGenerator, ToyPrepared, Tensor]:
    generator = ToyGenerator(4, seed=seed)
    x = [f"question {b}" for b in range(questions)]
    prepared = generator.prepare(x, singles([passages(num_passages)] * questions))
    random = torch.Generator().manual_seed(seed)
    return generator, prepared, log_prior(2 * torch.randn(questions, num_passages, generator=random))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", range(6))
def test_wide_beam_finds_the_argmax_and_exact_probabilities(variant: Variant, seed: int) -> None:
    generator, prepared, log_p_eta = setting(seed)
    options = DecodingOptions(num_beams=EVERY_PREFIX, num_best=EVERY_PREFIX, max_tokens=MAX_TOKENS)
    found = marginal_beam(generator, prepared, log_p_eta, variant=variant, options=options)
    for b, hypotheses in enumerate(found):
        truth = enumerate_marginal(generator, prepared.rows_of[b], log_p_eta[b], variant=variant, max_tokens=MAX_TOKENS)
        assert hypotheses[0].ids == max(truth, key=truth.__getitem__)
        # Enough beams for every prefix: the whole distribution comes back, best first.
        assert {h.ids for h in hypotheses} == set(truth)
        for h in hypotheses:
            assert h.log_prob == pytest.approx(truth[h.ids], abs=1e-5)
            assert h.finished == (h.ids[-1] == generator.end_ids[0])
        assert sum(math.exp(h.log_prob) for h in hypotheses) == pytest.approx(1.0, abs=1e-5)
        assert [h.log_prob for h in hypotheses] == sorted((h.log_prob for h in hypotheses), reverse=True)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), num_beams=st.integers(1, 6), num_passages=st.integers(1, 4))
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_returned_probability_is_exact(variant: Variant, seed: int, num_beams: int, num_passages: int) -> None:
    generator, prepared, log_p_eta = setting(seed, num_passages=num_passages)
    options = DecodingOptions(num_beams=num_beams, num_best=num_beams, max_tokens=5)
    likelihood = sequence_log_likelihood if variant == "sequence" else token_log_likelihood
    for b, hypotheses in enumerate(marginal_beam(generator, prepared, log_p_eta, variant=variant, options=options)):
        assert 1 <= len(hypotheses) <= num_beams
        for h in hypotheses:
            targets = generator.targets([""])
            targets = type(targets)(torch.tensor([h.ids]), torch.ones(1, len(h.ids), dtype=torch.bool))
            gold = generator.log_p_theta(prepared.rows(torch.tensor([b])), targets)
            torch.testing.assert_close(h.log_p_theta, gold[0], rtol=0, atol=1e-6)
            expected = likelihood(log_p_eta[b : b + 1], gold, targets.mask).item()
            assert h.log_prob == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_questions_do_not_influence_each_other(variant: Variant) -> None:
    generator, prepared, log_p_eta = setting(3, questions=4)
    options = DecodingOptions(num_beams=3, num_best=3, max_tokens=6)
    together = marginal_beam(generator, prepared, log_p_eta, variant=variant, options=options)
    for b in range(4):
        alone = marginal_beam(
            generator,
            prepared.rows(torch.tensor([b])),
            log_p_eta[b : b + 1],
            variant=variant,
            options=options,
        )
        assert [h.ids for h in alone[0]] == [h.ids for h in together[b]]
        assert [h.log_prob for h in alone[0]] == pytest.approx([h.log_prob for h in together[b]], abs=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_beam_is_greedy(variant: Variant) -> None:
    generator, prepared, log_p_eta = setting(8, questions=1)
    ids: list[int] = []
    weights = log_p_eta[0]
    while len(ids) < 6 and (not ids or ids[-1] != 0):
        step = torch.stack([generator.log_p(name, ids) for name in prepared.rows_of[0]])
        ids.append(int((weights[:, None] + step).logsumexp(dim=0).argmax()))
        if variant == "sequence":
            weights = torch.log_softmax(weights + step[:, ids[-1]], dim=0)
    found = marginal_beam(
        generator, prepared, log_p_eta, variant=variant, options=DecodingOptions(num_beams=1, max_tokens=6)
    )
    assert found[0][0].ids == tuple(ids)


def test_one_passage_makes_the_variants_equal() -> None:
    generator, prepared, log_p_eta = setting(5, num_passages=1)
    options = DecodingOptions(num_beams=3, num_best=3, max_tokens=5)
    sequence, token = (
        marginal_beam(generator, prepared, log_p_eta, variant=variant, options=options) for variant in VARIANTS
    )
    assert [[h.ids for h in of_one] for of_one in sequence] == [[h.ids for h in of_one] for of_one in token]


@pytest.mark.parametrize("seed", range(4))
def test_thorough_agrees_with_the_exact_beam_and_the_enumeration(seed: int) -> None:
    generator, prepared, log_p_eta = setting(seed)
    options = DecodingOptions(num_beams=EVERY_PREFIX, num_best=EVERY_PREFIX, max_tokens=MAX_TOKENS)
    exact = marginal_beam(generator, prepared, log_p_eta, variant="sequence", options=options)
    for b, hypotheses in enumerate(thorough(generator, prepared, log_p_eta, options=options)):
        truth = enumerate_marginal(
            generator, prepared.rows_of[b], log_p_eta[b], variant="sequence", max_tokens=MAX_TOKENS
        )
        assert hypotheses[0].ids == exact[b][0].ids
        of_exact = {h.ids: h.log_prob for h in exact[b]}
        for h in hypotheses:
            assert h.log_prob == pytest.approx(truth[h.ids], abs=1e-5)
            assert h.log_prob == pytest.approx(of_exact[h.ids], abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_narrow_thorough_takes_the_union_and_scores_all_of_it(seed: int) -> None:
    generator, prepared, log_p_eta = setting(seed, questions=1)
    options = DecodingOptions(num_beams=2, num_best=2, max_tokens=5)
    union = set()
    for name in prepared.rows_of[0]:
        alone = type(prepared)(((name,),))
        beam = marginal_beam(generator, alone, torch.zeros(1, 1), variant="sequence", options=options)
        union |= {h.ids for h in beam[0]}
    scores = {
        ids: log_prob
        for ids, (log_prob, _) in zip(
            union, rescored(generator, prepared, log_p_eta, [0] * len(union), list(union)), strict=True
        )
    }
    best = sorted(scores, key=lambda ids: -scores[ids])[:2]
    assert [h.ids for h in thorough(generator, prepared, log_p_eta, options=options)[0]] == best


@pytest.mark.parametrize("seed", range(4))
def test_fast_counts_only_the_beams_that_hold_the_hypothesis(seed: int) -> None:
    generator, prepared, log_p_eta = setting(seed, questions=1)
    options = DecodingOptions(num_beams=2, num_best=2, max_tokens=5)
    expected: dict[tuple[int, ...], float] = {}
    for k, name in enumerate(prepared.rows_of[0]):
        alone = type(prepared)(((name,),))
        for h in marginal_beam(generator, alone, torch.zeros(1, 1), variant="sequence", options=options)[0]:
            share = math.exp(log_p_eta[0, k].item() + h.log_prob)
            expected[h.ids] = expected.get(h.ids, 0.0) + share
    found = fast(generator, prepared, log_p_eta, options=options)[0]
    assert [h.ids for h in found] == sorted(expected, key=lambda ids: -expected[ids])[:2]
    for h in found:
        assert h.log_prob == pytest.approx(math.log(expected[h.ids]), abs=1e-5)
        ((exact, _),) = rescored(generator, prepared, log_p_eta, [0], [h.ids])
        assert h.log_prob <= exact + 1e-6


@pytest.mark.parametrize("variant", VARIANTS)
def test_limits(variant: Variant) -> None:
    generator, prepared, log_p_eta = setting(2)

    def decode(**options: Any) -> list[tuple[int, ...]]:
        found = marginal_beam(
            generator,
            prepared,
            log_p_eta,
            variant=variant,
            options=DecodingOptions(**{"num_beams": 3, "num_best": 3, **options}),
        )
        return [h.ids for of_one in found for h in of_one]

    assert all(len(ids) <= 2 for ids in decode(max_tokens=2))
    assert all(ids.index(0) >= 3 if 0 in ids else len(ids) == 6 for ids in decode(max_tokens=6, min_tokens=3))
    for ids in decode(max_tokens=12, min_tokens=8, no_repeat_ngram_size=2):
        pairs = list(itertools.pairwise(ids))
        assert len(pairs) == len(set(pairs))


def test_no_repeat_leaves_the_reported_probability_alone() -> None:
    generator, prepared, log_p_eta = setting(2, questions=1)
    options = DecodingOptions(num_beams=3, num_best=3, max_tokens=8, min_tokens=5, no_repeat_ngram_size=1)
    for h in marginal_beam(generator, prepared, log_p_eta, variant="sequence", options=options)[0]:
        ((expected, _),) = rescored(generator, prepared, log_p_eta, [0], [h.ids])
        assert h.log_prob == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_length_penalty_orders_but_does_not_change_probabilities(variant: Variant) -> None:
    generator, prepared, log_p_eta = setting(7, questions=1)
    truth = enumerate_marginal(generator, prepared.rows_of[0], log_p_eta[0], variant=variant, max_tokens=MAX_TOKENS)
    options = DecodingOptions(num_beams=EVERY_PREFIX, num_best=EVERY_PREFIX, max_tokens=MAX_TOKENS, length_penalty=1.0)
    found = marginal_beam(generator, prepared, log_p_eta, variant=variant, options=options)[0]
    ranks = [h.log_prob / len(h.ids) for h in found]
    assert ranks == sorted(ranks, reverse=True)
    for h in found:
        assert h.log_prob == pytest.approx(truth[h.ids], abs=1e-5)


def test_stop_string_ends_a_hypothesis() -> None:
    generator, prepared, log_p_eta = setting(1, questions=1)
    options = DecodingOptions(num_beams=4, num_best=4, max_tokens=6, min_tokens=5, stop=("b",))
    found = marginal_beam(generator, prepared, log_p_eta, variant="sequence", options=options)[0]
    texts = [generator.text(h.ids) for h in found]
    assert any(text.endswith("b") for text in texts)
    for h, text in zip(found, texts, strict=True):
        assert "b" not in text[:-1]
        if text.endswith("b"):
            assert not h.finished


@pytest.mark.parametrize("variant", VARIANTS)
def test_early_stopping_never_searches_longest(variant) -> None:
    """As in transformers: True stops first, False where no better answer is likely, "never" where none is possible."""
    stops: tuple[bool | Literal["never"], ...] = (True, False, "never")
    steps: dict[bool | str, int] = {}
    best: dict[bool | str, list[float]] = {}
    for early in stops:
        options = DecodingOptions(num_beams=3, max_tokens=9, length_penalty=2.0, early_stopping=early)
        steps[early], best[early] = 0, []
        for seed in range(20):
            generator, prepared, log_p_eta = setting(seed, questions=1)
            found = marginal_beam(generator, prepared, log_p_eta, variant=variant, options=options)[0][0]
            best[early].append(found.log_prob / len(found.ids) ** 2)
            steps[early] += generator.num_steps
    assert steps[True] < steps[False] < steps["never"]
    assert all(never >= likely for never, likely in zip(best["never"], best[False], strict=True))
    assert best["never"] != best[False]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.integers(1, 6).flatmap(lambda beams: st.tuples(st.just(beams), st.integers(1, beams))),
    more=st.fixed_dictionaries(
        {},
        optional={
            "length_penalty": st.sampled_from([-1.0, -0.3, 0.5, 2.0]),
            "early_stopping": st.just(True),
            "min_tokens": st.integers(1, 3),
            "no_repeat_ngram_size": st.integers(1, 2),
            "stop": st.just(("b",)),
        },
    ),
)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("decoder", ["exact", "thorough", "fast"])
def test_the_best_are_the_first_of_all(decoder, variant, seed, sizes, more) -> None:
    generator, prepared, log_p_eta = setting(seed)
    num_beams, num_best = sizes
    of_all = DecodingOptions(num_beams=num_beams, num_best=num_beams, max_tokens=6, **more)

    def decode(options: DecodingOptions) -> list[list[Decoded]]:
        if decoder == "exact":
            return marginal_beam(generator, prepared, log_p_eta, variant=variant, options=options)
        return {"thorough": thorough, "fast": fast}[decoder](generator, prepared, log_p_eta, options=options)

    every, best = decode(of_all), decode(replace(of_all, num_best=num_best))
    for all_of_one, best_of_one in zip(every, best, strict=True):
        assert [h.ids for h in best_of_one] == [h.ids for h in all_of_one[:num_best]]
        for ours, theirs in zip(best_of_one, all_of_one, strict=False):
            assert ours.log_prob == pytest.approx(theirs.log_prob, abs=1e-5)
            assert ours.finished == theirs.finished
            torch.testing.assert_close(ours.log_p_theta, theirs.log_p_theta, rtol=0, atol=1e-5)


def test_the_search_ends_with_what_is_wanted() -> None:
    class Sure(ToyGenerator):
        """One word and the end, or with less than a hundredth of that another word, after which anything may come."""

        widths: list[int]

        def log_p(self, name: str, prefix: Sequence[int]) -> Tensor:
            ids = list(prefix)
            logits = torch.zeros(self.vocabulary)
            if not ids:
                logits[1] = 5.0
            elif ids[0] == 1:
                logits[0] = 5.0
            return torch.log_softmax(logits, dim=0)

        def step(self, state, parents, tokens):
            self.widths.append(parents.shape[1])
            return super().step(state, parents, tokens)

    generator = Sure(4)
    prepared = generator.prepare(["x"], singles([passages(2)]))

    def widths(num_best: int) -> list[int]:
        generator.widths = []
        options = DecodingOptions(num_beams=3, num_best=num_best, max_tokens=6)
        found = marginal_beam(generator, prepared, log_prior(torch.zeros(1, 2)), variant="sequence", options=options)
        assert found[0][0].ids == (1, 0)
        return generator.widths

    # The empty answer is seen at once, and of the first words only one is better; then that one ends.
    assert widths(1) == [1]
    assert widths(2) == [3]
    assert len(widths(3)) > 1


def test_finished_questions_leave_the_batch() -> None:
    class Short(ToyGenerator):
        """Question 0 ends at once; question 1 never does."""

        def log_p(self, name: str, prefix: Sequence[int]) -> Tensor:
            logits = torch.zeros(self.vocabulary)
            logits[0] = 20.0 if name.startswith("short") else -20.0
            return torch.log_softmax(logits, dim=0)

        def step(self, state, parents, tokens):
            assert len(parents) == 1
            return super().step(state, parents, tokens)

    generator = Short(4)
    prepared = generator.prepare(["short", "long"], singles([passages(2)] * 2))
    found = marginal_beam(
        generator,
        prepared,
        log_prior(torch.zeros(2, 2)),
        variant="sequence",
        options=DecodingOptions(num_beams=1, max_tokens=5),
    )
    assert found[0][0].ids == (0,)
    assert len(found[1][0].ids) == 5
    assert not found[1][0].finished


@pytest.mark.parametrize(
    "bad",
    [
        {"num_beams": 0},
        {"num_best": 0},
        {"num_beams": 2, "num_best": 3},
        {"max_tokens": 0},
        {"min_tokens": 4, "max_tokens": 4},
        {"temperature": 0.0},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"stop": "text"},
        {"stop": ("",)},
    ],
)
def test_options_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="needed"):
        DecodingOptions(**bad)
