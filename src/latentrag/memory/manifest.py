"""What encoded a memory, and which encoders may therefore write to it or search it."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from latentrag.errors import EncoderMismatchError, MemoryStoreError

if TYPE_CHECKING:
    from latentrag.protocols import PassageEncoder, QueryEncoder

FORMAT_VERSION = 1
"""Version of the table's columns and of this manifest. A reader refuses any other."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The passage encoder of a memory; written when the memory is made, and anew when it is re-encoded.

    Attributes:
        encoder: its name, for people.
        fingerprint: what its vectors depend on; equal fingerprints, equal vectors.
        dimension: D.
        max_tokens: how many tokens of each passage it read.
        scale: s in p_η(z|x) ∝ exp(s·d(z)·q(x)), as the encoder was trained.
        format_version: of the table.
    """

    encoder: str
    fingerprint: str
    dimension: int
    max_tokens: int
    scale: float
    format_version: int = FORMAT_VERSION

    @classmethod
    def of(cls, encoder: PassageEncoder) -> Manifest:
        """The manifest of a memory that ``encoder`` fills."""
        return cls(
            encoder=encoder.name,
            fingerprint=encoder.fingerprint,
            dimension=encoder.dimension,
            max_tokens=encoder.max_tokens,
            scale=encoder.scale,
        )

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """The reverse of ``to_json``. Raises: MemoryStoreError for another format or no manifest at all."""
        try:
            fields = json.loads(text)
            found = fields["format_version"]
            if found == FORMAT_VERSION:
                return cls(**fields)
        except (ValueError, TypeError, KeyError) as error:
            raise MemoryStoreError(
                f"the memory's manifest cannot be read ({error!r}); restore the memory or build it again"
            ) from error
        raise MemoryStoreError(
            f"the memory has format {found}, this latentrag reads format {FORMAT_VERSION}; "
            "install the latentrag that wrote it or build the memory again"
        )

    def check_passage_encoder(self, encoder: PassageEncoder) -> None:
        """Refuse to mix vectors of two encoders. Raises: EncoderMismatchError."""
        if (encoder.fingerprint, encoder.dimension) != (self.fingerprint, self.dimension):
            raise EncoderMismatchError(
                f"passage encoder {_named(encoder.name, encoder.fingerprint, encoder.dimension)} differs from "
                f"{_named(self.encoder, self.fingerprint, self.dimension)}, which encoded the memory; "
                "use that one or build a new memory"
            )

    def check_dimension(self, encoder: PassageEncoder) -> None:
        """Refuse vectors that the table has no room for. Raises: EncoderMismatchError."""
        if encoder.dimension != self.dimension:
            raise EncoderMismatchError(
                f"passage encoder {encoder.name} has {encoder.dimension} dimensions, the memory's vectors have "
                f"{self.dimension}; re-encode with an encoder of {self.dimension} or build a new memory"
            )

    def check_query_encoder(self, encoder: QueryEncoder) -> None:
        """Refuse queries that do not live in the space of the vectors; warn where that cannot be known.

        Raises: EncoderMismatchError.
        """
        remedy = f"use the query encoder that belongs to {self.encoder} or build a new memory"
        if encoder.dimension != self.dimension:
            raise EncoderMismatchError(
                f"the query encoder has {encoder.dimension} dimensions, the memory's vectors have "
                f"{self.dimension}; {remedy}"
            )
        if encoder.passage_fingerprint is None:
            warnings.warn(
                "cannot verify that the query encoder fits the memory: its files name no passage encoder, "
                f"the memory was encoded by {self.encoder}",
                stacklevel=3,
            )
        elif encoder.passage_fingerprint != self.fingerprint:
            raise EncoderMismatchError(
                f"the query encoder's passage encoder has fingerprint {encoder.passage_fingerprint}, "
                f"the memory was encoded by {self.encoder} with {self.fingerprint}; {remedy}"
            )


def _named(name: str, fingerprint: str, dimension: int) -> str:
    return f"{name} ({fingerprint}, {dimension} dimensions)"
