"""Is retrieval alive? Measures of a joint model on (x, y), and the lines that a collapse deserves.

Where the generator ignores z, p_θ(y|x,z) is the same for every passage and the posterior equals the prior. Their
difference is the gradient of log p(y|x) with respect to the scores (Lewis et al. 2020, §2.4), so the retriever then
learns nothing and drifts. A falling loss does not show this; the measures here do.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from latentrag.errors import InputError
from latentrag.model import Evidence, JointModel
from latentrag.protocols import Scores
from latentrag.training.processes import Processes
from latentrag.types import Asked, Latent, LatentLists, Retrieved, Variant

MIN_EXAMPLES = 20
"""With fewer, chance alone makes shares and means as extreme as a collapse does."""


@dataclass(frozen=True, slots=True)
class Health:
    """How a joint model stands on a set of (x, y). Means over the examples; nats.

    Attributes:
        num_examples: how many (x, y).
        num_passages: K.
        nll: −log p(y|x).
        nll_per_token: the sum of −log p(y|x) over the number of tokens, end tokens included.
        prior_entropy: of p_η(z|x), over all values of z.
        posterior_entropy: of the posterior, as ``Evidence.posterior`` has it for the variant.
        kl: KL(posterior‖prior), what y says about z beyond x; 0 for a generator that ignores z.
        agreement: share of examples whose most probable passage is the same in prior and posterior.
        unique_top: distinct passages of highest prior, over the number of examples.
        top_share: the largest share of examples that have the same passage of highest prior.
        gap: what −log p(y|x) rises by when each question gets the passages of another question under its own
            prior values: what the right passages are worth. NaN for a single example.
        gap_error: standard error of ``gap``.
        overlap: how much of the prior's mass lies on the same passages after that exchange: 1 − total variation.
            At 1 the exchange changed nothing and ``gap`` says nothing. NaN for a single example.
        passage_entropy: of the prior over the K passages alone, without sets and "no passage"; log K where it is flat.
            None in records of earlier versions.
    """

    num_examples: int
    num_passages: int
    nll: float
    nll_per_token: float
    prior_entropy: float
    posterior_entropy: float
    kl: float
    agreement: float
    unique_top: float
    top_share: float
    gap: float
    gap_error: float
    overlap: float
    passage_entropy: float | None = None

    def as_record(self) -> dict[str, int | float | None]:
        """The fields by name, as JSON has them: None for NaN."""
        return {
            name: value if value is not None and math.isfinite(value) else None for name, value in asdict(self).items()
        }

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> "Health":
        """What ``as_record`` gave."""
        values: dict[str, Any] = {name: math.nan if value is None else value for name, value in record.items()}
        return cls(**{**values, "passage_entropy": record.get("passage_entropy")})


@torch.no_grad()
def measure(
    model: JointModel[Scores],
    x: Sequence[Asked],
    y: Sequence[str],
    *,
    k: int,
    variant: Variant,
    batch_size: int = 8,
    processes: Processes | None = None,
) -> Health:
    """The health of a model on n pairs (x, y), for two passes of the generator over them.

    The passages for ``gap`` are those of the question half the set away (i + ⌊n/2⌋ modulo n): questions that stand
    side by side in a file are often about the same thing and share passages. The same order of x gives the same
    exchange at every evaluation, so that values can be compared.

    The model's modules are used in the mode they are in: put them into evaluation mode first.

    Args:
        k: K, passages retrieved for each x.
        batch_size: questions handled together.
        processes: which measure it together, each some of the pairs. None: this one alone.
    Raises: InputError for no example, x and y of different number, batch_size < 1, an empty question, or k beyond
        the memory.
    """
    if len(x) != len(y):
        raise InputError(f"got {len(x)} questions and {len(y)} targets; needed as many of each")
    if not x:
        raise InputError("got no example to measure; needed at least one question with its answer")
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} holds no example; needed 1 or more")
    processes = processes or Processes()
    mine = processes.share(range(len(x)))
    measured = _measure_some(model, x, y, mine, k=k, variant=variant, batch_size=batch_size)
    return _summary(*_of_all(processes.gather(measured)), num_passages=k)


_Measured = tuple[dict[str, list[float]], list[str]]
"""The values of some examples under each name, and what names the latent value on top of each."""


def _measure_some(
    model: JointModel[Scores],
    x: Sequence[Asked],
    y: Sequence[str],
    mine: Sequence[int],
    *,
    k: int,
    variant: Variant,
    batch_size: int,
) -> _Measured:
    """Args: mine: places of those of the examples that are measured."""

    def batches(places: Sequence[int]) -> list[Sequence[int]]:
        return [places[start : start + batch_size] for start in range(0, len(places), batch_size)]

    def at_once(places: Sequence[int]) -> Retrieved:
        return model.retrieve([x[i] for i in places], k).whole()

    half = len(x) // 2
    other = {i: (i + half) % len(x) for i in mine if half}
    retrieved = [at_once(batch) for batch in batches(mine)]
    own = dict(zip(mine, (latents for of_batch in retrieved for latents in of_batch.latents), strict=True))
    for batch in batches(sorted(set(other.values()) - own.keys())):  # which another process measures
        own.update(zip(batch, at_once(batch).latents, strict=True))

    columns: dict[str, list[float]] = {}
    top: list[str] = []
    for batch, found in zip(batches(mine), retrieved, strict=True):
        exchanged = None
        if other:  # where the other question has fewer latent values, the rest is read without any passage
            exchanged = [
                [*own[other[i]], *[()] * len(of_one)][: len(of_one)]
                for i, of_one in zip(batch, found.latents, strict=True)
            ]
        pairs = [x[i] for i in batch], [y[i] for i in batch]
        evidence, values = _measure_batch(model, *pairs, found, exchanged, variant)
        for name, column in values.items():
            columns.setdefault(name, []).extend(column.tolist())
        for latents, best in zip(evidence.latents, evidence.log_p_eta.argmax(dim=1).tolist(), strict=True):
            top.append(_name(latents[best]))
    return columns, top


def alarms(health: Health, *, first: Health | None = None) -> list[str]:
    """What is wrong with retrieval, a line each: what is seen, what it means, what to try. Empty when healthy.

    Fewer than ``MIN_EXAMPLES`` examples raise no alarm: chance would.

    Args:
        first: the same measure on the same examples before training. With it a decline is seen earlier, and
            questions that truly share a few passages are not taken for a collapse.
    """
    if health.num_examples < MIN_EXAMPLES:
        return []
    checks = (_useless_passages(health, first), _shared_passage(health, first), _flat_prior(health, first))
    return [line for line in checks if line]


def _measure_batch(
    model: JointModel[Scores],
    x: Sequence[Asked],
    y: Sequence[str],
    retrieved: Retrieved,
    others: LatentLists | None,
    variant: Variant,
) -> tuple[Evidence, dict[str, Tensor]]:
    """The evidence with the questions' own passages, and one value for each example under each name."""
    targets = model.generator.targets(y)
    read = model.read_of(x, retrieved)
    evidence, log_p_eta = read.evidence(targets), read.log_p_eta
    # In float64, which some accelerators have not.
    log_p = evidence.log_likelihood(variant).cpu().double()  # (B,)
    log_prior = log_p_eta.cpu().double()  # (B, K)
    prior, posterior = log_prior.exp(), evidence.posterior(variant).cpu().double()
    log_ratio = posterior.log() - log_prior
    # 0 · log 0 is 0: a passage that the posterior rules out adds nothing, whatever its prior.
    kl = (posterior * log_ratio).masked_fill(posterior == 0, 0.0).sum(dim=1)
    values = {
        "nll": -log_p,
        "tokens": targets.mask.sum(dim=1),
        "prior_entropy": torch.special.entr(prior).sum(dim=1),
        "passage_entropy": torch.special.entr(log_prior[:, : len(retrieved.latents[0])].softmax(dim=1)).sum(dim=1),
        "posterior_entropy": torch.special.entr(posterior).sum(dim=1),
        "kl": kl.clamp_min(0.0),  # rounding
        "agreement": (prior.argmax(dim=1) == posterior.argmax(dim=1)).double(),
    }
    if others is not None:
        exchanged = model.read_of(x, replace(retrieved, latents=others)).evidence(targets)
        values["gap"] = log_p - exchanged.log_likelihood(variant).cpu().double()
        values["overlap"] = _overlap(prior, evidence.latents, exchanged.latents)
    return evidence, values


def _overlap(prior: Tensor, own: LatentLists, others: LatentLists) -> Tensor:
    """(B,) Σ_z min(p(z), p'(z)), p' being the same prior values laid over the other passages."""
    shared = []
    for values, mine, theirs in zip(prior.tolist(), own, others, strict=True):
        of_mine, of_theirs = _mass(mine, values), _mass(theirs, values)
        shared.append(math.fsum(min(mass, of_theirs.get(z, 0.0)) for z, mass in of_mine.items()))
    return torch.tensor(shared)


def _mass(latents: Sequence[Latent], values: Sequence[float]) -> dict[Latent, float]:
    """The prior of each latent value, which may stand there more than once."""
    mass: dict[Latent, float] = {}
    for z, value in zip(latents, values, strict=True):
        mass[z] = mass.get(z, 0.0) + value
    return mass


def _name(z: Latent) -> str:
    """Equal latent values, equal text: for a message."""
    return hashlib.sha256(repr(z).encode(errors="surrogatepass")).hexdigest()


def _of_all(parts: Sequence[_Measured]) -> _Measured:
    """What all processes have measured."""
    columns: dict[str, list[float]] = {}
    for of_one, _ in parts:
        for name, column in of_one.items():
            columns.setdefault(name, []).extend(column)
    return columns, [each for _, of_one in parts for each in of_one]


def _summary(columns: dict[str, list[float]], top: Sequence[str], *, num_passages: int) -> Health:
    num_examples, times = len(columns["nll"]), Counter(top)

    def mean(name: str) -> float:
        return math.fsum(columns[name]) / num_examples if name in columns else math.nan

    gap, gap_error = mean("gap"), math.nan
    if "gap" in columns:
        squares = math.fsum((each - gap) ** 2 for each in columns["gap"])
        gap_error = math.sqrt(squares / (num_examples - 1) / num_examples)
    return Health(
        num_examples=num_examples,
        num_passages=num_passages,
        nll=mean("nll"),
        nll_per_token=math.fsum(columns["nll"]) / math.fsum(columns["tokens"]),
        prior_entropy=mean("prior_entropy"),
        posterior_entropy=mean("posterior_entropy"),
        kl=mean("kl"),
        agreement=mean("agreement"),
        unique_top=len(times) / num_examples,
        top_share=max(times.values()) / num_examples,
        gap=gap,
        gap_error=gap_error,
        overlap=mean("overlap"),
        passage_entropy=mean("passage_entropy"),
    )


def _useless_passages(health: Health, first: Health | None) -> str:
    """The gap is near zero, or has lost three quarters of what it was before training.

    Near zero: under 2 % of the loss, but never under 0.05 nats, which change p(y|x) by 5 %, nor over 0.5 nats, which
    no long y makes negligible. Even the upper end of the gap's 95 % interval must lie below, so that few or noisy
    examples raise no alarm by chance. Passages that the exchange left in place lower the bar in proportion.
    """
    if health.overlap > 0.9:
        return ""  # The same passages under the same prior: no gap is to be expected, alive or not.
    negligible = min(max(0.05, 0.02 * health.nll), 0.5) * (1 - health.overlap)
    highest = health.gap + 2 * health.gap_error
    remedy = (
        "let the generator learn to read first (--warmup-generator), lower --lr-retriever, raise --k or train "
        "with --hindsight N, and check that the passages hold the answers"
    )
    if highest < negligible:
        before = "" if first is None else f"; before training {first.gap:.3f}"
        return (
            f"the passages of another question serve as well as a question's own (gap {health.gap:.3f} nats of a loss "
            f"of {health.nll:.2f}{before}): the generator ignores them or they do not help, and the retriever learns "
            f"nothing; {remedy}"
        )
    if first is not None and first.gap - 2 * first.gap_error > negligible and _quartered(health, first):
        return (
            f"the gap between a question's own passages and another's fell from {first.gap:.3f} to {health.gap:.3f} "
            f"nats: the generator is turning away from its passages; {remedy}"
        )
    return ""


def _quartered(health: Health, first: Health) -> bool:
    """Surely under a quarter of the first gap, in nats and as a share of the loss: where training brings the loss
    down, a gap that falls along with it is no decline."""
    highest = health.gap + 2 * health.gap_error
    return highest < first.gap / 4 and highest * first.nll < first.gap / 4 * health.nll


def _shared_passage(health: Health, first: Health | None) -> str:
    """One passage, or a handful, is on top for too many questions.

    Without a first measure only nine in ten are too many: a small memory has passages that many questions share.
    With one: five times its share, or half of what was left to one where that is less; or a fifth of its passages.
    So what was so before training is no collapse.
    """
    limit, fewest = 0.9, 0.0
    if first is not None:
        limit = max(0.2, min(5 * first.top_share, (1 + first.top_share) / 2))
        fewest = first.unique_top / 5
    if health.top_share <= limit and health.unique_top > fewest:
        return ""
    before = f" (before training: {first.top_share:.1%} and {first.unique_top:.3f})" if first else ""
    return (
        f"{health.top_share:.1%} of the questions have the same top passage, with {health.unique_top:.3f} different "
        f"ones for each question{before}: retrieval has collapsed onto few passages; begin again with a lower "
        "--lr-retriever, let the generator learn first (--warmup-generator), or train with --hindsight N"
    )


def _flat_prior(health: Health, first: Health | None) -> str:
    """The prior is flat and y does not say more: nothing tells a question's K passages apart.

    A prior that is sure of its passage leaves y nothing to add either, and is as it should be.
    """
    flattest, entropy = math.log(health.num_passages), _passage_entropy(health)
    if health.num_passages < 2 or entropy < 0.98 * flattest or health.kl > 0.01:
        return ""
    before = "" if first is None else f"; before training {_passage_entropy(first):.3f}"
    return (
        f"the prior is flat (entropy {entropy:.3f} of at most {flattest:.3f} nats{before}) and the "
        f"posterior adds nothing (KL {health.kl:.4f} nats): a question's {health.num_passages} passages are not told "
        "apart; check the scale of the scores (20 for most encoders of unit vectors), raise --k or train with "
        "--hindsight N"
    )


def _passage_entropy(health: Health) -> float:
    return health.prior_entropy if health.passage_entropy is None else health.passage_entropy
