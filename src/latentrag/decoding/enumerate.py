"""Decoding by listing: a generator that can list every y needs no search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from latentrag.decoding.loop import Decoded, Ended, Turns, alone
from latentrag.decoding.sample import random_of, shaped
from latentrag.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from latentrag.options import DecodingOptions
    from latentrag.protocols import Choices, Enumerates, Prepared
    from latentrag.types import Variant


class Enumeration:
    """Every y of B questions, in one step: the most probable ones of all, or samples.

        p(y|x) = Σ_z p_η(z|x) p_θ(y|x,z)

    y is one token, for which RAG-Sequence and RAG-Token are the same (Lewis et al. 2020, §2.1), so the variant does
    not matter.

    Args:
        prepared: B questions × K latent values, from ``generator.prepare``.
        log_p_eta: (B, K) nats, normalised over K.
        options: min_tokens and max_tokens count the tokens of what the generator reads.
    Raises: InputError for options that only a step-by-step decoder could use.
    """

    def __init__(
        self,
        generator: Enumerates,
        prepared: Prepared,
        log_p_eta: Tensor,
        *,
        variant: Variant,  # noqa: ARG002
        options: DecodingOptions,
    ) -> None:
        for name in ("no_repeat_ngram_size", "length_penalty"):
            if getattr(options, name):
                raise InputError(f"{name} has no effect on a generator that lists whole answers; leave it out")
        self._generator, self._prepared, self._log_p_eta, self._options = generator, prepared, log_p_eta, options
        self._live = list(range(len(log_p_eta)))

    @property
    def live(self) -> Sequence[int]:
        """The questions that are not done."""
        return self._live

    def drop(self, question: int) -> None:
        """Do not answer this question."""
        self._live.remove(question)

    @property
    def num_rows(self) -> int:
        """Question × passage."""
        return len(self._live) * self._prepared.num_passages

    def turns(self) -> Turns:
        """Answer every live question."""
        live, choices = yield alone(self._listed)
        for question, of_question in zip(live, choices, strict=True):
            if question in self._live:
                self._live.remove(question)
                yield Ended(question, self._best(of_question, self._log_p_eta[question]))

    def _listed(self) -> tuple[list[int], list[Choices]]:
        index = torch.tensor(self._live, device=self._log_p_eta.device)
        return list(self._live), self._generator.every_y(self._prepared.rows(index))

    def _best(self, choices: Choices, log_p_eta: Tensor) -> list[Decoded]:
        """The hypotheses of a question, best first. log_p_eta: (K,)."""
        options, length = self._options, choices.num_tokens
        log_p = (choices.log_p_theta + log_p_eta).logsumexp(dim=1)  # (N,)
        allowed = ((length >= options.min_tokens) & (length <= options.max_tokens)).nonzero()[:, 0]
        if not len(allowed):
            return []
        log_p = log_p[allowed]
        if options.sample:
            found = _drawn(log_p, options)
        else:
            found = log_p.sort(descending=True, stable=True).indices[: options.num_best].tolist()
        return [
            Decoded(
                choices.ids(int(allowed[place])),
                log_p[place].item(),
                choices.log_p_theta[allowed[place], :, None],
                finished=True,
            )
            for place in found
        ]


def _drawn(log_p: Tensor, options: DecodingOptions) -> list[int]:
    """The places of ``num_beams`` samples, most probable first. log_p: (N,)."""
    probabilities, random = shaped(log_p[None], options)[0].cpu(), random_of(options)
    places = torch.multinomial(probabilities, options.num_beams, replacement=True, generator=random).tolist()
    return sorted(places, key=lambda place: -log_p[place].item())
