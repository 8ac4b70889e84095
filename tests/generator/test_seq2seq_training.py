"""What training asks of an encoder–decoder: parameters, label smoothing, all passages read together."""

from functools import partial
from pathlib import Path

import pytest
import torch

from latentrag.errors import InputError
from latentrag.generator import Seq2SeqGenerator, load_generator
from latentrag.generator.gold import OwnLogits
from latentrag.generator.tuning import Lora
from latentrag.marginal import log_prior, marginal_weights
from latentrag.types import Variant, singles
from tests.generator.test_generators import PASSAGES, SEQ2SEQ, TOLERANCE, X, Y, make


@pytest.fixture(params=[*SEQ2SEQ])
def generator(request, tmp_path: Path) -> Seq2SeqGenerator:
    return make(request.param, tmp_path)


def test_parameters_are_the_models(generator) -> None:
    named = dict(generator.named_parameters())
    assert list(named) == [name for name, _ in generator.model.named_parameters()]
    assert all(parameter.requires_grad for parameter in named.values())


@pytest.mark.parametrize("own_logits", [False, True])
@pytest.mark.parametrize("variant", ["sequence", "token"])
def test_smoothing_equals_the_naive_computation(generator, variant: Variant, own_logits: bool, monkeypatch) -> None:
    """From the model's own logits for every (x, z), values and gradients of all that learns."""
    targets = generator.targets(Y)
    scores = torch.tensor([[0.3, -0.2, 1.0], [0.0, 2.0, -1.0]], requires_grad=True)
    log_p_eta = log_prior(scores)
    weigh = partial(marginal_weights, log_p_eta, mask=targets.mask, variant=variant)
    parameters = [scores, *generator.model.parameters()]

    prepared = generator.prepare(X, singles(PASSAGES))
    rows = targets.ids.repeat_interleave(3, dim=0)
    prefix = torch.tensor([generator.decoder_prefix]).expand(6, -1)
    output = generator.model(
        encoder_outputs=(prepared.states,),
        attention_mask=prepared.mask.long(),
        decoder_input_ids=torch.cat([prefix, rows[:, :-1]], dim=1),
    )
    everything = torch.log_softmax(output.logits[:, prefix.shape[1] - 1 :], dim=-1).unflatten(0, (2, 3))
    gold = everything.gather(3, targets.ids[:, None, :, None].expand(2, 3, -1, 1))[..., 0]
    marginal = (weigh(gold)[..., None] + everything).logsumexp(dim=1)
    expected = marginal.mean(dim=2).masked_fill(~targets.mask, 0.0)

    if own_logits:
        monkeypatch.setattr(generator, "_head", OwnLogits(generator.model))
    log_p_theta, mean = generator.log_p_theta_and_mean(generator.prepare(X, singles(PASSAGES)), targets, weigh)
    torch.testing.assert_close(log_p_theta, generator.log_p_theta(prepared, targets), **TOLERANCE)
    torch.testing.assert_close(mean, expected, **TOLERANCE)
    found = torch.autograd.grad(mean.sum(), parameters, allow_unused=True, retain_graph=True)
    wanted = torch.autograd.grad(expected.sum(), parameters, allow_unused=True)
    for one, two in zip(found, wanted, strict=True):
        assert (one is None) == (two is None)
        if one is not None:
            # Sums over 13 positions of gradients of up to some tens, in float32.
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-3)
    assert found[0].abs().max() > 1e-3


@torch.no_grad()
def test_one_passage_read_together_is_read_as_always(generator) -> None:
    targets = generator.targets(Y)
    first = [of_one[:1] for of_one in PASSAGES]
    together = generator.log_p_theta(generator.prepare_together(X, singles(first)), targets)
    apart = generator.log_p_theta(generator.prepare(X, singles(first)), targets)
    torch.testing.assert_close(together, apart, rtol=0, atol=0)


@torch.no_grad()
def test_passages_read_together_have_no_order(generator) -> None:
    targets = generator.targets(Y)
    prepared = generator.prepare_together(X, singles(PASSAGES))
    assert (prepared.num_questions, prepared.num_passages) == (2, 1)
    assert int(prepared.mask.sum()) == int(generator.prepare(X, singles(PASSAGES)).mask.sum())
    log_p = generator.log_p_theta(prepared, targets)
    assert log_p.shape == (2, 1, targets.ids.shape[1])
    turned = [[of_one[2], of_one[0], of_one[1]] for of_one in PASSAGES]
    torch.testing.assert_close(
        generator.log_p_theta(generator.prepare_together(X, singles(turned)), targets), log_p, **TOLERANCE
    )
    fewer = [of_one[:2] for of_one in PASSAGES]
    other = generator.log_p_theta(generator.prepare_together(X, singles(fewer)), targets)
    assert ((other - log_p).abs()[:, 0][targets.mask] > 1e-3).any()  # every passage is read


@torch.no_grad()
def test_passages_read_together_equal_one_row_by_hand(generator) -> None:
    """The decoder over the concatenation of unpadded encodings, one question at a time."""
    targets = generator.targets(Y)
    log_p = generator.log_p_theta(generator.prepare_together(X, singles(PASSAGES)), targets)
    for b, question in enumerate(X):
        encodings = []
        for passage in PASSAGES[b]:
            ids = generator.tokenizer(str(generator.template.render(question, (passage,))), return_tensors="pt")
            encodings.append(generator.model.get_encoder()(input_ids=ids["input_ids"]).last_hidden_state)
        gold = targets.ids[b][targets.mask[b]]
        decoder = torch.tensor([[*generator.decoder_prefix, *gold[:-1].tolist()]])
        output = generator.model(encoder_outputs=(torch.cat(encodings, dim=1),), decoder_input_ids=decoder)
        own = torch.log_softmax(output.logits[0, -len(gold) :], dim=-1)
        expected = own.gather(1, gold[:, None])[:, 0]
        torch.testing.assert_close(log_p[b, 0, : len(gold)], expected, **TOLERANCE)


@torch.no_grad()
def test_passages_read_together_decode_step_by_step(generator) -> None:
    targets = generator.targets(Y[1:])
    prepared = generator.prepare_together(X[1:], singles(PASSAGES[1:]))
    expected = generator.log_p_theta(prepared, targets)[0, 0]
    log_p, state = generator.start(prepared)
    for i, token in enumerate(targets.ids[0]):
        torch.testing.assert_close(log_p[0, 0, 0, token], expected[i], **TOLERANCE)
        if token != generator.end_id:
            log_p, state = generator.step(state, torch.tensor([[0]]), token.view(1, 1))


def test_gradients_reach_every_passages_encoding(generator) -> None:
    targets = generator.targets(Y)
    prepared = generator.prepare_together(X, singles(PASSAGES))
    prepared.states.retain_grad()
    generator.log_p_theta(prepared, targets).sum().backward()
    assert (prepared.states.grad[prepared.mask] != 0).any(dim=1).all()


def test_reading_nothing_together_is_refused(generator) -> None:
    with pytest.raises(InputError, match="at least one"):
        generator.prepare_together(X, singles([[], []]))


def test_an_adapter_learns_alone_and_is_saved(generator, tmp_path) -> None:
    targets = generator.targets(Y)
    with torch.no_grad():
        before = generator.log_p_theta(generator.prepare(X, singles(PASSAGES)), targets)
    adapted = Seq2SeqGenerator(generator.model, generator.tokenizer, lora=Lora(rank=2, scope="all"))
    log_p = adapted.log_p_theta(adapted.prepare(X, singles(PASSAGES)), targets)
    torch.testing.assert_close(log_p, before, **TOLERANCE)
    log_p.sum().backward()
    learning = {name: parameter for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert learning
    assert learning.keys() == {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name for name in learning)
    with torch.no_grad():
        for parameter in learning.values():
            parameter.add_(0.1)
        changed = adapted.log_p_theta(adapted.prepare(X, singles(PASSAGES)), targets)
        assert (changed - before).abs().max() > 0.01
        folder = tmp_path / "adapted"
        folder.mkdir()
        adapted.save(folder)
        again = load_generator(folder)
        assert isinstance(again, Seq2SeqGenerator)
        assert again.lora == adapted.lora
        loaded = again.log_p_theta(again.prepare(X, singles(PASSAGES)), targets)
    torch.testing.assert_close(loaded, changed, rtol=0, atol=0)


def test_an_adapter_for_the_question_alone_is_refused(generator) -> None:
    with pytest.raises(InputError, match="use 'all'"):
        Seq2SeqGenerator(generator.model, generator.tokenizer, lora=Lora(scope="question"))
