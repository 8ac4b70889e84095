"""Whether a generator says in steps what its model says in one plain pass: asked at load, on two tiny prompts. What a
model of transformers does with padding, positions and caches is its own affair; where it does something else than it
does without them, probabilities would be wrong without a word."""

from __future__ import annotations

from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from latentrag.protocols import Step, steps_together

if TYPE_CHECKING:
    from collections.abc import Collection

    from latentrag.protocols import Generator

ERRORS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)
"""What models raise whose inputs are not as they want them."""


def probe_ids(num: int, vocabulary: int, without: Collection[int | None]) -> list[int]:
    """Token ids for a probe."""
    usual = [number for number in range(min(vocabulary, num + len(without))) if number not in without]
    return list(islice(cycle(usual or [0]), num))


@torch.no_grad()
def agrees(generator: Generator, prepared: Any, tokens: Tensor, plain: Tensor, *, eps: float) -> bool:
    """Whether the first two steps are those of plain passes, also where two states are computed together.

    Args:
        prepared: two questions, one passage each.
        tokens: (2, 2) of two beams for each question.
        plain: (2, 2, 2, V) log-probabilities from plain passes: for each question and beam, before the beam's token
            and after it.
        eps: of the model's number format.
    """
    first, state = generator.start(prepared)
    parents = torch.tensor([[0, 0], [1, 1]], device=tokens.device)
    seconds = [generator.step(state, parents, tokens)[0]]
    if steps_together(generator):
        apart = [generator.start(prepared.rows(parents[b, :1]))[1] for b in range(2)]
        steps = [Step(each, parents[:1], tokens[b : b + 1]) for b, each in enumerate(apart)]
        seconds.append(torch.cat([log_p for log_p, _ in generator.step_together(steps)]))
    before = first[:, 0].expand(-1, 2, -1)
    return all(_are_near(torch.stack([before, after[:, 0]], dim=2), plain, eps) for after in seconds)


def _are_near(found: Tensor, plain: Tensor, eps: float) -> bool:
    """Both (2, 2, 2, V)."""
    both = torch.isfinite(found) & torch.isfinite(plain)
    if not torch.equal(torch.isfinite(found), torch.isfinite(plain)):
        return False
    rounding = (256 if eps < 1e-4 else 4) * eps * float(plain[both].abs().max())
    return float((found - plain)[both].abs().mean()) <= rounding
