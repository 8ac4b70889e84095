"""What a training run leaves behind and what it shows: log.jsonl, TensorBoard, a live line on standard error."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from latentrag import io
from latentrag.errors import DataError, TrainingError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Event = Literal["start", "resume", "train", "dev", "refresh", "warning", "done"]

LOG_NAME = "log.jsonl"


class TrainingLog:
    """folder/log.jsonl, a JSON object a line: ``{"step": 40, "event": "train", "time_s": …, "loss": …}``.

    Every line is out of this process when ``write`` returns, so that killing it loses none. Where it cannot be written,
    on a full disk for instance, it waits in ``unwritten``, and ``error`` says why. Numbers go to TensorBoard as well
    where it is installed, as ``event/name``, under folder/tensorboard.

    Args:
        folder: of the run; made if it is missing.
        append: continue the log that is there. False begins a new one.
        enabled: False writes nothing: the log of a process that is not the main one.
    Raises: TrainingError if it cannot be written.
    """

    def __init__(self, folder: Path, *, append: bool, enabled: bool = True) -> None:
        self.path = folder / LOG_NAME
        self._enabled = enabled
        self._writer: SummaryWriter | None = None
        self._writer_class = _summary_writer_class() if enabled else None
        self._purge_step: int | None = None
        self.unwritten: list[dict[str, object]] = []
        self.error: OSError | None = None
        if enabled:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with self.path.open("ab" if append else "wb"):
                    pass
            except OSError as error:
                raise self.failure(error) from error

    def failure(self, error: OSError) -> TrainingError:
        """What it means for a run that the log cannot be written."""
        return TrainingError(
            f"{self.path} cannot be written ({error.strerror or error}); make room, then continue with --resume"
        )

    def write(self, event: Event, step: int, **values: object) -> None:
        """One line. Values are what JSON knows, mappings included; numbers that are not finite become null."""
        if not self._enabled:
            return
        record = {"step": step, "event": event, "time_s": round(time.time(), 3), **io.finite(values)}
        try:
            self.unwritten.append(record)
            io.append_lines(self.path, self.unwritten)
            self.unwritten, self.error = [], None
            self._mirror(event, step, values)
        except OSError as error:
            self.error = error

    def drop_after(self, step: int, *, unwritten: Sequence[Mapping[str, object]] = ()) -> None:
        """Remove the lines of later steps, which a run resumed at ``step`` will take again. All or nothing.

        Args:
            unwritten: lines of earlier steps that could not be written then.
        Raises: TrainingError if it cannot be written.
        """
        if not self._enabled:
            return
        kept = [record for record in read_log(self.path) if record["step"] <= step]
        try:
            with io.replacing_file(self.path) as scratch:
                io.append_lines(scratch, [*kept, *unwritten])
        except OSError as error:
            raise self.failure(error) from error
        self._purge_step = step + 1

    def close(self) -> None:
        """TensorBoard's files; the log itself is always complete."""
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _mirror(self, event: Event, step: int, values: Mapping[str, object]) -> None:
        if self._writer_class is None:
            return
        if self._writer is None:
            # Made at the first line: a resumed run says by then which steps TensorBoard is to forget.
            self._writer = self._writer_class(str(self.path.parent / "tensorboard"), purge_step=self._purge_step)
        for name, number in _numbers(event, values):
            self._writer.add_scalar(name, number, step)
        self._writer.flush()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log. A last line without its end, which a run is writing or a kill cut short, is left out.

    Raises: DataError for a missing file or a line that is no line of a log, with its number.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing; needed the log of a training run")
    records = []
    for number, record in io.read_lines(path, unfinished=False):
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise DataError(f"{path}:{number} is not a line of a training log; remove that line")
        records.append(record)
    return records


class Progress:
    """Where a run stands, on standard error: step, loss as the mean of the last steps, tokens a second, time left.

    On a terminal one live line; elsewhere a plain line every half minute and at the end, so that a file of it stays
    readable. Used as a context.

    Args:
        total: the last step of the run.
        start: the step it begins after, not 0 when it is resumed.
        enabled: False shows nothing.
        interval_s: between plain lines.
        clock: seconds, from any origin.
    """

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        enabled: bool = True,
        interval_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._start, self._step = total, start, start
        self._enabled, self._interval_s, self._clock = enabled, interval_s, clock
        self._phase = self._text = ""
        self._last: deque[tuple[float, int, float]] = deque(maxlen=50)  # loss, tokens, seconds of each step
        self._began = self._since = self._shown = clock()
        self._opened = ExitStack()
        self._bar = io.Progress()

    def __enter__(self) -> Self:
        self._began = self._since = self._shown = self._clock()
        bar = io.progress(
            "training",
            self._total,
            wanted=self._enabled,
            completed=self._step,
            unit_of=lambda _task: self._text,
            time_left=False,  # the line has its own, in which evaluations count
        )
        self._bar = self._opened.enter_context(bar)
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def update(self, step: int, *, loss: float, num_tokens: int) -> None:
        """A step is done.

        Args:
            step: its number; the last is ``total``.
            loss: of this step.
            num_tokens: target tokens that it trained on.
        """
        now = self._clock()
        self._last.append((loss, num_tokens, now - self._since))
        self._step, self._since = step, now
        self._show(last=step == self._total)

    def phase(self, name: str) -> None:
        """What goes on from here: "warm-up", "joint", "dev" … The time between two phases counts for no step's speed,
        and for the time left only as its share so far."""
        self._phase, self._since = name, self._clock()
        self._show()

    def say(self, line: str) -> None:
        """A message above the live line."""
        if self._enabled:
            self._bar.say(line)

    def _show(self, *, last: bool = False) -> None:
        if self._bar.is_live:
            self._text = self._line()
            self._bar.update(completed=self._step)
        elif self._enabled and (last or self._clock() - self._shown >= self._interval_s):
            self._shown = self._clock()
            self.say(self._line())

    def _line(self) -> str:
        parts = [f"step {self._step}/{self._total}"]
        if self._phase:
            parts.append(self._phase)
        if self._last:
            losses, tokens, seconds = zip(*self._last, strict=True)
            parts.append(f"loss {sum(losses) / len(losses):.4f}")
            parts.append(f"{sum(tokens) / max(sum(seconds), 1e-9):,.0f} tokens/s")
            # Over the whole run so far, so that evaluations and checkpoints are counted in.
            a_step = (self._clock() - self._began) / max(self._step - self._start, 1)
            parts.append(f"{_duration(a_step * (self._total - self._step))} left")
        return " · ".join(parts)


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"


def _numbers(prefix: str, values: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    """Every number with the path of names that leads to it."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(f"{prefix}/{name}", value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}/{name}", float(value)


def _summary_writer_class() -> type[SummaryWriter] | None:
    """TensorBoard's writer; None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter
