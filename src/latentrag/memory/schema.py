"""The columns of a memory's table, passages as rows and rows as passages; which encoder made the vectors."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from latentrag.errors import DataError, EncoderMismatchError, InputError, MemoryStoreError
from latentrag.types import Passage

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from latentrag.protocols import PassageEncoder, QueryEncoder
    from latentrag.types import Scalar

FORMAT_VERSION = 1
"""Of the table's columns and of the card. A reader refuses any other."""
CARD_KEY = b"latentrag.manifest"
LINEAGE_KEY = b"latentrag.lineage"
"""Where the table's metadata say which memory it is, through all its versions; older memories lack it."""
PASSAGE_COLUMNS = ["id", "text", "title", "source", "start", "end", "page", "origin", "fields"]
REENCODE = "bring the memory to another encoder with `latentrag index reencode MEMORY --encoder NAME`"
LATER_COLUMNS = ["origin", "fields"]
"""Columns that older memories get with the first commit that fills them; null means nothing there."""


# The encoder


@dataclass(frozen=True, slots=True)
class EncoderCard:
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
    def of(cls, encoder: PassageEncoder) -> EncoderCard:
        """The card of a memory that ``encoder`` fills."""
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
    def from_json(cls, text: str) -> EncoderCard:
        """The reverse of ``to_json``. Raises: MemoryStoreError for another format or no card at all."""
        try:
            fields = json.loads(text)
            format_version = fields["format_version"]
            if format_version == FORMAT_VERSION:
                return cls(**fields)
        except (ValueError, TypeError, KeyError) as error:
            raise MemoryStoreError(
                f"the card of the memory's encoder cannot be read ({error!r}); restore the memory or build it again"
            ) from error
        raise MemoryStoreError(
            f"the memory has format {format_version}, this latentrag reads format {FORMAT_VERSION}; "
            "install the latentrag that wrote it or build the memory again"
        )

    def check_passage_encoder(self, encoder: PassageEncoder) -> None:
        """Refuse to mix vectors of two encoders. Raises: EncoderMismatchError."""
        if (encoder.fingerprint, encoder.dimension) != (self.fingerprint, self.dimension):
            raise EncoderMismatchError(
                f"passage encoder {_named(encoder.name, encoder.fingerprint, encoder.dimension)} differs from "
                f"{_named(self.encoder, self.fingerprint, self.dimension)}, which encoded the memory; "
                f"use that one, or {REENCODE}"
            )

    def check_query_encoder(self, encoder: QueryEncoder) -> None:
        """Refuse queries that do not live in the space of the vectors; warn where that cannot be known.

        Raises: EncoderMismatchError.
        """
        remedy = f"use the query encoder that belongs to {self.encoder}, or {REENCODE}"
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


# Columns and rows


def schema(card: EncoderCard) -> pa.Schema:
    """The columns; vectors are fp16, offsets and page as in ``Passage``, ``fields`` a JSON object. The card is their
    metadata."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("text", pa.string(), nullable=False),
            pa.field("title", pa.string(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("start", pa.int64(), nullable=False),
            pa.field("end", pa.int64(), nullable=False),
            pa.field("page", pa.int32(), nullable=True),
            pa.field("vector", pa.list_(pa.float16(), card.dimension), nullable=False),
            *(pa.field(name, pa.string(), nullable=True) for name in LATER_COLUMNS),
        ],
        metadata={CARD_KEY: card.to_json().encode()},
    )


def columns_needed(passages: Iterable[Passage]) -> set[str]:
    """Which of ``LATER_COLUMNS`` these passages fill."""
    return {name for passage in passages for name in LATER_COLUMNS if getattr(passage, name)}


def to_record_batch(
    columns: pa.Schema, passages: Sequence[Passage], vectors: npt.NDArray[np.float16]
) -> pa.RecordBatch:
    """Rows with these columns. vectors: (n, D). Raises: DataError for a value that its column cannot hold."""
    import pyarrow as pa

    arrays = {"vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])}
    try:
        for name in columns.names:
            if name == "fields":
                arrays[name] = pa.array([fields_to_json(passage.fields) for passage in passages], pa.string())
            elif name != "vector":
                arrays[name] = pa.array([getattr(passage, name) for passage in passages], columns.field(name).type)
    except (pa.ArrowException, UnicodeError, OverflowError, ValueError, TypeError) as error:
        raise DataError(
            f"one of {passages[0].id!r} to {passages[-1].id!r} cannot be stored ({error}); correct it"
        ) from error
    return pa.RecordBatch.from_arrays([arrays[name] for name in columns.names], schema=columns)


def with_all_columns(rows: pa.RecordBatch, columns: pa.Schema) -> pa.RecordBatch:
    """The same rows with these columns: an older memory may lack the last ones."""
    import pyarrow as pa

    arrays = [
        rows[name] if name in rows.schema.names else pa.nulls(len(rows), columns.field(name).type)
        for name in columns.names
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=columns)


def to_passages(rows: pa.RecordBatch | pa.Table) -> list[Passage]:
    """The passages of these rows; one without an origin was added by hand."""
    present = set(rows.schema.names)
    columns = {name: rows[name].to_pylist() for name in PASSAGE_COLUMNS if name in present}
    for name in LATER_COLUMNS:
        columns.setdefault(name, [None] * rows.num_rows)
    columns["origin"] = [origin or "" for origin in columns["origin"]]
    columns["fields"] = [{} if text is None else json.loads(text) for text in columns["fields"]]
    return [Passage(*values) for values in zip(*(columns[name] for name in PASSAGE_COLUMNS), strict=True)]


def require_known(ids: Iterable[str], known: Collection[str], place: str) -> None:
    """Raises: InputError for ids that are not among those known; ``place`` says where that is."""
    if unknown := [key for key in ids if key not in known]:
        shown = ", ".join(map(repr, unknown[:3])) + (", …" if len(unknown) > 3 else "")
        raise InputError(f"{len(unknown)} ids are {place}: {shown}; leave them out")


def to_vectors(rows: pa.RecordBatch, dimension: int) -> npt.NDArray[np.float16]:
    """The vectors of these rows, (n, D)."""
    vectors: npt.NDArray[np.float16] = rows["vector"].flatten().to_numpy(zero_copy_only=False)
    return vectors.reshape(len(rows), dimension)


def fields_to_json(fields: Mapping[str, Scalar]) -> str | None:
    """As the table keeps them: equal fields, equal text; None for none. Raises: ValueError or TypeError for a value
    that is no text, finite number or bool."""
    if not fields:
        return None
    for name, value in fields.items():
        if not isinstance(value, str | int | float):
            raise TypeError(f"the field {name!r} is {value!r}, needed text, a number, true or false")
    return json.dumps(dict(fields), ensure_ascii=False, allow_nan=False, sort_keys=True)
