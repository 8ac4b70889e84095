"""Families of transformers' generators against their plain models; the table in docs/generators.md is of these."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from latentrag.errors import InputError, ModelError
from latentrag.generator import CausalGenerator, Lora, Seq2SeqGenerator, load_generator
from latentrag.types import Passage, singles
from tests import tiny
from tests.generator.families import DOCUMENT, FAMILIES, REFUSED, generator_of, measure, row_of
from tests.generator.test_generators import PASSAGES, X, Y


def written(name: str) -> list[str]:
    (row,) = [line for line in DOCUMENT.read_text("utf-8").splitlines() if line.startswith(f"| {name} |")]
    return row.split(" | ")


@pytest.mark.parametrize("name", FAMILIES)
def test_log_probabilities_are_those_of_the_plain_model(name: str, tmp_path) -> None:
    measured = measure(generator_of(name, tmp_path))
    assert measured.scored <= 1e-4
    assert measured.decoded <= 1e-4
    assert written(name)[:4] == row_of(name, measured).split(" | ")[:4]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_exact_is_refused_in_one_line(name: str, tmp_path) -> None:
    with pytest.raises(ModelError, match="cannot be a generator here") as caught:
        generator_of(name, tmp_path)
    assert "\n" not in str(caught.value)
    assert written(name) == row_of(name, None).split(" | ")


# Models that read whole prompts


def test_whole_prompts_are_trained_as_the_plain_model_is(tmp_path) -> None:
    generator = generator_of("Mamba", tmp_path)
    prepared, targets = generator.prepare(X[:1], singles([PASSAGES[0][:1]])), generator.targets(Y[:1])
    log_p = generator.log_p_theta(prepared, targets)[0, 0]
    log_p.sum().backward()
    found = {name: weight.grad.clone() for name, weight in generator.named_parameters()}
    generator.model.zero_grad()
    (prompt,), ids = prepared.whole_rows(), targets.ids[0].tolist()
    logits = generator.model(input_ids=torch.tensor([[*prompt, *ids[:-1]]]), use_cache=False).logits[0, -len(ids) :]
    tiny.log_probs(generator, logits)[range(len(ids)), ids].sum().backward()
    for name, weight in generator.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-3, atol=1e-4)


def test_whole_prompts_are_not_kept_and_have_no_adapter_of_the_question_alone(tmp_path) -> None:
    generator = generator_of("Mamba", tmp_path)
    generator.keep_passages(1 << 20)
    assert generator.passage_cache is None
    with pytest.raises(InputError, match="MambaForCausalLM reads whole prompts; use 'all'"):
        generator.for_training(lora=Lora(rank=2, layers=("in_proj",)))
    tuned = generator.for_training(lora=Lora(rank=2, layers=("in_proj",), scope="all"))
    assert not tuned.capabilities.keeps_prefixes


def test_the_probe_finds_what_would_be_silently_wrong(tmp_path, monkeypatch) -> None:
    """Positions that are off by one after padding change a number and raise nothing."""
    real = torch.Tensor.clamp

    def wrong(mask: torch.Tensor) -> torch.Tensor:
        return real(mask.long().cumsum(dim=1) - mask.shape[1] // 3, min=0)

    monkeypatch.setattr("latentrag.generator.causal.token_positions", wrong)
    generator = generator_of("Llama", tmp_path)
    assert not generator.capabilities.keeps_prefixes
    assert measure(generator).scored <= 1e-4


def test_a_model_that_looks_ahead_is_refused(tmp_path, monkeypatch) -> None:
    """BERT that is no decoder sees what it should predict: no way of reading makes a distribution of it."""
    from tests.generator import families

    monkeypatch.setitem(families.CAUSAL, "BERT", ("BertLMHeadModel", {**families.CAUSAL["BERT as decoder"][1]}))
    monkeypatch.setitem(families.FAMILIES, "BERT", families.CAUSAL["BERT"])
    monkeypatch.setitem(families.FAMILIES["BERT"][1], "is_decoder", False)
    with pytest.raises(ModelError, match="its steps are not what it says in one pass"):
        generator_of("BERT", tmp_path)


def test_an_adapter_does_not_hide_what_the_probe_looks_for(tmp_path) -> None:
    """With an adapter that leaves passages alone, steps are not those of a plain pass, and are right."""
    lora = Lora(rank=2)
    tuned = generator_of("Llama", tmp_path / "plain").for_training(lora=lora)
    for name, weight in tuned.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, 0.5)
    again = CausalGenerator(tuned.model, tuned.tokenizer, lora=lora, max_input_tokens=48)
    assert again.capabilities.keeps_prefixes
    both = [g.log_p_theta(g.prepare(X, singles(PASSAGES)), g.targets(Y)) for g in (tuned, again)]
    assert torch.equal(*both)


# Languages


def test_mbart_50_writes_the_language_it_is_told_and_one_end(tmp_path) -> None:
    """Its tokenizer puts a language before every text and may put an end and a language after it."""
    from tokenizers.processors import TemplateProcessing

    generator = generator_of("mBART-50", tmp_path)
    assert generator.decoder_prefix == (tiny.END, 7)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "generation_config.json").unlink()  # as older checkpoints have it
    (tmp_path / "config.json").write_text(json.dumps({**config, "forced_bos_token_id": 8, "num_beams": 3}))
    older: Any = load_generator(tmp_path)
    assert (older.decoder_prefix, older.decoding_defaults) == ((tiny.END, 8), {})
    tokenizer = generator.tokenizer
    for single in (["<s>", "$A", "</s>"], ["$A", "</s>", "<s>"]):
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=single, special_tokens=[("<s>", tiny.BEGIN), ("</s>", tiny.END)]
        )
        again = Seq2SeqGenerator(generator.model, tokenizer)
        plain = tokenizer("paris", add_special_tokens=False)["input_ids"]
        assert again.targets(["paris"]).ids[0].tolist() == [*plain, tiny.END]


# Files


def test_special_numbers_in_a_configuration_are_read(tmp_path) -> None:
    """Mamba 2 and its kin have an infinite limit, which transformers writes as an object."""
    generator_of("Mamba 2", tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["time_step_limit"][1] == {"__float__": "Infinity"}


@pytest.mark.parametrize("save", [tiny.save_llama, tiny.save_bart])
def test_a_tokenizer_of_a_larger_model_is_refused(save: Any, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tiny, "VOCABULARY", tiny.VOCABULARY - 4)
    tiny.save_tokenizer(tmp_path, end=save is tiny.save_bart)
    save(tmp_path)
    with pytest.raises(ModelError, match="has a token 63, its model's embedding 60 tokens.*do not belong together"):
        load_generator(tmp_path)


def test_a_padding_token_that_the_model_lacks_is_not_needed(tmp_path) -> None:
    tokenizer = tiny.save_tokenizer(tmp_path, end=False)
    tiny.save_llama(tmp_path)
    tokenizer.add_special_tokens({"pad_token": "<fill>"})
    tokenizer.save_pretrained(tmp_path)
    generator = tiny.load_causal(tmp_path)
    assert generator.tokenizer.pad_token_id == tiny.VOCABULARY
    odd = [[Passage("a", "paris"), Passage("b", "the moon is red <fill>")]]
    assert torch.isfinite(generator.log_p_theta(generator.prepare(X[:1], singles(odd)), generator.targets(Y[:1]))).all()


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("pytorch_model.bin", "has pickled weights only .*save_pretrained of transformers do that"),
        ("adapter_config.json", "is a PEFT adapter, no model; name its base model as --generator"),
    ],
)
def test_folders_that_are_no_model_yet_say_what_to_do(file: str, message: str, tmp_path: Path) -> None:
    tiny.save_tokenizer(tmp_path, end=False)
    tiny.save_llama(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / file)
    if file == "adapter_config.json":
        (tmp_path / "config.json").unlink()
    with pytest.raises(ModelError, match=message) as caught:
        load_generator(tmp_path)
    assert "\n" not in str(caught.value)
