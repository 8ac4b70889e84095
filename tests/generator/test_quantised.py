"""Checkpoints whose weights another library has quantised: transformers loads them where that library is installed."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from latentrag.errors import ModelError
from latentrag.types import Passage, singles
from tests import tiny

X, Y = ["what is the capital", "which moon is red"], ["paris", "a moon of mars"]
PASSAGES = [[Passage("a", "paris is the capital of france"), Passage("b", "the red moon of mars")]] * 2


def plain(folder: Path) -> Path:
    """Bitsandbytes divides rows into blocks of 64."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tiny.save_tokenizer(folder, end=False)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"bos_token_id": tiny.BEGIN, "eos_token_id": tiny.END, "pad_token_id": tiny.PAD}
    config = LlamaConfig(vocab_size=tiny.VOCABULARY, **sizes, **tokens, initializer_range=0.3)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def quantised(folder: Path, **how: object) -> Path:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    whole, made = plain(folder / "plain"), folder / "quantised"
    shutil.copytree(whole, made)
    chosen = BitsAndBytesConfig(**how)
    AutoModelForCausalLM.from_pretrained(whole, quantization_config=chosen, device_map="cpu").save_pretrained(made)
    return made


@torch.no_grad()
def test_four_bits_of_bitsandbytes(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM

    folder = quantised(tmp_path, load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="float32")
    generator = tiny.load_causal(folder)
    assert type(generator.model.model.layers[0].self_attn.q_proj).__name__ == "Linear4bit"
    theirs = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu")
    prepared, targets = generator.prepare(X, singles(PASSAGES)), generator.targets(Y)
    found = generator.log_p_theta(prepared, targets)
    for b, rows in enumerate(torch.tensor_split(torch.arange(4), 2)):
        for k, row in enumerate(rows.tolist()):
            prompt, y = prepared.whole_rows()[row], targets.ids[b][targets.mask[b]].tolist()
            logits = theirs(torch.tensor([[*prompt, *y[:-1]]])).logits[0, len(prompt) - 1 :]
            expected = tiny.log_probs(generator, logits)[range(len(y)), y]
            # Its kernels compute in bfloat16 on some processors.
            torch.testing.assert_close(found[b, k, : len(y)], expected, rtol=0.05, atol=0.1)


def test_eight_bits_whose_products_depend_on_their_company_are_refused(tmp_path: Path) -> None:
    """LLM.int8() looks for outliers in all rows that are multiplied together."""
    pytest.importorskip("bitsandbytes")
    folder = quantised(tmp_path, load_in_8bit=True, llm_int8_threshold=1.0)
    with pytest.raises(ModelError, match=r"its steps are not what it says in one pass\); name another model$"):
        tiny.load_causal(folder)


@pytest.mark.parametrize(
    ("library", "settings"),
    [
        ("bitsandbytes", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ("optimum", {"quant_method": "gptq", "bits": 4}),
        ("gptqmodel", {"quant_method": "awq", "bits": 4}),
    ],
)
def test_a_library_that_is_missing_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, settings: dict[str, object]
) -> None:
    folder = plain(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    monkeypatch.setitem(sys.modules, library, None)
    for module in list(sys.modules):
        if module.startswith("transformers.quantizers"):
            monkeypatch.setattr(sys.modules[module], f"is_{library}_available", lambda: False, raising=False)
    with pytest.raises(ModelError) as raised:
        tiny.load_causal(folder)
    message = str(raised.value)
    assert "\n" not in message
    assert library in message
    assert "does not load as LlamaForCausalLM" in message
