"""B questions × K passages × M beams as rows of one batch, and how rows follow their beams."""

from collections.abc import Sequence

import torch
from torch import Tensor

from latentrag.errors import InputError
from latentrag.types import Asked, Latent, LatentLists, Question


def rows_of_questions(index: Tensor, num_passages: int) -> Tensor:
    """Rows (R·K,) of the questions at ``index`` (R,), where question b has rows b·K … b·K + K − 1."""
    offsets = torch.arange(num_passages, device=index.device)
    return (index[:, None] * num_passages + offsets).reshape(-1)


def rows_of_parents(parents: Tensor, num_passages: int, num_beams: int) -> Tensor:
    """Rows (B'·K·M',) that the beams ``parents`` (B', M') continue.

    ``parents`` indexes the previous (B, M) flattened; row (b, k, m) of the previous batch is (b·K + k)·M + m.
    """
    question, beam = parents // num_beams, parents % num_beams  # (B', M')
    passage = torch.arange(num_passages, device=parents.device)[None, :, None]
    return ((question[:, None, :] * num_passages + passage) * num_beams + beam[:, None, :]).reshape(-1)


def are_all(rows: Tensor, number: int) -> bool:
    """Whether ``rows`` are 0 … number − 1, in order."""
    return len(rows) == number and torch.equal(rows, torch.arange(number, device=rows.device))


def pairs(x: Sequence[Asked], latents: LatentLists) -> tuple[list[tuple[str, Latent]], int]:
    """Every (x, z), question by question, and K.

    Raises: InputError for an empty question, for no question, or if the questions' numbers of latent values differ.
    """
    if not x:
        raise InputError("got no question; needed at least one")
    texts = [Question.of(question).text for question in x]
    for number, text in enumerate(texts):
        if not text.strip():
            raise InputError(f"question {number + 1} is empty; needed some text")
    counts = {len(of_question) for of_question in latents}
    if len(latents) != len(x) or len(counts) != 1 or 0 in counts:
        raise InputError(
            f"got {len(x)} questions with {[len(of_question) for of_question in latents]} passages; "
            "needed the same number, at least one, for every question"
        )
    rows = [(text, z) for text, of_question in zip(texts, latents, strict=True) for z in of_question]
    return rows, counts.pop()


def check_lengths(rows: Sequence[Sequence[int]], limit: int | None) -> None:
    """Raises: InputError if a target has more tokens than the generator can write."""
    longest = max((len(row) for row in rows), default=0)
    if limit is not None and longest > limit:
        raise InputError(f"a target has {longest} tokens, this generator writes {limit} at most; shorten it")


def padded(rows: Sequence[Sequence[int]], *, pad: int, left: bool = False) -> tuple[Tensor, Tensor]:
    """ids (R, S) int64 and mask (R, S) bool, S the longest row."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for number, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[number, place] = torch.tensor(row, dtype=torch.long)
        mask[number, place] = True
    return ids, mask
