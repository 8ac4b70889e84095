"""One process or several (accelerate launch, torchrun): who does which rows, and how gradients are summed.

Every process retrieves for its own rows of a batch. Gradients are summed by hand rather than by a wrapper around the
model: the two models are called in several places, parts of them are frozen or adapted, and a sum of the gradients of
a loss that is divided by the whole batch's size is exact for any number of rows on any process.

A collective has a time limit (half an hour on CPUs, ten minutes with NCCL), and one process may encode a memory, or
write a model, for longer. So processes wait for each other by messages, which have none.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from latentrag.errors import OtherProcessError, TrainingError
from latentrag.place import Places, has_float64

_Item = TypeVar("_Item")
_Value = TypeVar("_Value")

_SHORTEST_S, _LONGEST_S = 0.001, 0.25
"""How long a process sleeps between two looks for a message: at first, and in the end."""


class Store(Protocol):
    """What processes share, by key: torch's stores."""

    def set(self, key: str, value: str, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...
    def add(self, key: str, value: int, /) -> int: ...
    def check(self, keys: list[str], /) -> bool: ...
    def delete_key(self, key: str, /) -> bool: ...


class Messages:
    """What the processes of a run tell each other, by the store in which they found each other.

    Args:
        store: of all of them.
        rank, count: which of how many this one is.
    """

    def __init__(self, store: Store, rank: int, count: int) -> None:
        self._store, self._rank, self._count, self._turn = store, rank, count, 0
        with _reaching_the_others():
            run = store.add(f"latentrag/runs/{rank}", 1)  # the same number on all: they train as often
        self._run = f"latentrag/{run}"
        self._failures = f"{self._run}/failed"
        self._failed_first: bool | None = None

    def gather(self, value: Any) -> list[Any]:
        """What each process calls this with, by rank, as JSON has it; on each of them, however long that takes.

        Raises: OtherProcessError if another one has failed.
        """
        before, self._turn = self._turn, self._turn + 1
        with _reaching_the_others():
            self._store.set(self._key(self._turn, self._rank), json.dumps(value))
            values = [json.loads(self._next(self._key(self._turn, rank))) for rank in range(self._count)]
            # Who has written this turn's message has read all of the turn before.
            self._store.delete_key(self._key(before, self._rank))
        return values

    def fail(self) -> bool:
        """Tell the others that this process fails. Returns: whether it is the first of them."""
        if self._failed_first is None:
            try:
                self._failed_first = self._store.add(self._failures, 1) == 1
            except torch.distributed.DistError:  # whoever held the store is gone, and so was first
                self._failed_first = False
        return self._failed_first

    def require_no_failure(self) -> None:
        """Raises: OtherProcessError if another process has failed."""
        with _reaching_the_others():
            if self._store.check([self._failures]):
                raise OtherProcessError("another process of this run has failed, and said why; this one ends with it")

    def _key(self, turn: int, rank: int) -> str:
        return f"{self._run}/{turn}/{rank}"

    def _next(self, key: str) -> bytes:
        pause_s = _SHORTEST_S
        while not self._store.check([key]):
            self.require_no_failure()
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_S)
        return self._store.get(key)


@contextmanager
def _reaching_the_others() -> Iterator[None]:
    """Raises: OtherProcessError if the store is gone, which the first process may hold, or the launcher."""
    try:
        yield
    except torch.distributed.DistError as error:
        raise OtherProcessError("the first process of this run is gone; this one ends with it") from error


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those that train together."""

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    messages: Messages | None = None

    @classmethod
    def start(cls, *, device: str = "auto") -> "Processes":
        """As the environment that a launcher has set up says; alone where there is none.

        Args:
            device: as options have it. With several processes "cpu", or else the accelerator of this process.
        Raises: InputError for a device that is not there; TrainingError if there are several processes and accelerate
            is not installed.
        """
        alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
        if alone:
            return cls(device=torch.device(Places.of(device).generator.device))
        try:
            from accelerate import PartialState
        except ImportError as error:
            raise TrainingError("several processes need accelerate; install latentrag[train]") from error
        state = PartialState(cpu=device == "cpu")
        store = torch.distributed.distributed_c10d._get_default_store()  # noqa: SLF001
        messages = Messages(store, state.process_index, state.num_processes)
        return cls(state.process_index, state.num_processes, state.device, messages)

    @property
    def is_main(self) -> bool:
        """The process that writes files."""
        return self.rank == 0

    def share(self, items: Sequence[_Item]) -> Sequence[_Item]:
        """The items that this process handles."""
        return items[self.rank :: self.count]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the processes, on each of them. Raises: as ``sum_gradients``."""
        if self.count > 1:
            values = values.to(self.device, values.dtype if has_float64(str(self.device)) else torch.float32)
            self._add_up(values)
        return values

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Every parameter's gradient becomes the sum over the processes; one that had no rows adds nothing.

        Raises: OtherProcessError if another process has failed; TrainingError if one is gone.
        """
        if self.count == 1:
            return
        by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            by_dtype.setdefault(parameter.dtype, []).append(parameter)
        for of_one in by_dtype.values():
            flat = torch.cat([parameter.grad.flatten() for parameter in of_one if parameter.grad is not None])
            self._add_up(flat)
            sizes = [parameter.numel() for parameter in of_one]
            for parameter, summed in zip(of_one, flat.split(sizes), strict=True):
                parameter.grad = summed.view_as(parameter)

    def _add_up(self, values: Tensor) -> None:
        try:
            torch.distributed.all_reduce(values)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if self.messages is not None:
                self.messages.require_no_failure()
            raise TrainingError(
                f"another process of this run is gone or does not answer ({str(error).partition(chr(10))[0]}); "
                "continue with --resume"
            ) from error

    def gather(self, value: Any) -> list[Any]:
        """What each process calls this with, by rank, as JSON has it: on each of them, however long that takes.

        Raises: OtherProcessError if another one has failed.
        """
        return [value] if self.messages is None else self.messages.gather(value)

    def from_main(self, work: Callable[[], _Value]) -> _Value:
        """What the main process alone makes, on each of them; as ``gather``."""
        value: _Value = self.gather(work() if self.is_main else None)[0]
        return value

    def wait(self) -> None:
        """Until all processes are here; as ``gather``."""
        self.gather(None)

    def agree(self, wanted: bool) -> bool:
        """Whether any process wants it, on each of them."""
        return bool(self.sum(torch.tensor(float(wanted))) > 0)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Within: a process that fails ends all of them. The first to fail raises what it met, the others
        OtherProcessError."""
        try:
            yield
        except OtherProcessError:
            raise
        except BaseException as error:
            is_first = self.messages is None or self.messages.fail()
            if is_first or not isinstance(error, Exception):
                raise
            raise OtherProcessError("another process of this run failed first, and said why") from error
