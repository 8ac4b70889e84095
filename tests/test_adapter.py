"""Adapters in PEFT's layout: merged when the generator is opened."""

import shutil
from pathlib import Path

import pytest
import torch

import latentrag
from latentrag.assemble import ModelSpec, save
from tests import tiny
from tests.cli.conftest import QUESTION, cli, encoder, files, generator, memory, model

__all__ = ["encoder", "files", "generator", "memory", "model"]

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers")


@pytest.fixture(scope="session")
def adapter(generator: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LoRA that matters, of the tiny generator."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(generator)
    adapted = get_peft_model(base, LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.fill_(0.2)
    folder = tmp_path_factory.mktemp("parts") / "adapter"
    adapted.save_pretrained(str(folder))
    return folder


def test_it_is_what_peft_computes_and_is_saved_with_the_model(encoder, generator, adapter, memory, tmp_path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    rag = latentrag.load(ModelSpec(encoder, generator, adapter=adapter), memory=memory, k=3)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(generator)
        plain = base(ids).logits
        theirs = PeftModel.from_pretrained(base, str(adapter))(ids).logits
        ours = tiny.causal_of(rag).model(ids).logits
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(ours, plain, atol=0.01)
    score = rag.score(QUESTION, "Beethoven").log_likelihood
    save(rag, tmp_path / "saved")
    assert latentrag.load(tmp_path / "saved", memory=memory).score(QUESTION, "Beethoven").log_likelihood == score


def test_the_command(encoder, generator, adapter, memory) -> None:
    source = ["--encoder", encoder, "--generator", generator, "-i", memory, "-k", 3, "--json"]
    with_it = cli("ask", QUESTION, *source, "--adapter", adapter)
    assert with_it.code == 0
    assert with_it.json["log_prob"] != cli("ask", QUESTION, *source).json["log_prob"]
    assert "without --generator" in cli("ask", QUESTION, "-i", memory, "--adapter", adapter).error()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "no adapter_config.json"),
        (lambda folder: (folder / "adapter_model.safetensors").rename(folder / "x.bin"), "convert its weights"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"half"), "does not fit this generator"),
        (
            lambda folder: (folder / "adapter_config.json").write_text(
                (folder / "adapter_config.json").read_text().replace("q_proj", "c_attn").replace("v_proj", "c_attn")
            ),
            "does not fit this generator",
        ),
    ],
)
def test_what_is_no_adapter_of_this_generator(change, said, encoder, generator, adapter, memory, tmp_path) -> None:
    shutil.copytree(adapter, tmp_path / "copy")
    change(tmp_path / "copy")
    refused = cli(
        "ask", QUESTION, "--encoder", encoder, "--generator", generator, "-i", memory, "--adapter", tmp_path / "copy"
    )
    assert said in refused.error()
