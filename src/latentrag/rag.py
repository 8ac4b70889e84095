"""What a user holds: questions in, answers out, each with its probability and the share of every passage."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

import torch

from latentrag.asking import Asking, HowToAnswer
from latentrag.conditions import Where
from latentrag.confidence import Calibration, prior_key, prompt_key, settings_of
from latentrag.decoding import SEARCHES, Answered, Answering, Loop, Search, apart, label_log_likelihoods
from latentrag.decoding.answering import Confidence, no_passage_of, sources_of, tokens_of
from latentrag.decoding.rewriting import Rewriter
from latentrag.decoding.sentences import with_sentences
from latentrag.errors import InputError, OptionError
from latentrag.marginal import log_prior
from latentrag.model import Evidence, JointModel, Read, Values, checked, checked_questions, fitting
from latentrag.options import DecodingOptions, Defaults, decoding_options
from latentrag.protocols import Prompted, Retriever, SavableRetriever, Scores, can_decode, enumerates
from latentrag.readings import ReadingWeights
from latentrag.types import (
    Answer,
    Asked,
    Classification,
    Decoding,
    Found,
    Label,
    Passage,
    Question,
    Score,
    Targets,
    Variant,
)


class Rag:
    """A retriever and a generator as one probabilistic model p(y|x) = Σ_z p_η(z|x) p_θ(y|x,z).

    Args:
        retriever: x → passages with the logits of p_η(z|x).
        generator: p_θ(y|x,z). One that only scores cannot answer; ``score`` and ``classify`` work.
        variant: RAG-Sequence or RAG-Token, where a call does not say.
        k: K, passages retrieved, where a call does not say.
        defaults: decoding options where a call does not say, all of them or some by name. Where they do not say either,
            the generator's own saved settings do.
        null_passage: the logit of "no passage", one more value of z, which the generator reads without any passage:
            its posterior is the share of parametric memory (the paper's appendix). None: it is none.
        set_bonus: γ of the sets of two of the K passages, which are values of z, too: p({z_i, z_j}|x) ∝
            p_η(z_i|x) p_η(z_j|x) e^γ, read together. A source's share is then that of all values that hold it. None:
            passages are read one by one.
        calibration: from what is known of an answer to the probability that it is right; None: it is not known.
        readings: the weights of p(r|h), how the last question of a conversation is to be read, if they were trained
            (see ``latentrag.readings``); None: the default ones.
        rewrites: of a conversation's last question, which the generator writes; each is one more reading. Another
            model's ``rewriter`` over the same generator goes on with what it has written.
        neighbours: so many passages on each side of a passage in its document are read with it; what is retrieved, its
            share and its citation stay those of the passage.
    Raises: InputError for a logit that is not finite.
    """

    def __init__(
        self,
        retriever: Retriever,
        generator: Scores,
        *,
        variant: Variant = "sequence",
        k: int = 5,
        defaults: Defaults = None,
        null_passage: float | None = None,
        set_bonus: float | None = None,
        calibration: Calibration | None = None,
        readings: Mapping[str, float] | None = None,
        rewrites: int | Rewriter = 0,
        neighbours: int = 0,
    ) -> None:
        values = Values.of(null_passage=null_passage, set_bonus=set_bonus, neighbours=neighbours)
        known = None if isinstance(rewrites, int) else rewrites
        self.rewriter = Rewriter(generator, rewrites) if isinstance(rewrites, int) and rewrites else known
        """Writes the rewrites; None: there are none."""
        weights = replace(ReadingWeights.of(readings), rewritten=self.rewriter)
        self.model = JointModel(retriever, generator, values, weights)
        self.variant = checked(variant)
        self.k = k
        self.defaults = defaults
        self.calibration = calibration

    @property
    def retriever(self) -> Retriever:
        """p_η(z|x)."""
        return self.model.retriever

    @property
    def generator(self) -> Scores:
        """p_θ(y|x,z)."""
        return self.model.generator

    @property
    def null_passage(self) -> float | None:
        """The logit of "no passage"; None: it is no value of z."""
        return None if self.model.values.null is None else self.model.values.null.item()

    @property
    def set_bonus(self) -> float | None:
        """γ of the sets of two passages; None: they are no values of z."""
        return None if self.model.values.bonus is None else self.model.values.bonus.item()

    @property
    def neighbours(self) -> int:
        """How many passages on each side of a passage are read with it."""
        return self.model.values.neighbours

    @property
    def rewrites(self) -> int:
        """How many rewrites of a conversation's last question the generator proposes."""
        return 0 if self.rewriter is None else self.rewriter.num

    @property
    def readings(self) -> dict[str, float] | None:
        """The trained weights of p(r|h); None: they are the default ones."""
        return self.model.readings.saved()

    def options(self, **given: object) -> DecodingOptions:
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

    def asking(self, **how: Unpack[HowToAnswer]) -> Asking:
        """What ``how`` comes to with the model's own settings. Raises: InputError for what cannot be."""
        given: dict[str, Any] = dict(how)
        of_decoding = {name: given.pop(name) for name in how if name not in Asking.__dataclass_fields__}
        variant, k = given.pop("variant", None), given.pop("k", None)
        given["without"] = tuple(given.get("without", ()))
        return Asking(self._k(k), checked(variant or self.variant), self.options(**of_decoding), **given)

    def answer(self, x: Asked, **how: Unpack[HowToAnswer]) -> Answer:
        """The most probable answer to x that the search finds, with its evidence (§2.5).

        Args:
            how: see ``HowToAnswer``: k, variant, decoding, without, where, sentences, …, num_beams, max_tokens, …
        Raises: InputError for an empty or too long question, options that cannot be, or a condition that no passage
            satisfies; for ``top_tokens`` of a generator that does not decode token by token.
        """
        return self.answer_batch([x], **how)[0]

    def answer_batch(self, x: Sequence[Asked], **how: Unpack[HowToAnswer]) -> list[Answer]:
        """``answer`` for several questions at once; the answers do not depend on each other."""
        events = self.answering(x, self.asking(**how)).events()
        answers = {event.question: event.answer for event in events if isinstance(event, Answered)}
        return [answers[b] for b in range(len(x))]

    def answering(self, x: Sequence[Asked], asking: Asking) -> Loop:
        """``answer_batch`` a step at a time: what is certain of each answer is said as soon as it is, and questions
        that nobody wants any more can be dropped. Raises: as ``answer``; what is found out later is an event."""
        loop = Loop()
        for task in self.to_answer(x, asking):
            loop.admit(task)
        return loop

    @torch.no_grad()
    def to_answer(self, x: Sequence[Asked], asking: Asking) -> list[Answering]:
        """Questions, for which passages are retrieved now, as tasks of any ``Loop``. Raises: as ``answer``."""
        asked = checked_questions(x)
        kinds = {kind: self.confidence(asking, conversation=kind) for kind in {each.is_conversation for each in asked}}
        confidence = [kinds[each.is_conversation] for each in asked]
        if asking.top_tokens and not can_decode(self.generator):
            raise InputError("this generator says an answer as a whole, so that no token has others in its place")
        whole = self.model.where(asking.where).read(asked, k=asking.k, without=asking.without)
        every, num_best = asking.options, None
        if any(confidence):
            every, num_best = replace(every, num_best=every.num_beams), every.num_best
        tasks: list[Answering] = []
        for read in apart(whole):
            search = self.search(read, variant=asking.variant, decoding=asking.decoding, options=every)
            first = sum(len(task.live) for task in tasks)
            of_task = confidence[first : first + len(read.questions)]
            tasks.append(Answering(read, search, asking, confidence=of_task, num_best=num_best))
        return tasks

    def confidence(self, asking: Asking, *, conversation: bool = False) -> Confidence | None:
        """How the confidence of answers with these settings is known; None: it is not.

        Args: conversation: whether something was said before the question (``Question.is_conversation``).
        Raises: InputError for an ``abstain_below`` that is no probability, or where no confidence is known.
        """
        below = asking.abstain_below
        if below is not None and not 0 <= below <= 1:
            raise InputError(f"abstain_below={below}; needed a probability, 0 to 1")
        why = "the model is not calibrated"
        if self.calibration is not None:
            found = self.calibration.difference(self.signal_settings(asking, conversation=conversation))
            if found is None:
                return Confidence(self.calibration, below)
            why = found
        if below is not None:
            raise InputError(f"abstain_below has no effect, since {why}; run `latentrag calibrate`, or leave it out")
        return None

    def signal_settings(self, asking: Asking, *, conversation: bool = False) -> dict[str, object]:
        """What a calibration is fitted for. conversation: as for ``confidence``."""
        retriever = self.retriever
        searched = self.model.where(asking.where).retriever.memory
        memory = getattr(searched, "lineage", None)  # memories of other packages need not say
        return settings_of(
            asking,
            memory=memory,
            set_size=1 if self.set_bonus is None else 2,
            retriever=getattr(retriever, "kind", None),
            null_passage=self.null_passage,
            neighbours=self.neighbours,
            conversation=conversation,
            prompt=prompt_key(self.generator.template) if isinstance(self.generator, Prompted) else None,
            set_bonus=self.set_bonus,
            prior=prior_key(retriever.settings(), retriever.parts())
            if isinstance(retriever, SavableRetriever)
            else None,
            rewrites=self.rewrites,
            readings=self.readings,
        )

    def search(self, read: Read[Scores], *, variant: Variant, decoding: Decoding, options: DecodingOptions) -> Search:
        """What decodes questions that have been read (§2.5). ``run`` takes it to its end.

        Args:
            decoding, options: as ``check_decoding`` lets them pass.
        Raises: InputError for a generator that only scores.
        """
        generator = read.generator
        name = "sample" if options.sample else str(decoding)
        if enumerates(generator):
            if decoding != "exact":
                raise OptionError(
                    "{decoding}={given!r} searches; this generator lists every answer, which is 'exact'", given=decoding
                )
            name = "enumerate"
        elif not can_decode(generator):
            raise InputError("this generator scores given answers and writes none; use score, or another generator")
        return SEARCHES[name](generator, read.prepared, read.log_p_eta, variant=variant, options=options)

    def retrieve(self, x: Asked, *, k: int | None = None, where: Where | None = None) -> Found:
        """The passages that are retrieved for x, with their priors p_η(z|x); the generator reads none of them.

        Args:
            k: how many; None: as many as ``answer`` takes.
            where: as for ``answer``.
        Raises: InputError for an empty or too long question, a k or a condition that cannot be.
        """
        return self.retrieve_batch([x], k=k, where=where)[0]

    @torch.no_grad()
    def retrieve_batch(self, x: Sequence[Asked], *, k: int | None = None, where: Where | None = None) -> list[Found]:
        """``retrieve`` for several questions at once."""
        questions = checked_questions(x)
        retrieved = self.model.where(where).retrieve(questions, self._k(k))
        scores, priors = retrieved.logits.tolist(), log_prior(retrieved.logits).exp().tolist()
        missing = retrieved.missing
        rows = [zip(*each, strict=True) for each in zip(retrieved.latents, scores, priors, strict=True)]
        # Of those that come with a question there may be fewer than of others; in their places is nothing.
        found = [[(z[0], score, prior) for z, score, prior in row if score > -math.inf] for row in rows]
        return [
            Found(question.text, retrieved.version, tuple(each), missing)
            for question, each in zip(questions, found, strict=True)
        ]

    def score(
        self,
        x: Asked,
        y: str,
        *,
        k: int | None = None,
        variant: Variant | None = None,
        where: Where | None = None,
        sentences: bool = False,
    ) -> Score:
        """log p(y|x) of a given y, with posteriors and counterfactuals.

        Args:
            where, sentences: as for ``answer``.
        Raises: InputError for an empty or too long question, or a k that cannot be.
        """
        return self.score_batch([x], [y], k=k, variant=variant, where=where, sentences=sentences)[0]

    @torch.no_grad()
    def score_batch(
        self,
        x: Sequence[Asked],
        y: Sequence[str],
        *,
        k: int | None = None,
        variant: Variant | None = None,
        where: Where | None = None,
        sentences: bool = False,
    ) -> list[Score]:
        """``score`` for several pairs at once."""
        chosen = checked(variant or self.variant)
        evidence = self.model.where(where).evidence(x, y, k=self._k(k))
        log_p = evidence.log_likelihood(chosen).tolist()
        closed_book = self.model.closed_book_log_p(x, evidence.targets).tolist()
        sources = [sources_of(evidence, b, chosen) for b in range(len(x))]
        asked = [fitting(self.generator, Question.of(question)) for question in x]
        if sentences:
            sources = [
                with_sentences(of_one, self.generator, question, evidence, b, chosen)
                for b, (of_one, question) in enumerate(zip(sources, asked, strict=True))
            ]
        return [
            Score(
                x=asked[b].text,
                y=y[b],
                log_likelihood=log_p[b],
                closed_book_log_likelihood=closed_book[b],
                num_tokens=int(evidence.targets.mask[b].sum()),
                variant=chosen,
                memory_version=evidence.version,
                sources=sources[b],
                tokens=tokens_of(self.generator, evidence, b, chosen),
                without_passage=of_one,
                no_passage=no_passage_of(evidence, b, chosen),
                conversation=evidence.conversation(b, chosen, num_dropped=asked[b].num_dropped),
                missing=evidence.missing,
            )
            for b, of_one in enumerate(_without_each(evidence, chosen))
        ]

    def log_likelihood(
        self, x: Asked, y: str, *, k: int | None = None, variant: Variant | None = None, where: Where | None = None
    ) -> float:
        """log p(y|x), nats (§2.1)."""
        return self.score(x, y, k=k, variant=variant, where=where).log_likelihood

    def posterior(
        self, x: Asked, y: str, *, k: int | None = None, variant: Variant | None = None, where: Where | None = None
    ) -> tuple[tuple[Passage, float], ...]:
        """The passages retrieved for x, best prior first, each with its share in y."""
        sources = self.score(x, y, k=k, variant=variant, where=where).sources
        return tuple((source.passage, source.posterior) for source in sources)

    @torch.no_grad()
    def classify(
        self,
        x: Asked,
        labels: Sequence[str],
        *,
        k: int | None = None,
        variant: Variant | None = None,
        where: Where | None = None,
    ) -> Classification:
        """p(label|x) over the given labels (§3.4): likelihoods of the labels as targets, normalised over them.

        Args: where: as for ``answer``.
        Raises: InputError for fewer than two labels, an empty one, or the same twice.
        """
        chosen = checked(variant or self.variant)
        if len(labels) < 2:
            raise InputError(f"got {len(labels)} label; classification needs two or more")
        read = self.model.where(where).read([x], k=self._k(k))
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
        evidence = Evidence(
            retrieved.latents,
            read.log_p_eta,
            log_p_theta[:, best],
            targets,
            retrieved.version,
            read.logit_parts(),
            retrieved.readings,
        )
        return Classification(
            x=read.questions[0].text,
            labels=tuple(Label(labels[i], probabilities[i], log_p[0, i].item()) for i in order),
            variant=chosen,
            memory_version=retrieved.version,
            sources=sources_of(evidence, 0, chosen),
            no_passage=no_passage_of(evidence, 0, chosen),
            conversation=evidence.conversation(0, chosen, num_dropped=read.questions[0].num_dropped),
            missing=retrieved.missing,
        )

    def _k(self, k: int | None) -> int:
        return self.k if k is None else k


def _without_each(evidence: Evidence, variant: Variant) -> list[tuple[float, ...]]:
    """For each question log p(y|x) without each of its passages; nothing where there is one value of z only."""
    if evidence.log_p_eta.shape[1] < 2:
        return [()] * len(evidence.latents)
    if any(len(z) > 1 for of_one in evidence.latents for z in of_one):
        return [tuple(evidence.without_each_passage(b, variant)) for b in range(len(evidence.latents))]
    found: list[tuple[float, ...]] = []
    rows = zip(evidence.latents, evidence.log_p_eta.tolist(), evidence.without_passage(variant).tolist(), strict=True)
    for latents, log_p_eta, without in rows:
        places = [k for k, log_p in enumerate(log_p_eta) if log_p > -math.inf]  # others only fill up the list
        found.append(tuple(without[k] for k in places if latents[k]) if len(places) > 1 else ())
    return found
