"""p_η(z|x) over the passages that come with a question: each question has a memory of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import torch

from latentrag.errors import EncoderMismatchError, InputError, OptionError
from latentrag.protocols import ChecksQuestions, PassageEncoder, SavablePart
from latentrag.retriever.bm25 import bm25_of
from latentrag.retriever.together import flat, places_of
from latentrag.types import Asked, Latent, Passage, Question, Retrieved, Together, question_texts

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from latentrag.protocols import Memory, QueryEncoder
    from latentrag.retriever.dense import TrainableQueryEncoder
    from latentrag.types import SearchResult


class ScoresPassages(Protocol):
    """Logits of p_η for passages that no memory holds."""

    @property
    def name(self) -> str:
        """Of the part of the logit, and of the retriever that scores so over a memory."""
        ...

    @property
    def query_encoder(self) -> TrainableQueryEncoder | None:
        """What learns; None: nothing."""
        ...

    def settings(self) -> Mapping[str, float]:
        """Of that retriever, as JSON values."""
        ...

    def parts(self) -> Mapping[str, SavablePart]:
        """What it is made of, by the name of the folder that each is saved as."""
        ...

    def logits(self, x: Sequence[str], passages: Sequence[Sequence[Passage]]) -> list[Tensor]:
        """For each of B questions those of its passages, (n,) float32."""
        ...

    def check_questions(self, x: Sequence[str]) -> None:
        """InputError for a question that cannot be used."""
        ...


class SavedPassageEncoder(PassageEncoder, SavablePart, Protocol):
    """A passage encoder that is saved with its model."""


class DenseScores:
    """s·d(z)·q(x), both encoded now; a passage that comes with several questions of a call is encoded once."""

    name = "dense"

    def __init__(self, query_encoder: TrainableQueryEncoder, passage_encoder: SavedPassageEncoder) -> None:
        """Raises: EncoderMismatchError for encoders that were not trained together, as far as their files say."""
        wanted = query_encoder.passage_fingerprint
        if wanted is not None and wanted != passage_encoder.fingerprint:
            raise EncoderMismatchError(
                f"the query encoder goes with the passage encoder {wanted}, got {passage_encoder.fingerprint}; name "
                "the one that it was trained with (--passage-encoder)"
            )
        self.query_encoder: TrainableQueryEncoder | None = query_encoder
        self._q, self._passage_encoder = query_encoder, passage_encoder

    def settings(self) -> Mapping[str, float]:
        """None."""
        return {}

    def parts(self) -> Mapping[str, SavablePart]:
        """Both encoders: a query encoder that has learned is no passage encoder any more."""
        return {"query_encoder": self._q, "passage_encoder": self._passage_encoder}

    def logits(self, x: Sequence[str], passages: Sequence[Sequence[Passage]]) -> list[Tensor]:
        """As ``ScoresPassages``."""
        distinct = list(dict.fromkeys(passage for of_question in passages for passage in of_question))
        row = {passage: number for number, passage in enumerate(distinct)}
        d = self._passage_encoder.encode_passages(distinct).float()  # (N, D)
        q = self._q.encode_queries(x).float()  # (B, D); encoded last, since a call with gradients drops packed weights
        d = d.to(q.device)
        with torch.autocast(q.device.type, enabled=False):
            scaled = self._q.scale * q
            return [d[[row[z] for z in of_question]] @ scaled[b] for b, of_question in enumerate(passages)]

    def check_questions(self, x: Sequence[str]) -> None:
        """As ``ScoresPassages``."""
        if isinstance(self._q, ChecksQuestions):
            self._q.check_questions(x)


class WordScores:
    """s·BM25(x,z), with the passages of each question as its whole collection."""

    name = "bm25"

    def __init__(self, *, scale: float = 1.0, device: str = "cpu") -> None:
        self.query_encoder: TrainableQueryEncoder | None = None
        self._scale, self._device = scale, device

    def settings(self) -> Mapping[str, float]:
        """The scale."""
        return {"scale": self._scale}

    def parts(self) -> Mapping[str, SavablePart]:
        """None."""
        return {}

    def logits(self, x: Sequence[str], passages: Sequence[Sequence[Passage]]) -> list[Tensor]:
        """As ``ScoresPassages``."""
        scores = [bm25_of(text, of_question) for text, of_question in zip(x, passages, strict=True)]
        return [self._scale * torch.from_numpy(each).float().to(self._device) for each in scores]

    def check_questions(self, x: Sequence[str]) -> None:
        """Every question can be used."""


class GivenRetriever:
    """The K best of the passages that come with each question; fewer where it has fewer."""

    def __init__(self, scores: ScoresPassages, *, num_passages: int) -> None:
        """
        Args:
            num_passages: that come with a question at most.
        """
        self.memory: Memory = _OfEachQuestion(num_passages)
        self._scores = scores

    @property
    def kind(self) -> str:
        """That of the retriever which scores so over a memory, as which it is saved."""
        return self._scores.name

    @property
    def query_encoder(self) -> TrainableQueryEncoder | None:
        """What learns; None: nothing."""
        return self._scores.query_encoder

    def retrieve(self, x: Sequence[Asked], k: int) -> Retrieved:
        """Passages and logits, best first, equal ones in their order, for B questions.

        Returns: scores (B, K), K the largest number of passages of a question, at most k; others are masked.
        Raises: InputError for a question that comes without passages or cannot be encoded, or k < 1.
        """
        _check_k(k)
        texts = question_texts(x, with_passages=True)
        passages = [question.passages for question in map(Question.of, x)]
        if not all(passages):
            raise InputError("a question comes without passages; this model reads those alone")
        logits = self._scores.logits(texts, passages)
        number = min(k, max(map(len, passages)))
        latents: list[list[Latent]] = []
        rows, masks = [], []
        for of_question, scores in zip(passages, logits, strict=True):
            best = torch.argsort(scores, descending=True, stable=True)[:number]
            empty = number - len(best)
            latents.append([*((of_question[place],) for place in best.tolist()), *[()] * empty])
            rows.append(torch.cat([scores[best], scores.new_zeros(empty)]))
            masks.append(torch.arange(number, device=scores.device) < len(best))
        return Retrieved(latents, {self._scores.name: torch.stack(rows)}, 0, torch.stack(masks))

    def retrieve_together(
        self,
        texts: Sequence[Sequence[str]],
        k: int,
        *,
        x: Sequence[Asked],
        also: Sequence[Sequence[str]] = (),  # noqa: ARG002
        num_also: int = 0,  # noqa: ARG002
    ) -> list[Together]:
        """As ``ReadsConversations``: all passages that come with the question, whatever its texts are."""
        _check_k(k)
        passages = [question.passages for question in map(Question.of, x)]
        if not all(passages):
            raise InputError("a question comes without passages; this model reads those alone")
        repeated = [of_one for of_one, each in zip(passages, texts, strict=True) for _ in each]
        logits = self._scores.logits(flat(texts), repeated)
        return [
            Together(of_one, {self._scores.name: torch.stack([logits[i] for i in places])}, len(of_one), 0)
            for of_one, places in zip(passages, places_of(texts), strict=True)
        ]

    def check_questions(self, x: Sequence[str]) -> None:
        """Raises: InputError for a question that cannot be encoded, as far as its encoder says."""
        self._scores.check_questions(x)

    def over(self, memory: Memory) -> GivenRetriever:  # noqa: ARG002
        """Raises: InputError: there is no other memory than the questions'."""
        raise InputError("passages come with the questions, so no memory can take their place")

    def retrieve_in_hindsight(self, x: Sequence[Asked], y: Sequence[str], k: int, num_hindsight: int) -> Retrieved:  # noqa: ARG002
        """Raises: InputError: all passages there are come with the question."""
        raise InputError("passages come with the questions, so hindsight finds no others; leave it out")

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """η: the query encoder's weights; none with words."""
        return iter(()) if self.query_encoder is None else self.query_encoder.module.named_parameters()

    def settings(self) -> Mapping[str, float]:
        """As ``kind``."""
        return self._scores.settings()

    def parts(self) -> Mapping[str, SavablePart]:
        """As ``kind``."""
        return self._scores.parts()


def _check_k(k: int) -> None:
    if k < 1:
        raise OptionError("{k}={given} passages cannot be retrieved; choose 1 or more", given=k)


class _OfEachQuestion:
    """Stands for the memories of all questions: as large as the largest."""

    version = 0

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def search(self, q: np.ndarray, k: int) -> SearchResult:  # noqa: ARG002
        raise self._none()

    def passages(self) -> Iterator[Passage]:
        return iter(())

    def get(self, ids: Sequence[str]) -> list[Passage]:  # noqa: ARG002
        raise self._none()

    def check(self, query_encoder: QueryEncoder) -> None:
        pass

    def snapshot(self) -> Memory:
        return self

    def _none(self) -> InputError:
        return InputError("passages come with the questions; there is no memory to search")
