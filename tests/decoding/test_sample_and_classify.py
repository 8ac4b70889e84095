"""Samples follow the enumerated marginal; labels are normalised likelihoods."""

import math
from collections import Counter
from typing import Any

import pytest
import torch

from latentrag.decoding import Sampling, label_log_likelihoods, run
from latentrag.decoding.sample import shaped
from latentrag.errors import InputError
from latentrag.marginal import log_prior
from latentrag.options import DecodingOptions
from latentrag.types import Variant, singles
from tests.toy import ToyGenerator, enumerate_marginal, passages

VARIANTS: list[Variant] = ["sequence", "token"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_samples_follow_the_marginal(variant: Variant) -> None:
    generator = ToyGenerator(3, seed=4, sharpness=1.0)
    prepared = generator.prepare(["x"], singles([passages(3)]))
    log_p_eta = log_prior(torch.tensor([[1.0, 0.0, -1.0]]))
    truth = enumerate_marginal(generator, prepared.rows_of[0], log_p_eta[0], variant=variant, max_tokens=3)
    n = 4000
    options = DecodingOptions(num_beams=n, max_tokens=3, sample=True, seed=1)
    samples = run(Sampling(generator, prepared, log_p_eta, variant=variant, options=options))[0]
    counts = Counter(sample.ids for sample in samples)
    assert len(samples) == n
    for ids, log_p in truth.items():
        p = math.exp(log_p)
        # Five standard errors: with at most 15 texts a false alarm is one in 10^5; the seed is fixed anyway.
        assert counts[ids] / n == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / n) + 1e-9)
    for sample in samples[:20]:
        assert sample.log_prob == pytest.approx(truth[sample.ids], abs=1e-5)


def test_sampling_is_repeatable_and_its_probability_is_not_tempered() -> None:
    generator = ToyGenerator(4, seed=2)
    prepared = generator.prepare(["x", "w"], singles([passages(2)] * 2))
    log_p_eta = log_prior(torch.zeros(2, 2))
    options = DecodingOptions(num_beams=3, max_tokens=4, sample=True, seed=5, temperature=0.5, top_k=3, top_p=0.9)
    one, two = (run(Sampling(generator, prepared, log_p_eta, variant="sequence", options=options)) for _ in range(2))
    assert [[s.ids for s in row] for row in one] == [[s.ids for s in row] for row in two]
    truth = enumerate_marginal(generator, prepared.rows_of[0], log_p_eta[0], variant="sequence", max_tokens=4)
    for sample in one[0]:
        assert sample.log_prob == pytest.approx(truth[sample.ids], abs=1e-5)


def test_shaping_the_distribution() -> None:
    log_p = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))

    def expect(expected: list[float], **options: Any) -> None:
        result = shaped(log_p, DecodingOptions(sample=True, **options))
        torch.testing.assert_close(result, torch.tensor([expected]), rtol=0, atol=1e-6)

    expect([0.5, 0.3, 0.15, 0.05])
    expect([0.625, 0.375, 0, 0], top_k=2)
    expect([0.625, 0.375, 0, 0], top_p=0.7)
    expect([1.0, 0, 0, 0], top_p=0.1)
    squares = [0.25, 0.09, 0.0225, 0.0025]
    expect([each / sum(squares) for each in squares], temperature=0.5)


def test_one_token_labels_are_the_same_under_both_variants() -> None:
    generator = ToyGenerator(5, seed=3)
    prepared = generator.prepare(["x", "w"], singles([passages(3)] * 2))
    log_p_eta = log_prior(torch.randn(2, 3))
    results = [
        label_log_likelihoods(generator, prepared, log_p_eta, ["a", "b", "c"], variant=variant)[0]
        for variant in VARIANTS
    ]
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-6)
    for b, names in enumerate(prepared.rows_of):
        step = torch.stack([generator.log_p(name, ()) for name in names])
        expected = (log_p_eta[b][:, None] + step).logsumexp(dim=0)[1:4]
        torch.testing.assert_close(results[0][b], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_multi_token_labels(variant: Variant) -> None:
    generator = ToyGenerator(5, seed=3)
    prepared = generator.prepare(["x"], singles([passages(3)]))
    log_p_eta = log_prior(torch.randn(1, 3))
    truth = enumerate_marginal(generator, prepared.rows_of[0], log_p_eta[0], variant=variant, max_tokens=4)
    # 'a' begins 'ab': only the end token tells them apart.
    found, _, _ = label_log_likelihoods(generator, prepared, log_p_eta, ["a", "ab", "cd"], variant=variant)
    expected = [truth[(1, 0)], truth[(1, 2, 0)], truth[(3, 4, 0)]]
    assert found[0].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("labels", [[], ["a"], ["a", " "], ["a", "b", "a"]])
def test_bad_labels(labels: list[str]) -> None:
    generator = ToyGenerator(5)
    prepared = generator.prepare(["x"], singles([passages(2)]))
    with pytest.raises(InputError, match="label"):
        label_log_likelihoods(generator, prepared, log_prior(torch.zeros(1, 2)), labels, variant="token")
