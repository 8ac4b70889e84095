"""What comes out of a decoder."""

from dataclasses import dataclass

from torch import Tensor


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
