"""Classification: labels as targets (Lewis et al. 2020, §2.1, §3.4)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from latentrag.errors import InputError
from latentrag.marginal import sequence_log_likelihood, token_log_likelihood
from latentrag.protocols import Prepared, Scores
from latentrag.types import Targets, Variant


def label_log_likelihoods(
    generator: Scores, prepared: Prepared, log_p_eta: Tensor, labels: Sequence[str], *, variant: Variant
) -> tuple[Tensor, Tensor, Tensor]:
    """log p(label|x) of every label, and the evidence behind it.

    The end token is scored only where one label's tokens begin another's; otherwise the label's own tokens tell the
    labels apart. With one-token labels the target has length one and both variants give the same (§2.1).

    Args:
        prepared: B questions × K passages, from ``generator.prepare``.
        log_p_eta: (B, K) nats, normalised over K.
        labels: L different texts, L ≥ 2.
    Returns: (B, L) nats; log_p_theta (B, L, K, T); mask (L, T).
    Raises: InputError for fewer than two labels, an empty one, or two that are the same to the generator.
    """
    targets = _label_targets(generator, labels)
    num_questions, num_labels = len(log_p_eta), len(labels)
    device = log_p_eta.device
    index = torch.arange(num_questions, device=device).repeat_interleave(num_labels)  # (B·L,)
    mask = targets.mask.repeat(num_questions, 1)
    log_p_theta = generator.log_p_theta(prepared.rows(index), Targets(targets.ids.repeat(num_questions, 1), mask))
    likelihood = sequence_log_likelihood if variant == "sequence" else token_log_likelihood
    log_p = likelihood(log_p_eta[index], log_p_theta, mask)
    return (
        log_p.view(num_questions, num_labels),
        log_p_theta.view(num_questions, num_labels, *log_p_theta.shape[1:]),
        targets.mask,
    )


def _label_targets(generator: Scores, labels: Sequence[str]) -> Targets:
    if len(labels) < 2:
        raise InputError(f"got {len(labels)} label; classification needs two or more")
    if not all(label.strip() for label in labels):
        raise InputError("a label is empty; needed some text")
    targets = generator.targets(labels)
    lengths = targets.mask.sum(dim=1).tolist()
    # targets end with the end token, where there is one; without it:
    num_ends = 1 if generator.end_ids else 0
    bare = [tuple(ids[: length - num_ends]) for ids, length in zip(targets.ids.tolist(), lengths, strict=True)]
    if len(set(bare)) < len(bare):
        twice = next(label for label, ids in zip(labels, bare, strict=True) if bare.count(ids) > 1)
        raise InputError(f"label {twice!r} is given twice; needed different labels")
    if any(a != b and b[: len(a)] == a for a in bare for b in bare):
        return targets
    longest = max(lengths) - num_ends
    last = torch.tensor([length - num_ends for length in lengths], device=targets.mask.device)
    positions = torch.arange(longest, device=targets.mask.device)
    return Targets(targets.ids[:, :longest], positions[None, :] < last[:, None])
