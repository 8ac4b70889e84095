"""What a training run is asked to do."""

from dataclasses import dataclass, fields
from typing import Literal, get_args

from latentrag.errors import InputError
from latentrag.training.data import Choice
from latentrag.types import Objective, Variant

Freeze = Literal["none", "retriever", "generator"]


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """Settings of a run. Steps are optimiser steps; batches are over all processes.

    Attributes:
        objective: of each example: ``nll`` is the paper's (§2.4); see ``marginal.objectives`` for the others.
        k: K, passages retrieved for x.
        hindsight: further passages, found with x and y together, for the retriever alone to learn from; 0: none.
        hindsight_steps: steps at the start in which they are sought; None: all.
        closed_book: train p_θ(y|x) of the generator alone, without passages.
        freeze: a side that is not trained.
        num_steps: how many steps in all.
        batch_size: examples in a step.
        micro_batch_size: examples in a forward pass; gradients accumulate over the batch.
        lr_retriever: highest learning rate of η.
        lr_generator: highest learning rate of θ.
        warmup_steps: in which a rate rises to its highest, linearly; then it falls to 0 at the end, linearly. Each
            side warms up when it starts to learn.
        warmup_generator: steps at the start in which the generator alone learns. One that cannot read yet sends
            noise to the retriever.
        warmup_retriever: steps at the start in which the retriever alone learns. A generator that can read says most
            clearly which passage helps before it is tuned.
        weight_decay: AdamW's, of both sides.
        clip: highest norm of each side's gradient.
        label_smoothing: ε, of the marginal distribution of the next token; for ``nll``. Where passages were sought
            with y and the generator learns, it is the generator's only.
        temperature: of the target of ``pdist`` and ``loop``.
        answers: which answer of an example is y.
        seed: of the order of the examples and of the answers drawn.
        skip_batches: batches of the order that are passed over, since another run has seen them.
        eval_every: steps between evaluations on the development set.
        save_every: steps between checkpoints.
        refresh_every: steps between re-encodings of the memory by the passage encoder, which is trained then
            (REALM); 0: neither.
        autocast: run the generator's forward pass in bfloat16.
    """

    variant: Variant = "sequence"
    objective: Objective = "nll"
    k: int = 5
    hindsight: int = 0
    hindsight_steps: int | None = None
    closed_book: bool = False
    freeze: Freeze = "none"
    num_steps: int = 1000
    batch_size: int = 16
    micro_batch_size: int = 8
    lr_retriever: float = 5e-5
    lr_generator: float = 3e-5
    warmup_steps: int = 50
    warmup_generator: int = 0
    warmup_retriever: int = 0
    weight_decay: float = 1e-3
    clip: float = 1.0
    label_smoothing: float = 0.0
    temperature: float = 1.0
    answers: Choice = "first"
    seed: int = 0
    skip_batches: int = 0
    eval_every: int = 100
    save_every: int = 100
    refresh_every: int = 0
    autocast: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (
            ("variant", get_args(Variant)),
            ("objective", get_args(Objective)),
            ("freeze", get_args(Freeze)),
            ("answers", get_args(Choice)),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name}={getattr(self, name)!r} is unknown; needed one of {', '.join(allowed)}")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and value < _LEAST.get(field.name, 0):
                raise InputError(f"{field.name}={value}; needed {_LEAST.get(field.name, 0)} or more")
        if not 0 <= self.label_smoothing < 1 or self.temperature <= 0 or self.clip <= 0:
            raise InputError("label_smoothing must be in [0, 1), temperature and clip above 0; correct them")
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.label_smoothing and self.objective != "nll":
            raise InputError(f"label_smoothing is for objective='nll', not {self.objective!r}; leave one of them out")
        seeks = self.hindsight or self.hindsight_steps is not None
        if self.closed_book and (self.objective != "nll" or seeks or self.freeze == "generator"):
            raise InputError(
                "closed_book trains the generator alone by its likelihood; leave objective, hindsight and freeze out"
            )
        if seeks and self.freeze == "retriever":
            raise InputError(
                "hindsight proposes passages to a retriever that learns, which freeze and BM25 exclude; leave one of "
                "them out"
            )
        if self.hindsight and self.hindsight_steps is not None and self.hindsight_steps <= self.warmup_generator:
            raise InputError(
                f"hindsight_steps={self.hindsight_steps} end before the retriever learns, after warmup_generator="
                f"{self.warmup_generator}; raise them or leave hindsight out"
            )
        self._check_warmups()
        if self.refresh_every and not self.trains_retriever:
            raise InputError("refresh_every trains the passage encoder with the retriever; do not freeze it")

    def _check_warmups(self) -> None:
        if self.freeze == "generator" and self.warmup_generator:
            raise InputError("warmup_generator trains the generator, which freeze excludes; leave one of them out")
        if self.warmup_generator >= self.num_steps and self.trains_retriever:
            raise InputError(
                f"warmup_generator={self.warmup_generator} leaves none of the {self.num_steps} steps to the "
                "retriever; lower it or freeze the retriever"
            )
        if not self.warmup_retriever:
            return
        if self.warmup_generator or not self.trains_retriever:
            raise InputError(
                "warmup_retriever trains the retriever first, which warmup_generator, freeze and closed_book exclude; "
                "leave one of them out"
            )
        if self.warmup_retriever >= self.num_steps and self.trains_generator:
            raise InputError(
                f"warmup_retriever={self.warmup_retriever} leaves none of the {self.num_steps} steps to the "
                "generator; lower it or freeze the generator"
            )

    @property
    def trains_retriever(self) -> bool:
        return self.freeze != "retriever" and not self.closed_book

    @property
    def trains_generator(self) -> bool:
        return self.freeze != "generator"

    def hindsight_in(self, step: int) -> int:
        """How many passages are sought with y in a step, counted from 0."""
        return self.hindsight if self.hindsight_steps is None or step < self.hindsight_steps else 0

    def rate_of_retriever(self, step: int) -> float:
        """The learning rate of η in a step, counted from 0; 0 while the generator warms up."""
        if not self.trains_retriever or step < self.warmup_generator:
            return 0.0
        return self.lr_retriever * self._slope(step - self.warmup_generator, self.num_steps - self.warmup_generator)

    def rate_of_generator(self, step: int) -> float:
        """The learning rate of θ in a step, counted from 0; 0 while the retriever warms up."""
        if not self.trains_generator or step < self.warmup_retriever:
            return 0.0
        return self.lr_generator * self._slope(step - self.warmup_retriever, self.num_steps - self.warmup_retriever)

    def _slope(self, step: int, num_steps: int) -> float:
        rising = min(self.warmup_steps, num_steps)
        if step < rising:
            return (step + 1) / rising
        return (num_steps - step) / max(1, num_steps - rising)


_LEAST = {"k": 1, "num_steps": 1, "batch_size": 1, "micro_batch_size": 1, "eval_every": 1, "save_every": 1}
