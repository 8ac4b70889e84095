"""What a user holds: questions in, answers out, each with its probability and the share of every passage."""

from collections.abc import Sequence
from typing import Any

import torch

from latentrag.decoding import (
    Decoded,
    Watcher,
    fast,
    label_log_likelihoods,
    marginal_beam,
    marginal_sample,
    thorough,
)
from latentrag.decoding.evidence import before_stop, cut_at_stop, evidence_of, tokens_of
from latentrag.decoding.onlooker import Onlooker, Telling
from latentrag.decoding.rescore import as_targets
from latentrag.errors import InputError
from latentrag.model import Evidence, JointModel, Read, checked
from latentrag.options import DecodingOptions, Defaults, decoding_options
from latentrag.protocols import Generator, Retriever
from latentrag.types import (
    Answer,
    Asked,
    Classification,
    Decoding,
    Hypothesis,
    Label,
    Passage,
    Question,
    Score,
    Source,
    Targets,
    Variant,
)


class Rag:
    """A retriever and a generator as one probabilistic model p(y|x) = Σ_z p_η(z|x) p_θ(y|x,z).

    Args:
        retriever: x → passages with the logits of p_η(z|x).
        generator: p_θ(y|x,z).
        variant: RAG-Sequence or RAG-Token, where a call does not say.
        k: K, passages retrieved, where a call does not say.
        defaults: decoding options where a call does not say, all of them or some by name. Where they do not say either,
            the generator's own saved settings do.
    """

    def __init__(
        self,
        retriever: Retriever,
        generator: Generator,
        *,
        variant: Variant = "sequence",
        k: int = 5,
        defaults: Defaults = None,
    ) -> None:
        self.model = JointModel(retriever, generator)
        self.variant = checked(variant)
        self.k = k
        self.defaults = defaults

    @property
    def retriever(self) -> Retriever:
        """p_η(z|x)."""
        return self.model.retriever

    @property
    def generator(self) -> Generator:
        """p_θ(y|x,z)."""
        return self.model.generator

    def options(self, **given: Any) -> DecodingOptions:
        """Decoding options: those given, else ``defaults``, else the generator's saved settings, else the usual.

        Raises: InputError for an unknown name or a value out of range.
        """
        generator = self.generator
        return decoding_options(
            given,
            defaults=self.defaults,
            saved=generator.decoding_defaults,
            most_tokens=generator.max_target_tokens,
        )

    def answer(
        self,
        x: Asked,
        *,
        k: int | None = None,
        variant: Variant | None = None,
        decoding: Decoding = "exact",
        without: Sequence[str] = (),
        **options: Any,
    ) -> Answer:
        """The most probable answer to x that the search finds, with its evidence (§2.5).

        Args:
            k: passages retrieved; None: the model's own number.
            variant: "sequence" or "token"; None: the model's own.
            decoding: "exact" (one marginal beam), or for RAG-Sequence "thorough" or "fast".
            without: ids of retrieved passages that count as not retrieved; the prior is renormalised over the others.
            options: of ``DecodingOptions``: num_beams, max_tokens, …
        Raises: InputError for an empty or too long question, or options that cannot be.
        """
        return self.answer_batch([x], k=k, variant=variant, decoding=decoding, without=without, **options)[0]

    def answer_batch(
        self,
        x: Sequence[Asked],
        *,
        k: int | None = None,
        variant: Variant | None = None,
        decoding: Decoding = "exact",
        without: Sequence[str] = (),
        **options: Any,
    ) -> list[Answer]:
        """``answer`` for several questions at once; the answers do not depend on each other."""
        answers = self.answer_watched(x, None, k=k, variant=variant, decoding=decoding, without=without, **options)
        return [answer for answer in answers if answer is not None]

    @torch.no_grad()
    def answer_watched(
        self,
        x: Sequence[Asked],
        onlooker: Onlooker | None,
        *,
        k: int | None = None,
        variant: Variant | None = None,
        decoding: Decoding = "exact",
        without: Sequence[str] = (),
        **options: Any,
    ) -> list[Answer | None]:
        """``answer_batch``, with somebody who looks on: who is told what is certain of each answer as soon as it is,
        and asked after each token which of them are still wanted.

        Thorough and Fast Decoding choose when all is decoded; of theirs nothing is certain before the end.

        Returns: the same answers as ``answer_batch``; None for those that were not wanted any more.
        """
        chosen = checked(variant or self.variant)
        wanted = self.options(**options)
        check_decoding(chosen, decoding, wanted)
        read = self.model.read(x, k=self._k(k), without=without)
        watcher = None
        if onlooker is not None:
            watcher = Telling(onlooker, read, variant=chosen, stop=wanted.stop)
        found = self.decode(read, variant=chosen, decoding=decoding, options=wanted, watcher=watcher)
        asked_for = [b for b in range(len(x)) if onlooker is None or onlooker.is_wanted(b)]
        answers: list[Answer | None] = [None] * len(x)
        if not asked_for:
            return answers
        if not all(found[b] for b in asked_for):
            raise InputError("every answer is ruled out by the options; lower min_tokens or no_repeat_ngram_size")
        best = as_targets([found[b][0].ids for b in asked_for], device=read.log_p_eta.device)
        closed_book = self.model.closed_book_log_p([x[b] for b in asked_for], best).tolist()
        for b, alone in zip(asked_for, closed_book, strict=True):
            answers[b] = self._answer(read, b, found[b], alone, chosen, decoding, wanted.stop)
        return answers

    def decode(
        self,
        read: Read[Generator],
        *,
        variant: Variant,
        decoding: Decoding,
        options: DecodingOptions,
        watcher: Watcher | None = None,
    ) -> list[list[Decoded]]:
        """What ``answer_batch`` decodes, for questions that have been read already (§2.5).

        Args:
            decoding, options: as ``check_decoding`` lets them pass.
            watcher: who looks on; not heard by Thorough and Fast Decoding.
        Returns: for each question its hypotheses, best first.
        """
        generator, prepared, log_p_eta = read.generator, read.prepared, read.log_p_eta
        if options.sample:
            return marginal_sample(generator, prepared, log_p_eta, variant=variant, options=options, watcher=watcher)
        if decoding == "thorough":
            return thorough(generator, prepared, log_p_eta, options=options)
        if decoding == "fast":
            return fast(generator, prepared, log_p_eta, options=options)
        return marginal_beam(generator, prepared, log_p_eta, variant=variant, options=options, watcher=watcher)

    def score(self, x: Asked, y: str, *, k: int | None = None, variant: Variant | None = None) -> Score:
        """log p(y|x) of a given y, with posteriors and counterfactuals.

        Raises: InputError for an empty or too long question, or a k that cannot be.
        """
        return self.score_batch([x], [y], k=k, variant=variant)[0]

    @torch.no_grad()
    def score_batch(
        self, x: Sequence[Asked], y: Sequence[str], *, k: int | None = None, variant: Variant | None = None
    ) -> list[Score]:
        """``score`` for several pairs at once."""
        chosen = checked(variant or self.variant)
        evidence = self.model.evidence(x, y, k=self._k(k))
        log_p = evidence.log_likelihood(chosen).tolist()
        closed_book = self.model.closed_book_log_p(x, evidence.targets).tolist()
        alone = evidence.log_p_eta.shape[1] == 1
        without = [()] * len(x) if alone else map(tuple, evidence.without_passage(chosen).tolist())
        texts = [Question.of(question).text for question in x]
        return [
            Score(
                x=texts[b],
                y=y[b],
                log_likelihood=log_p[b],
                closed_book_log_likelihood=closed_book[b],
                num_tokens=int(evidence.targets.mask[b].sum()),
                variant=chosen,
                memory_version=evidence.version,
                sources=_sources(evidence, b, chosen),
                tokens=tokens_of(self.generator, evidence, b, chosen),
                without_passage=of_one,
            )
            for b, of_one in enumerate(without)
        ]

    def log_likelihood(self, x: Asked, y: str, *, k: int | None = None, variant: Variant | None = None) -> float:
        """log p(y|x), nats (§2.1)."""
        return self.score(x, y, k=k, variant=variant).log_likelihood

    def posterior(
        self, x: Asked, y: str, *, k: int | None = None, variant: Variant | None = None
    ) -> tuple[tuple[Passage, float], ...]:
        """The passages retrieved for x, best prior first, each with its share in y."""
        sources = self.score(x, y, k=k, variant=variant).sources
        return tuple((source.passage, source.posterior) for source in sources)

    @torch.no_grad()
    def classify(
        self, x: Asked, labels: Sequence[str], *, k: int | None = None, variant: Variant | None = None
    ) -> Classification:
        """p(label|x) over the given labels (§3.4): likelihoods of the labels as targets, normalised over them.

        Raises: InputError for fewer than two labels, an empty one, or the same twice.
        """
        chosen = checked(variant or self.variant)
        if len(labels) < 2:
            raise InputError(f"got {len(labels)} label; classification needs two or more")
        read = self.model.read([x], k=self._k(k))
        log_p, log_p_theta, mask = label_log_likelihoods(
            self.generator, read.prepared, read.log_p_eta, labels, variant=chosen
        )
        probabilities = torch.softmax(log_p[0], dim=0).tolist()
        order = sorted(range(len(labels)), key=lambda label: -probabilities[label])
        best = order[0]
        scored = mask[best : best + 1]
        # Posteriors need to know which tokens count, not what they are.
        targets = Targets(ids=torch.zeros_like(scored, dtype=torch.long), mask=scored)
        retrieved = read.retrieved
        evidence = Evidence(retrieved.latents, read.log_p_eta, log_p_theta[:, best], targets, retrieved.version)
        return Classification(
            x=read.questions[0].text,
            labels=tuple(Label(labels[i], probabilities[i], log_p[0, i].item()) for i in order),
            variant=chosen,
            memory_version=retrieved.version,
            sources=_sources(evidence, 0, chosen),
        )

    def _k(self, k: int | None) -> int:
        return self.k if k is None else k

    def _answer(
        self,
        read: Read[Generator],
        b: int,
        found: Sequence[Decoded],
        closed_book: float,
        variant: Variant,
        decoding: Decoding,
        stop: Sequence[str],
    ) -> Answer:
        best = found[0]
        evidence = evidence_of(best, read, b)
        tokens = cut_at_stop(tokens_of(self.generator, evidence, 0, variant, finished=best.finished), stop)
        return Answer(
            question=read.questions[b].text,
            text="".join(token.text for token in tokens),
            log_prob=best.log_prob,
            closed_book_log_prob=closed_book,
            variant=variant,
            decoding=decoding,
            memory_version=evidence.version,
            sources=_sources(evidence, 0, variant),
            tokens=tokens,
            hypotheses=tuple(
                Hypothesis(before_stop(self.generator.text(each.ids), stop), each.log_prob, each.finished)
                for each in found
            ),
            log_p_eta=tuple(evidence.log_p_eta[0].tolist()),
            log_p_theta=tuple(map(tuple, evidence.log_p_theta[0].tolist())),
        )


def check_decoding(variant: Variant, decoding: str, options: DecodingOptions) -> None:
    """Raises: InputError if there is no such decoding, or none for this variant and these options."""
    if decoding not in {"exact", "thorough", "fast"}:
        raise InputError(f"decoding={decoding!r} is unknown; needed 'exact', 'thorough' or 'fast'")
    if decoding == "exact":
        return
    if variant == "token":
        raise InputError(f"decoding={decoding!r} is for RAG-Sequence; RAG-Token has one decoder, 'exact'")
    if options.sample:
        raise InputError(f"decoding={decoding!r} searches; sampling needs decoding='exact'")


def _sources(evidence: Evidence, b: int, variant: Variant) -> tuple[Source, ...]:
    passages, prior = evidence.of_passages(b, evidence.log_p_eta[b].exp())
    _, posterior = evidence.of_passages(b, evidence.posterior(variant)[b])
    return tuple(map(Source, passages, prior.tolist(), posterior.tolist()))
