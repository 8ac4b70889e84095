"""One process or several (accelerate launch, torchrun): who does which rows, and how gradients are summed.

Every process retrieves for its own rows of a batch. Gradients are summed by hand rather than by a wrapper around the
model: the two models are called in several places, parts of them are frozen or adapted, and a sum of the gradients of
a loss that is divided by the whole batch's size is exact for any number of rows on any process.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from latentrag.errors import TrainingError
from latentrag.place import Places, has_float64

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those that train together."""

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

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
        return cls(state.process_index, state.num_processes, state.device)

    @property
    def is_main(self) -> bool:
        """The process that writes files and evaluates."""
        return self.rank == 0

    def share(self, items: Sequence[_Item]) -> Sequence[_Item]:
        """The items that this process handles."""
        return items[self.rank :: self.count]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the processes, on each of them."""
        if self.count > 1:
            values = values.to(self.device, values.dtype if has_float64(str(self.device)) else torch.float32)
            torch.distributed.all_reduce(values)
        return values

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Every parameter's gradient becomes the sum over the processes; one that had no rows adds nothing."""
        if self.count == 1:
            return
        by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            by_dtype.setdefault(parameter.dtype, []).append(parameter)
        for of_one in by_dtype.values():
            flat = torch.cat([parameter.grad.flatten() for parameter in of_one if parameter.grad is not None])
            torch.distributed.all_reduce(flat)
            sizes = [parameter.numel() for parameter in of_one]
            for parameter, summed in zip(of_one, flat.split(sizes), strict=True):
                parameter.grad = summed.view_as(parameter)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            torch.distributed.barrier()

    def agree(self, wanted: bool) -> bool:
        """Whether any process wants it, on each of them."""
        return bool(self.sum(torch.tensor(float(wanted))) > 0)
