"""How sure an answer is: the probability that it is right, from what the model knows exactly about it.

    P(right) = σ(b + Σ_i w_i (signal_i − mean_i) / scale_i)

The weights are fitted on questions whose answers are known (``evaluation.confidence``) and saved with the model. They
hold for the settings that they were fitted with: with another K, another decoder, another prompt or another memory the
same signals mean something else, and no probability is given.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

from latentrag.errors import ModelError
from latentrag.words import compared_words

if TYPE_CHECKING:
    from latentrag.asking import Asking
    from latentrag.types import Answer

ABSTAINED = "not known from these passages"
"""What is answered in place of a best guess that is too uncertain."""

_MOST_NATS = 20.0
"""A log-probability ratio of which more makes nobody surer."""


def _log_p_token(answer: Answer) -> float:
    """log p(y|x) for each token."""
    return answer.log_prob / _length(answer)


def _lead(answer: Answer) -> float:
    """log p of the answer minus that of the best hypothesis that means something else."""
    others = [each.log_prob for each in answer.hypotheses[1:] if not means_the_same(answer.text, each.text)]
    return answer.log_prob - max(others, default=-math.inf)


def _prior_entropy(answer: Answer) -> float:
    """Entropy of p_η(z|x), as a share of the largest possible: 0 all on one passage, 1 evenly on all."""
    return _evenness([math.exp(each) for each in answer.log_p_eta])


def _posterior_entropy(answer: Answer) -> float:
    """The same of p(z|x,y); where sets are read, of the passages' shares, which then add up to more than one."""
    none = [] if answer.no_passage is None else [answer.no_passage.posterior]
    return _evenness([source.posterior for source in answer.sources] + none)


def _gain(answer: Answer) -> float:
    """What the passages contributed to log p(y|x), for each token."""
    return (answer.log_prob - answer.closed_book_log_prob) / _length(answer)


def _agreement(answer: Answer) -> float:
    """Σ_z p_η(z|x) p_θ(y|x,z)^(1/T): how far the passages, each by itself, say the same."""
    length = _length(answer)
    of_passages = zip(answer.log_p_eta, answer.log_p_theta, strict=True)
    return sum(math.exp(prior + sum(tokens) / length) for prior, tokens in of_passages)


def _log_length(answer: Answer) -> float:
    """log T."""
    return math.log(_length(answer))


SIGNALS: Mapping[str, Callable[[Answer], float]] = {
    "log_p_token": _log_p_token,
    "lead": _lead,
    "prior_entropy": _prior_entropy,
    "posterior_entropy": _posterior_entropy,
    "gain": _gain,
    "agreement": _agreement,
    "log_length": _log_length,
}
"""What is known of an answer, by name."""


def signals(answer: Answer) -> dict[str, float]:
    """What an answer's confidence is made of, each finite.

    Args:
        answer: with all the hypotheses that the search kept; with fewer the lead is not known.
    """
    return {name: min(max(signal(answer), -_MOST_NATS), _MOST_NATS) for name, signal in SIGNALS.items()}


def means_the_same(a: str, b: str) -> bool:
    """Whether two short answers say the same, as far as their words show: one has the words of the other, in a row."""
    shorter, longer = sorted((compared_words(a), compared_words(b)), key=len)
    if not shorter:
        return not longer
    return any(longer[start : start + len(shorter)] == shorter for start in range(len(longer) - len(shorter) + 1))


def _length(answer: Answer) -> int:
    return max(1, len(answer.log_p_theta[0]))


def _evenness(shares: list[float]) -> float:
    if len(shares) < 2:
        return 0.0
    return -sum(share * math.log(share) for share in shares if share > 0) / math.log(len(shares))


def settings_of(
    asking: Asking,
    *,
    memory: str | None,
    set_size: int = 1,
    retriever: str | None = None,
    null_passage: float | None = None,
    neighbours: int = 0,
    conversation: bool = False,
    prompt: str | None = None,
    set_bonus: float | None = None,
    prior: str | None = None,
    rewrites: int = 0,
    readings: Mapping[str, float] | None = None,
) -> dict[str, object]:
    """What the meaning of the signals depends on.

    Args:
        memory: what identifies the memory through all its versions; None: it is not known.
        set_size: passages that the generator may read together.
        retriever: its kind; None: it has none.
        null_passage: the logit of "no passage"; None: it is no value of z.
        neighbours: passages on each side that are read with each passage.
        conversation: whether something was said before the question (``Question.is_conversation``).
        prompt: what identifies the generator's template; None: it has none.
        set_bonus: γ of sets of two passages; None: they are no values of z.
        prior: what identifies the retriever's own settings, as weights of experts; None: it has none.
        rewrites: of a conversation's last question, each one more reading.
        readings: the trained weights of a conversation's readings; None: they are the default ones.
    """
    return {
        "k": asking.k_left,
        "variant": asking.variant,
        "decoding": asking.decoding,
        "num_beams": asking.options.num_beams,
        "length_penalty": asking.options.length_penalty,
        "sample": asking.options.sample,
        "memory": memory,
        "set_size": set_size,
        "retriever": retriever,
        "null_passage": null_passage,
        "neighbours": neighbours,
        "conversation": conversation,
        "prompt": prompt,
        "set_bonus": set_bonus,
        "prior": prior,
        "rewrites": rewrites if conversation else 0,
        "readings": dict(readings) if conversation and readings is not None else None,
    }


def prompt_key(template: Any) -> str:
    """What identifies a generator's template: its kind and its texts, a dataclass's JSON values."""
    texts = json.dumps({"kind": template.kind, **asdict(template)}, sort_keys=True)
    return hashlib.sha256(texts.encode()).hexdigest()[:16]


def prior_key(settings: Mapping[str, object], parts: Mapping[str, object]) -> str | None:
    """What identifies a retriever's settings, with its parts by name and, where they say it, ``fingerprint``; None: it
    has no settings. The query encoder is the model's own."""
    if not settings:
        return None
    known = {name: getattr(part, "fingerprint", None) for name, part in parts.items() if name != "query_encoder"}
    texts = json.dumps({"settings": settings, "parts": known}, sort_keys=True)
    return hashlib.sha256(texts.encode()).hexdigest()[:16]


_OTHERS = {
    "memory": "over another memory",
    "prompt": "with another prompt",
    "prior": "with other weights, candidates or parts of the prior",
    "readings": "with other weights of a conversation's readings",
}
"""Settings whose values say nothing to people."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """From signals to the probability of being right.

    Attributes:
        weights: w by the name of the signal; the signals are those of ``SIGNALS``.
        means, scales: of the signals on the questions it was fitted on.
        bias: b.
        settings: ``settings_of`` what it was fitted on.
        num_questions: how many these were.
        measured: how good it is on questions that it was not fitted on, by name.
    """

    weights: Mapping[str, float]
    means: Mapping[str, float]
    scales: Mapping[str, float]
    bias: float
    settings: Mapping[str, object] = field(default_factory=dict)
    num_questions: int = 0
    measured: Mapping[str, float] = field(default_factory=dict)

    def probability(self, found: Mapping[str, float]) -> float:
        """P(right) of an answer with these signals."""
        parts = ((found[name] - self.means[name]) / self.scales[name] * w for name, w in self.weights.items())
        logit = self.bias + sum(parts)
        return 1 / (1 + math.exp(-logit)) if logit > 0 else math.exp(logit) / (1 + math.exp(logit))

    def difference(self, settings: Mapping[str, object]) -> str | None:
        """Why it says nothing of answers with these settings; None: it does."""
        for name, fitted in {"neighbours": 0, "conversation": False, **self.settings}.items():
            given = settings.get(name)
            if given == fitted:
                continue
            if name == "conversation":
                kinds = ("conversations", "a question alone") if fitted else ("questions alone", "a conversation")
                return f"the model was calibrated on {kinds[0]}, and this is {kinds[1]}"
            return f"the model was calibrated {_OTHERS.get(name, f'with {name}={fitted}, not {given}')}"
        return None

    def as_record(self) -> dict[str, object]:
        """As JSON has it."""
        return {
            "weights": dict(self.weights),
            "means": dict(self.means),
            "scales": dict(self.scales),
            "bias": self.bias,
            "settings": dict(self.settings),
            "num_questions": self.num_questions,
            "measured": dict(self.measured),
        }

    @classmethod
    def of_record(cls, record: Any, *, where: str) -> Self:
        """Raises: ModelError, which says where, for one that cannot be used."""
        try:
            made = cls(**record)
            numbers = [made.bias, *(n for part in (made.weights, made.means, made.scales) for n in part.values())]
            usable = all(map(math.isfinite, numbers)) and all(scale > 0 for scale in made.scales.values())
            usable = usable and made.weights.keys() == made.means.keys() == made.scales.keys() <= SIGNALS.keys()
            made.difference({})
        except (TypeError, AttributeError):
            usable = False
        if not usable:
            raise ModelError(f"{where} has no usable section 'calibration'; run `latentrag calibrate` again")
        return made
