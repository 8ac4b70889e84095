"""Vectors of texts as OpenAI's clients ask for them: q(x) of questions, d(z) of passages."""

from __future__ import annotations

import asyncio
import base64
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, field_validator

from latentrag.errors import InputError, LatentRagError
from latentrag.protocols import CountsTokens, HasQueryEncoder, PassageEncoder
from latentrag.serving import options as limit
from latentrag.serving.failures import Refused
from latentrag.serving.schemas import Asked, Text
from latentrag.types import Passage

if sys.version_info >= (3, 12):
    from typing import TypedDict
else:
    from typing_extensions import TypedDict

if TYPE_CHECKING:
    from torch import Tensor

    from latentrag.rag import Rag

AT_ONCE = 32
"""Texts that are encoded without letting others in between."""

InputType = Literal["query", "passage"]


class EmbeddingRequest(Asked):
    """Texts to encode. ``input_type``: query, for questions; passage, for what they are compared with. Fields that are
    not known here are ignored."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: Annotated[str, Field(min_length=1, max_length=limit.MAX_NAME)]
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=limit.MAX_EMBEDDED)]
    input_type: InputType = "query"
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, description="Nothing but the encoder's own number.")] | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _no_tokens(cls, value: object) -> object:
        if isinstance(value, list) and any(isinstance(each, int | list) for each in value):
            raise ValueError("got tokens, needed text; in LangChain pass check_embedding_ctx_length=False")
        return value

    @property
    def texts(self) -> list[str]:
        """All of them."""
        return [self.input] if isinstance(self.input, str) else self.input


class EmbeddingRecord(TypedDict):
    """A vector; as base64 it is 32-bit floats, little-endian."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsageRecord(TypedDict):
    """Tokens that were read; 0 from an encoder that does not count them."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsRecord(TypedDict):
    """The vectors, in the order of the texts."""

    object: Literal["list"]
    data: list[EmbeddingRecord]
    model: str
    usage: EmbeddingUsageRecord


@dataclass(slots=True)
class Encoders:
    """The encoders behind a model.

    Args:
        load: loads the passage encoder where the query encoder is not one, too; None: it is not at hand.
    """

    load: Callable[[], PassageEncoder] | None = None
    _loaded: PassageEncoder | None = None
    _loading: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def encoder(self, rag: Rag, of: InputType) -> Any:
        """Of questions, or of passages, which is loaded when it is first asked for. Raises: Refused."""
        retriever = rag.retriever
        if not isinstance(retriever, HasQueryEncoder):
            raise Refused(422, "this model retrieves by words, without vectors; ask a model with an encoder", "encoder")
        own = retriever.query_encoder
        if of == "query":
            return own
        found = await self.of_passages(own)
        if found is None:
            message = "the encoder of passages is not at hand; ask for input_type=query"
            raise Refused(422, message, "encoder", param="input_type")
        return found

    async def of_passages(self, own: Any) -> PassageEncoder | None:
        """The encoder of passages, loaded when it is first asked for; None if it is not at hand.

        Args: own: the model's query encoder; None for one that retrieves by words.
        """
        async with self._loading:
            if self._loaded is None:
                self._loaded = await asyncio.to_thread(self._passage_encoder, own)
        return self._loaded

    def _passage_encoder(self, own: Any) -> PassageEncoder | None:
        if isinstance(own, PassageEncoder) and getattr(own, "passage_fingerprint", None) in {None, own.fingerprint}:
            return own
        try:
            return None if self.load is None else self.load()
        except LatentRagError:
            return None


def check(asked: EmbeddingRequest, encoder: Any) -> int:
    """How many tokens there are to read; 0 where the encoder does not count.

    Raises: InputError for a text that is longer than it reads; Refused for another number of dimensions.
    """
    if asked.dimensions not in {None, encoder.dimension}:
        message = f"dimensions={asked.dimensions}, but this encoder's vectors have {encoder.dimension}; leave it out"
        raise Refused(422, message, "invalid_value", param="dimensions")
    if not isinstance(encoder, CountsTokens):
        return 0
    counts = [encoder.count_tokens("", text) for text in asked.texts]
    most = getattr(encoder, "max_tokens", max(counts))
    too_long = next((number for number, count in enumerate(counts) if count > most), None)
    if too_long is not None:
        raise InputError(
            f"text {too_long + 1} of {len(counts)} has {counts[too_long]} tokens, but the encoder reads {most}; "
            "shorten it"
        )
    return sum(counts)


def slices(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """So that others are answered in between."""
    return (texts[start : start + AT_ONCE] for start in range(0, len(texts), AT_ONCE))


def encoding(encoder: Any, of: InputType) -> Callable[[Sequence[str]], Tensor]:
    """How texts become vectors (B, D)."""
    if of == "query":
        encode: Callable[[Sequence[str]], Tensor] = encoder.encode_queries
        return encode
    return lambda texts: encoder.encode_passages([Passage(str(n), text) for n, text in enumerate(texts)])


def record(asked: EmbeddingRequest, vectors: Sequence[np.ndarray], num_tokens: int) -> EmbeddingsRecord:
    """What is answered. vectors: float32, of each slice."""
    rows = np.concatenate(vectors).astype("<f4")
    as_text = asked.encoding_format == "base64"
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": number,
                "embedding": base64.b64encode(row.tobytes()).decode() if as_text else row.tolist(),
            }
            for number, row in enumerate(rows)
        ],
        "model": asked.model,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }
