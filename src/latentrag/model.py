"""The joint distribution: retrieve, read, score, marginalise (Lewis et al. 2020, §2).

    x → retriever → log_p_eta (B, K);  (x, z, y) → generator → log_p_theta (B, K, T);  both → marginal

``JointModel.read`` is the one way from questions to evidence: asking, scoring, classifying, training and measuring all
begin with it. Everything here is differentiable in the retriever and the generator.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Generic, TypeVar, cast, get_args

import torch
from torch import Tensor, nn

from latentrag.conditions import Where
from latentrag.errors import InputError, OptionError
from latentrag.marginal import (
    log_likelihood,
    log_prior,
    marginal_weights,
    prefix_posterior,
    sequence_posterior,
    token_posterior,
    without_passage,
)
from latentrag.neighbours import with_neighbours
from latentrag.protocols import Memory, Prepared, ReadsTurns, Retriever, Scores, can_be_filtered, weighs_passages
from latentrag.readings import PART, ReadingWeights, of_one_version, retrieve
from latentrag.types import (
    Asked,
    Conversation,
    Latent,
    Passage,
    Question,
    Reading,
    Readings,
    Retrieved,
    Targets,
    Variant,
    distinct_passages,
    no_passages,
)

VARIANTS: tuple[str, ...] = get_args(Variant)
READER = "reader"
"""The part of a logit that is a generator's own, of one that weighs passages."""


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What is known of (x, y) before z is summed out.

    Attributes:
        latents: B lists of K latent values, best prior first.
        log_p_eta: (B, K) log p_η(z|x), nats.
        log_p_theta: (B, K, T) log p_θ(y_i|x,z,y_<i), nats.
        targets: y as tokens, (B, T).
        version: of the memory.
        parts: name → (B, K), of which the logits of the prior are the sum.
        readings: of each question, as in ``Retrieved``.
        missing: as in ``Retrieved``.
    """

    latents: Sequence[Sequence[Latent]]
    log_p_eta: Tensor
    log_p_theta: Tensor
    targets: Targets
    version: int
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    readings: Sequence[Readings | None] = ()
    missing: tuple[str, ...] = ()

    def log_likelihood(self, variant: Variant) -> Tensor:
        """(B,) log p(y|x), nats."""
        return log_likelihood(self.log_p_eta, self.log_p_theta, self.targets.mask, variant=checked(variant))

    def posterior(self, variant: Variant) -> Tensor:
        """(B, K) the share of each latent value in y: p(z|x,y) for RAG-Sequence, the mean over the tokens of
        p(z|x,y_i,y_<i) for RAG-Token."""
        if checked(variant) == "sequence":
            return sequence_posterior(self.log_p_eta, self.log_p_theta, self.targets.mask)
        mask = self.targets.mask[:, None, :]
        of_tokens = self.posterior_of_tokens(variant).masked_fill(~mask, 0.0)
        return of_tokens.sum(dim=2) / mask.sum(dim=2)

    def posterior_of_tokens(self, variant: Variant) -> Tensor:
        """(B, K, T) p(z|x,y_≤i) for RAG-Sequence, p(z|x,y_i,y_<i) for RAG-Token."""
        posterior = prefix_posterior if checked(variant) == "sequence" else token_posterior
        return posterior(self.log_p_eta, self.log_p_theta, self.targets.mask)

    def log_p_of_tokens(self, variant: Variant) -> Tensor:
        """(B, T) log p(y_i|x,y_<i), nats, 0 where masked; their sum is the log-likelihood."""
        mask = self.targets.mask
        weights = marginal_weights(self.log_p_eta, self.log_p_theta, mask, variant=checked(variant))
        tokens = self.log_p_theta.masked_fill(~mask[:, None, :], 0.0)
        return (weights + tokens).logsumexp(dim=1).masked_fill(~mask, 0.0)

    def without_passage(self, variant: Variant) -> Tensor:
        """(B, K) log p(y|x) had latent value k not been retrieved. Raises: ShapeError if K = 1."""
        return without_passage(self.log_p_eta, self.log_p_theta, self.targets.mask, variant=checked(variant))

    def parts_of_passages(self, b: int) -> list[dict[str, float]]:
        """Of each of question b's passages the parts of its logit; empty where latent values are sets, whose logits
        are no passage's."""
        passages, _ = self.of_passages(b, self.log_p_eta[b])
        if any(len(z) > 1 for z in self.latents[b]):
            return [{} for _ in passages]
        is_alone = not self.readings or self.readings[b] is None  # others of the call may have several readings
        named = {name: part for name, part in self.parts.items() if not (is_alone and name == PART)}
        parts = {name: self.of_passages(b, part[b])[1].tolist() for name, part in named.items()}
        return [{name: values[i] for name, values in parts.items()} for i in range(len(passages))]

    def conversation(self, b: int, variant: Variant, *, num_dropped: int = 0) -> Conversation | None:
        """How question b was read, with the share of each reading in y; None where it is one turn.

        Args:
            num_dropped: earlier turns that the generator did not read.
        """
        readings = self.readings[b] if self.readings else None
        if readings is None:
            return None
        prior = readings.shares(self.latents[b], self.log_p_eta[b].exp().tolist())
        posterior = readings.shares(self.latents[b], self.posterior(variant)[b].tolist())
        each = tuple(
            Reading(way.kind, way.text, before, after, way.num_dropped)
            for way, before, after in zip(readings.ways, prior, posterior, strict=True)
        )
        return Conversation(each, readings.trained, num_dropped)

    def without_each_passage(self, b: int, variant: Variant) -> list[float]:
        """log p(y|x), nats, had each of question b's passages not been retrieved: the sets that hold it go with it, and
        p_η is normalised over the other passages, on which the prior of the other sets depends.

        Empty where nothing would be left.
        """
        log_p_eta, latents = self.log_p_eta[b], self.latents[b]
        passages, _ = self.of_passages(b, log_p_eta.exp())
        single = {z[0]: k for k, z in enumerate(latents) if len(z) == 1 and log_p_eta[k] > float("-inf")}
        # The prior of sets is made of what the retriever believes, to which a reader adds its part of each set.
        retrieved = log_p_eta - self.parts[READER][b] if READER in self.parts else log_p_eta
        of_singles = retrieved[list(single.values())].logsumexp(dim=0)
        sizes = torch.tensor([len(z) for z in latents], device=log_p_eta.device)
        found = []
        for passage in passages:
            gone = torch.tensor([passage in z for z in latents], device=log_p_eta.device)
            kept = log_p_eta.masked_fill(gone, float("-inf"))
            if torch.isinf(kept).all():
                return []
            if passage in single:
                # p_η(z_i) p_η(z_j) has the normaliser twice, p_η(z_i) once: sets gain what the others gain, once more.
                others = [k for each, k in single.items() if each != passage]
                left = retrieved[others].logsumexp(dim=0) - of_singles
                kept = torch.where(sizes > 1, kept - left, kept)
            log_p = log_likelihood(
                torch.log_softmax(kept, dim=0)[None],
                self.log_p_theta[b : b + 1],
                self.targets.mask[b : b + 1],
                variant=checked(variant),
            )
            found.append(log_p.item())
        return found

    def of_passages(self, b: int, values: Tensor) -> tuple[list[Passage], Tensor]:
        """Question b's passages, and for each the sum of the values (K, …) of the latent values that hold it."""
        return of_passages(self.latents[b], self.log_p_eta[b], values)


G = TypeVar("G", bound=Scores)
G_co = TypeVar("G_co", bound=Scores, covariant=True)


@dataclass(frozen=True, slots=True, eq=False)
class Read(Generic[G_co]):
    """B questions with what was retrieved for them, read by the generator: all that y does not change.

    Attributes:
        retrieved: B × K latent values.
        log_p_eta: (B, K) log p_η(z|x), nats, normalised over K, where the generator computes.
        prepared: the generator's ``Prepared`` of B × K.
    """

    generator: G_co
    questions: Sequence[Question]
    retrieved: Retrieved
    log_p_eta: Tensor
    prepared: Prepared

    def rows(self, places: Sequence[int]) -> "Read[G_co]":
        """The questions at these places."""
        index = torch.tensor(places, device=self.log_p_eta.device)
        retrieved = replace(
            self.retrieved,
            latents=[self.retrieved.latents[b] for b in places],
            parts={name: part[index.to(part.device)] for name, part in self.retrieved.parts.items()},
            mask=None if self.retrieved.mask is None else self.retrieved.mask[index.to(self.retrieved.mask.device)],
            readings=[self.retrieved.readings[b] for b in places] if self.retrieved.readings else (),
        )
        questions = [self.questions[b] for b in places]
        return Read(self.generator, questions, retrieved, self.log_p_eta[index], self.prepared.rows(index))

    def of_passages(self, b: int) -> tuple[list[Passage], list[float]]:
        """Question b's passages, best first, with their priors."""
        log_p_eta = self.log_p_eta[b].detach()
        passages, priors = of_passages(self.retrieved.latents[b], log_p_eta, log_p_eta.exp())
        return passages, priors.tolist()

    def evidence(self, targets: Targets) -> Evidence:
        """What is known of these questions and y, one target each."""
        log_p_theta = self.generator.log_p_theta(self.prepared, targets)
        retrieved = self.retrieved
        return Evidence(
            retrieved.latents,
            self.log_p_eta,
            log_p_theta,
            targets,
            retrieved.version,
            self.logit_parts(),
            retrieved.readings,
            retrieved.missing,
        )

    def logit_parts(self) -> dict[str, Tensor]:
        """Name → (B, K), without gradient, where the generator computes."""
        parts = self.retrieved.parts
        return {name: part.detach().to(self.log_p_eta.device) for name, part in parts.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """What z may be beside each passage that was retrieved; scalars, learned with the retriever.

    Attributes:
        null: the logit of "no passage"; None: it is no value of z.
        bonus: γ of the sets of two passages; None: they are no values of z.
        neighbours: passages on each side of a passage in its document that the generator reads with it.
    """

    null: nn.Parameter | None = None
    bonus: nn.Parameter | None = None
    neighbours: int = 0

    @classmethod
    def of(cls, *, null_passage: float | None = None, set_bonus: float | None = None, neighbours: int = 0) -> "Values":
        """Raises: InputError for a number that is not finite, or neighbours below 0."""
        if neighbours < 0:
            raise InputError(f"neighbours={neighbours}; needed 0 or more")
        made = {}
        for name, value in {"null_passage": null_passage, "set_bonus": set_bonus}.items():
            if value is not None and not math.isfinite(value):
                raise InputError(f"{name}={value}; needed a finite number")
            made[name] = None if value is None else nn.Parameter(torch.tensor(float(value)), requires_grad=False)
        return cls(made["null_passage"], made["set_bonus"], neighbours)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Those that there are, by the names of the options."""
        named = {"null_passage": self.null, "set_bonus": self.bonus}
        return {name: value for name, value in named.items() if value is not None}

    def number(self, k: int) -> int:
        """Values of z where K passages were retrieved."""
        sets = 0 if self.bonus is None else k * (k - 1) // 2
        return k + sets + (self.null is not None)

    def beside(self, retrieved: Retrieved, *, num_top: int | None = None) -> Retrieved:
        """What was retrieved, and the other values of z after the passages that they are made of.

        Args:
            num_top: passages that they are made of; None: all.
        """
        top = len(retrieved.latents[0]) if num_top is None else num_top
        with_these = with_sets(retrieved, self.bonus, num_top=top)
        sets = len(with_these.latents[0]) - len(retrieved.latents[0])
        return with_no_passage(with_these, self.null, at=None if num_top is None else top + sets)


@dataclass(frozen=True, slots=True)
class JointModel(Generic[G_co]):
    """p(y|x) = Σ_z p_η(z|x) p_θ(y|x,z): a retriever and a generator.

    Attributes:
        values: what z may be beside each passage that was retrieved.
        readings: how probable each reading of a conversation's last question is.
    """

    retriever: Retriever
    generator: G_co
    values: Values = field(default_factory=Values, compare=False)
    readings: ReadingWeights = field(default_factory=ReadingWeights.of, compare=False)

    def where(self, where: Where | None) -> "JointModel[G_co]":
        """The same model over the passages that satisfy a condition: p_η(z|x) given that they do; None: over all.

        Raises: as ``filtered``.
        """
        if where is None:
            return self
        return replace(self, retriever=self.retriever.over(filtered(self.retriever.memory, where)))

    def read(self, x: Sequence[Asked], *, k: int, without: Sequence[str] = ()) -> Read[G_co]:
        """From questions to evidence: retrieve, normalise the prior, let the generator read (x, z).

        Args:
            k: K, latent values retrieved for each x.
            without: ids of passages; latent values that hold one count as not retrieved, and the prior is renormalised
                over the others.
        Raises: InputError for no question, an empty or too long one, k beyond the memory, or ids that are not among
            the passages retrieved.
        """
        questions = checked_questions(x)
        return self.read_of(questions, left_out(self.retrieve(questions, k), without))

    def retrieve(self, x: Sequence[Asked], k: int) -> Retrieved:
        """The K latent values of each question, with their neighbours; of a conversation those of largest
        Σ_r p(r|h) p_η(z|r).

        Raises: InputError as ``Retriever.retrieve``, and for a memory that does not know neighbours.
        """
        if not self.values.neighbours:
            return retrieve(self.retriever, checked_questions(x), k, self.readings)
        retriever = of_one_version(self.retriever)
        found = retrieve(retriever, checked_questions(x), k, self.readings)
        return with_neighbours(found, retriever.memory, self.values.neighbours)

    def read_of(self, x: Sequence[Asked], retrieved: Retrieved) -> Read[G_co]:
        """As ``read``, with what was retrieved for these questions before."""
        return read_of(self.generator, x, self.values.beside(retrieved))

    def evidence(self, x: Sequence[Asked], y: Sequence[str], *, k: int) -> Evidence:
        """Both tensors for B pairs (x, y). Raises: InputError as ``read``, and if x and y differ in number."""
        if len(x) != len(y):
            raise InputError(f"got {len(x)} questions and {len(y)} targets; needed as many of each")
        return self.read(x, k=k).evidence(self.generator.targets(y))

    def closed_book_log_p(self, x: Sequence[Asked], targets: Targets) -> Tensor:
        """(B,) log p_θ(y|x) of the generator alone, without any passage, nats."""
        log_p = closed_book(self.generator, x).evidence(targets).log_p_theta[:, 0]  # (B, T)
        return log_p.masked_fill(~targets.mask, 0.0).sum(dim=1)


def filtered(memory: Memory, where: Where) -> Memory:
    """The passages of a memory that satisfy a condition on their fields, as a memory.

    Raises: InputError for a text that is no condition, a field that no passage has, a value of another kind than the
        field's, or a memory that cannot be filtered.
    """
    if not can_be_filtered(memory):
        raise InputError(f"got a condition, and a {type(memory).__name__} cannot be filtered; leave the condition out")
    return memory.where(where)


def read_of(generator: G, x: Sequence[Asked], retrieved: Retrieved, *, learns: bool = True) -> Read[G]:
    """Questions with what was retrieved for them, read by the generator; one that weighs passages adds its part
    ``READER`` to the logits.

    Args:
        learns: whether that part has a gradient in the generator's weights, where gradients are taken.
    """
    questions = [fitting(generator, Question.of(question)) for question in x]
    prepared = generator.prepare(questions, retrieved.latents)
    logits = retrieved.logits.to(generator.device)
    if weighs_passages(generator):
        with nullcontext() if learns else torch.no_grad():
            weights = generator.log_weights(prepared)
        parts = {name: part.to(generator.device) for name, part in retrieved.parts.items()}
        mask = None if retrieved.mask is None else retrieved.mask.to(generator.device)
        retrieved = replace(retrieved, parts={**parts, READER: weights}, mask=mask)
        logits = retrieved.logits
    return Read(generator, questions, retrieved, log_prior(logits), prepared)


def fitting(generator: Scores, question: Question) -> Question:
    """The question with the earlier turns that the generator reads."""
    if not question.exchanges:
        return question
    return generator.fitting(question) if isinstance(generator, ReadsTurns) else question.since(0)


def with_sets(retrieved: Retrieved, bonus: Tensor | None, *, num_top: int) -> Retrieved:
    """What was retrieved, and after the first passages each set of two of them, which the generator reads together.

        p(z_i|x) ∝ p_η(z_i|x),   p({z_i, z_j}|x) ∝ p_η(z_i|x) p_η(z_j|x) e^γ

    p_η is normalised over these passages. A set's parts are the sums of its passages' parts, and "set": γ − log Σ_z
    e^s(z).

    Args:
        bonus: γ, a scalar, differentiable; None: nothing is added.
        num_top: how many passages; sets keep their order, so that the better one is read first.
    """
    places = list(combinations(range(num_top), 2))
    if bonus is None or not places:
        return retrieved
    first, second = (list(each) for each in zip(*places, strict=True))
    normaliser = retrieved.between(0, num_top).logits.logsumexp(dim=1, keepdim=True)  # (B, 1)

    def widened(part: Tensor, of_sets: Tensor) -> Tensor:
        return torch.cat([part[:, :num_top], of_sets, part[:, num_top:]], dim=1)

    parts = {name: widened(part, part[:, first] + part[:, second]) for name, part in retrieved.parts.items()}
    zeros = torch.zeros_like(next(iter(retrieved.parts.values())))
    parts["set"] = widened(zeros, (bonus.to(zeros) - normaliser).expand(-1, len(places)))
    mask = retrieved.mask
    return replace(
        retrieved,
        latents=[
            [*of_one[:num_top], *(joined(of_one[i], of_one[j]) for i, j in places), *of_one[num_top:]]
            for of_one in retrieved.latents
        ],
        parts=parts,
        mask=None if mask is None else widened(mask, mask[:, first] & mask[:, second]),
    )


def joined(a: Latent, b: Latent) -> Latent:
    """Both latent values as one, each passage once."""
    return tuple(dict.fromkeys([*a, *b]))


def with_no_passage(retrieved: Retrieved, null: Tensor | None, *, at: int | None = None) -> Retrieved:
    """What was retrieved, and the empty latent value, whose logit is the part "null" (Lewis et al. 2020, appendix).

        p_η(()|x) = e^b / (e^b + Σ_z e^{s(z)})

    Args:
        null: b, a scalar, differentiable; None: nothing is added.
        at: its place among the K values; None: the last.
    """
    if null is None:
        return retrieved
    first = next(iter(retrieved.parts.values()))
    at = first.shape[1] if at is None else at

    def widened(part: Tensor, column: Tensor) -> Tensor:
        return torch.cat([part[:, :at], column.expand(len(part), 1), part[:, at:]], dim=1)

    parts = {name: widened(part, part.new_zeros(1, 1)) for name, part in retrieved.parts.items()}
    parts["null"] = widened(torch.zeros_like(first), null.to(first).view(1, 1))
    mask = retrieved.mask
    return replace(
        retrieved,
        latents=[[*of_one[:at], (), *of_one[at:]] for of_one in retrieved.latents],
        parts=parts,
        mask=None if mask is None else widened(mask, mask.new_ones(1, 1)),
    )


def closed_book(generator: G, x: Sequence[Asked]) -> Read[G]:
    """Questions read without any passage: one empty latent value each. Raises: InputError as ``JointModel.read``."""
    questions = checked_questions(x)
    prior = {"none": torch.zeros(len(x), 1, device=generator.device)}
    return read_of(generator, questions, Retrieved(no_passages(len(x)), prior, version=0))


def of_passages(latents: Sequence[Latent], log_p_eta: Tensor, values: Tensor) -> tuple[list[Passage], Tensor]:
    """The passages of K latent values, each once, and the sums (P, …) of the values (K, …) of those that hold it.

    Args:
        log_p_eta: (K,) nats; a latent value of prior 0 only fills up the list.
    """
    real = [z for z, log_p in zip(latents, log_p_eta.tolist(), strict=True) if log_p > float("-inf")]
    passages = distinct_passages(real)
    if len(passages) == len(latents) and all(len(z) == 1 for z in latents):
        return passages, values
    holds = values.new_tensor([[passage in z for z in latents] for passage in passages])  # (P, K)
    return passages, torch.einsum("pk,k...->p...", holds, values)


def left_out(retrieved: Retrieved, without: Sequence[str]) -> Retrieved:
    """What was retrieved, as if passages with these ids had not been.

    Raises: InputError for an id that is not among each question's passages, or if no latent value would be left.
    """
    if not without:
        return retrieved
    gone = set(without)
    for passages in retrieved.passages:
        unknown = sorted(gone - {passage.id for passage in passages})
        if unknown:
            raise OptionError(
                "{without}={given!r} is not among the {size} passages retrieved; name one of those",
                given=unknown[0],
                size=len(passages),
            )
        if len(gone) == len(passages):
            raise OptionError(
                "{without} names all {size} passages retrieved; leave one, or raise {k}", size=len(passages)
            )
    return retrieved.at(
        [[k for k, z in enumerate(row) if gone.isdisjoint(passage.id for passage in z)] for row in retrieved.latents]
    )


def checked_questions(x: Sequence[Asked]) -> list[Question]:
    """x as questions. Raises: InputError if there is none, one is blank, or what was said is no valid Unicode."""
    if not x:
        raise InputError("got no question; needed at least one")
    questions = [Question.of(question) for question in x]
    if not all(question.text.strip() for question in questions):
        raise InputError("the question is empty; needed some text")
    try:
        for question in questions:
            "".join(turn.text for turn in question.turns).encode()
    except UnicodeEncodeError:
        raise InputError(
            "the question, or what was said before it, is not valid Unicode text; remove its lone surrogates"
        ) from None
    return questions


def checked(variant: str) -> Variant:
    """Raises: InputError unless it is one of the two."""
    if variant in VARIANTS:
        return cast("Variant", variant)
    raise InputError(f"variant={variant!r} is unknown; needed 'sequence' or 'token'")
