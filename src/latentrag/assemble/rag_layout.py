"""Checkpoints in the layout of facebook/rag-*: question encoder and generator in one file.

rag.question_encoder.question_encoder.bert_model.*     DPR's question encoder
rag.generator.model.*, rag.generator.final_logits_bias  BART (or T5)
question_encoder_tokenizer/, generator_tokenizer/
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentrag.encoder.dpr import DprQueryEncoder, load_module
from latentrag.errors import ModelError
from latentrag.generator import Seq2SeqGenerator
from latentrag.place import Place
from latentrag.pretrained import config_of, load_tokenizer, read_object, read_weights

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


class RagCheckpoint:
    """Both halves of a checkpoint, each built when asked for; the weights are read once.

    Args:
        name: for messages.
    Raises: ModelError if its configuration lacks either half.
    """

    def __init__(self, folder: Path, *, name: str) -> None:
        self.folder, self.name = folder, name
        self.config = read_object(folder / "config.json")
        for key in ("question_encoder", "generator"):
            if not isinstance(self.config.get(key), dict):
                raise ModelError(
                    f"{folder / 'config.json'} has no {key}; needed a checkpoint of RAG with both its models"
                )

    def query_encoder(self, place: Place) -> DprQueryEncoder:
        """Raises: ModelError if this half is missing or broken."""
        config = config_of({"model_type": "dpr", **self.config["question_encoder"]}, self.folder / "config.json")
        folder, weights = self.folder / "question_encoder_tokenizer", self._weights_of("question_encoder.")
        module, tokenizer = load_module(folder, config, weights, role="query", dtype=self._dtype(place))
        return DprQueryEncoder(module.to(place.device), tokenizer, name=self.name)

    def generator(self, place: Place) -> Seq2SeqGenerator:
        """Its decoder prefix is the begin token alone, since such models are trained with ``decoder_input_ids =
        labels``.

        Differs: Hugging Face's RAG starts generating from another token than it was trained on
        (decoder_start_token_id); ours scores and decodes from the same one.

        Raises: ModelError if this half is missing or broken.
        """
        half: dict[str, Any] = self.config["generator"]
        config = config_of({"model_type": "bart", **half}, self.folder / "config.json")
        tokenizer = load_tokenizer(self.folder / "generator_tokenizer", what="generator")
        return Seq2SeqGenerator.of_weights(
            config,
            self._weights_of("generator."),
            tokenizer,
            self._settings(half, tokenizer),
            folder=self.folder,
            place=place,
            dtype=self._dtype(place),
            older=half,
        )

    @cached_property
    def _weights(self) -> Mapping[str, torch.Tensor]:
        return {key.removeprefix("rag."): tensor for key, tensor in read_weights(self.folder).items()}

    def _weights_of(self, half: str) -> dict[str, torch.Tensor]:
        return {key.removeprefix(half): tensor for key, tensor in self._weights.items() if key.startswith(half)}

    def _dtype(self, place: Place) -> torch.dtype:
        return place.dtype(self.config.get("dtype", self.config.get("torch_dtype")))

    def _settings(self, half: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
        begin = tokenizer.bos_token_id
        begins = begin is not None and tokenizer(text_target="a")["input_ids"][0] == begin
        return {
            "template": {
                "prefix": half.get("prefix") or "",
                "title_sep": self.config.get("title_sep", " / "),
                "passage_sep": self.config.get("doc_sep", " // "),
            },
            "max_input_tokens": self.config.get("max_combined_length", 300),
            "decoder_prefix": [begin] if begins else None,
        }
