"""The joint distribution: retrieve, score, marginalise (Lewis et al. 2020, §2).

    x → retriever → log_p_eta (B, K);  (x, z, y) → generator → log_p_theta (B, K, T);  both → marginal

Everything here is differentiable in the query encoder and the generator.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast, get_args

from torch import Tensor

from latentrag.errors import InputError
from latentrag.marginal import (
    log_likelihood,
    log_prior,
    marginal_weights,
    prefix_posterior,
    sequence_posterior,
    token_posterior,
    without_passage,
)
from latentrag.protocols import Generator, Retriever
from latentrag.types import Passage, Targets, Variant

VARIANTS: tuple[str, ...] = get_args(Variant)


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What is known of (x, y) before the passages are summed out.

    Attributes:
        passages: B lists of K passages, best prior first.
        log_p_eta: (B, K) log p_η(z|x), nats.
        log_p_theta: (B, K, T) log p_θ(y_i|x,z,y_<i), nats.
        targets: y as tokens, (B, T).
        version: of the memory.
    """

    passages: list[list[Passage]]
    log_p_eta: Tensor
    log_p_theta: Tensor
    targets: Targets
    version: int

    def log_likelihood(self, variant: Variant) -> Tensor:
        """(B,) log p(y|x), nats."""
        return log_likelihood(self.log_p_eta, self.log_p_theta, self.targets.mask, variant=checked(variant))

    def posterior(self, variant: Variant) -> Tensor:
        """(B, K) the share of each passage in y: p(z|x,y) for RAG-Sequence, the mean over the tokens of
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
        """(B, K) log p(y|x) had passage k not been retrieved. Raises: ShapeError if K = 1."""
        return without_passage(self.log_p_eta, self.log_p_theta, self.targets.mask, variant=checked(variant))


@dataclass(frozen=True, slots=True)
class JointModel:
    """p(y|x) = Σ_z p_η(z|x) p_θ(y|x,z): a retriever and a generator."""

    retriever: Retriever
    generator: Generator

    def evidence(self, x: Sequence[str], y: Sequence[str], *, k: int) -> Evidence:
        """Both tensors for B pairs (x, y).

        Args:
            k: K, passages retrieved for each x.
        Raises: InputError if x and y differ in number, a question is empty, or k exceeds the memory.
        """
        if len(x) != len(y):
            raise InputError(f"got {len(x)} questions and {len(y)} targets; needed as many of each")
        retrieved = self.retriever.retrieve(x, k)
        prepared = self.generator.prepare(x, retrieved.passages)
        targets = self.generator.targets(y)
        return Evidence(
            retrieved.passages,
            log_prior(retrieved.scores.to(targets.ids.device)),
            self.generator.log_p_theta(prepared, targets),
            targets,
            retrieved.version,
        )

    def log_likelihood(self, x: Sequence[str], y: Sequence[str], *, k: int, variant: Variant) -> Tensor:
        """(B,) log p(y|x), nats."""
        return self.evidence(x, y, k=k).log_likelihood(variant)

    def posterior(self, x: Sequence[str], y: Sequence[str], *, k: int, variant: Variant) -> Tensor:
        """(B, K) the share of each passage in y; see ``Evidence.posterior``."""
        return self.evidence(x, y, k=k).posterior(variant)

    def without_passage(self, x: Sequence[str], y: Sequence[str], *, k: int, variant: Variant) -> Tensor:
        """(B, K) log p(y|x) had passage k not been retrieved."""
        return self.evidence(x, y, k=k).without_passage(variant)

    def closed_book_log_p(self, x: Sequence[str], targets: Targets) -> Tensor:
        """(B,) log p_θ(y|x) of the generator alone, without any passage, nats."""
        prepared = self.generator.prepare(x, None)
        log_p = self.generator.log_p_theta(prepared, targets)[:, 0]  # (B, T)
        return log_p.masked_fill(~targets.mask, 0.0).sum(dim=1)


def checked(variant: str) -> Variant:
    """Raises: InputError unless it is one of the two."""
    if variant in VARIANTS:
        return cast("Variant", variant)
    raise InputError(f"variant={variant!r} is unknown; needed 'sequence' or 'token'")
