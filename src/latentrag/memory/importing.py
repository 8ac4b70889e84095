"""Vectors made elsewhere, brought into a memory by the way of all passages: committed in parts, resumed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from latentrag.errors import EncoderMismatchError
from latentrag.memory.memory import add
from latentrag.memory.writer import PASSAGES_PER_ENCODING, Added
from latentrag.types import Passage

if TYPE_CHECKING:
    from torch import Tensor

    from latentrag.memory.sources import Batch
    from latentrag.memory.storage import Place
    from latentrag.protocols import PassageEncoder

MIN_COSINE = 0.99
"""Between a vector and that of the encoder, in the median of a sample; two number formats differ by less than 0.001."""
_SAMPLE = 32


def import_vectors(
    path: Place,
    batches: Iterable[Batch],
    encoder: PassageEncoder,
    *,
    passages_per_commit: int | None = None,
    progress: bool = False,
) -> Added:
    """Add passages with vectors that they have already to the memory at a path, which is made if it is not there.

    Args:
        batches: passages and their vectors (n, D), as ``read_source`` gives them.
        encoder: by which the vectors were made. It encodes a sample of each batch again, to see that they were.
        passages_per_commit: as for ``add_passages``.
    Raises: EncoderMismatchError for vectors of another encoder; otherwise as ``memory.add``.
    """
    ready = _Ready(encoder)
    return add(path, ready.passages(batches), lambda: ready, passages_per_commit=passages_per_commit, progress=progress)


class _Ready:
    """A passage encoder that hands out what is there."""

    def __init__(self, encoder: PassageEncoder) -> None:
        self._encoder = encoder
        self._held: OrderedDict[str, npt.NDArray[np.float32]] = OrderedDict()
        self._sample = _SAMPLE
        self.name = encoder.name
        self.fingerprint = encoder.fingerprint
        self.dimension = encoder.dimension
        self.max_tokens = encoder.max_tokens
        self.scale = encoder.scale

    def passages(self, batches: Iterable[Batch]) -> Iterator[Passage]:
        """The passages, one after the other; their vectors are held until they are asked for."""
        for passages, vectors in batches:
            if vectors.shape != (len(passages), self.dimension):
                raise EncoderMismatchError(
                    f"the vectors have {vectors.shape[-1]} dimensions, those of {self.name} {self.dimension}; name "
                    "the encoder that made them"
                )
            for passage, vector in zip(passages, vectors, strict=True):
                self._held[passage.id] = vector
                while len(self._held) > 2 * PASSAGES_PER_ENCODING:  # of passages that the memory has already
                    self._held.popitem(last=False)
                yield passage

    def encode_passages(self, passages: Sequence[Passage], *, progress: bool = False) -> Tensor:  # noqa: ARG002
        """(N, D) float32: the vectors that came with the passages. Raises: EncoderMismatchError."""
        import torch

        vectors = torch.from_numpy(np.stack([self._held.pop(passage.id) for passage in passages]))
        places = np.linspace(0, len(passages) - 1, min(self._sample, len(passages))).astype(int).tolist()
        self._check([passages[place] for place in places], vectors[places])
        self._sample = 2
        return vectors

    def _check(self, passages: Sequence[Passage], vectors: Tensor) -> None:
        import torch

        own = self._encoder.encode_passages(passages).detach().cpu().float()
        cosine = float(torch.nn.functional.cosine_similarity(own, vectors, dim=1).median())
        length = float((vectors.norm(dim=1) / own.norm(dim=1)).median())
        if not (cosine >= MIN_COSINE and 0.9 < length < 1.1):  # NaN too
            raise EncoderMismatchError(
                f"the vectors are not those of {self.name}: from {passages[0].id!r} on the cosine is {cosine:.3f}, the "
                f"length {length:.2f} times the encoder's; name the encoder that made them, or encode the texts with "
                "index add"
            )
