"""What a caller may ask of a decoder, and what comes out of it."""

from dataclasses import dataclass

from torch import Tensor

from latentrag.errors import InputError


@dataclass(frozen=True, slots=True)
class DecodingOptions:
    """Options of every decoder.

    Attributes:
        num_beams: M; 1 is greedy search.
        num_best: so many of the best hypotheses are wanted, M at most; a search ends when they are certain.
        max_tokens: y has at most so many tokens, its end token included; what is longer is cut there.
        min_tokens: the end token is not chosen before so many others.
        no_repeat_ngram_size: no n-gram of tokens occurs twice in y; 0: no such rule.
        length_penalty: α in the rank log p / |y|^α of finished hypotheses (0: by probability alone). It decides
            which hypotheses a beam keeps, never a reported log-probability; Thorough and Fast Decoding use it in
            the per-passage beams only and rank by the marginal.
        early_stopping: stop as soon as ``num_beams`` hypotheses are finished, though a better one may come.
        stop: y is cut before the first of these strings.
        sample: draw ``num_beams`` independent samples instead of searching; all of them are handed out.
        temperature, top_k, top_p: shape what is sampled (1, 0 and 1: the marginal itself).
        seed: for sampling; None: a different sample each time.
    Raises: InputError if a value is out of range.
    """

    num_beams: int = 4
    num_best: int = 1
    max_tokens: int = 64
    min_tokens: int = 0
    no_repeat_ngram_size: int = 0
    length_penalty: float = 0.0
    early_stopping: bool = False
    stop: tuple[str, ...] = ()
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, low in (
            ("num_beams", 1),
            ("num_best", 1),
            ("max_tokens", 1),
            ("min_tokens", 0),
            ("no_repeat_ngram_size", 0),
        ):
            if getattr(self, name) < low:
                raise InputError(f"{name}={getattr(self, name)}; needed {low} or more")
        if self.num_best > self.num_beams:
            raise InputError(
                f"num_best={self.num_best}; needed {self.num_beams} at most, which num_beams keeps; raise num_beams"
            )
        if self.min_tokens >= self.max_tokens:
            raise InputError(
                f"min_tokens={self.min_tokens} leaves no room in max_tokens={self.max_tokens}; needed less than that"
            )
        if not self.temperature > 0:
            raise InputError(f"temperature={self.temperature}; needed more than 0 (one beam is the limit towards 0)")
        if self.top_k < 0:
            raise InputError(f"top_k={self.top_k}; needed 0 (no limit) or more")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p={self.top_p}; needed more than 0 and at most 1")
        if isinstance(self.stop, str) or not all(self.stop):
            raise InputError(f"stop={self.stop!r}; needed a tuple of strings that are not empty")


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """A hypothesis with the evidence it was ranked by.

    Attributes:
        ids: its tokens, the end token included where it is finished.
        log_prob: log p(y|x) under the variant that was decoded, nats.
        log_p_theta: (K, T) log p_θ(y_i|x,z,y_<i), T = len(ids). After Fast Decoding −inf for every passage whose
            beam did not hold y.
        finished: False where the length limit or a stop string cut it off.
    """

    ids: tuple[int, ...]
    log_prob: float
    log_p_theta: Tensor
    finished: bool


def rank(log_prob: float, num_tokens: int, length_penalty: float) -> float:
    """What finished hypotheses are ranked by: log p / |y|^α."""
    return float(log_prob / num_tokens**length_penalty)
