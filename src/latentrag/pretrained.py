"""Loading transformers models strictly and quietly: safetensors only, nothing missing, nothing made up.

Stands below the encoder and generator rooms, which both load models and do not know each other.
"""

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latentrag.errors import ModelError

Source = str | Path
"""A folder, or the id of a model on the Hugging Face hub."""


def load_model(auto_class: Any, source: Source, *, what: str, dtype: Any = None, device: Any = "cpu") -> Any:
    """A transformers model in evaluation mode, with every weight taken from its files.

    Args:
        auto_class: a transformers class with ``from_pretrained``.
        what: the word for it in messages, "generator" for instance.
        dtype: torch dtype; None: float32.
    Raises: ModelError if the folder or hub id cannot be had, or its files are of another kind, incomplete or corrupt.
    """
    import torch
    from safetensors import SafetensorError

    local = check_folder(source, what=what)
    with quiet():
        try:
            model, report = auto_class.from_pretrained(
                source,
                use_safetensors=True,
                local_files_only=local,
                dtype=dtype or torch.float32,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
            raise _explained(error, source, what=what, local=local) from error
    missing = sorted(report["missing_keys"]) + sorted(str(each) for each in report.get("mismatched_keys", ()))
    if missing:
        raise ModelError(
            f"{what} {source}: the weights lack {len(missing)} of the model's tensors ({missing[0]}, …); "
            "needed all of them; fetch the model again or name the right kind of model"
        )
    return model.to(device).eval()


def load_tokenizer(source: Source, *, what: str) -> Any:
    """The fast tokenizer beside a model. Raises: ModelError if there is none."""
    from transformers import AutoTokenizer

    local = Path(source).is_dir()
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local)
        except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
            raise ModelError(f"{what} {source}: no tokenizer could be read ({first_line(error)})") from error
    if not tokenizer.is_fast:
        raise ModelError(f"{what} {source}: the tokenizer has no tokenizer.json; needed a fast tokenizer; convert it")
    return tokenizer


def read_json(path: Path, *, what: str) -> dict[str, Any]:
    """A JSON object. Raises: ModelError if the file is missing or not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{what} {path.parent}: {path.name} is missing; needed a complete model folder") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{what} {path.parent}: {path.name} is not readable JSON ({first_line(error)})") from error
    if not isinstance(value, dict):
        raise ModelError(f"{what} {path.parent}: {path.name} holds a {type(value).__name__}, needed a JSON object")
    return value


def check_folder(source: Source, *, what: str) -> bool:
    """True for a folder that looks like a model, False for a hub id.

    Raises: ModelError for a path that is no folder, or a folder without configuration or safetensors weights.
    """
    folder = Path(source)
    if not folder.is_dir():
        looks_like_a_path = isinstance(source, Path) or folder.exists() or str(source).startswith((".", "/", "~"))
        if looks_like_a_path or str(source).count("/") > 1:
            raise ModelError(f"{what} {source}: no such folder; needed a model folder or a hub id")
        return False
    read_json(folder / "config.json", what=what)
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(each.name for suffix in ("*.bin", "*.pt", "*.pth", "*.ckpt") for each in folder.glob(suffix))
        found = f"only {pickles[0]}, a pickle, which is never read" if pickles else "no weights"
        raise ModelError(f"{what} {source}: found {found}; needed *.safetensors; convert or fetch the model again")
    return True


def first_line(error: BaseException) -> str:
    """The first line of an error's message, for a message of our own."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _explained(error: Exception, source: Source, *, what: str, local: bool) -> ModelError:
    if local:
        return ModelError(f"{what} {source}: cannot be loaded ({first_line(error)}); fetch the model again")
    return ModelError(
        f"{what} {source}: neither a folder nor a model that can be had from the hub ({first_line(error)}); "
        "check the name, or download it first and name its folder"
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers without its progress bars, advice and warnings."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
