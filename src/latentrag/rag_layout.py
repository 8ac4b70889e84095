"""Checkpoints in the layout of facebook/rag-*: question encoder and generator in one file.

rag.question_encoder.question_encoder.bert_model.*     DPR's question encoder
rag.generator.model.*, rag.generator.final_logits_bias  BART (or T5)
question_encoder_tokenizer/, generator_tokenizer/
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentrag.encoder.dpr import DprQueryEncoder, load_query_module
from latentrag.errors import ModelError
from latentrag.generator.loading import build_generator, model_class, take_generation_settings
from latentrag.pretrained import build, config_of, load_tokenizer, read_weights

if TYPE_CHECKING:
    import torch

    from latentrag.generator import CausalGenerator, Seq2SeqGenerator


def load(
    folder: Path, content: Mapping[str, Any], *, name: str, dtype: torch.dtype, int8: bool = False
) -> tuple[DprQueryEncoder, Seq2SeqGenerator | CausalGenerator]:
    """Both halves of a checkpoint.

    Its decoder prefix is the begin token alone, since such models are trained with ``decoder_input_ids = labels``.
    Differs: Hugging Face's RAG starts generating from another token than it was trained on (decoder_start_token_id);
    ours scores and decodes from the same one.

    Args:
        content: of config.json.
        name: for messages.
        int8: compute the generator's linear layers in eight bits.
    Raises: ModelError if either half is missing or broken.
    """
    halves = {key: content.get(key) for key in ("question_encoder", "generator")}
    for key, half in halves.items():
        if not isinstance(half, dict):
            raise ModelError(f"{folder / 'config.json'} has no {key}; needed a checkpoint of RAG with both its models")
    weights = {key.removeprefix("rag."): tensor for key, tensor in read_weights(folder).items()}

    def of(half: str) -> dict[str, torch.Tensor]:
        return {key.removeprefix(half): tensor for key, tensor in weights.items() if key.startswith(half)}

    query_config = config_of({"model_type": "dpr", **(halves["question_encoder"] or {})}, folder / "config.json")
    query_module, query_tokenizer = load_query_module(
        folder / "question_encoder_tokenizer", query_config, of("question_encoder."), dtype=dtype
    )
    generator_config = config_of({"model_type": "bart", **(halves["generator"] or {})}, folder / "config.json")
    model = build(model_class(generator_config), generator_config, of("generator."), folder=folder, dtype=dtype)
    take_generation_settings(model, folder, halves["generator"] or {})
    tokenizer = load_tokenizer(folder / "generator_tokenizer", what="generator")
    return (
        DprQueryEncoder(query_module, query_tokenizer, name=name),
        build_generator(model, tokenizer, _settings(content, halves["generator"] or {}, tokenizer), int8=int8),
    )


def _settings(content: Mapping[str, Any], generator: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    begins = tokenizer.bos_token_id is not None and tokenizer(text_target="a")["input_ids"][0] == tokenizer.bos_token_id
    return {
        "template": {
            "prefix": generator.get("prefix") or "",
            "title_sep": content.get("title_sep", " / "),
            "passage_sep": content.get("doc_sep", " // "),
        },
        "max_input_tokens": content.get("max_combined_length", 300),
        "decoder_prefix": [tokenizer.bos_token_id] if begins else None,
    }
