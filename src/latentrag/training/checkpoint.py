"""The folder of a run: its request, and checkpoints with everything it needs to go on as if nothing had happened.

    run.json                     what the run was asked for; a resumed run must be asked for the same
    log.jsonl                    a line for every step, evaluation and warning (``training.log``)
    step-00000200/
        parameters.safetensors   the weights that are trained
        optimiser.safetensors    Adam's moments, as ``NAME:exp_avg`` and the like
        scores.safetensors       scores of a generator that does not learn, where later steps will need them
        state.json               the step, and the best result so far
    best-00000100/               the weights of the best step on the development set
    model/                       the trained model, as ``latentrag.load`` reads it

What a run draws at random is a function of its seed and of the step, so no state of a random generator is saved. Older
checkpoints are removed when the new one is on the disk.
"""

import json
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from latentrag import io
from latentrag.errors import InputError, TrainingError

REQUEST_FILE = "run.json"
FORMAT = 3
_STEP = "step-"
_BEST = "best-"


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
    state: Mapping[str, object],
    scores: Mapping[str, Tensor] | None = None,
) -> Checkpoint:
    """The checkpoint of a step, in place of older ones.

    Raises: TrainingError if it cannot be written; the one before is untouched then.
    """
    with _saving(run, _STEP, step) as scratch:
        _write_tensors(scratch / "parameters.safetensors", parameters)
        _write_tensors(scratch / "optimiser.safetensors", _moments(parameters, optimiser))
        if scores is not None:
            _write_tensors(scratch / "scores.safetensors", scores)
        io.write_json(scratch / "state.json", {"step": step, **state})
    return Checkpoint(run / f"{_STEP}{step:08d}", step, state)


def save_best(run: Path, step: int, *, parameters: Mapping[str, nn.Parameter], state: Mapping[str, object]) -> None:
    """The weights of the best step so far, in place of those before. Raises: as ``save``."""
    with _saving(run, _BEST, step) as scratch:
        _write_tensors(scratch / "parameters.safetensors", parameters)
        io.write_json(scratch / "state.json", {"step": step, **state})


def newest(run: Path) -> Checkpoint | None:
    """The last complete checkpoint of a run. Raises: TrainingError if it cannot be read."""
    return _newest(run, _STEP)


def best(run: Path) -> Checkpoint | None:
    """The best step's weights. Raises: as ``newest``."""
    return _newest(run, _BEST)


def restore(
    saved: Checkpoint, *, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer | None = None
) -> None:
    """Put the weights back, and if given the optimiser's moments.

    Raises: TrainingError if they are those of another model.
    """
    weights = _read_tensors(saved.folder / "parameters.safetensors")
    if weights.keys() != parameters.keys() or any(weights[name].shape != parameters[name].shape for name in weights):
        raise TrainingError(f"{saved.folder} is the checkpoint of another model; resume with the model it began with")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    if optimiser is None:
        return
    for key, tensor in _read_tensors(saved.folder / "optimiser.safetensors").items():
        name, kind = key.rsplit(":", 1)
        parameter = parameters[name]
        optimiser.state[parameter][kind] = tensor if kind == "step" else tensor.to(parameter.device)


def _moments(parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}:{kind}": value
        for name, parameter in parameters.items()
        for kind, value in optimiser.state.get(parameter, {}).items()
    }


def _newest(run: Path, kind: str) -> Checkpoint | None:
    for ending in ("", "old", "replaced"):  # the last two: killed between the two renames of a save, now or by 0.1.0
        if folders := sorted(_named(run, kind, ending)):
            return _opened(folders[-1])
    return None


def _named(run: Path, kind: str, *endings: str) -> Iterator[Path]:
    """What ``save`` and ``save_best`` have made in a run: checkpoints, for the ending "", and what killed ones left.
    Copies that somebody has made under names of their own are not among it."""
    for path in run.iterdir() if run.is_dir() else ():
        name = re.fullmatch(rf"{kind}[0-9]{{8}}|\.{kind}[0-9]{{8}}\.(?P<ending>[a-z]+)", path.name)
        if name is not None and (name["ending"] or "") in endings:
            yield path


def _opened(folder: Path) -> Checkpoint:
    try:
        state = json.loads((folder / "state.json").read_text("utf-8"))
        return Checkpoint(folder, int(state["step"]), state)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{folder} cannot be read ({error}); remove it to begin again without it") from error


@contextmanager
def _saving(run: Path, kind: str, step: int) -> Iterator[Path]:
    """A scratch folder that becomes the checkpoint of a step, in place of all others of its kind."""
    folder = run / f"{kind}{step:08d}"
    try:
        for leftover in list(_named(run, kind, "new", "saving")):  # of a save that was killed
            shutil.rmtree(leftover)
        with io.replacing_folder(folder) as scratch:
            yield scratch
    except (OSError, SafetensorError) as error:
        before = next((each.name for each in sorted(_named(run, _STEP, ""), reverse=True) if each != folder), "")
        intact = f"{before}, the checkpoint before it, is intact" if before else "no checkpoint was made before"
        raise TrainingError(f"{folder} cannot be written ({error}); {intact}: make room and resume") from error
    for other in list(_named(run, kind, "", "old", "replaced")):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path} cannot be read ({error}); remove its folder to begin again without it") from error
    return tensors


# The request


def read_request(run: Path, *, resume: bool) -> Mapping[str, Any] | None:
    """What the run in this folder was asked for; None if none has begun there.

    Raises: InputError for a folder that is taken, or if there is nothing to resume; TrainingError if it cannot be read.
    """
    file = run / REQUEST_FILE
    if not file.exists():
        if run.exists() and (not run.is_dir() or any(run.iterdir())):
            raise InputError(f"{run} exists and is no run of latentrag; name another folder with --out")
        if resume:
            raise InputError(f"no run has begun in {run}; leave --resume out to begin one")
        return None
    if not resume:
        raise InputError(f"{run} holds a run already; continue it with --resume, or name another folder with --out")
    try:
        request: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{file} cannot be read ({error}); begin anew in another folder") from error
    if request.get("format") != FORMAT:
        raise TrainingError(f"{file} has format={request.get('format')!r}; this version reads {FORMAT}; begin anew")
    return request


def check_same_request(
    run: Path, before: Mapping[str, object], now: Mapping[str, object], *, free: Collection[str] = ()
) -> None:
    """Raises: InputError if a resumed run is asked for something else.

    Args:
        free: names of options that may change: results do not depend on them but for rounding.
    """
    for name, value in now.items():
        old = before.get(name)
        pairs = [(name, old, value)]
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            prefix = "" if name == "options" else f"{name}."
            pairs = [(prefix + key, old.get(key), value[key]) for key in value]
        for key, was, wanted in pairs:
            if was != wanted and key not in free:
                raise InputError(
                    f"the run in {run} has {key}={was!r}, now asked for {wanted!r}; resume with what it began with"
                )


@contextmanager
def claimed(run: Path) -> Iterator[None]:
    """The run's folder, made if need be, for this process alone. Raises: InputError."""
    with ExitStack() as opened:
        with _writing(run):
            run.mkdir(parents=True, exist_ok=True)
            alone = opened.enter_context(io.exclusive(run))
        if not alone:
            raise InputError(f"the run in {run} is going on in another process; wait for it, or name another folder")
        yield


def write_request(run: Path, request: Mapping[str, object]) -> None:
    """Raises: InputError if it cannot be written."""
    with _writing(run):
        io.write_json(run / REQUEST_FILE, request)


@contextmanager
def _writing(run: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{run} cannot be written ({error.strerror}); name another folder with --out") from error
