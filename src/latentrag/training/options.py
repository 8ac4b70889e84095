"""What a training run is asked to do."""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from latentrag.errors import InputError
from latentrag.options import DeviceOptions, Given, GivenOptions, Option, RowOptions, check_options, options_of
from latentrag.registry import Table
from latentrag.types import Variant

if TYPE_CHECKING:
    from latentrag.training.step import Objective

OBJECTIVES: "Table[Objective]" = Table(
    "objective",
    {name: f"latentrag.training.step:{name.upper()}" for name in ("nll", "emdr2", "pdist", "loop")},
    group="latentrag.objectives",
)
Freeze = Literal["none", "retriever", "generator"]
Answers = Literal["first", "sample"]
"""Which of an example's answers is y: always the first, or another one in each epoch."""
LoraScope = Literal["question", "all"]
TrainingDtype = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """How a run trains. Steps are optimiser steps; batches are over all processes.

    A rate rises linearly to its highest and then falls linearly to 0 at the end; each side warms up when it starts to
    learn.

    Attributes:
        variant: sequence: one passage explains the whole answer; token: each token may have its own.
        objective: What is minimised: nll (the paper's, §2.4), or emdr2, pdist or loop, which give the retriever
            a loss of its own.
        k: Passages retrieved for a question.
        hindsight: Extra candidate passages per question, retrieved with question and answer together (training
            only).
        hindsight_steps: Steps at the start that have extra candidates.
        closed_book: Train the generator alone, without passages.
        freeze: Which side to freeze.
        num_steps: Optimiser steps, in place of --epochs.
        batch_size: Examples in a step, over all processes.
        micro_batch_size: Examples in a forward pass; fewer need less RAM. Gradients add up over the batch.
        lr_retriever: Highest learning rate of the query encoder; --freeze leaves it as it is.
        lr_generator: Highest learning rate of the generator; --freeze leaves it as it is.
        warmup_steps: Steps in which a learning rate rises to its highest.
        warmup_generator: Steps at the start in which only the generator is trained: one that cannot read yet
            sends noise to the retriever.
        warmup_retriever: Steps in which only the query encoder is trained: a generator says most clearly which
            passage helps before it is tuned.
        weight_decay: AdamW's weight decay, of both sides.
        clip: Largest norm of the gradient of either side; larger ones are scaled down.
        label_smoothing: ε, of the marginal distribution of the next token; with --objective nll. Where there
            are extra candidates and the generator learns, of the generator only.
        temperature: Temperature of the retriever's targets; with --objective pdist or loop.
        answers: Which of several answers is learned in an epoch.
        seed: Random seed for the order, the answers drawn and the adapter's first weights.
        skip_batches: Batches of the order that another run has seen, to pass over.
        eval_every: Steps between evaluations on --dev.
        save_every: Steps between checkpoints.
        refresh_every: Steps between re-encodings of the memory by the passage encoder, which is then trained,
            too (REALM); 0: neither.
        autocast: Compute in bfloat16 with float32 weights.
    """

    variant: Annotated[Variant, Option()] = "sequence"
    objective: Annotated[str, Option()] = "nll"
    k: Annotated[int, Option(flags=("-k", "--k", "--passages"), ge=1)] = 5
    hindsight: Annotated[int, Option(default="as many as -k; none after retriever warm-up, if there is one", ge=0)] = 0
    hindsight_steps: Annotated[int | None, Option(default="all, with --hindsight", ge=1)] = None
    closed_book: Annotated[bool, Option()] = False
    freeze: Annotated[Freeze, Option()] = "none"
    num_steps: Annotated[int, Option(name="steps", default="from --epochs", ge=1)] = 1000
    batch_size: Annotated[int, Option(ge=1)] = 16
    micro_batch_size: Annotated[int, Option(ge=1)] = 8
    lr_retriever: Annotated[float, Option(gt=0)] = 5e-5
    lr_generator: Annotated[float, Option(default="2e-4 for an adapter, 3e-5 for all weights", gt=0)] = 3e-5
    warmup_steps: Annotated[int, Option(default="5 % of all steps", ge=0)] = 50
    warmup_generator: Annotated[
        int, Option(default="a fifth of all steps for encoder-decoders, 0 for causal generators", ge=0)
    ] = 0
    warmup_retriever: Annotated[
        int, Option(default="half of all steps, at most 200, for causal generators; 0 for encoder-decoders", ge=0)
    ] = 0
    weight_decay: Annotated[float, Option(ge=0)] = 1e-3
    clip: Annotated[float, Option(gt=0)] = 1.0
    label_smoothing: Annotated[float, Option(ge=0, lt=1)] = 0.0
    temperature: Annotated[float, Option(gt=0)] = 1.0
    answers: Annotated[Answers, Option()] = "first"
    seed: Annotated[int, Option(ge=0)] = 0
    skip_batches: Annotated[int, Option(ge=0, public=False)] = 0
    eval_every: Annotated[int, Option(ge=1)] = 100
    save_every: Annotated[int, Option(ge=1)] = 100
    refresh_every: Annotated[int, Option(ge=0)] = 0
    autocast: Annotated[bool, Option()] = False

    def __post_init__(self) -> None:
        check_options(self)
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.objective not in OBJECTIVES:
            raise InputError(f"objective={self.objective!r} is unknown; needed one of {', '.join(OBJECTIVES)}")
        if self.label_smoothing and self.closed_book:
            raise InputError("label_smoothing is not for closed_book; leave one of them out")
        if self.label_smoothing and not OBJECTIVES[self.objective].smooths_labels:
            raise InputError(f"label_smoothing is not for objective={self.objective!r}; leave one of them out")
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


RETRIEVER_FIRST = 200
"""Steps in which the retriever alone learns from a causal generator, at most."""


def options_from(given: Given[TrainingOptions], epochs: float, num_examples: int) -> TrainingOptions:
    """The options of a run of so many epochs: those given, else those that follow from its length, else the usual.

    Every example is seen as often as that: a last batch that they do not fill takes the first ones of the next epoch.
    """
    batch_size = given.get("batch_size", options_of(TrainingOptions)["batch_size"].default)
    num_steps = given.get("num_steps", math.ceil(Fraction(str(epochs)) * num_examples / batch_size))
    following = {"num_steps": num_steps, "warmup_steps": num_steps // 20}
    return TrainingOptions(**{**following, **given})


def chosen_for(
    options: TrainingOptions,
    given: Collection[str],
    *,
    reads_untrained: bool,
    trains_adapter: bool,
    num_passages: int,
) -> TrainingOptions:
    """The options with those that were not given chosen from the model and the memory.

    Which side of joint training learns alone at the start: a causal generator reads before it is trained, and tells
    best which passage helps before it is tuned, so the retriever learns first; an encoder–decoder first learns to
    read. Extra candidates: as many as K, while the retriever learns alone, where it does.

    Args:
        given: names of options that stay as they are.
        reads_untrained: whether the generator is of the first kind.
        num_passages: in the memory.
    Raises: InputError for a given option without effect.
    """
    both = options.trains_generator and options.trains_retriever
    if trains_adapter and "lr_generator" not in given:
        options = replace(options, lr_generator=2e-4)
    if both and not {"warmup_generator", "warmup_retriever"} & set(given):
        if reads_untrained:
            options = replace(options, warmup_retriever=min(options.num_steps // 2, RETRIEVER_FIRST))
        else:
            options = replace(options, warmup_generator=options.num_steps // 5)
    if "hindsight" not in given and options.trains_retriever:
        alone = options.warmup_retriever if options.trains_generator else 0
        number = max(0, min(options.k, num_passages - options.k))
        options = replace(options, hindsight=number, hindsight_steps=options.hindsight_steps or alone or None)
    if "hindsight_steps" in given and not options.hindsight:
        raise without_effect("hindsight_steps", "there are no extra candidates")
    return options


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions(RowOptions, GivenOptions, DeviceOptions):
    """What a run needs besides ``TrainingOptions``: where it writes, what it evaluates, which weights it trains.

    Attributes:
        out: Folder of the run: checkpoints, log, and at the end model/.
        dev: Questions with answers to evaluate on; the model of the best step is kept.
        dev_limit: Only the first questions of --dev, this many.
        truncate: Cut questions and answers that are too long for the model; else they are refused.
        epochs: How often every example is seen.
        lora: Rank of the generator's adapter; 0: train all weights.
        lora_scope: Whether the adapter also changes how passages are read (all) or not (question, which is
            faster).
        keep_preamble: Train with the worked examples of the model's prompt. With a frozen generator they always
            stay.
        recompute: Keep fewer activations and compute them again: less RAM, more time.
        passage_cache: GB of memory (see --passage-cache-in) for passages that the generator has read, where that
            does not change.
        passage_cache_folder: Folder that keeps them on disk too, for later runs.
        passage_cache_folder_size: Largest size of that folder in GB; passages used longest ago are deleted.
        dtype: Number format of the generator's weights; auto: float32 if they are trained, else as in its
            files.
    """

    out: Annotated[Path, Option()]
    dev: Annotated[Path | None, Option()] = None
    dev_limit: Annotated[int | None, Option(ge=1, default="200")] = None
    truncate: Annotated[bool, Option()] = False
    epochs: Annotated[float | None, Option(gt=0, default="1")] = None
    lora: Annotated[
        int | None, Option(default="16 for causal generators of 100 million parameters or more, else 0", ge=0)
    ] = None
    lora_scope: Annotated[LoraScope | None, Option(default="question for causal generators, else all")] = None
    keep_preamble: Annotated[bool, Option()] = False
    recompute: Annotated[bool, Option()] = False
    passage_cache: Annotated[float | None, Option(ge=0, default="2")] = None
    passage_cache_folder: Annotated[Path | None, Option()] = None
    passage_cache_folder_size: Annotated[float | None, Option(gt=0, default="20")] = None
    dtype: Annotated[TrainingDtype, Option()] = "auto"

    def __post_init__(self) -> None:
        check_options(self)


def check_used(run: RunOptions, given: Collection[str], options: TrainingOptions) -> None:
    """That a run has a use for every option that was given; ``assemble.runs`` asks the same of its model.

    Args:
        given: names of training options.
        options: those of the run.
    Raises: InputError for an option without effect.
    """
    no_dev, no_folder = run.dev is None, run.passage_cache_folder is None
    rules: tuple[tuple[bool, str, tuple[str, ...]], ...] = (
        (not options.trains_retriever, "the retriever is not trained", ("lr_retriever", "warmup_generator")),
        (not options.trains_generator, "the generator is not trained", ("lr_generator", "warmup_retriever")),
        (not options.trains_generator, "the generator is not trained", ("lora", "lora_scope", "recompute")),
        (
            not OBJECTIVES[options.objective].has_temperature,
            f"the objective {options.objective} has no temperature",
            ("temperature",),
        ),
        (no_dev, "there is no --dev", ("dev_limit", "eval_every")),
        ("num_steps" in given, "--steps says how long to train", ("epochs",)),
        (no_folder, "there is no --passage-cache-folder", ("passage_cache_folder_size",)),
        (
            options.closed_book,
            "closed book reads no passages",
            ("passage_cache", "passage_cache_folder", "passages_from"),
        ),
        (
            run.passages_from is not None,
            "the passages come with the questions",
            ("hindsight", "hindsight_steps", "refresh_every"),
        ),
    )
    for is_so, why, names in rules:
        for name in names:
            of_run = getattr(run, name, None)
            if is_so and ((name in given and getattr(options, name)) or not (of_run is None or of_run is False)):
                raise without_effect(name, why)


def without_effect(name: str, why: str) -> InputError:
    """What an option that would be ignored costs."""
    field = {**options_of(TrainingOptions), **options_of(RunOptions)}[name]
    return InputError(f"{field.flags[-1]} has no effect, since {why}; leave it out")
