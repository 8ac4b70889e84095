"""What the rooms know of each other. A ten-line fake that has these methods replaces any of them.

Shapes are those of the legend in types/__init__.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeGuard, runtime_checkable

from latentrag.conditions import Where
from latentrag.errors import InputError
from latentrag.ids import IdsUnder
from latentrag.types import (
    Asked,
    Candidates,
    LatentLists,
    Passage,
    Question,
    Retrieved,
    SearchResult,
    Targets,
    Together,
    WordResult,
)

if TYPE_CHECKING:
    import os

    import numpy as np
    import torch
    from torch import Tensor, nn


@runtime_checkable
class QueryEncoder(Protocol):
    """q(x). ``passage_fingerprint`` names the passage encoder whose vectors its queries are to be compared with;
    None where the model's files do not say. ``scale`` is s in p_η(z|x) ∝ exp(s·d(z)·q(x))."""

    @property
    def dimension(self) -> int: ...
    @property
    def scale(self) -> float: ...
    @property
    def passage_fingerprint(self) -> str | None: ...

    def encode_queries(self, x: Sequence[str]) -> Tensor:
        """(B, D) float32. Differentiable unless grad mode is off. InputError for a question that is empty or
        longer than the encoder reads."""
        ...


@runtime_checkable
class PassageEncoder(Protocol):
    """d(z). ``fingerprint`` changes when, and only when, its vectors would. ``max_tokens`` is how many tokens of a
    passage it reads."""

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def dimension(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def scale(self) -> float: ...

    def encode_passages(self, passages: Sequence[Passage], *, progress: bool = False) -> Tensor:
        """(N, D) float32, in the order given."""
        ...


@runtime_checkable
class CountsTokens(Protocol):
    """An encoder that says of a passage, without encoding it, how many tokens it has; of a question as of its text."""

    def count_tokens(self, title: str, text: str) -> int:
        """Those of its title, of its text and of whatever the encoder adds. What is more than ``max_tokens`` would be
        truncated."""
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """Passages of a document.

    Attributes:
        gone: ids that the memory has of the document, or of its file, and that no passage has any more.
    """

    passages: Sequence[Passage]
    gone: Sequence[str] = ()


@runtime_checkable
class FromFiles(Protocol):
    """Passages of files, which keep the ids and cuts that a memory has of the same files."""

    def beside(self, ids_under: IdsUnder, fetch: Callable[[Collection[str]], Iterable[Passage]]) -> Iterator[Part]:
        """The passages, a document at a time, in place of iterating over them.

        Args:
            ids_under: finds the ids that a memory has.
            fetch: gets the passages with these ids.
        """
        ...


class Memory(Protocol):
    """A non-parametric memory at one version."""

    @property
    def version(self) -> int: ...

    def __len__(self) -> int: ...

    def search(self, q: np.ndarray, k: int) -> SearchResult:
        """Maximum inner product search. q: (B, D) float32. InputError if k < 1 or k > len(self)."""
        ...

    def passages(self) -> Iterator[Passage]:
        """Every passage, in the table's order."""
        ...

    def get(self, ids: Sequence[str]) -> list[Passage]:
        """The passages with these ids, in this order. InputError for an id that is not there."""
        ...

    def check(self, query_encoder: QueryEncoder) -> None:
        """EncoderMismatchError for an encoder whose queries cannot be compared with the memory's vectors."""
        ...

    def snapshot(self) -> Memory:
        """The memory as it is now, for callers that need several reads of one version. A memory that is not exchanged
        while it is asked is its own snapshot."""
        ...


@runtime_checkable
class SearchesWords(Protocol):
    """A memory at one version with an index of its words."""

    def search_words(self, x: Sequence[str], k: int, *, scale: float = 1.0) -> WordResult:
        """The K passages of largest scale·BM25(x,z), rounded to float32; equal ones, and those without a word of the
        question, in the table's order. 1 ≤ k ≤ len(self)."""
        ...

    def word_scores(self, x: Sequence[str], rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """BM25(x,z) of these rows (n,) for each question, (n,) float64."""
        ...

    def candidates(self, q: np.ndarray, x: Sequence[str], num: int) -> Candidates:
        """What the ``num`` largest d(z)·q and the ``num`` largest BM25(x,z) above 0 propose, with both scores' parts
        for all of them.

        Args:
            q: (B, D) float32, of the same questions as x.
        """
        ...


@runtime_checkable
class KnowsNeighbours(Protocol):
    """A memory that knows in which order the passages of a document stand."""

    def around(self, ids: Sequence[str], num: int) -> list[tuple[list[Passage], list[Passage]]]:
        """For each passage those before it and those after it in its document, ``num`` of each or as many as there are,
        in their order. InputError for an id that is not there."""
        ...


class FilterableMemory(Memory, Protocol):
    """A memory whose passages can be chosen by conditions on their fields."""

    def where(self, where: Where) -> Memory:
        """The passages that satisfy a condition (see ``latentrag.conditions``), as a memory. A search for more than
        there are finds all. InputError for a condition that cannot be, and in a search if no passage is left."""
        ...


class FilteredMemory(FilterableMemory, Protocol):
    """Those passages of a memory that satisfy a condition."""

    def require_some(self) -> None:
        """InputError if none is left."""
        ...


def can_be_filtered(memory: Memory) -> TypeGuard[FilterableMemory]:
    """Whether the memory has ``where``."""
    return hasattr(memory, "where")


def is_filtered(memory: Memory) -> TypeGuard[FilteredMemory]:
    """Whether the memory is some of the passages of another."""
    return hasattr(memory, "require_some")


class Retriever(Protocol):
    """x → latent values with the logits of p_η(z|x)."""

    @property
    def memory(self) -> Memory: ...

    def retrieve(self, x: Sequence[Asked], k: int) -> Retrieved:
        """The K latent values of highest logit for each question. InputError for k < 1 or more than there are."""
        ...

    def over(self, memory: Memory) -> Retriever:
        """The same retriever over another memory. EncoderMismatchError if it does not fit."""
        ...


@runtime_checkable
class ReadsConversations(Retriever, Protocol):
    """A retriever that compares several texts of one question. Of a conversation another one reads the last question
    alone."""

    def retrieve_together(
        self,
        texts: Sequence[Sequence[str]],
        k: int,
        *,
        x: Sequence[Asked],
        also: Sequence[Sequence[str]] = (),
        num_also: int = 0,
    ) -> list[Together]:
        """For each of B questions the union of what each of its texts finds, K passages each, all of them scored by
        each of its texts. All from one version.

        Args:
            x: the questions; of them only the passages that come with them are read.
            also: for each question other texts, each of which proposes ``num_also`` more passages.
        Raises: InputError as ``retrieve``.
        """
        ...


class SavablePart(Protocol):
    """A part of a model that is saved as a folder of its own."""

    def save(self, folder: Path) -> None: ...


@runtime_checkable
class ChecksSaving(Protocol):
    """A part that says before anything is computed whether it can be saved."""

    def check_save(self) -> None:
        """InputError if ``save`` would refuse."""
        ...


@runtime_checkable
class SavableRetriever(Retriever, Protocol):
    """A retriever that can be saved with its model: ``RETRIEVERS[kind](…, **settings())`` makes it again."""

    @property
    def kind(self) -> str:
        """Its name in the table of retrievers."""
        ...

    def settings(self) -> Mapping[str, object]:
        """JSON values by name."""
        ...

    def parts(self) -> Mapping[str, SavablePart]:
        """What else it is made of, by the name of the folder that each is saved as."""
        ...


class Prepared(Protocol):
    """B questions × K latent values, ready for the generator: the work that depends on (x, z) alone, done once."""

    @property
    def num_questions(self) -> int: ...
    @property
    def num_passages(self) -> int:
        """K."""
        ...

    def rows(self, index: Tensor) -> Self:
        """The questions at ``index`` (R,), repeats allowed: R × K."""
        ...

    def each_passage(self) -> Self:
        """Every (x, z) as a question with one latent value: B·K × 1, in the order b·K + k."""
        ...


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a kind of generator can do.

    Attributes:
        decodes: it has ``start`` and ``step``. One that has neither these nor ``every_y`` only scores given targets.
        enumerates: it has ``every_y``.
        weighs_passages: it has ``log_weights``.
        differentiable: ``log_p_theta`` has gradients, so that it can be trained.
        keeps_prefixes: what it reads of a passage does not depend on the question, so that it can be kept.
        steps_together: it has ``step_together``.
    """

    decodes: bool = True
    enumerates: bool = False
    weighs_passages: bool = False
    differentiable: bool = True
    keeps_prefixes: bool = False
    steps_together: bool = False


class Scores(Protocol):
    """p_θ(y|x,z) of given targets."""

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def device(self) -> torch.device:
        """Where it computes; its targets and log-probabilities are there."""
        ...

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end a y; the first one ends every target. None for a generator whose y is one token."""
        ...

    @property
    def max_target_tokens(self) -> int | None:
        """The longest y it can score or write, its end token included; None: no limit."""
        ...

    @property
    def decoding_defaults(self) -> Mapping[str, object]:
        """Saved generation settings of the model, under the names of ``DecodingOptions``."""
        ...

    def prepare(self, x: Sequence[Asked], latents: LatentLists) -> Prepared:
        """A ``Prepared`` for x with its K latent values each. An empty one is read without any passage (closed book).
        InputError for an empty question, or where the numbers of latent values differ."""
        ...

    def targets(self, y: Sequence[str]) -> Targets:
        """y as tokens. InputError for one that is too long."""
        ...

    def log_p_theta(self, prepared: Any, targets: Targets) -> Tensor:
        """(B, K, T) float32 log-probabilities of the gold tokens; differentiable unless grad mode is off.
        Never holds (B, K, T, V)."""
        ...

    def text(self, ids: Sequence[int]) -> str:
        """The text of target tokens, special tokens left out."""
        ...

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """One piece of text for each token; joined they are ``text(ids)``."""
        ...


class Generator(Scores, Protocol):
    """A generator that decodes too: p_θ(y_i|x,z,y_<i) step by step. Decoder states are its own affair: callers only
    hand them back."""

    def start(self, prepared: Any) -> tuple[Tensor, object]:
        """Log-probabilities of the first token, (B, K, 1, V) float32, and the state that goes with them. Neither here
        nor in ``step`` are there gradients: those of a sequence come from ``log_p_theta``."""
        ...

    def step(self, state: Any, parents: Tensor, tokens: Tensor) -> tuple[Tensor, object]:
        """One more token for every beam. ``state`` is used up.

        Args:
            parents: (B', M') which beam each new beam continues: an index into the previous (B, M) flattened.
                Questions that are done are left out of B'.
            tokens: (B', M') the token it takes.
        Returns: (B', K, M', V) float32 log-probabilities of the token after, and the new state.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One more token for every beam of a decoder state: the arguments of ``Generator.step``."""

    state: Any
    parents: Tensor
    tokens: Tensor


class StepsTogether(Generator, Protocol):
    """A generator that goes on with several decoder states in one pass."""

    def step_together(self, steps: Sequence[Step]) -> list[tuple[Tensor, object]]:
        """``step`` for each of these states, which may differ in B, K, M and length. The states are used up."""
        ...


def steps_together(generator: Scores) -> TypeGuard[StepsTogether]:
    """Whether the generator has ``step_together``."""
    return generator.capabilities.steps_together


@runtime_checkable
class ReadsInSlices(Protocol):
    """A generator that can do the reading of ``start`` beforehand, a slice at a time."""

    def read_slice(self, prepared: Any) -> bool:
        """Read some of what ``start`` needs, in half a second or so. Returns: whether there is more to read."""
        ...


def can_decode(generator: Scores) -> TypeGuard[Generator]:
    """Whether the generator has ``start`` and ``step``."""
    return generator.capabilities.decodes


class Choices(Protocol):
    """Every y that one question's K latent values can say, N of them, each one token."""

    @property
    def log_p_theta(self) -> Tensor:
        """(N, K) log p_θ(y|x,z), nats."""
        ...

    @property
    def num_tokens(self) -> Tensor:
        """(N,) how long each y is, in tokens of what the generator reads."""
        ...

    def ids(self, number: int) -> tuple[int, ...]:
        """The y at this place, as ``targets`` has it."""
        ...


class Enumerates(Scores, Protocol):
    """A generator that lists every y instead of decoding step by step: the most probable one of all is found."""

    def every_y(self, prepared: Any) -> list[Choices]:
        """For each of B questions what its latent values can say. Without gradient."""
        ...


class WeighsPassages(Scores, Protocol):
    """A generator that has a part of the logit of p_η(z|x), too: how much it believes in a passage that it has read."""

    def log_weights(self, prepared: Any) -> Tensor:
        """(B, K) float32, nats; differentiable unless grad mode is off."""
        ...


def enumerates(generator: Scores) -> TypeGuard[Enumerates]:
    """Whether the generator has ``every_y``."""
    return generator.capabilities.enumerates


def weighs_passages(generator: Scores) -> TypeGuard[WeighsPassages]:
    """Whether the generator has ``log_weights``."""
    return generator.capabilities.weighs_passages


class SavableGenerator(Scores, SavablePart, Protocol):
    """A generator that can be saved with its model: ``load_generator`` opens its folder again."""

    def settings(self) -> Mapping[str, object]:
        """JSON values by name; "kind" is its name in the table of kinds."""
        ...


@runtime_checkable
class KeepsPassages(Protocol):
    """A generator with the capability ``keeps_prefixes``."""

    def keep_passages(
        self,
        max_bytes: int,
        *,
        on_device: bool = False,
        folder: str | os.PathLike[str] | None = None,
        max_folder_bytes: int = ...,
    ) -> None:
        """Keep what is read of passages for the next question.

        Args:
            max_bytes: of memory. With 0 and no folder nothing is kept.
            on_device: in the memory of the generator's device, not in RAM.
            folder: keeps them on disk too.
            max_folder_bytes: how large the folder may become.
        Raises: InputError for a folder that nothing can be kept in.
        """
        ...


@runtime_checkable
class HasQueryEncoder(Protocol):
    """A retriever that compares vectors."""

    @property
    def query_encoder(self) -> QueryEncoder:
        """q(x)."""
        ...


@runtime_checkable
class CountsTokensRead(Protocol):
    """A ``Prepared`` that says how much there was to read."""

    @property
    def num_tokens(self) -> Sequence[int]:
        """(B·K) tokens of each (x, z), in the order b·K + k."""
        ...


@runtime_checkable
class ChecksQuestions(Protocol):
    """An encoder, retriever or generator that says of a question, without reading it, whether it can be used."""

    def check_questions(self, x: Sequence[str]) -> None:
        """InputError for a question that is empty or too long. One that ``ReadsTurns`` gets questions with what the
        system says, too (``Question``)."""
        ...


def takes_question(asked: object, text: str) -> bool:
    """Whether a retriever or generator takes this question; of one that does not check them, yes."""
    if isinstance(asked, ChecksQuestions):
        try:
            asked.check_questions([text])
        except InputError:
            return False
    return True


@runtime_checkable
class ReadsTurns(Protocol):
    """A generator that reads the earlier turns of a conversation. Another one reads the last question alone."""

    def fitting(self, question: Question) -> Question:
        """The question without its oldest turns, as far as these leave too little room for passages."""
        ...


@runtime_checkable
class Prompted(Generator, Protocol):
    """A generator whose prompt is a template that can be another one."""

    @property
    def template(self) -> Any: ...

    def with_template(self, template: Any) -> Prompted:
        """The same model under another template. InputError or ModelError for one that does not fit."""
        ...


class TrainableRetriever(Retriever, Protocol):
    """A retriever with parameters η."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """η: the query encoder's weights, under names that do not change between runs; "prior." before the name of a
        number that weighs a part of the logit."""
        ...

    def retrieve_in_hindsight(self, x: Sequence[Asked], y: Sequence[str], k: int, num_hindsight: int) -> Retrieved:
        """The top K of x, then ``num_hindsight`` more, found with x and y together, none twice: B × (K + K2).

        The scores are those of x alone for all of them; y only proposes.
        """
        ...


@runtime_checkable
class WeighsExperts(SavableRetriever, Protocol):
    """A retriever whose logit is a sum of experts' values, each times a weight."""

    def features(self, x: Sequence[Asked], num: int) -> tuple[Candidates, list[dict[str, np.ndarray]]]:
        """The candidates of B questions, and for each question the values of its candidates by expert, (n,) float64.

        Args:
            num: passages that vectors propose, and as many that words do.
        """
        ...

    def settings(self) -> Mapping[str, Any]:
        """ "weights" are those of the experts by name, among others."""
        ...

    def weighing(self, weights: Mapping[str, float]) -> Self:
        """The same retriever with these weights. InputError for an unknown expert."""
        ...


class TrainableGenerator(Generator, Protocol):
    """A generator with parameters θ."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """θ, under names that do not change between runs; with LoRA only the adapter's weights need a gradient."""
        ...

    def prepare_together(self, x: Sequence[Asked], latents: LatentLists) -> Prepared:
        """A ``Prepared`` of B × 1 rows, each of which reads all passages at once: p_θ(y|x,Z).

        Encoder–decoders encode the passages apart and let the decoder attend to all of them; causal models read
        them one after the other in one prompt.
        """
        ...

    def log_p_theta_and_mean(
        self, prepared: Any, targets: Targets, weigh: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """``log_p_theta`` (B, K, T), and for label smoothing the mean over the vocabulary of the marginal's
        log-probabilities, (B, T), 0 where masked:

            mean[b, i] = 1/V Σ_v log Σ_z w_z p_θ(v|x,z,y_<i)

        Args:
            weigh: gets log_p_theta, returns log w (B, K, T), normalised over K.
        One forward pass; never holds (B, K, T, V); differentiable, also through the weights.
        """
        ...
