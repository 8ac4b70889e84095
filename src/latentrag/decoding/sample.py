"""Samples from the marginal p(y|x), token by token."""

import torch
from torch import Tensor

from latentrag.decoding.loop import Decided, Decoded, Ended, Event
from latentrag.decoding.step import Beams, TokenByToken, forbid, is_end, marginal_step, stopped
from latentrag.options import DecodingOptions
from latentrag.protocols import Generator, Prepared, Step
from latentrag.types import Variant


class Sampling(TokenByToken):
    """``num_beams`` independent samples for each question.

    With temperature 1 and no top-k or top-p the samples are drawn from p(y|x) itself, for both variants:
    RAG-Sequence because the weights follow the prefix. ``log_prob`` is always that of the marginal. What is drawn is
    certain at once where there is one sample, otherwise at the end. Every question draws with random numbers of its
    own: with a seed its samples are the same whatever questions are beside it.

    Args:
        prepared: B questions × K latent values, from ``generator.prepare``.
        log_p_eta: (B, K) nats, normalised over K.
        variant: "sequence" or "token".
    """

    def __init__(
        self, generator: Generator, prepared: Prepared, log_p_eta: Tensor, *, variant: Variant, options: DecodingOptions
    ) -> None:
        every = torch.arange(len(log_p_eta), device=log_p_eta.device).repeat_interleave(options.num_beams)
        super().__init__(generator, prepared.rows(every), len(log_p_eta), variant=variant, options=options)
        self._random = [random_of(options) for _ in self._live]
        self._drawn: list[list[Decoded]] = [[] for _ in self._live]
        self._beams = Beams.initial(log_p_eta[every])  # each sample is a question of its own, with one beam
        self._keep: list[int] = []

    def _taken(self, log_p: Tensor) -> list[Event]:
        generator, options = self._generator, self._options
        beams = self._beams
        allowed = forbid(marginal_step(beams, log_p, self._variant), beams, options, generator.end_ids)[:, 0]  # (R, V)
        token = self._one_each(shaped(allowed, options)).to(allowed.device)  # (R, 1)
        scores = beams.scores + allowed.gather(1, token)
        self._beams = beams = beams.extended(torch.zeros_like(token), token, scores, log_p)
        ended = is_end(token, generator.end_ids)[:, 0]
        done = ended | stopped(beams, options, generator.text)[:, 0] | (self._length == options.max_tokens)
        for row in done.nonzero()[:, 0].tolist():
            ids, log_prob = tuple(beams.tokens[row, 0].tolist()), beams.scores[row, 0].item()
            sample = Decoded(ids, log_prob, beams.history[row, 0].clone(), finished=bool(ended[row]))
            self._drawn[self._question_of(row)].append(sample)
        self._keep = (~done).nonzero()[:, 0].tolist()
        return self._events()

    def _one_each(self, probabilities: Tensor) -> Tensor:
        """A token of each row, drawn with the random numbers of its question. probabilities: (R, V)."""
        questions = [self._question_of(row) for row in range(len(probabilities))]
        numbers = [questions.count(question) for question in dict.fromkeys(questions)]
        parts = zip(dict.fromkeys(questions), probabilities.cpu().split(numbers), strict=True)
        return torch.cat([torch.multinomial(part, 1, generator=self._random[question]) for question, part in parts])

    def _question_of(self, row: int) -> int:
        return int(self._beams.question[row]) // self._options.num_beams

    def _next(self) -> Step:
        rows = [row for row in self._keep if self._question_of(row) in self._live]
        keep = torch.tensor(rows, device=self._beams.scores.device)
        self._beams = self._beams.kept(keep)
        return Step(self._state, keep[:, None], self._beams.tokens[:, :, -1])

    def _events(self) -> list[Event]:
        events: list[Event] = []
        if self._options.num_beams == 1:
            for row in [row for row in self._keep if self._question_of(row) in self._live]:
                ids = tuple(self._beams.tokens[row, 0].tolist())
                events.append(Decided(self._question_of(row), ids, self._beams.history[row, 0]))
        for question in [question for question in self._live if len(self._drawn[question]) == self._options.num_beams]:
            self._live.remove(question)
            events.append(Ended(question, sorted(self._drawn[question], key=lambda sample: -sample.log_prob)))
        return events


def random_of(options: DecodingOptions) -> torch.Generator:
    """What samples are drawn with. It is of the CPU: a seed draws the same on every device."""
    random = torch.Generator()
    if options.seed is None:
        random.seed()
    else:
        random.manual_seed(options.seed)
    return random


def shaped(log_p: Tensor, options: DecodingOptions) -> Tensor:
    """Probabilities (R, V) to draw from: temperature first, then top-k, then top-p (nucleus), renormalised."""
    logits = log_p / options.temperature
    if 0 < options.top_k < logits.shape[1]:
        least = logits.topk(options.top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    probabilities = torch.softmax(logits, dim=1)
    if options.top_p < 1:
        ordered, index = probabilities.sort(dim=1, descending=True, stable=True)
        # A token stays if those before it have not reached top_p yet; the first one always does.
        beyond = ordered.cumsum(dim=1) - ordered >= options.top_p
        probabilities = torch.zeros_like(probabilities).scatter(1, index, ordered.masked_fill(beyond, 0.0))
        probabilities = probabilities / probabilities.sum(dim=1, keepdim=True)
    return probabilities
