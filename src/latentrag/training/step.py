"""(x, y) to losses: retrieve, read, score, marginalise (Lewis et al. 2020, §2.4)."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from latentrag.marginal import emdr2, log_prior, loop, marginal_weights, nll, pdist, smoothed_nll
from latentrag.model import Evidence, Read, Values, checked_questions, closed_book, fitting, read_of
from latentrag.neighbours import with_neighbours
from latentrag.protocols import TrainableGenerator, TrainableRetriever, weighs_passages
from latentrag.readings import ReadingWeights, retrieve, retrieve_in_hindsight
from latentrag.training.options import OBJECTIVES, TrainingOptions
from latentrag.types import Asked, Latent, LatentLists, Passage, Question, Retrieved, Targets


@dataclass(frozen=True, slots=True)
class Objective:
    """What a run minimises; each function gives the losses of B examples, (B,).

    Attributes:
        loss: of the scores of single passages, differentiable in both sides.
        with_reader: of these, which teach the retriever, and of log p(y_i|x,Z,y_<i) (B, T), by which the generator
            learns to read all passages at once. None: the generator learns from single passages.
        smooths_labels: whether it is the likelihood, so that label smoothing can be added.
        has_temperature: whether it uses the option temperature.
    """

    loss: Callable[[Evidence, TrainingOptions], Tensor]
    with_reader: Callable[[Evidence, Tensor, TrainingOptions], Tensor] | None = None
    smooths_labels: bool = False
    has_temperature: bool = True


def _likelihood(evidence: Evidence, options: TrainingOptions) -> Tensor:
    return nll(evidence.log_p_eta, evidence.log_p_theta, evidence.targets.mask, variant=options.variant)


def _emdr2(evidence: Evidence, together: Tensor, options: TrainingOptions) -> Tensor:
    mask = evidence.targets.mask
    return emdr2(evidence.log_p_eta, evidence.log_p_theta, mask, together, variant=options.variant)


def _pdist(evidence: Evidence, options: TrainingOptions) -> Tensor:
    scores, mask = (evidence.log_p_eta, evidence.log_p_theta), evidence.targets.mask
    return pdist(*scores, mask, variant=options.variant, temperature=options.temperature)


def _loop(evidence: Evidence, options: TrainingOptions) -> Tensor:
    scores, mask = (evidence.log_p_eta, evidence.log_p_theta), evidence.targets.mask
    return loop(*scores, mask, variant=options.variant, temperature=options.temperature)


NLL = Objective(_likelihood, smooths_labels=True, has_temperature=False)
EMDR2 = Objective(_likelihood, with_reader=_emdr2, has_temperature=False)
PDIST = Objective(_pdist)
LOOP = Objective(_loop)


@dataclass(frozen=True, slots=True)
class Losses:
    """Of B examples.

    Attributes:
        loss: (B,), with its gradient. Where there are extra candidates and the generator learns, its value is the
            retriever's objective over all passages; the generator's objective, over the top K, adds its gradient only.
        nll: (B,) −log p(y|x) over the top K, nats.
        num_tokens: of all targets.
    """

    loss: Tensor
    nll: Tensor
    num_tokens: int


def losses(
    retriever: TrainableRetriever | None,
    generator: TrainableGenerator,
    x: Sequence[Asked],
    y: Sequence[str],
    *,
    options: TrainingOptions,
    retriever_learns: bool = True,
    generator_learns: bool = True,
    memo: "ScoreMemo | None" = None,
    values: Values | None = None,
    readings: ReadingWeights | None = None,
) -> Losses:
    """The objective of B pairs (x, y), differentiable in both sides.

    Args:
        retriever: None: closed book.
        retriever_learns, generator_learns: a side that does not learn is computed without a gradient. Exception: with
            label smoothing the generator gets a gradient all the same, which the caller must discard.
        memo: scores of a generator that does not learn and has not learned since they were kept. Not with label
            smoothing, nor for a generator that weighs passages, which need more than scores.
        values: what z may be beside the top K passages, after which they stand; None: nothing else.
        readings: how probable each reading of a conversation is; None: by the default weights.
    """
    values, readings = values or Values(), readings or ReadingWeights.of()
    targets = generator.targets(y)
    num_tokens = int(targets.mask.sum())
    mixed = torch.autocast(generator.device.type, torch.bfloat16) if options.autocast else nullcontext()
    if retriever is None:
        with mixed:
            evidence = closed_book(generator, x).evidence(targets)
        alone = -evidence.log_likelihood("sequence")
        return Losses(alone, alone.detach(), num_tokens)
    with nullcontext() if retriever_learns else torch.no_grad():
        if options.hindsight and retriever_learns:
            asked = checked_questions(x)
            retrieved = retrieve_in_hindsight(retriever, asked, y, options.k, options.hindsight, readings)
        else:
            retrieved = retrieve(retriever, checked_questions(x), options.k, readings)
        retrieved = with_neighbours(retrieved.whole(), retriever.memory, values.neighbours)
        k = min(options.k, len(retrieved.latents[0]))  # fewer where few passages satisfy a condition
        retrieved = values.beside(retrieved, num_top=k)
    num_top = values.number(k)
    with mixed:
        if memo is not None:
            kept = memo.log_p_theta(generator, x, y, retrieved.latents, targets)
            evidence = _evidence(retrieved, kept, targets)
            loss = OBJECTIVES[options.objective].loss(evidence, options)
        elif generator_learns and len(retrieved.latents[0]) > num_top:
            loss, evidence, retrieved = _each_side_from_its_own(generator, x, retrieved, targets, options, num_top)
        else:
            read = read_of(generator, x, retrieved, learns=generator_learns)
            loss, evidence = _both_from_the_same(read, targets, options, learns=generator_learns)
            retrieved = read.retrieved
    with torch.no_grad():
        top = retrieved.between(0, num_top)  # extra candidates are not retrieved without y
        plain = _evidence(top, evidence.log_p_theta[:, :num_top], targets).log_likelihood(options.variant)
    return Losses(loss, -plain, num_tokens)


def _evidence(retrieved: Retrieved, log_p_theta: Tensor, targets: Targets) -> Evidence:
    log_p_eta = log_prior(retrieved.logits.to(log_p_theta.device))
    return Evidence(retrieved.latents, log_p_eta, log_p_theta, targets, retrieved.version, readings=retrieved.readings)


def _each_side_from_its_own(
    generator: TrainableGenerator,
    x: Sequence[Asked],
    retrieved: Retrieved,
    targets: Targets,
    options: TrainingOptions,
    num_top: int,
) -> tuple[Tensor, Evidence, Retrieved]:
    """The loss (B,) where the retriever learns from all passages, the generator from the top ones; the evidence, and
    what was retrieved with all parts of its logits.

    A generator that learned from passages retrieved with y, too, answered worse (docs/experiments/jeopardy.md).
    """
    with torch.no_grad():  # before gradients are taken, which drop the packed weights again
        others = read_of(generator, x, retrieved.between(num_top))
        of_others = others.evidence(targets).log_p_theta
    torch.clear_autocast_cache()  # of weights cast above, without a gradient
    prior = {"fixed": log_prior(retrieved.logits.to(of_others.device)).detach()[:, :num_top]}
    top = read_of(generator, x, Retrieved(retrieved.between(0, num_top).latents, prior, retrieved.version))
    reader_loss, of_top = _both_from_the_same(top, targets, options, learns=True)
    if weighs_passages(generator):
        weights = [read.retrieved.parts["reader"].detach() for read in (top, others)]
        parts = {name: part.to(of_others.device) for name, part in retrieved.parts.items()}
        retrieved = replace(retrieved, parts={**parts, "reader": torch.cat(weights, dim=1)})
    log_p_theta = torch.cat([of_top.log_p_theta.detach(), of_others], dim=1)
    evidence = _evidence(retrieved, log_p_theta, targets)
    retriever_loss = OBJECTIVES[options.objective].loss(evidence, options)
    return retriever_loss + (reader_loss - reader_loss.detach()), evidence, retrieved


def _both_from_the_same(
    read: Read[TrainableGenerator], targets: Targets, options: TrainingOptions, *, learns: bool
) -> tuple[Tensor, Evidence]:
    """The loss (B,) of passages that both sides learn from, and the evidence.

    Args:
        learns: whether the generator does.
    """
    objective, variant, mask = OBJECTIVES[options.objective], options.variant, targets.mask
    generator, retrieved = read.generator, read.retrieved
    if options.label_smoothing:
        log_p_theta, mean = generator.log_p_theta_and_mean(
            read.prepared, targets, lambda tokens: marginal_weights(read.log_p_eta, tokens, mask, variant=variant)
        )
        smoothing = options.label_smoothing
        loss = smoothed_nll(read.log_p_eta, log_p_theta, mean, mask, variant=variant, smoothing=smoothing)
        return loss, Evidence(retrieved.latents, read.log_p_eta, log_p_theta, targets, retrieved.version)
    with nullcontext() if learns and objective.with_reader is None else torch.no_grad():
        evidence = read.evidence(targets)
    if objective.with_reader is None or not learns:
        return objective.loss(evidence, options), evidence
    torch.clear_autocast_cache()  # of weights cast above, without a gradient
    together = generator.log_p_theta(generator.prepare_together(read.questions, retrieved.latents), targets)[:, 0]
    return objective.with_reader(evidence, together, options), evidence


_KEY_BYTES = 16


class ScoreMemo:
    """log p_θ(y|x,z) of a generator whose weights do not change, so that later epochs only score new passages.

    It is saved with a checkpoint: scores computed again, in another batch, would differ in their last digits.
    """

    def __init__(self) -> None:
        self._scores: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._scores)

    @torch.no_grad()
    def log_p_theta(
        self,
        generator: TrainableGenerator,
        x: Sequence[Asked],
        y: Sequence[str],
        latents: LatentLists,
        targets: Targets,
    ) -> Tensor:
        """(B, K, T) without gradient; the generator computes what is not kept."""
        read = [fitting(generator, Question.of(question)) for question in x]
        keys = [[_key(read[b], y[b], z) for z in of_one] for b, of_one in enumerate(latents)]
        missing = {key: (b, k) for b, row in enumerate(keys) for k, key in enumerate(row) if key not in self._scores}
        lengths = targets.mask.sum(dim=1).tolist()
        if missing:
            questions = torch.tensor([b for b, _ in missing.values()], device=targets.ids.device)
            prepared = generator.prepare(
                [read[b] for b, _ in missing.values()], [[latents[b][k]] for b, k in missing.values()]
            )
            of_missing = Targets(targets.ids[questions], targets.mask[questions])
            log_p = generator.log_p_theta(prepared, of_missing)[:, 0].float().cpu().numpy()  # (n, T)
            for row, (key, (b, _)) in zip(log_p, missing.items(), strict=True):
                self._scores[key] = row[: lengths[b]].tobytes()
        scores = np.zeros((len(x), len(keys[0]), targets.ids.shape[1]), np.float32)
        for b, of_question in enumerate(keys):
            for k, key in enumerate(of_question):
                scores[b, k, : lengths[b]] = np.frombuffer(self._scores[key], np.float32)
        return torch.from_numpy(scores).to(targets.ids.device)

    def tensors(self) -> dict[str, Tensor]:
        """All of it, for a checkpoint."""
        keys = np.frombuffer(b"".join(self._scores), np.uint8).reshape(-1, _KEY_BYTES)
        values = np.frombuffer(b"".join(self._scores.values()), np.float32)
        lengths = np.array([len(value) // 4 for value in self._scores.values()], np.int32)
        arrays = {"keys": keys, "lengths": lengths, "values": values}
        return {name: torch.tensor(array) for name, array in arrays.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """What ``tensors`` gave."""
        ends = tensors["lengths"].long().cumsum(dim=0).tolist()
        keys, values = tensors["keys"].numpy(), tensors["values"].numpy()
        starts = [0, *ends][:-1]
        self._scores = {
            key.tobytes(): values[start:end].tobytes() for key, start, end in zip(keys, starts, ends, strict=True)
        }


def _parts_read(passage: Passage) -> tuple[str, ...]:
    beside = (passage.before, passage.after) if passage.before or passage.after else ()
    return (passage.id, passage.title, passage.text, *beside)


def _key(x: Question, y: str, z: Latent) -> bytes:
    digest = hashlib.blake2b(digest_size=_KEY_BYTES)
    before = (part for turn in x.turns[:-1] for part in (turn.role, turn.text))
    for text in (*before, x.text, y, *(part for passage in z for part in _parts_read(passage))):
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.digest()
