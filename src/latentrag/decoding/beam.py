"""The marginal beam: RAG-Token's beam search and the exact single beam of RAG-Sequence (§2.5).

A token of the answer is certain once every hypothesis that can still become the best has it in its place. All later
hypotheses continue those, so what is certain stays certain.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from latentrag.decoding.loop import Decided, Decoded, Ended, Event, rank, run
from latentrag.decoding.step import Beams, TokenByToken, forbid, is_end, marginal_step, stopped
from latentrag.errors import InputError
from latentrag.options import DecodingOptions
from latentrag.protocols import Generator, Prepared, Step
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
        self._num_best = options.num_best
        self._size = options.num_best if self._is_certain else options.num_beams

    def offer(self, hypothesis: Decoded) -> None:
        self.entries.append((self._rank(hypothesis.log_prob, len(hypothesis.ids)), hypothesis))
        self.entries.sort(key=lambda entry: -entry[0])
        del self.entries[self._size :]

    @property
    def best(self) -> Decoded | None:
        return self.entries[0][1] if self.entries else None

    @property
    def hypotheses(self) -> list[Decoded]:
        """Those that are wanted, best first."""
        return [hypothesis for _, hypothesis in self.entries[: self._num_best]]

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


class BeamSearch(TokenByToken):
    """Beam search over the marginal p(y_i|x,y_<i) (Lewis et al. 2020, §2.5).

        p(y_i|x,y_<i) = Σ_z w_z p_θ(y_i|x,z,y_<i)

    w is the prior for RAG-Token and the posterior given y_<i for RAG-Sequence, whose log-probabilities are then
    exact without any rescoring. A standard beam search otherwise: a hypothesis is finished when its end token is
    among the M best continuations, and the search ends when no live one can still be among the best finished that
    are wanted. What can be none of them is not continued either: it would not change them.

    Args:
        prepared: B questions × K latent values, from ``generator.prepare``.
        log_p_eta: (B, K) nats, normalised over K.
        variant: "sequence" or "token".
    Raises: InputError where ``options.sample`` is set (``Sampling`` draws samples).
    """

    def __init__(
        self, generator: Generator, prepared: Prepared, log_p_eta: Tensor, *, variant: Variant, options: DecodingOptions
    ) -> None:
        if options.sample:
            raise InputError("a beam search does not sample; needed sample=False, or Sampling")
        super().__init__(generator, prepared, len(log_p_eta), variant=variant, options=options)
        self._pools = [_Pool(options) for _ in range(len(log_p_eta))]
        self._beams = Beams.initial(log_p_eta)
        self._parents = torch.empty(0)
        self._num_open: list[int] = []

    def _taken(self, log_p: Tensor) -> list[Event]:
        options, end_ids = self._options, self._generator.end_ids
        scores, beam, token = _candidates(self._beams, log_p, self._variant, options, end_ids)
        candidates = self._beams.extended(beam, token, scores, log_p)
        ended = is_end(token, end_ids)
        cut = stopped(candidates, options, self._generator.text) & ~ended
        if self._length == options.max_tokens:
            cut = ~ended
        _collect(self._pools, candidates, ended, cut, options.num_beams)
        live = _best_live(candidates, ended | cut, options.num_beams)
        row = torch.arange(len(live), device=live.device)[:, None]
        # Beams of this step, counted through the whole batch, as ``generator.step`` wants them.
        self._beams, self._parents = _at(candidates, row, live), row * log_p.shape[2] + beam[row, live]
        return self._events()

    def _next(self) -> Step:
        questions, wanted = self._beams.question.tolist(), set(self._live)
        rows = [row for row, question in enumerate(questions) if question in wanted]
        keep = torch.tensor(rows, device=self._parents.device)
        width = max(self._num_open[row] for row in rows)
        self._beams = self._beams.kept(keep, width)
        return Step(self._state, self._parents[keep][:, :width], self._beams.tokens[:, :, -1])

    def _events(self) -> list[Event]:
        """What is certain now, and which questions are done."""
        events: list[Event] = []
        questions, scores = self._beams.question.tolist(), self._beams.scores.tolist()
        self._num_open = [
            self._pools[question].num_open(of_question, self._length)
            for question, of_question in zip(questions, scores, strict=True)
        ]
        for row, (question, num_open) in enumerate(zip(questions, self._num_open, strict=True)):
            if question not in self._live:
                continue  # dropped while this was computed
            if num_open:
                events += self._decided(row, question, scores[row])
            else:
                self._live.remove(question)
                events.append(Ended(question, self._pools[question].hypotheses))
        return events

    def _decided(self, row: int, question: int, scores: Sequence[float]) -> list[Event]:
        best, tokens = self._pools[question].best, self._beams.tokens[row].tolist()
        size = num_decided(tokens, scores, best, length_penalty=self._options.length_penalty)
        if not size:
            return []
        if best is not None:
            return [Decided(question, best.ids[:size], best.log_p_theta[:, :size])]
        return [Decided(question, tuple(tokens[0][:size]), self._beams.history[row, 0, :, :size])]


def marginal_beam(
    generator: Generator, prepared: Prepared, log_p_eta: Tensor, *, variant: Variant, options: DecodingOptions
) -> list[list[Decoded]]:
    """``BeamSearch`` to its end. Returns: for each question up to ``options.num_best`` hypotheses, best first."""
    return run(BeamSearch(generator, prepared, log_p_eta, variant=variant, options=options))


def _candidates(
    beams: Beams, log_p: Tensor, variant: Variant, options: DecodingOptions, end_ids: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Score, beam and token (B', C) of the best continuations by log p(y_≤i|x), best first.

    C is M for each end token and M more: whichever beams end, M of them can go on.
    """
    count = min((1 + len(end_ids)) * options.num_beams, log_p[0, 0].numel())
    step = forbid(marginal_step(beams, log_p, variant), beams, options, end_ids)  # (B', M, V)
    # A beam that holds nothing has no weights either: its step is not a number.
    nothing = torch.isinf(beams.scores)[:, :, None]
    total = step.add_(beams.scores[:, :, None]).masked_fill_(nothing, float("-inf"))
    best, flat = total.flatten(1).topk(count, dim=1)
    return best, flat // log_p.shape[3], flat % log_p.shape[3]


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


def num_decided(
    live: Sequence[Sequence[int]],
    scores: Sequence[float],
    best: Decoded | None,
    *,
    length_penalty: float,
) -> int:
    """How many tokens every hypothesis begins with that can still become the best.

    Args:
        live: tokens of the M live hypotheses, of equal length.
        scores: their log-probabilities, nats; −inf where a beam holds nothing.
        best: the finished hypothesis of highest rank, if there is one.
        length_penalty: of the rank. For a positive one a live hypothesis can always win; otherwise its rank only
            falls, and it cannot once it does not exceed the best's.
    """
    rivals = [tuple(ids) for ids, score in zip(live, scores, strict=True) if _can_win(score, ids, best, length_penalty)]
    if best is not None:
        rivals.append(best.ids)
    return _num_shared(rivals) if rivals else 0


def _can_win(score: float, ids: Sequence[int], best: Decoded | None, length_penalty: float) -> bool:
    if score == float("-inf"):
        return False
    if best is None or length_penalty > 0:
        return True
    return rank(score, len(ids), length_penalty) > rank(best.log_prob, len(best.ids), length_penalty)


def _num_shared(rows: Sequence[Sequence[int]]) -> int:
    """Tokens with which all rows begin."""
    shared = 0
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        shared += 1
    return shared
