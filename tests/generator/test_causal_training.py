"""What training asks of causal generators: adapters, passages read once, all passages at once."""

import errno
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from latentrag.errors import InputError, ModelError
from latentrag.generator import CausalGenerator, load_generator
from latentrag.generator.passages import PassageCache
from latentrag.generator.tuning import Lora
from latentrag.types import Passage, singles
from tests import tiny
from tests.generator.test_generators import CAUSAL, PASSAGES, TOLERANCE, X, Y, make

LORA = Lora(rank=2, alpha=4)


@pytest.fixture(params=[*CAUSAL])
def plain(request, tmp_path):
    return make(request.param, tmp_path / "plain")


def adapted(plain: CausalGenerator, folder: Path, lora: Lora, *, seed: int = 0, **more) -> CausalGenerator:
    """The same model with an adapter whose effect is as large as the model's own weights."""
    plain.save(folder)
    again = tiny.load_causal(folder)
    generator = CausalGenerator(again.model, again.tokenizer, lora=lora, **more)
    torch.manual_seed(seed)
    for name, parameter in generator.named_parameters():
        if "lora_" in name:
            parameter.data = 0.5 * torch.randn_like(parameter)
    return generator


def scored(generator: CausalGenerator, x=X, passages=PASSAGES, y=Y) -> torch.Tensor:
    return generator.log_p_theta(generator.prepare(x, singles(passages)), generator.targets(y))


def test_a_new_adapter_changes_nothing(plain, tmp_path) -> None:
    plain.save(tmp_path / "again")
    again = tiny.load_causal(tmp_path / "again")
    with_lora = CausalGenerator(again.model, again.tokenizer, lora=LORA)
    torch.testing.assert_close(scored(with_lora), scored(plain), **TOLERANCE)


@pytest.mark.parametrize("scope", ["question", "all"])
def test_with_and_without_gradient_the_same(plain, tmp_path, scope) -> None:
    """One forward pass with gradient, read passages and questions without."""
    generator = adapted(plain, tmp_path / "a", Lora(rank=2, alpha=4, scope=scope))
    graded = scored(generator)
    with torch.no_grad():
        read = scored(generator)
    assert graded.requires_grad
    torch.testing.assert_close(graded.detach(), read, **TOLERANCE)
    assert not torch.allclose(read, scored(plain), atol=0.1)


@torch.no_grad()
def test_scope_question_leaves_the_passages_as_they_were(plain, tmp_path) -> None:
    """Slow and obvious: the plain model's cache of the passage, then the adapted model on the rest."""
    from transformers import DynamicCache

    generator = adapted(plain, tmp_path / "a", LORA)
    (passages,) = PASSAGES[:1]
    found = scored(generator, X[:1], [passages], Y[:1])[0]
    gold = generator.targets(Y[:1]).ids[0].tolist()
    for passage, row in zip(passages, found, strict=True):
        first = plain.tokenizer(str(plain.template.read((passage,))))["input_ids"]
        whole = plain.tokenizer(str(plain.template.render(X[0], (passage,))))["input_ids"]
        assert whole[: len(first)] == first
        cache = DynamicCache()
        plain.model(input_ids=torch.tensor([first]), past_key_values=cache, use_cache=True)
        rest = [*whole[len(first) :], *gold[:-1]]
        logits = generator.model(input_ids=torch.tensor([rest]), past_key_values=cache, use_cache=True).logits
        expected = tiny.log_probs(generator, logits[0, -len(gold) :])[range(len(gold)), gold]
        torch.testing.assert_close(row, expected, **TOLERANCE)


@pytest.mark.parametrize("scope", ["question", "all"])
def test_decoding_steps_equal_gold_scores(plain, tmp_path, scope) -> None:
    generator = adapted(plain, tmp_path / "a", Lora(rank=2, alpha=4, scope=scope))
    with torch.no_grad():
        prepared = generator.prepare(X, singles(PASSAGES))
        targets = generator.targets(["paris", "rome"])
        expected = scored(generator, y=["paris", "rome"])
        log_p, state = generator.start(prepared)
        for i in range(targets.ids.shape[1]):
            gold = targets.ids[:, i]
            found = log_p[torch.arange(2), :, 0, gold]
            torch.testing.assert_close(found, expected[:, :, i], **TOLERANCE)
            log_p, state = generator.step(state, torch.arange(2)[:, None], gold[:, None])


def test_only_the_adapter_gets_gradients_and_they_are_those_of_a_passage_alone(plain, tmp_path) -> None:
    """Padding and batching must not reach the gradient."""
    generator = adapted(plain, tmp_path / "a", LORA)
    scored(generator).sum().backward()
    together = {name: p.grad.clone() for name, p in generator.named_parameters() if p.grad is not None}
    assert together
    assert all("lora_" in name for name in together)
    generator.model.zero_grad()
    for question, passages, y in zip(X, PASSAGES, Y, strict=True):
        for passage in passages:
            scored(generator, [question], [[passage]], [y]).sum().backward()
    for name, parameter in generator.named_parameters():
        if name in together:
            torch.testing.assert_close(parameter.grad, together[name], rtol=1e-3, atol=1e-3)


def test_a_cache_changes_no_digit_and_is_used(plain, tmp_path) -> None:
    generator = adapted(plain, tmp_path / "a", LORA)
    with torch.no_grad():
        expected = scored(generator)
        generator.passage_cache = PassageCache(1 << 20)
        first, second = scored(generator), scored(generator, passages=[PASSAGES[1], PASSAGES[0]])
        again = scored(generator)
    assert torch.equal(first, expected)
    assert torch.equal(again, expected)
    assert not torch.equal(second, expected)
    assert (generator.passage_cache.num_misses, generator.passage_cache.num_hits) == (6, 12)


@torch.no_grad()
def test_what_was_read_with_other_weights_is_forgotten(plain, tmp_path) -> None:
    """A step of an optimiser that changes the weights which read passages; not one that changes the adapter's."""
    generator = adapted(plain, tmp_path / "a", LORA)
    generator.passage_cache = PassageCache(1 << 20)
    scored(generator)
    for name, weight in generator.named_parameters():
        if "lora_" in name:
            weight.add_(0.01)
    scored(generator)
    assert (generator.passage_cache.num_misses, generator.passage_cache.num_hits) == (6, 6)
    for name, weight in generator.named_parameters():
        if "lora_" not in name:
            weight.mul_(1.1)
    found = scored(generator)
    assert generator.passage_cache.num_misses == 12
    generator.passage_cache = None
    assert torch.equal(found, scored(generator))


def test_all_passages_of_a_question_in_one_prompt_are_not_kept(plain, tmp_path) -> None:
    """They will not come again, and would drive out what does."""
    generator = adapted(plain, tmp_path / "a", LORA)
    generator.passage_cache = PassageCache(1 << 20)
    with torch.no_grad():
        generator.log_p_theta(generator.prepare_together(X, singles(PASSAGES)), generator.targets(Y))
    assert len(generator.passage_cache) == generator.passage_cache.num_misses == 0


def test_a_full_cache_forgets_what_was_used_longest_ago(plain, tmp_path) -> None:
    generator = adapted(plain, tmp_path / "a", LORA)
    generator.passage_cache = PassageCache(1 << 20)
    with torch.no_grad():
        expected = scored(generator)
        one = generator.passage_cache.num_bytes // 6
        generator.passage_cache = PassageCache(2 * one)
        for _ in range(2):
            torch.testing.assert_close(scored(generator), expected, rtol=0, atol=1e-5)
    assert generator.passage_cache.num_bytes <= 2 * one
    assert 1 <= len(generator.passage_cache) <= 2


def test_a_cache_on_disk_outlives_the_process_and_heals(plain, tmp_path) -> None:
    generator = adapted(plain, tmp_path / "a", LORA)
    with torch.no_grad():
        expected = scored(generator)
        for damaged in (False, False, True):
            files = sorted((tmp_path / "kv").rglob("*.safetensors"))
            if damaged:
                files[0].write_bytes(b"no tensors")
            generator.passage_cache = PassageCache(1 << 20, folder=tmp_path / "kv", model="m")
            torch.testing.assert_close(scored(generator), expected, rtol=0, atol=1e-5)
            assert generator.passage_cache.num_misses == (6 if not files else int(damaged))
        other = PassageCache(1 << 20, folder=tmp_path / "kv", model="another")
        assert other.get(generator.prepare(X, singles(PASSAGES)).prompts.passages[0]) is None


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left on device")]
)
def test_a_disk_that_is_full_costs_time_only(plain, tmp_path, monkeypatch, error) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr("latentrag.generator.passages.save_file", full)
    generator = adapted(plain, tmp_path / "a", LORA)
    with torch.no_grad():
        expected = scored(generator)
        generator.passage_cache = PassageCache(1 << 20, folder=tmp_path / "kv")
        with pytest.warns(UserWarning, match="kv cannot be written .No space left on device.*; make room") as said:
            torch.testing.assert_close(scored(generator), expected, rtol=0, atol=1e-5)
    assert (len(said), generator.passage_cache.num_misses) == (1, 6)
    assert not [file for file in (tmp_path / "kv").rglob("*") if file.is_file()]


def test_adapters_are_saved_beside_unchanged_weights(plain, tmp_path) -> None:
    generator = adapted(plain, tmp_path / "a", LORA)
    with torch.no_grad():
        generator.save(tmp_path / "b")
        torch.testing.assert_close(scored(tiny.load_causal(tmp_path / "b")), scored(generator), rtol=0, atol=0)
        (tmp_path / "b" / "latentrag_generator.json").unlink()
        torch.testing.assert_close(scored(tiny.load_causal(tmp_path / "b")), scored(plain), rtol=0, atol=0)


def test_a_foreign_or_lost_adapter_is_refused(plain, tmp_path) -> None:
    adapted(plain, tmp_path / "a", LORA).save(tmp_path / "b")
    adapted(plain, tmp_path / "c", Lora(rank=3)).save(tmp_path / "d")
    (tmp_path / "b" / "lora.safetensors").write_bytes((tmp_path / "d" / "lora.safetensors").read_bytes())
    with pytest.raises(ModelError, match="does not fit this model"):
        load_generator(tmp_path / "b")
    (tmp_path / "b" / "lora.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lora\.safetensors cannot be read"):
        load_generator(tmp_path / "b")


@torch.no_grad()
def test_all_passages_in_one_prompt(plain) -> None:
    targets = plain.targets(Y)
    found = plain.log_p_theta(plain.prepare_together(X, singles(PASSAGES)), targets)
    assert found.shape[:2] == (2, 1)
    single = [[of_one[0]] for of_one in PASSAGES]
    torch.testing.assert_close(
        plain.log_p_theta(plain.prepare_together(X, singles(single)), targets),
        scored(plain, passages=single),
        **TOLERANCE,
    )
    merged = Passage("m", "", "")
    text = "".join(str(plain.template.read((z,))) for z in PASSAGES[0][::-1]) + plain.template.ask(X[0])
    ids = plain.prepare_together(X, singles(PASSAGES)).prompts
    assert ids.passages[0] + ids.questions[0] == plain.tokenizer(text)["input_ids"]
    assert merged.text == ""


@torch.no_grad()
def test_the_mean_over_the_vocabulary(plain) -> None:
    """Of all tokens, also of those that count as one where they end y."""
    plain._head.ends = plain._head.ends[:1]
    prepared, targets = plain.prepare(X, singles(PASSAGES)), plain.targets(Y)
    weights = torch.log_softmax(torch.randn(2, 3, targets.ids.shape[1]), dim=1)
    log_p, mean = plain.log_p_theta_and_mean(prepared, targets, lambda _: weights)
    torch.testing.assert_close(log_p, scored(plain), **TOLERANCE)
    start, state = plain.start(prepared)
    for i in range(targets.ids.shape[1]):
        expected = (weights[:, :, i, None] + start[:, :, 0]).logsumexp(dim=1).mean(dim=-1)
        torch.testing.assert_close(mean[:, i], expected.masked_fill(~targets.mask[:, i], 0.0), **TOLERANCE)
        start, state = plain.step(state, torch.arange(2)[:, None], targets.ids[:, i : i + 1])


def test_settings_that_cannot_be(plain) -> None:
    with pytest.raises(InputError, match="rank 0"):
        Lora(rank=0)
    with pytest.raises(InputError, match="scope='some'"):
        Lora(scope="some")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(ModelError, match="no_such_layer"):
        CausalGenerator(plain.model, plain.tokenizer, lora=Lora(layers=("no_such_layer",)))
