"""How a question is to be answered: what callers may say of it, and what that comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypedDict, get_args

from latentrag.errors import OptionError
from latentrag.types import Decoding, Variant

if TYPE_CHECKING:
    from latentrag.conditions import Where
    from latentrag.options import DecodingOptions


class HowToAnswer(TypedDict, total=False):
    """What may be said of how a question is to be answered, all of it optional.

    Attributes:
        k: passages retrieved; None: the model's own number.
        variant: "sequence" or "token"; None: the model's own.
        decoding: "exact" (one marginal beam), or for RAG-Sequence "thorough" or "fast".
        without: ids of retrieved passages that count as not retrieved; the prior is renormalised over the others.
        where: a condition on passages' fields, as "date >= '2024-01-01' and source like 'manual/%'": the K best of
            those that satisfy it are retrieved, or all if there are fewer, and the prior is over these. See
            ``latentrag.conditions``. None: none.
        sentences: also log p of the answer without each sentence of the passage of highest posterior, in
            ``Source.sentences``; the prior stays. Costs reading that passage once for each of its sentences.
        top_tokens: also so many of the most probable tokens in the place of each one of the answer, in ``Token.top``.
            Costs decoding the answer once more.
        abstain_below: a confidence below which the answer is "not known from these passages", and what would have
            been answered is its ``best_guess``; it takes a model that was calibrated.
        num_beams and what follows: as in ``DecodingOptions``.
    """

    k: int | None
    variant: Variant | None
    decoding: Decoding
    without: Sequence[str]
    where: Where | None
    sentences: bool
    top_tokens: int
    abstain_below: float | None
    num_beams: int
    num_best: int
    max_tokens: int
    min_tokens: int
    no_repeat_ngram_size: int
    length_penalty: float
    early_stopping: bool | Literal["never"]
    stop: tuple[str, ...]
    sample: bool
    temperature: float
    top_k: int
    top_p: float
    seed: int | None


@dataclass(frozen=True, slots=True)
class Asking:
    """``HowToAnswer`` with everything that was left out, as a model fills it in (``Rag.asking``).

    Questions whose ``Asking`` is equal can be answered together, but for those that draw at random.
    """

    k: int
    variant: Variant
    options: DecodingOptions
    decoding: Decoding = "exact"
    without: tuple[str, ...] = ()
    where: Where | None = None
    sentences: bool = False
    top_tokens: int = 0
    abstain_below: float | None = None

    def __post_init__(self) -> None:
        check_decoding(self.variant, self.decoding, self.options)

    @property
    def k_left(self) -> int:
        """K without the passages that count as not retrieved: the others are what they would be if the memory had not
        had these."""
        return self.k - len(set(self.without))


def check_decoding(variant: Variant, decoding: str, options: DecodingOptions) -> None:
    """Raises: InputError if there is no such decoding, or none for this variant and these options."""
    if decoding not in get_args(Decoding):
        raise OptionError("{decoding}={given!r} is unknown; needed 'exact', 'thorough' or 'fast'", given=decoding)
    if decoding == "exact":
        return
    if variant == "token":
        raise OptionError(
            "{decoding}={given!r} is for RAG-Sequence; RAG-Token has one decoder, 'exact'", given=decoding
        )
    if options.sample:
        raise OptionError("{decoding}={given!r} searches; {sample} needs {decoding}='exact'", given=decoding)
