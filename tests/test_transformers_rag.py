"""Against transformers' RAG with the same weights: equal where it is right, right where it is not.

The weights are random, saved to disk in its own layout and loaded from there by both sides. Its retriever is left
out: both sides get the same passages and scores.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latentrag.decoding import marginal_beam, thorough
from latentrag.decoding.step import Beams, marginal_step
from latentrag.generator import Seq2SeqGenerator
from latentrag.marginal import log_prior, sequence_log_likelihood, token_log_likelihood
from latentrag.options import DecodingOptions
from latentrag.types import Passage, Targets, singles
from tests import tiny
from tests.toy import ToyRetriever

K = 3
SEEDS = range(6)
WORDS = [word for word in tiny.WORDS if word.isalpha()]


def checkpoint(folder: Path, seed: int, *, variant: str = "Sequence") -> tuple[Any, Seq2SeqGenerator]:
    """A tiny checkpoint in the layout of facebook/rag-*, as both sides load it."""
    from transformers import DPRConfig, DPRQuestionEncoder, RagConfig, RagSequenceForGeneration, RagTokenForGeneration

    from latentrag.assemble.rag_layout import RagCheckpoint
    from latentrag.place import Place
    from latentrag.pretrained import quiet

    torch.manual_seed(seed)
    question_encoder = DPRQuestionEncoder(
        DPRConfig(
            vocab_size=tiny.VOCABULARY,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
            projection_dim=0,
        )
    )
    bart = tiny.save_bart(folder / "bart", seed=seed)
    config = RagConfig.from_question_encoder_generator_configs(
        question_encoder.config,
        bart.config,
        n_docs=K,
        pad_token_id=tiny.PAD,
        bos_token_id=tiny.BEGIN,
        eos_token_id=tiny.END,
        # One start token for training and generating, as ours has.
        decoder_start_token_id=tiny.BEGIN,
        forced_eos_token_id=None,
        max_combined_length=64,
    )
    their_class = RagSequenceForGeneration if variant == "Sequence" else RagTokenForGeneration
    with quiet():
        their_class(config, question_encoder=question_encoder, generator=bart).save_pretrained(folder)
        tiny.save_tokenizer(folder / "question_encoder_tokenizer")
        tiny.save_tokenizer(folder / "generator_tokenizer")
        theirs = their_class.from_pretrained(folder).eval()
    theirs.generator.generation_config.decoder_start_token_id = tiny.BEGIN
    ours = RagCheckpoint(folder, name="tiny").generator(Place())
    assert isinstance(ours, Seq2SeqGenerator)
    return theirs, ours


def problem(
    seed: int, *, questions: int = 2, equal_lengths: bool = False
) -> tuple[list[str], list[list[Passage]], Tensor]:
    """Questions, passages and scores. Words are drawn; ``equal_lengths`` makes inputs that need no padding."""
    random = torch.Generator().manual_seed(1000 + seed)

    def text(low: int, high: int) -> str:
        count = high if equal_lengths else int(torch.randint(low, high + 1, (1,), generator=random))
        return " ".join(WORDS[int(i)] for i in torch.randint(len(WORDS), (count,), generator=random))

    x = [text(3, 6) for _ in range(questions)]
    passages = [[Passage(f"{b}{k}", text(4, 12), text(1, 2)) for k in range(K)] for b in range(questions)]
    return x, passages, 2 * torch.randn(questions, K, generator=random)


def their_inputs(ours: Seq2SeqGenerator, x: list[str], passages: list[list[Passage]]) -> dict[str, Tensor]:
    """Inputs as their retriever makes them, from the questions as they stand."""
    texts = [f"{z.title} / {z.text} // {x[b]}" for b, of_one in enumerate(passages) for z in of_one]
    encoded = ours.tokenizer(texts, padding=True, return_tensors="pt")
    return {"context_input_ids": encoded["input_ids"], "context_attention_mask": encoded["attention_mask"]}


def labels_of(y: list[str], ours: Seq2SeqGenerator) -> Tensor:
    return ours.tokenizer(text_target=y, padding=True, return_tensors="pt")["input_ids"]


Y = ["paris is the capital", "the red moon"]


@pytest.mark.parametrize("variant", ["Sequence", "Token"])
@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_negative_log_likelihoods_are_equal(variant: str, seed: int, tmp_path) -> None:
    theirs, ours = checkpoint(tmp_path, seed, variant=variant)
    x, passages, scores = problem(seed)
    loss = theirs(
        **their_inputs(ours, x, passages), doc_scores=scores, labels=labels_of(Y, ours), reduce_loss=False
    ).loss
    targets = ours.targets(Y)
    log_p_theta = ours.log_p_theta(ours.prepare(x, singles(passages)), targets)
    likelihood = sequence_log_likelihood if variant == "Sequence" else token_log_likelihood
    found = -likelihood(log_prior(scores), log_p_theta, targets.mask)
    torch.testing.assert_close(found, loss, rtol=0, atol=1e-4)


@pytest.mark.parametrize("num_beams", [2, 4])
@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_token_beam_is_identical(seed: int, num_beams: int, tmp_path) -> None:
    theirs, ours = checkpoint(tmp_path, seed, variant="Token")
    x, passages, scores = problem(seed, questions=3)
    generated = theirs.generate(
        **their_inputs(ours, x, passages),
        doc_scores=scores,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        max_length=12,
        decoder_start_token_id=tiny.BEGIN,
    )
    options = DecodingOptions(num_beams=num_beams, num_best=num_beams, max_tokens=11, length_penalty=1.0)
    found = marginal_beam(ours, ours.prepare(x, singles(passages)), log_prior(scores), variant="token", options=options)
    expected = [trimmed(row) for row in generated.tolist()]
    assert [list(h.ids) for of_one in found for h in of_one] == expected


@pytest.mark.parametrize("num_beams", [2, 4])
@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_thorough_decoding_is_identical_without_padding(seed: int, num_beams: int, tmp_path) -> None:
    theirs, ours = checkpoint(tmp_path, seed)
    x, passages, scores = problem(seed, equal_lengths=True)
    inputs = their_inputs(ours, x, passages)
    assert inputs["context_attention_mask"].all()
    generated = theirs.generate(
        **inputs, doc_scores=scores, num_beams=num_beams, num_return_sequences=1, max_length=12, min_length=4
    )
    options = DecodingOptions(num_beams=num_beams, max_tokens=11, min_tokens=3, length_penalty=1.0)
    found = thorough(ours, ours.prepare(x, singles(passages)), log_prior(scores), options=options)
    assert [list(of_one[0].ids) for of_one in found] == [trimmed(row) for row in generated.tolist()]


def trimmed(row: list[int]) -> list[int]:
    """Generated tokens without the start token and what follows the end."""
    body = row[1:]
    return body[: body.index(tiny.END) + 1] if tiny.END in body else [token for token in body if token != tiny.PAD]


def padded_scores(ours: Seq2SeqGenerator, ids: list[list[int]], num_questions: int) -> Targets:
    width = max(map(len, ids))
    return Targets(
        torch.tensor([row + [0] * (width - len(row)) for row in ids]),
        torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in ids]),
    )


# The faults of theirs that DESIGN.md lists. Each test shows the fault, so that it goes when they mend it, and ours.


@torch.no_grad()
def test_fault_prior_is_lost_for_short_targets(tmp_path) -> None:
    """Theirs adds the prior at target position 1 and masks that position in short targets: loss −log Σ p, off by
    log K at least. Ours is the definition."""
    theirs, ours = checkpoint(tmp_path, 1)
    x, passages, scores = problem(1)
    labels = torch.tensor([[tiny.BEGIN, tiny.END]] * 2)  # one token to predict: the end
    their_loss = theirs(**their_inputs(ours, x, passages), doc_scores=scores, labels=labels).loss
    targets = Targets(torch.tensor([[tiny.END]] * 2), torch.ones(2, 1, dtype=torch.bool))
    log_p_theta = ours.log_p_theta(ours.prepare(x, singles(passages)), targets)  # (2, K, 1)
    expected = -(torch.log_softmax(scores, dim=1) + log_p_theta[:, :, 0]).logsumexp(dim=1)
    ours_loss = -sequence_log_likelihood(log_prior(scores), log_p_theta, targets.mask)
    torch.testing.assert_close(ours_loss, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(their_loss, -log_p_theta[:, :, 0].logsumexp(dim=1), rtol=0, atol=1e-4)
    assert (ours_loss - their_loss).abs().max() > 0.5


@torch.no_grad()
def test_fault_padding_is_not_masked_in_candidates(tmp_path) -> None:
    """Theirs lets the beams of RAG-Sequence attend to padding, so a longer neighbour changes them."""
    theirs, ours = checkpoint(tmp_path, 2)
    changed = 0
    for seed in range(8):
        x, passages, scores = problem(seed, questions=1)
        tokenizer = ours.tokenizer
        texts = [f"{z.title} / {z.text} // {x[0]}" for z in passages[0]]
        options = DecodingOptions(num_beams=2, max_tokens=8, min_tokens=3, length_penalty=1.0)
        found = []
        for length in (32, 60):
            encoded = tokenizer(texts, padding="max_length", max_length=length, return_tensors="pt")
            generated = theirs.generate(
                context_input_ids=encoded["input_ids"],
                context_attention_mask=encoded["attention_mask"],
                doc_scores=scores,
                num_beams=2,
                max_length=9,
                min_length=4,
            )
            found.append(trimmed(generated[0].tolist()))
        changed += found[0] != found[1]
        # Ours, with a long and a short neighbour in the batch: what is padded does not matter.
        long = [Passage("l", "the moon is blue " * 9, "moon")] * K
        alone = thorough(ours, ours.prepare(x, singles(passages)), log_prior(scores), options=options)[0]
        batch = ours.prepare([*x, "who"], singles([*passages, long]))
        beside = thorough(ours, batch, log_prior(torch.cat([scores, scores])), options=options)[0]
        assert [h.ids for h in alone] == [h.ids for h in beside]
        assert [h.log_prob for h in alone] == pytest.approx([h.log_prob for h in beside], abs=1e-4)
    assert changed > 0


@torch.no_grad()
def test_fault_another_number_of_passages_than_configured(tmp_path) -> None:
    """Theirs forgets n_docs when it rescores; ours takes K from the passages."""
    theirs, ours = checkpoint(tmp_path, 3)
    x, passages, scores = problem(3, equal_lengths=True)
    two = [of_one[:2] for of_one in passages]
    with pytest.raises((RuntimeError, AssertionError)):
        theirs.generate(**their_inputs(ours, x, two), doc_scores=scores[:, :2], n_docs=2, num_beams=2, max_length=8)
    options = DecodingOptions(num_beams=2, max_tokens=7)
    found = thorough(ours, ours.prepare(x, singles(two)), log_prior(scores[:, :2]), options=options)
    assert all(h.log_p_theta.shape[0] == 2 for of_one in found for h in of_one)


@torch.no_grad()
def test_fault_token_ignores_its_token_limit(tmp_path) -> None:
    """Theirs generates beyond max_new_tokens; ours stops there."""
    theirs, ours = checkpoint(tmp_path, 4, variant="Token")
    x, passages, scores = problem(4)
    generated = theirs.generate(
        **their_inputs(ours, x, passages), doc_scores=scores, num_beams=2, max_new_tokens=3, min_length=8
    )
    assert generated.shape[1] > 4
    options = DecodingOptions(num_beams=2, max_tokens=3)
    found = marginal_beam(ours, ours.prepare(x, singles(passages)), log_prior(scores), variant="token", options=options)
    assert all(len(h.ids) <= 3 for of_one in found for h in of_one)


@pytest.mark.filterwarnings("ignore")  # theirs says that its limits do not agree, which is the point
@torch.no_grad()
def test_fault_saved_generation_settings_are_lost(tmp_path) -> None:
    """Settings saved with their RAG-Sequence do not reach its generator; ours uses them."""
    from latentrag.assemble.rag_layout import RagCheckpoint
    from latentrag.place import Place
    from latentrag.rag import Rag
    from latentrag.types import Retrieved

    theirs, _ = checkpoint(tmp_path, 5)
    from transformers import GenerationConfig

    GenerationConfig(num_beams=3, max_length=6, decoder_start_token_id=tiny.BEGIN).save_pretrained(tmp_path)
    theirs = type(theirs).from_pretrained(tmp_path).eval()
    ours = RagCheckpoint(tmp_path, name="tiny").generator(Place())
    x, passages, scores = problem(5, equal_lengths=True)
    generated = theirs.generate(**their_inputs(ours, x, passages), doc_scores=scores, min_length=8)
    assert generated.shape[1] > 6

    class Fixed(ToyRetriever):
        def retrieve(self, x, k):
            return Retrieved(singles(passages), {"dense": scores}, 1)

    answers = Rag(Fixed(), ours).answer_batch(x)
    assert all(len(answer.tokens) <= 5 and len(answer.hypotheses) <= 3 for answer in answers)
    assert Rag(Fixed(), ours).options() == DecodingOptions(num_beams=3, max_tokens=5)


@torch.no_grad()
def test_fault_ignored_labels_crash(tmp_path) -> None:
    """−100, the customary mark of positions that do not count, crashes theirs; ours has a mask."""
    theirs, ours = checkpoint(tmp_path, 0)
    x, passages, scores = problem(0)
    labels = labels_of(Y, ours)
    labels[labels == tiny.PAD] = -100
    with pytest.raises((IndexError, RuntimeError)):
        theirs(**their_inputs(ours, x, passages), doc_scores=scores, labels=labels)
    targets = ours.targets(Y)
    log_p_theta = ours.log_p_theta(ours.prepare(x, singles(passages)), targets)
    together = sequence_log_likelihood(log_prior(scores), log_p_theta, targets.mask)
    for b in range(2):
        alone = ours.targets(Y[b : b + 1])
        log_p = ours.log_p_theta(ours.prepare(x[b : b + 1], singles(passages[b : b + 1])), alone)
        expected = sequence_log_likelihood(log_prior(scores[b : b + 1]), log_p, alone.mask)
        torch.testing.assert_close(together[b : b + 1], expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_fault_label_smoothing_is_not_that_of_the_marginal(tmp_path) -> None:
    """Theirs sums log p_θ over the vocabulary for each passage and takes logsumexp afterwards, the prior counted once
    for every token of the vocabulary. With K copies of one passage RAG is its generator, so the smoothed loss must be
    the generator's; theirs is not. Ours has p(y_i|x,y_<i) itself, on which smoothing is defined, and it is."""
    theirs, ours = checkpoint(tmp_path, 1)
    theirs.config.label_smoothing = epsilon = 0.1
    x, passages, _ = problem(1, questions=1)
    copies, scores = [[passages[0][0]] * K], torch.zeros(1, K)
    labels = labels_of(Y[:1], ours)
    gold = ours.targets(Y[:1]).ids

    def smoothed(log_p: Tensor) -> float:  # (T, V)
        picked = log_p.gather(1, gold[0][:, None]).sum()
        return -((1 - epsilon) * picked + epsilon * log_p.mean(dim=1).sum()).item()

    def steps(prepared: Any, log_p_eta: Tensor) -> Tensor:
        beams, rows = Beams.initial(log_p_eta), []
        log_p, state = ours.start(prepared)
        for token in gold[0]:
            rows.append(marginal_step(beams, log_p, "sequence")[0, 0])
            chosen = token.view(1, 1)
            beams = beams.extended(torch.zeros_like(chosen), chosen, beams.scores, log_p)
            log_p, state = ours.step(state, torch.zeros_like(chosen), chosen)
        return torch.stack(rows)

    of_generator = smoothed(steps(ours.prepare(x, singles([copies[0][:1]])), torch.zeros(1, 1)))
    ours_loss = smoothed(steps(ours.prepare(x, singles(copies)), log_prior(scores)))
    their_loss = theirs(**their_inputs(ours, x, copies), doc_scores=scores, labels=labels).loss.item()
    assert ours_loss == pytest.approx(of_generator, abs=1e-4)
    assert abs(their_loss - of_generator) > 0.05


@torch.no_grad()
def test_fault_no_fast_decoding(tmp_path) -> None:
    """Fast Decoding (§2.5) exists here: a lower bound of Thorough's scores, without a second pass."""
    from latentrag.decoding import fast

    theirs, ours = checkpoint(tmp_path, 1)
    assert not any("fast" in name.lower() for name in dir(theirs))
    x, passages, scores = problem(1)
    options = DecodingOptions(num_beams=3, num_best=3, max_tokens=8)
    prepared, prior = ours.prepare(x, singles(passages)), log_prior(scores)
    for quick, full in zip(
        fast(ours, prepared, prior, options=options), thorough(ours, prepared, prior, options=options), strict=True
    ):
        exact = {h.ids: h.log_prob for h in full}
        shared = [h for h in quick if h.ids in exact]
        assert shared
        assert all(h.log_prob <= exact[h.ids] + 1e-4 for h in shared)


@torch.no_grad()
def test_fault_the_question_is_truncated_first(tmp_path) -> None:
    """Theirs cuts the end of passage + question, which is the question; ours keeps it whole."""
    _, ours = checkpoint(tmp_path, 0)
    passage = Passage("z", "the moon is red and blue " * 30, "moon")
    question = "what is the capital of france ?"
    text = str(ours.template.render(question, (passage,)))
    theirs = ours.tokenizer([text], max_length=64, truncation=True)["input_ids"][0]
    assert "capital" not in ours.tokenizer.decode(theirs)
    from latentrag.generator.prompt import input_ids
    from latentrag.generator.texts import TextEncoder

    (kept,) = input_ids(TextEncoder(ours.tokenizer), [ours.template.render(question, (passage,))], limit=64)
    assert len(kept) <= 64
    assert question in ours.tokenizer.decode(kept, skip_special_tokens=True)
