"""(x, y) to losses: retrieve, read, score, marginalise (Lewis et al. 2020, §2.4)."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentrag.marginal import emdr2, log_prior, loop, marginal_weights, nll, pdist, smoothed_nll
from latentrag.model import closed_book
from latentrag.protocols import TrainableGenerator, TrainableRetriever
from latentrag.training.memo import ScoreMemo
from latentrag.training.options import TrainingOptions
from latentrag.types import LatentLists, Retrieved, Targets


@dataclass(frozen=True, slots=True)
class Losses:
    """Of B examples.

    Attributes:
        loss: (B,), with its gradient. Where passages were sought with y and the generator learns, its value is the
            retriever's objective, over all of them; the generator's, over the top K, is there by its gradient only.
        nll: (B,) −log p(y|x) over the top K, nats.
        num_tokens: of all targets.
    """

    loss: Tensor
    nll: Tensor
    num_tokens: int


def losses(
    retriever: TrainableRetriever | None,
    generator: TrainableGenerator,
    x: Sequence[str],
    y: Sequence[str],
    *,
    options: TrainingOptions,
    retriever_learns: bool = True,
    generator_learns: bool = True,
    memo: ScoreMemo | None = None,
) -> Losses:
    """The objective of B pairs (x, y), differentiable in both sides.

    Args:
        retriever: None: closed book.
        retriever_learns, generator_learns: a side that does not is computed without a gradient, save for the generator
            with label smoothing; what it gets then is to be thrown away.
        memo: of a generator that does not learn and has not learned since: its scores are looked up there.
    """
    targets = generator.targets(y)
    device = targets.ids.device
    mixed = torch.autocast(device.type, torch.bfloat16) if options.autocast else nullcontext()
    if retriever is None:
        with mixed:
            evidence = closed_book(generator, x).evidence(targets)
        alone = nll(evidence.log_p_eta, evidence.log_p_theta, targets.mask, variant="sequence")
        return Losses(alone, alone.detach(), int(targets.mask.sum()))
    with nullcontext() if retriever_learns else torch.no_grad():
        retrieved = _retrieved(retriever, x, y, options, learns=retriever_learns)
        logits = retrieved.logits.to(device)
        log_p_eta = log_prior(logits)
    if memo is not None and not options.label_smoothing:
        with mixed:
            log_p_theta = memo.log_p_theta(generator, x, y, retrieved.latents, targets)
        loss = _of_scores(log_p_eta, log_p_theta, targets, options)
    else:
        loss, log_p_theta = _objective(
            generator, x, retrieved, targets, log_p_eta, options=options, mixed=mixed, learns=generator_learns
        )
    with torch.no_grad():
        asked = slice(0, options.k)  # the others will not be found without y
        plain = nll(log_prior(logits[:, asked]), log_p_theta[:, asked], targets.mask, variant=options.variant)
    return Losses(loss, plain, int(targets.mask.sum()))


def _retrieved(
    retriever: TrainableRetriever, x: Sequence[str], y: Sequence[str], options: TrainingOptions, *, learns: bool
) -> Retrieved:
    if options.hindsight and learns:
        return retriever.retrieve_in_hindsight(x, y, options.k, options.hindsight)
    return retriever.retrieve(x, options.k)


def _objective(
    generator: TrainableGenerator,
    x: Sequence[str],
    retrieved: Retrieved,
    targets: Targets,
    log_p_eta: Tensor,
    *,
    options: TrainingOptions,
    mixed: AbstractContextManager[Any],
    learns: bool,
) -> tuple[Tensor, Tensor]:
    """The loss (B,) and log_p_theta (B, K + K2, T). ``learns``: whether the generator does.

    What was found with y teaches the retriever alone: a generator that learned from it, too, answered worse
    (docs/experiments/jeopardy.md).
    """
    read = retrieved.between(0, options.k).latents
    with mixed:
        if not learns or log_p_eta.shape[1] == options.k:
            return _of_latents(generator, x, retrieved.latents, targets, log_p_eta, options=options, learns=learns)
        with torch.no_grad():  # before gradients are taken, which drop the packed weights again
            prepared = generator.prepare(x, retrieved.between(options.k).latents)
            of_others = generator.log_p_theta(prepared, targets)
        torch.clear_autocast_cache()  # of weights cast above, without a gradient
        prior = log_prior(log_p_eta[:, : options.k].detach())
        reader_loss, of_read = _of_latents(generator, x, read, targets, prior, options=options, learns=True)
    log_p_theta = torch.cat([of_read.detach(), of_others], dim=1)
    retriever_loss = _of_scores(log_p_eta, log_p_theta, targets, options)
    return retriever_loss + (reader_loss - reader_loss.detach()), log_p_theta


def _of_latents(
    generator: TrainableGenerator,
    x: Sequence[str],
    latents: LatentLists,
    targets: Targets,
    log_p_eta: Tensor,
    *,
    options: TrainingOptions,
    learns: bool,
) -> tuple[Tensor, Tensor]:
    """The loss (B,) and log_p_theta (B, K, T) of latent values that both sides learn from."""
    variant, mask = options.variant, targets.mask
    prepared = generator.prepare(x, latents)
    if options.label_smoothing:
        log_p_theta, mean = generator.log_p_theta_and_mean(
            prepared, targets, lambda found: marginal_weights(log_p_eta, found, mask, variant=variant)
        )
        smoothing = options.label_smoothing
        return smoothed_nll(log_p_eta, log_p_theta, mean, mask, variant=variant, smoothing=smoothing), log_p_theta
    # EMDR² teaches the generator by the reader of all passages; of single passages it only asks.
    with nullcontext() if learns and options.objective != "emdr2" else torch.no_grad():
        log_p_theta = generator.log_p_theta(prepared, targets)
    if options.objective == "emdr2" and learns:
        torch.clear_autocast_cache()  # of weights cast above, without a gradient
        together = generator.log_p_theta(generator.prepare_together(x, latents), targets)[:, 0]
        return emdr2(log_p_eta, log_p_theta, mask, together, variant=variant), log_p_theta
    return _of_scores(log_p_eta, log_p_theta, targets, options), log_p_theta


def _of_scores(log_p_eta: Tensor, log_p_theta: Tensor, targets: Targets, options: TrainingOptions) -> Tensor:
    """The loss (B,) that needs nothing but both scores."""
    variant, mask = options.variant, targets.mask
    if options.objective in ("nll", "emdr2"):  # of EMDR², without its reader, this is what teaches the retriever
        return nll(log_p_eta, log_p_theta, mask, variant=variant)
    distil = pdist if options.objective == "pdist" else loop
    return distil(log_p_eta, log_p_theta, mask, variant=variant, temperature=options.temperature)
