"""The training loop: steps, evaluations, checkpoints; stops when asked and goes on where it stopped."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from latentrag.errors import InputError, TrainingError, UnknownVersionError
from latentrag.model import JointModel, Values
from latentrag.protocols import TrainableGenerator, TrainableRetriever, weighs_passages
from latentrag.readings import ReadingWeights
from latentrag.training import checkpoint
from latentrag.training.data import Example, order, target
from latentrag.training.health import Health, alarms, measure
from latentrag.training.log import Progress, TrainingLog
from latentrag.training.options import TrainingOptions
from latentrag.training.processes import Processes
from latentrag.training.step import ScoreMemo, losses
from latentrag.types import Asked, Question


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        last_nll: mean −log p(y|x) of the last step, nats; None for a run that had ended in an earlier version.
        best_step, best_nll_per_token: on the development set; None without one.
        untrained_nll_per_token: the same before the first step; None without a development set.
    """

    step: int
    finished: bool
    last_nll: float | None
    best_step: int | None
    best_nll_per_token: float | None
    untrained_nll_per_token: float | None


SCALAR_RATE = 200
"""How many times the query encoder's rate that of a single number is: the logit of "no passage" or of sets, the
weight of an expert of the prior. Adam changes a number by about its rate in a step; a weight among many has to move by
thousandths, these by hundredths or by nats."""
_NUMBERS = ("retriever.null_passage", "retriever.set_bonus", "retriever.prior.", "retriever.reading.")
SEEN_S = 120.0
"""How long another process's version of a memory may take to be seen here: network file systems remember for a minute
what was in a folder."""
MIN_MOVED = 0.01
"""Share of the weights with a gradient that a step should change at least."""
_Watched = tuple[Tensor, Tensor, Tensor]
"""A tensor of weights, places in it, and what stood there before the step."""


class Refresher(Protocol):
    """A memory whose passage encoder is trained (REALM)."""

    @property
    def version(self) -> int: ...

    def refresh(self) -> int:
        """Re-encode the memory; the new version is searched from then on."""
        ...

    def use(self, version: int) -> None:
        """Search that version from now on."""
        ...


class Trainer:
    """Trains a retriever and a generator from pairs (x, y) (Lewis et al. 2020, §2.4).

    Args:
        retriever: None: closed book.
        generator: weights that need no gradient when it is handed over are never trained.
        examples: to train on.
        dev: to evaluate on; may be empty.
        folder: of the run: checkpoints and log.
        refresher: what re-encodes the memory every ``refresh_every`` steps; the retriever searches what it made.
        values: what z may be beside the passages; their logits are trained with the retriever. None: nothing else.
        readings: the numbers by which conversations are read, trained with the retriever where there are conversations.
            None: the default ones.
    """

    def __init__(
        self,
        retriever: TrainableRetriever | None,
        generator: TrainableGenerator,
        examples: Sequence[Example],
        *,
        options: TrainingOptions,
        folder: Path,
        dev: Sequence[Example] = (),
        processes: Processes | None = None,
        refresher: Refresher | None = None,
        values: Values | None = None,
        readings: ReadingWeights | None = None,
        progress: bool = False,
    ) -> None:
        if not examples:
            raise InputError("got no examples; needed at least one to train on")
        if (retriever is None) != options.closed_book:
            raise InputError("closed_book goes without a retriever, everything else with one")
        self.retriever = retriever
        self.generator = generator
        self.examples = examples
        self.dev = dev
        self.options = options
        self.folder = folder
        self.processes = processes or Processes()
        self._refresher = refresher
        self._values = values or Values()
        self._readings = readings or ReadingWeights.of()
        self._progress = progress
        self._first: Health | None = None
        self.best: dict[str, Any] = {}
        self._untrained: float | None = None
        self._stuck: set[str] = set()  # sides whose weights were seen not to move
        self._nll: float | None = None
        self._unwritten: list[dict[str, object]] = []  # lines of the log, before the checkpoint that is resumed
        self._saved: int | None = None
        self._memo = ScoreMemo() if self._scores_again() else None
        self._order: tuple[int, list[int]] = (-1, [])  # of the last epoch that was asked for
        self._sides = self._trained()
        self.parameters = {key: weight for of_side in self._sides.values() for key, weight in of_side.items()}
        self.optimiser = torch.optim.AdamW(self._groups(), lr=0.0, weight_decay=options.weight_decay)

    def _groups(self) -> list[dict[str, Any]]:
        """The weights for the optimiser; ``times``: their learning rate is so many times that of their side."""
        groups: list[dict[str, Any]] = []
        for name, of_side in self._sides.items():
            weights = [each for key, each in of_side.items() if not key.startswith(_NUMBERS)]
            groups.append({"params": weights, "name": name})
        if numbers := [each for key, each in self.parameters.items() if key.startswith(_NUMBERS)]:
            groups.append({"params": numbers, "name": "retriever", "times": SCALAR_RATE, "weight_decay": 0.0})
        return groups

    def _trained(self) -> dict[str, dict[str, nn.Parameter]]:
        """The trained weights, by side and name; all others need no gradient from here on."""
        sides: dict[str, dict[str, nn.Parameter]] = {}
        for name, part, wanted in (
            ("retriever", self.retriever, self.options.trains_retriever),
            ("generator", self.generator, self.options.trains_generator),
        ):
            named = {} if part is None else dict(part.named_parameters())
            if name == "retriever":
                numbers = self._values.parameters
                if any(example.history for example in self.examples):
                    numbers = numbers | self._readings.parameters
                for key, logit in numbers.items():
                    logit.requires_grad_(wanted)
                    named[key] = logit
            if not wanted:
                for parameter in named.values():
                    parameter.requires_grad_(False)
            of_side = {f"{name}.{key}": weight for key, weight in named.items() if weight.requires_grad}
            if wanted and part is not None and not of_side:
                raise InputError(f"the {name} has no weights to train; freeze it")
            short = next((each.dtype for each in of_side.values() if each.dtype.itemsize < 4), None)
            if short is not None:
                raise InputError(
                    f"the {name}'s weights are {short}, in which most steps would not change them; load it in float32 "
                    "(autocast computes in bfloat16)"
                )
            if of_side:
                sides[name] = of_side
        return sides

    def _scores_again(self) -> bool:
        """Whether a generator that does not learn scores examples more than once, and its scores are all it gives."""
        options = self.options
        if weighs_passages(self.generator) or options.label_smoothing:
            return False
        num_steps = options.warmup_retriever if options.trains_generator else options.num_steps
        again = num_steps * options.batch_size > len(self.examples)
        return self.retriever is not None and again

    def run(self, *, resume: bool = False, until: int | None = None) -> Outcome:
        """All steps from the first, or with ``resume`` from the newest checkpoint.

        Args:
            until: end after this step, with a checkpoint, as if interrupted there.

        Ctrl-C (or SIGTERM) ends the run after the step in hand, with a checkpoint.

        Raises: TrainingError if a checkpoint cannot be read or written, or the loss is no number; or if the log cannot
            be written, after a checkpoint.
        """
        step = self._restored() if resume else 0
        main = self.processes.is_main
        with (
            TrainingLog(self.folder, append=resume, enabled=main) as log,
            Progress(self.options.num_steps, start=step, enabled=self._progress and main) as progress,
            _stop_requests() as stop_wanted,
        ):
            if resume:
                log.drop_after(step, unwritten=self._unwritten)
            log.write("resume" if step else "start", step)
            self.processes.wait()  # all have read the checkpoint before there is another
            if step == 0:
                self._evaluate(0, log, progress)
            while step < self.options.num_steps:
                progress.phase(self._phase(step))
                self._nll = self._step(step, log, progress)
                step += 1
                self._between(step, log, progress)
                ends = step == self.options.num_steps
                if not ends and (step == until or self.processes.agree(stop_wanted() or log.error is not None)):
                    self._save(step, log)
                    break
            else:
                log.write("done", step, best=self.best or None)
            if log.error is not None:
                raise log.failure(log.error) from log.error
        return self._outcome(step)

    @property
    def readings(self) -> ReadingWeights:
        """The numbers by which conversations are read, and whether they were trained."""
        learned = any(each in self.parameters for each in (f"retriever.{key}" for key in self._readings.parameters))
        return replace(self._readings, trained=self._readings.trained or learned)

    def restore_best(self) -> None:
        """The weights of the best step on the development set, where there is one."""
        best = checkpoint.best(self.folder)
        if best is not None:
            checkpoint.restore(best, parameters=self.parameters)

    def _restored(self) -> int:
        """Everything as the newest checkpoint has it; its step, 0 if there is none."""
        newest = checkpoint.newest(self.folder)
        if newest is None:
            return 0
        checkpoint.restore(newest, parameters=self.parameters, optimiser=self.optimiser)
        self.best = dict(newest.state.get("best", {}))
        scores = newest.scores()
        if self._memo is not None and scores is not None:
            self._memo.restore(scores)
        first, version = newest.state.get("first_health"), newest.state.get("memory_version")
        self._first = None if first is None else Health.of_record(first)
        self._untrained = newest.state.get("untrained", None if first is None else first["nll_per_token"])
        self._nll = newest.state.get("nll")
        self._unwritten = newest.state.get("unwritten", [])
        if self._refresher is not None and version is not None:
            self._refresher.use(version)
        return newest.step

    def _phase(self, step: int) -> str:
        if step < self.options.warmup_generator and self.options.trains_retriever:
            return "generator first"
        return "retriever first" if step < self.options.warmup_retriever else ""

    def _step(self, step: int, log: TrainingLog, progress: Progress) -> float:
        """One update; returns the batch's mean −log p(y|x)."""
        options = self.options
        rates = {"retriever": options.rate_of_retriever(step), "generator": options.rate_of_generator(step)}
        for group in self.optimiser.param_groups:
            group["lr"] = rates[group["name"]] * group.get("times", 1)
        batch = self._batch(step)
        self.optimiser.zero_grad(set_to_none=True)
        learns = {name: rate > 0 for name, rate in rates.items()}
        try:
            totals = self._gradients(batch, learns, options.hindsight_in(step))
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise TrainingError(
                f"step {step + 1} ran out of memory ({str(error).partition('. ')[0]}); continue with --resume and a "
                f"smaller --micro-batch-size than {options.micro_batch_size}, or --recompute"
            ) from error
        norms = {}
        for name, of_side in self._sides.items():
            if rates[name] > 0:
                self.processes.sum_gradients(of_side.values())
                norms[name] = float(nn.utils.clip_grad_norm_(of_side.values(), options.clip))
            else:  # the optimiser's moments are of what a side learns from
                for parameter in of_side.values():
                    parameter.grad = None
        loss, nll, num_tokens = (float(value) / len(batch) for value in self.processes.sum(totals).tolist())
        for what, value in {"loss": loss, **{f"gradient of the {name}": norm for name, norm in norms.items()}}.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"the {what} of step {step + 1} is {value}; begin again in another folder with lower learning rates"
                )
        watched = {name: _watched(self._sides[name].values()) for name in norms}
        self.optimiser.step()
        self._check_moves(step, rates, watched, log, progress)
        num_tokens = round(num_tokens * len(batch))
        progress.update(step + 1, loss=loss, num_tokens=num_tokens)
        shown = {f"lr_{name}": rate for name, rate in rates.items()}
        shown |= {f"norm_{name}": norm for name, norm in norms.items()}
        log.write("train", step + 1, loss=loss, nll=nll, num_tokens=num_tokens, **shown)
        return nll

    def _check_moves(
        self,
        step: int,
        rates: Mapping[str, float],
        watched: Mapping[str, Sequence[_Watched]],
        log: TrainingLog,
        progress: Progress,
    ) -> None:
        """Warn once of a side whose weights do not move, at a step near its highest rate."""
        for name, of_side in watched.items():
            if name in self._stuck or 2 * rates[name] < getattr(self.options, f"lr_{name}"):
                continue
            share = _share_moved(of_side)
            if share < MIN_MOVED:
                self._stuck.add(name)
                line = (
                    f"step {step + 1} changed {share:.1%} of those weights of the {name} that have a gradient: its "
                    f"rate of {rates[name]:g} is too small for their size, or their gradients are; raise --lr-{name}"
                )
                progress.say(f"warning: {line}")
                log.write("warning", step + 1, text=line)

    def _batch(self, step: int) -> list[tuple[Asked, str]]:
        """The pairs (x, y) of a step, the same on every process."""
        options, n = self.options, len(self.examples)
        pairs: list[tuple[Asked, str]] = []
        first = (options.skip_batches + step) * options.batch_size
        for place in range(first, first + options.batch_size):
            epoch, position = divmod(place, n)
            if self._order[0] != epoch:
                self._order = epoch, order(n, epoch=epoch, seed=options.seed)
            example = self.examples[self._order[1][position]]
            pairs.append((example.question, target(example, epoch=epoch, seed=options.seed, choice=options.answers)))
        return pairs

    def _gradients(self, batch: Sequence[tuple[Asked, str]], learns: Mapping[str, bool], num_hindsight: int) -> Tensor:
        """Gradients of the batch's mean loss for this process's rows; their summed loss, NLL and tokens, (3,)."""
        options = replace(self.options, hindsight=num_hindsight)
        # Rows of like length next to each other: what is padded is short, and the sum is the same.
        mine = sorted(self.processes.share(batch), key=lambda pair: len(Question.of(pair[0]).text) + len(pair[1]))
        size = self.options.micro_batch_size
        totals = torch.zeros(3, dtype=torch.float64)
        for start in range(0, len(mine), size):
            x, y = zip(*mine[start : start + size], strict=True)
            found = losses(
                self.retriever,
                self.generator,
                x,
                y,
                options=options,
                retriever_learns=learns["retriever"],
                generator_learns=learns["generator"],
                memo=None if learns["generator"] else self._memo,
                values=self._values,
                readings=self._readings,
            )
            total = found.loss.sum()
            (total / len(batch)).backward()
            totals += torch.tensor([total.item(), found.nll.sum().item(), found.num_tokens], dtype=torch.float64)
        return totals

    def _between(self, step: int, log: TrainingLog, progress: Progress) -> None:
        """What happens after a step, counted from 1."""
        options = self.options
        last = step == options.num_steps
        refreshed = self._refresher is not None and step % options.refresh_every == 0
        if self._refresher is not None and refreshed:
            progress.phase("re-encoding the memory")
            log.write("refresh", step, memory_version=self._refreshed(self._refresher))
        if step % options.eval_every == 0 or last:
            self._evaluate(step, log, progress)
        if step % options.save_every == 0 or last or refreshed:
            self._save(step, log)

    def _refreshed(self, refresher: Refresher) -> int:
        """The main process re-encodes the memory; all search the new version from here on. Returns: its number."""
        version = self.processes.from_main(refresher.refresh)
        if not self.processes.is_main:
            _use_when_seen(refresher, version)
        self.processes.wait()
        return version

    def _save(self, step: int, log: TrainingLog) -> None:
        if self.processes.is_main and step != self._saved:
            first = None if self._first is None else self._first.as_record()
            version = None if self._refresher is None else self._refresher.version
            state = {
                "best": self.best,
                "untrained": self._untrained,
                "nll": self._nll,
                "first_health": first,
                "memory_version": version,
                "unwritten": log.unwritten,
            }
            learns_not = not self.options.trains_generator or step < self.options.warmup_retriever
            memo = self._memo if learns_not else None
            checkpoint.save(
                self.folder,
                step,
                parameters=self.parameters,
                optimiser=self.optimiser,
                state=state,
                scores=None if memo is None else memo.tensors(),
            )
            self._saved = step
        self.processes.wait()

    def _evaluate(self, step: int, log: TrainingLog, progress: Progress) -> None:
        """On the development set, each process some of its examples."""
        if not self.dev:
            return
        progress.phase("dev")
        x = [example.question for example in self.dev]
        y = [target(example, epoch=0, seed=self.options.seed, choice="first") for example in self.dev]
        if self.retriever is None:
            nll_per_token = self._closed_book(x, y)
            log.write("dev", step, nll_per_token=nll_per_token)
        else:
            model = JointModel(self.retriever, self.generator, self._values, self._readings)
            size = self.options.micro_batch_size
            options = self.options
            health = measure(
                model, x, y, k=options.k, variant=options.variant, batch_size=size, processes=self.processes
            )
            nll_per_token = health.nll_per_token
            log.write("dev", step, **health.as_record())
            self._first = self._first or health
            if step >= max(1, self.options.warmup_generator):
                for line in alarms(health, first=self._first):
                    progress.say(f"warning: {line}")
                    log.write("warning", step, text=line)
        progress.say(f"step {step}: dev {nll_per_token:.4f} nats per token")
        if not step:
            self._untrained = nll_per_token
        if step and nll_per_token < self.best.get("nll_per_token", math.inf):
            self.best = {"step": step, "nll_per_token": nll_per_token}
            if self.processes.is_main:
                checkpoint.save_best(self.folder, step, parameters=self.parameters, state=self.best)
            self.processes.wait()

    @torch.no_grad()
    def _closed_book(self, x: Sequence[Asked], y: Sequence[str]) -> float:
        total, num_tokens, size = 0.0, 0, self.options.micro_batch_size
        x, y = self.processes.share(x), self.processes.share(y)
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            found = losses(None, self.generator, x[part], y[part], options=self.options)
            total += found.nll.sum().item()
            num_tokens += found.num_tokens
        totals, nums_tokens = zip(*self.processes.gather((total, num_tokens)), strict=True)
        return float(sum(totals) / sum(nums_tokens))

    def _outcome(self, step: int) -> Outcome:
        return Outcome(
            step=step,
            finished=step == self.options.num_steps,
            last_nll=self._nll,
            best_step=self.best.get("step"),
            best_nll_per_token=self.best.get("nll_per_token"),
            untrained_nll_per_token=self._untrained,
        )


def _use_when_seen(refresher: Refresher, version: int) -> None:
    """Raises: UnknownVersionError if another process's version is not there after ``SEEN_S``."""
    end = time.monotonic() + SEEN_S
    while True:
        try:
            return refresher.use(version)
        except UnknownVersionError:
            if time.monotonic() > end:
                raise
        time.sleep(1)


@torch.no_grad()
def _watched(weights: Iterable[nn.Parameter], num_places: int = 64) -> list[_Watched]:
    """Some places of each tensor, those of them that have a gradient."""
    found: list[_Watched] = []
    for weight in weights:
        if weight.grad is not None:
            places = torch.arange(0, weight.numel(), max(1, weight.numel() // num_places), device=weight.device)
            places = places[weight.grad.reshape(-1)[places] != 0]
            found.append((weight, places, weight.reshape(-1)[places]))
    return found


@torch.no_grad()
def _share_moved(watched: Sequence[_Watched]) -> float:
    """The share of the weights that have changed, as far as the watched places tell; 1 where none is watched."""
    with_gradient = [each for each in watched if len(each[1])]
    if not with_gradient:
        return 1.0
    moved = [(weight.reshape(-1)[places] != before).float().mean() for weight, places, before in with_gradient]
    sizes = torch.tensor([float(weight.numel()) for weight, _, _ in with_gradient], device=moved[0].device)
    return float((torch.stack(moved) * sizes).sum() / sizes.sum())


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Within: the first SIGINT or SIGTERM is a request, the second ends the process at once."""
    asked: list[int] = []

    def ask(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        signal.signal(number, signal.default_int_handler)

    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, ask)
    except ValueError:  # not the main thread: whoever runs it there stops it
        pass
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
