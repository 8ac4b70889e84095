"""Activations computed again: the same numbers, fewer of them kept."""

import weakref
from pathlib import Path
from typing import Literal

import pytest
import torch
from transformers import DynamicCache

from latentrag.errors import ModelError
from latentrag.generator import Seq2SeqGenerator, load_generator
from latentrag.generator.passages import PassageCache
from latentrag.generator.tuning import Lora, fixed, recompute_activations, repeatable_layers
from latentrag.types import singles
from tests import tiny
from tests.generator.test_generators import PASSAGES, X, Y, make
from tests.toy import Tolerance

KINDS = ["bart", "t5", "llama", "gemma2", "gpt2"]
# The same operations on the same numbers, in one thread; what is summed into a gradient may come in another order.
GRADIENTS: Tolerance = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(params=KINDS)
def generator(request, tmp_path):
    return make(request.param, tmp_path / "plain")


def again(generator, folder: Path):
    """The same generator with a model of its own."""
    folder.mkdir(exist_ok=True)
    generator.save(folder)
    return load_generator(folder)


def with_lora(generator, scope: Literal["question", "all"]):
    """With an adapter that has an effect."""
    made = type(generator)(generator.model, generator.tokenizer, lora=Lora(rank=2, alpha=4, scope=scope))
    torch.manual_seed(1)
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn_like(parameter)
    return made


def scored(generator) -> torch.Tensor:
    return generator.log_p_theta(generator.prepare(X, singles(PASSAGES)), generator.targets(Y))


def gradients(generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator.model.zero_grad()
    log_p = scored(generator)
    log_p.sum().backward()
    return log_p.detach(), {name: p.grad for name, p in generator.named_parameters() if p.grad is not None}


def assert_same(found, expected, **tolerance) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0)
    assert found[1].keys() == expected[1].keys()
    assert found[1]
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, **(tolerance or GRADIENTS))


def kept_bytes(generator) -> int:
    """What a forward pass keeps for the backward pass: tensors that autograd saves, and the inputs of the layers."""
    weights = {p.untyped_storage().data_ptr() for p in generator.model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # the reference keeps an address from being given twice

    def keep(value: object) -> object:
        if isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() not in weights:
            kept[value.untyped_storage().data_ptr()] = value.untyped_storage()
        return value

    def keep_all(_layer, inputs, named) -> None:
        for value in (*inputs, *named.values()):
            keep(value)

    handles = [
        layer.register_forward_pre_hook(keep_all, with_kwargs=True) for layer in repeatable_layers(generator.model)
    ]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        scored(generator)
    for handle in handles:
        handle.remove()
    return sum(storage.nbytes() for storage in kept.values())


def test_the_same_log_probabilities_and_gradients(generator, tmp_path) -> None:
    saving = again(generator, tmp_path / "again")
    recompute_activations(saving.model)
    assert not saving.model.training
    assert_same(gradients(saving), gradients(generator))


def test_fewer_activations_are_kept(generator, tmp_path) -> None:
    saving = again(generator, tmp_path / "again")
    recompute_activations(saving.model)
    # Two layers each; the embeddings, the output layer and the layers' inputs stay.
    assert kept_bytes(saving) < 0.5 * kept_bytes(generator)


@pytest.mark.parametrize(
    ("kind", "scope"),
    [("bart", "all"), ("llama", "all"), ("llama", "question"), ("gemma2", "all"), ("gemma2", "question")],
)
def test_with_an_adapter(tmp_path, kind: str, scope: Literal["question", "all"]) -> None:
    """With scope "question" the layers are given the passages' cache, and must not add to it twice."""
    plain = make(kind, tmp_path / "plain")
    saving = again(plain, tmp_path / "again")
    recompute_activations(saving.model)
    plain, saving = with_lora(plain, scope), with_lora(saving, scope)
    expected = gradients(plain)
    assert_same(gradients(saving), expected)
    assert kept_bytes(saving) < 0.6 * kept_bytes(plain)
    if scope == "question":
        saving.passage_cache = PassageCache(1 << 20)
        assert_same(gradients(saving), expected)
        assert_same(gradients(saving), expected)
        assert saving.passage_cache.num_hits


def test_dropout_comes_back_only_if_the_model_is_trained_with_it(tmp_path) -> None:
    """In train mode the second run must drop what the first has dropped."""
    tiny.save_tokenizer(tmp_path / "plain")
    tiny.save_bart(tmp_path / "plain", dropout=0.3)
    plain = load_generator(tmp_path / "plain")
    assert isinstance(plain, Seq2SeqGenerator)
    saving = again(plain, tmp_path / "again")
    recompute_activations(saving.model)
    assert_same(gradients(saving), gradients(plain))
    found = []
    for each in (plain, saving):
        each.model.train()
        torch.manual_seed(5)
        found.append(gradients(each))
    assert_same(found[1], found[0])
    assert not torch.allclose(found[0][0], scored(plain), atol=0.1)


def test_mixed_precision(generator, tmp_path) -> None:
    saving = again(generator, tmp_path / "again")
    recompute_activations(saving.model)
    with torch.autocast("cpu", torch.bfloat16):
        expected = scored(generator)
        found = scored(saving)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    expected.sum().backward()
    found.sum().backward()  # outside: the second run must be mixed as the first was
    for one, two in zip(saving.model.parameters(), generator.model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, **GRADIENTS)


def decoded(generator) -> torch.Tensor:
    """Log-probabilities of two targets, step by step with a cache, (2, 3, T)."""
    targets = generator.targets(["paris", "rome"])
    log_p, state = generator.start(generator.prepare(X, singles(PASSAGES)))
    found = []
    for i in range(targets.ids.shape[1]):
        gold = targets.ids[:, i]
        found.append(log_p[torch.arange(2), :, 0, gold])
        log_p, state = generator.step(state, torch.arange(2)[:, None], gold[:, None])
    return torch.stack(found, dim=2)


def test_decoding_is_as_before(generator, tmp_path) -> None:
    """Its cache grows, and what it has grown by must not be added once more, gradients wanted or not."""
    saving = again(generator, tmp_path / "again")
    recompute_activations(saving.model)
    expected = decoded(generator)
    torch.testing.assert_close(decoded(saving), expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(decoded(saving), expected, rtol=0, atol=1e-6)


def test_a_fixed_cache_shows_new_tokens_and_forgets_them() -> None:
    cache = DynamicCache()
    past = torch.randn(1, 2, 3, 4)
    cache.update(past, -past, 0)
    assert fixed(cache) is cache
    new = torch.randn(1, 2, 5, 4)
    for _ in range(2):
        keys, values = cache.update(new, -new, 0)
        assert torch.equal(keys, torch.cat([past, new], dim=2))
        assert torch.equal(values, -keys)
    assert cache.get_seq_length() == 3
    assert torch.equal(cache.update(new, -new, 1)[0], new)  # a layer that has read nothing yet


def test_a_fixed_cache_is_freed_at_once() -> None:
    """Not when Python next looks for cycles: it holds the passages of a whole batch."""
    cache = DynamicCache()
    cache.update(torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4), 0)
    gone = weakref.ref(fixed(cache).layers[0])
    del cache
    assert gone() is None


def test_a_model_without_such_layers_is_refused() -> None:
    with pytest.raises(ModelError, match="Linear has no layers that can be computed again"):
        recompute_activations(torch.nn.Linear(2, 2))
