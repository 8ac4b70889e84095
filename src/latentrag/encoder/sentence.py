"""Sentence encoders: one model for questions and passages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentrag.encoder.batching import encode_rows, frozen
from latentrag.encoder.fingerprint import Fingerprint
from latentrag.encoder.pooling import Dense
from latentrag.encoder.saved import Saved, check_scale, dtype_name
from latentrag.encoder.sentence_folder import save_sentence_module
from latentrag.encoder.sentence_module import SentenceModule, SentenceSettings
from latentrag.encoder.tokens import TextTokenizer, TokenRow, check_questions
from latentrag.errors import ModelError
from latentrag.packed import pack
from latentrag.types import Passage

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn

NORMALISED_SCALE = 20.0
"""What sentence-transformers' usual loss multiplies cosines by; without it the prior is almost flat."""


class SentenceEncoder:
    """q(x) and d(z) by one model.

    A query encoder that is trained moves away from the passage encoder that it began as, and its queries still
    belong to the vectors of that one: ``passage_fingerprint`` is settled when the encoder is made and changed by
    ``pair_with`` alone, and ``fingerprint`` follows the weights.

    Args:
        module: in eval mode unless the caller trains it.
        scale: s in p_η(z|x) ∝ exp(s·d(z)·q(x)); None: 20 if the vectors are normalised, else 1.
        passage_fingerprint: of the passage encoder it is paired with; None: itself, as it is now.
        batch_tokens: tokens in a forward pass, padding included; None: as many as suit the device.
    Raises: ModelError if a prompt leaves no room for a text.
    """

    def __init__(
        self,
        module: SentenceModule,
        tokenizer: TextTokenizer,
        *,
        name: str,
        settings: SentenceSettings,
        scale: float | None = None,
        passage_fingerprint: str | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        pack(module)
        self.module = module
        self._tokenizer = tokenizer
        self._settings = settings
        self.batch_tokens = batch_tokens
        self._name = name
        default = NORMALISED_SCALE if module.normalised else 1.0
        self._scale = check_scale(default if scale is None else scale)
        for prompt in (settings.query_prompt, settings.passage_prompt):
            if tokenizer.num_leading_tokens(prompt) + 2 > tokenizer.max_tokens:
                raise ModelError(
                    f"{name} has a prompt that fills the {tokenizer.max_tokens} tokens it reads: {prompt!r}"
                )
        self._fingerprint = Fingerprint(
            module, module.transformer.config, tokenizer=tokenizer, settings=self._passage_settings()
        )
        self._passage_fingerprint = passage_fingerprint or self._fingerprint.value

    @property
    def name(self) -> str:
        return self._name

    @property
    def fingerprint(self) -> str:
        return self._fingerprint.value

    @property
    def passage_fingerprint(self) -> str:
        return self._passage_fingerprint

    @property
    def dimension(self) -> int:
        return self.module.dimension

    @property
    def max_tokens(self) -> int:
        """How much it reads of a question (longer ones are refused) or a passage (longer ones are cut)."""
        return self._tokenizer.max_tokens

    @property
    def scale(self) -> float:
        return self._scale

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.module.parameters()

    def encode_queries(self, x: Sequence[str]) -> Float[Tensor, "B D"]:
        """q(x), float32, differentiable unless grad mode is off.

        Raises: InputError for a question that is empty or, with its prompt, longer than ``max_tokens``.
        """
        check_questions(x)
        rows = self._tokenizer.question_rows([self._settings.question(text) for text in x])
        return self._encode(rows, prompt=self._settings.query_prompt)

    def encode_passages(self, passages: Sequence[Passage], *, progress: bool = False) -> Float[Tensor, "N D"]:
        """d(z), float32, on the CPU and without gradient; what lies beyond ``max_tokens`` is cut."""
        with frozen(self.module):
            return self.passage_vectors(passages, progress=progress).cpu()

    def passage_vectors(self, passages: Sequence[Passage], *, progress: bool = False) -> Float[Tensor, "N D"]:
        """d(z) as ``encode_passages`` gives it, but on the module's device, in the module's mode (train or eval), and
        differentiable unless grad mode is off."""
        rows = self._tokenizer.rows([self._settings.passage(z) for z in passages])
        return self._encode(rows, prompt=self._settings.passage_prompt, progress=progress)

    def pair_with(self, passage_fingerprint: str) -> None:
        """From now on its queries belong to the vectors of the passage encoder with this fingerprint."""
        self._passage_fingerprint = passage_fingerprint

    def save(self, folder: str | Path) -> None:
        """sentence-transformers' layout, and latentrag_encoder.json for the scale and the pairing."""
        saved = Saved(
            kind="sentence",
            role="both",
            name=self.name,
            scale=self.scale,
            passage_fingerprint=self.passage_fingerprint,
            dtype=dtype_name(self.module.transformer),
        )
        save_sentence_module(self.module, self._tokenizer, settings=self._settings, saved=saved, folder=Path(folder))

    def _encode(self, rows: Sequence[TokenRow], *, prompt: str, progress: bool = False) -> Tensor:
        num_prompt_tokens = self._tokenizer.num_leading_tokens(prompt)
        return encode_rows(
            rows,
            lambda batch: self.module(batch, num_prompt_tokens),
            module=self.module.transformer,
            dimension=self.dimension,
            batch_tokens=self.batch_tokens,
            progress=progress,
        )

    def _passage_settings(self) -> dict[str, Any]:
        return {
            "kind": "sentence",
            "title": "line",
            "max_tokens": self.max_tokens,
            "prompt": self._settings.passage_prompt,
            "lower_case": self._settings.lower_case,
            "pooling": [*self.module.pooling.modes],
            "include_prompt": self.module.pooling.include_prompt,
            "head": [layer.activation_name if isinstance(layer, Dense) else "normalize" for layer in self.module.head],
        }
