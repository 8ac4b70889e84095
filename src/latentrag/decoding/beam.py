"""The marginal beam: RAG-Token's beam search and the exact single beam of RAG-Sequence (§2.5)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from latentrag.decoding.candidates import Continuations, best_continuations
from latentrag.decoding.decoded import Decoded, rank
from latentrag.decoding.step import Beams, forbid, is_end, stopped
from latentrag.decoding.watch import Watcher, num_decided
from latentrag.errors import InputError
from latentrag.options import DecodingOptions
from latentrag.protocols import Generator
from latentrag.types import Variant


class _Pool:
    """The best finished hypotheses of one question, best first: as many as are wanted, where it is certain that no
    later one is better, and otherwise M.

    For length_penalty ≤ 0 it is, as a rank only falls when y grows; for a positive one the present length gives the
    customary estimate, and the greatest length (early_stopping="never") the bound.
    """

    def __init__(self, options: DecodingOptions) -> None:
        self.entries: list[tuple[float, Decoded]] = []
        self._early = options.early_stopping
        self._length_penalty = options.length_penalty
        self._max_tokens = options.max_tokens
        self._is_certain = options.length_penalty <= 0 and options.early_stopping is not True
        self._size = options.num_best if self._is_certain else options.num_beams

    def offer(self, hypothesis: Decoded) -> None:
        self.entries.append((self._rank(hypothesis.log_prob, len(hypothesis.ids)), hypothesis))
        self.entries.sort(key=lambda entry: -entry[0])
        del self.entries[self._size :]

    @property
    def best(self) -> Decoded | None:
        return self.entries[0][1] if self.entries else None

    def num_open(self, live: Sequence[float], num_tokens: int) -> int:
        """How many live hypotheses have to be continued. live: their log-probabilities, best first."""
        held = sum(score > float("-inf") for score in live)
        if not held or len(self.entries) < self._size:
            return held
        worst = self.entries[-1][0]
        if not self._is_certain:
            longest = self._max_tokens if self._early == "never" else num_tokens
            return 0 if self._early is True or worst >= self._rank(live[0], longest) else held
        return sum(self._rank(score, num_tokens) > worst for score in live[:held])

    def _rank(self, log_prob: float, num_tokens: int) -> float:
        return rank(log_prob, num_tokens, self._length_penalty)


@torch.no_grad()
def marginal_beam(
    generator: Generator,
    prepared: Any,
    log_p_eta: Tensor,
    *,
    variant: Variant,
    options: DecodingOptions,
    watcher: Watcher | None = None,
) -> list[list[Decoded]]:
    """Beam search over the marginal p(y_i|x,y_<i) (Lewis et al. 2020, §2.5).

        p(y_i|x,y_<i) = Σ_z w_z p_θ(y_i|x,z,y_<i)

    w is the prior for RAG-Token and the posterior given y_<i for RAG-Sequence, whose log-probabilities are then
    exact without any rescoring. A standard beam search otherwise: a hypothesis is finished when its end token is
    among the M best continuations, and the search ends when no live one can still be among the best finished that
    are wanted. What can be none of them is not continued either: it would not change them.

    Args:
        prepared: B questions × K passages, from ``generator.prepare``.
        log_p_eta: (B, K) nats, normalised over K.
        variant: "sequence" or "token".
        watcher: who looks on. It changes no answer; a question that it does not want any more ends there.
    Returns: for each question up to ``options.num_best`` hypotheses, best first.
    Raises: InputError where ``options.sample`` is set (``marginal_sample`` draws samples).
    """
    if options.sample:
        raise InputError("a beam search does not sample; needed sample=False, or marginal_sample")
    pools = [_Pool(options) for _ in range(len(log_p_eta))]
    beams = Beams.initial(log_p_eta)
    log_p, state = generator.start(prepared)
    for length in range(1, options.max_tokens + 1):
        scores, beam, token = _candidates(beams, log_p, variant, options, generator.end_ids)
        candidates = beams.extended(beam, token, scores, log_p)
        ended = is_end(token, generator.end_ids)
        cut = stopped(candidates, options, generator.text) & ~ended
        if length == options.max_tokens:
            cut = ~ended
        _collect(pools, candidates, ended, cut, options.num_beams)
        live = _best_live(candidates, ended | cut, options.num_beams)
        row = torch.arange(len(live), device=live.device)[:, None]
        beams, parents = _at(candidates, row, live), beam[row, live]
        num_open = [
            pools[question].num_open(scores, length)
            for question, scores in zip(beams.question.tolist(), beams.scores.tolist(), strict=True)
        ]
        going = [row for row, number in enumerate(num_open) if number]
        if watcher is not None:
            going = [row for row in going if watcher.is_wanted(int(beams.question[row]))]
            _report(watcher, pools, beams, going, options)
        if not going:
            break
        keep = torch.tensor(going, device=live.device)
        # Beams of the step before, counted through the whole batch, as ``generator.step`` wants them.
        parents = (row * log_p.shape[2] + parents)[keep]
        width = max(num_open[row] for row in going)
        beams, parents = beams.kept(keep, width), parents[:, :width]
        log_p, state = generator.step(state, parents, beams.tokens[:, :, -1])
    return [[hypothesis for _, hypothesis in pool.entries[: options.num_best]] for pool in pools]


def _candidates(
    beams: Beams, log_p: Tensor, variant: Variant, options: DecodingOptions, end_ids: Sequence[int]
) -> Continuations:
    """Score, beam and token (B', C) of the best continuations, best first.

    C is M for each end token and M more: whichever beams end, M of them can go on.
    """
    count = min((1 + len(end_ids)) * options.num_beams, log_p[0, 0].numel())

    def allowed(step: Tensor) -> Tensor:
        return forbid(step, beams, options, end_ids)

    return best_continuations(beams, log_p, variant, allowed, count)


def _collect(pools: Sequence[_Pool], candidates: Beams, ended: Tensor, cut: Tensor, num_beams: int) -> None:
    """Offers the candidates that are done, among the first M of their question, to its pool."""
    done = (ended | cut) & torch.isfinite(candidates.scores)
    for b, c in done[:, :num_beams].nonzero().tolist():
        pools[int(candidates.question[b])].offer(
            Decoded(
                tuple(candidates.tokens[b, c].tolist()),
                candidates.scores[b, c].item(),
                candidates.history[b, c].clone(),
                finished=bool(ended[b, c]),
            )
        )


def _best_live(candidates: Beams, done: Tensor, num_beams: int) -> Tensor:
    """(B', M') positions of the best candidates that go on, best first."""
    scores = candidates.scores.masked_fill(done, float("-inf"))
    # A stable sort keeps the order of equals, as topk need not.
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :num_beams]
    candidates.scores = scores
    return order


def _at(candidates: Beams, row: Tensor, position: Tensor) -> Beams:
    return Beams(
        candidates.question,
        candidates.scores[row, position],
        candidates.log_prior,
        candidates.tokens[row, position],
        candidates.history[row, position],
    )


def _report(
    watcher: Watcher, pools: Sequence[_Pool], beams: Beams, rows: Sequence[int], options: DecodingOptions
) -> None:
    """Tells the watcher what is certain of the answers that are still being decoded."""
    for row in rows:
        question = int(beams.question[row])
        best, scores, live = pools[question].best, beams.scores[row].tolist(), beams.tokens[row].tolist()
        size = num_decided(live, scores, best, length_penalty=options.length_penalty)
        if size and best is not None:
            watcher.decided(question, best.ids[:size], best.log_p_theta[:, :size])
        elif size:
            watcher.decided(question, tuple(live[0][:size]), beams.history[row, 0, :, :size])
