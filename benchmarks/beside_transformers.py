"""What benchmarks beside transformers share: its BART with random weights, its RAG around it, and their options."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks import turns
from latentrag.types import Variant

BEGIN, PAD, END = 0, 1, 2
SAVED = Path("build/bench/bart")


def saved_bart(size: str, *, seed: int) -> Path:
    """The folder of one that writes as long as it may, written at the first call."""
    folder = SAVED / f"{size}-{seed}"
    if not folder.is_dir():
        new = folder.with_name(f"{folder.name}.new")
        bart(size, seed=seed, forced_eos_token_id=None).save_pretrained(new)
        new.rename(folder)
    return folder


def loaded_bart(size: str, *, seed: int) -> Any:
    """The same from disk, as models are loaded, which have been saved before."""
    from transformers import BartForConditionalGeneration

    return BartForConditionalGeneration.from_pretrained(SAVED / f"{size}-{seed}", local_files_only=True).eval()


def bart(size: str, *, seed: int, **changes: Any) -> Any:
    """BART with random weights, sharp enough that beams differ. size: "tiny", "base", "large"."""
    from transformers import BartConfig, BartForConditionalGeneration

    width, layers, heads = {"tiny": (16, 1, 2), "base": (768, 6, 12), "large": (1024, 12, 16)}[size]
    torch.manual_seed(seed)
    shape = {
        "d_model": width,
        "encoder_layers": layers,
        "decoder_layers": layers,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": 4 * width,
        "decoder_ffn_dim": 4 * width,
    }
    return BartForConditionalGeneration(BartConfig(**shape, init_std=0.06, **changes)).eval()


def rag_of(model: Any, variant: Variant, num_passages: int) -> Any:
    """Transformers' RAG around a BART, with a question encoder that is never asked."""
    from transformers import DPRConfig, DPRQuestionEncoder, RagConfig, RagSequenceForGeneration, RagTokenForGeneration

    reader = DPRQuestionEncoder(DPRConfig(num_hidden_layers=1, hidden_size=16, num_attention_heads=2, vocab_size=64))
    config = RagConfig.from_question_encoder_generator_configs(
        reader.config,
        model.config,
        n_docs=num_passages,
        pad_token_id=PAD,
        bos_token_id=BEGIN,
        eos_token_id=END,
        decoder_start_token_id=BEGIN,
        forced_eos_token_id=None,
    )
    kind = RagTokenForGeneration if variant == "token" else RagSequenceForGeneration
    rag = kind(config, question_encoder=reader, generator=model).eval()
    rag.generator.generation_config.decoder_start_token_id = BEGIN
    return rag


class Tokenizer(SimpleNamespace):
    """As much of a tokenizer as the generator asks before it reads text; the contexts are tokens already."""

    def __init__(self) -> None:
        super().__init__(eos_token_id=END, pad_token_id=PAD, bos_token_id=BEGIN, model_max_length=1024)
        self.added_tokens_decoder: dict[int, object] = {}
        self.vocab_size, self.chat_template = 0, None

    def __call__(self, texts: Sequence[str], **_: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [[] for _ in texts]}


def parser(description: str | None, ways: Sequence[str]) -> argparse.ArgumentParser:
    """The options that all of them have."""
    made = turns.parser(description, ways)
    made.add_argument("--size", choices=["tiny", "base", "large"], default="base")
    made.add_argument("--passages", type=int, default=5)
    return made
