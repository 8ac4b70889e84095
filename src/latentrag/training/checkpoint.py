"""Checkpoints: everything a run needs to go on as if nothing had happened, whole or not at all.

    step-00000200/
        parameters.safetensors   the weights that are trained
        optimiser.safetensors    Adam's moments, as ``NAME:exp_avg`` and the like
        scores.safetensors       what a generator that does not learn was asked, where it will be asked again
        state.json               the step, and the best result so far

What a run draws at random is a function of its seed and of the step, so that no generator's state need be kept. Files
and folders reach the disk before the folder gets its name, and older ones go afterwards.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentrag.errors import TrainingError
from latentrag.io import sync_folder, sync_tree

_STEP = "step-"
_BEST = "best-"
_REPLACED = ".replaced"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete one on disk. ``state`` is what state.json says."""

    folder: Path
    step: int
    state: Mapping[str, Any]

    def scores(self) -> Mapping[str, Tensor] | None:
        """What ``save`` was given. Raises: TrainingError if it cannot be read."""
        path = self.folder / "scores.safetensors"
        return _read_tensors(path) if path.exists() else None


def save(
    run: Path,
    step: int,
    *,
    parameters: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    state: Any,
    scores: Mapping[str, Tensor] | None = None,
) -> Checkpoint:
    """The checkpoint of a step, in place of older ones.

    Raises: TrainingError if it cannot be written; the one before is untouched then.
    """
    with _published(run, _STEP, step) as scratch:
        _write_tensors(scratch / "parameters.safetensors", parameters)
        _write_tensors(scratch / "optimiser.safetensors", _moments(parameters, optimiser))
        if scores is not None:
            _write_tensors(scratch / "scores.safetensors", scores)
        _write_json(scratch / "state.json", {"step": step, **state})
    _remove_others(run, _STEP, step)
    return Checkpoint(run / f"{_STEP}{step:08d}", step, state)


def save_best(run: Path, step: int, *, parameters: Mapping[str, nn.Parameter], state: Any) -> None:
    """The weights of the best step so far, in place of those before. Raises: as ``save``."""
    with _published(run, _BEST, step) as scratch:
        _write_tensors(scratch / "parameters.safetensors", parameters)
        _write_json(scratch / "state.json", {"step": step, **state})
    _remove_others(run, _BEST, step)


def newest(run: Path) -> Checkpoint | None:
    """The last complete checkpoint of a run. Raises: TrainingError if it cannot be read."""
    return _newest(run, _STEP)


def best(run: Path) -> Checkpoint | None:
    """The best step's weights. Raises: as ``newest``."""
    return _newest(run, _BEST)


def restore(
    found: Checkpoint, *, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer | None = None
) -> None:
    """Put the weights back, and if given the optimiser's moments.

    Raises: TrainingError if they are those of another model.
    """
    saved = _read_tensors(found.folder / "parameters.safetensors")
    if saved.keys() != parameters.keys() or any(saved[name].shape != parameters[name].shape for name in saved):
        raise TrainingError(f"{found.folder} is the checkpoint of another model; resume with the model it began with")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])
    if optimiser is None:
        return
    moments = _read_tensors(found.folder / "optimiser.safetensors")
    for key, tensor in moments.items():
        name, kind = key.rsplit(":", 1)
        parameter = parameters[name]
        place = tensor if kind == "step" else tensor.to(parameter.device)
        optimiser.state[parameter][kind] = place


def restore_some(found: Checkpoint, *, parameters: Mapping[str, nn.Parameter]) -> None:
    """Put only these weights back. Raises: TrainingError if the checkpoint has not all of them."""
    saved = _read_tensors(found.folder / "parameters.safetensors")
    if not parameters.keys() <= saved.keys():
        raise TrainingError(
            f"{found.folder} does not hold these weights; name the checkpoint of a run that trained them"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])


def _moments(parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}:{kind}": value
        for name, parameter in parameters.items()
        for kind, value in optimiser.state.get(parameter, {}).items()
    }


def _newest(run: Path, prefix: str) -> Checkpoint | None:
    named = sorted(run.glob(f"{prefix}[0-9]*"))
    folders = named or sorted(run.glob(f".{prefix}[0-9]*{_REPLACED}"))  # killed between the two renames of a save
    if not folders:
        return None
    folder = folders[-1]
    try:
        state = json.loads((folder / "state.json").read_text("utf-8"))
        return Checkpoint(folder, int(state["step"]), state)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{folder} cannot be read ({error}); remove it to begin again without it") from error


def _remove_others(run: Path, prefix: str, step: int) -> None:
    for folder in run.glob(f"{prefix}[0-9]*"):
        if folder.name != f"{prefix}{step:08d}":
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _published(run: Path, kind: str, step: int) -> Iterator[Path]:
    """A scratch folder that gets its name when all of it is on disk."""
    from safetensors import SafetensorError

    name = f"{kind}{step:08d}"
    scratch = run / f".{name}.saving"
    try:
        run.mkdir(parents=True, exist_ok=True)
        for leftover in run.glob(".*.saving"):
            shutil.rmtree(leftover)
        scratch.mkdir()
        yield scratch
        sync_tree(scratch)
        before = run / f".{name}{_REPLACED}"
        if (run / name).exists():
            if before.exists():
                shutil.rmtree(before)
            (run / name).rename(before)
        scratch.rename(run / name)
        sync_folder(run)
        for replaced in run.glob(f".{kind}[0-9]*{_REPLACED}"):
            shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise TrainingError(
            f"{run / name} cannot be written ({error}); the checkpoint before it is intact: make room and resume"
        ) from error
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path} cannot be read ({error}); remove its folder to begin again without it") from error
    return tensors


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
