"""Model folders: JSON, safetensors, configuration and tokenizers, with one-line errors; nothing missing, nothing
made up, no code from data. Below the encoder and generator rooms, which both load models and do not know each other.

Nothing here touches the network, except ``resolve`` for a name that is not a path.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentrag import io
from latentrag.errors import ModelError
from latentrag.place import require_unforked

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

HUB_FILES = ["*.json", "*.safetensors", "*vocab.txt", "*merges.txt", "*.model"]
"""What is fetched of a model on the hub, in its subfolders too."""

VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def one_line(error: BaseException) -> str:
    """What an error of another library says, fit for the middle of one of ours."""
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Within: no log line, warning or progress bar of transformers and huggingface_hub."""
    from transformers.utils import logging

    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()


def resolve(source: str | os.PathLike[str]) -> Path:
    """The folder of a model: ``source`` itself if it is a path that exists, else a download of that hub id.

    Raises: ModelError if it is neither.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"{path} is a file; name the folder that holds it, with config.json and the tokenizer")
    if not isinstance(source, str):
        raise ModelError(f"{path} does not exist; name the folder of a model")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RevisionResolutionError

    try:
        with quiet():
            return Path(snapshot_download(source, allow_patterns=HUB_FILES))
    except (OSError, HFValidationError, RevisionResolutionError) as error:
        raise ModelError(
            f"{source!r} is neither a folder nor a hub id that can be reached ({one_line(error)}); "
            "check the name, and the network if it is a hub id"
        ) from error


def read_json(path: Path) -> Any:
    """Raises: ModelError if the file is missing or is not JSON."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        if path.name == "config.json" and (path.parent / "adapter_config.json").is_file():
            raise _adapter_alone(path.parent) from error
        raise ModelError(f"{path.parent} has no {path.name}; it is not the folder of a complete model") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({one_line(error)}); fetch the file again") from error


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises: ModelError as ``read_json``, and for any other JSON value."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a {type(content).__name__}, needed an object; fetch the file again")
    return content


def write_json(path: Path, content: object) -> None:
    """``io.write_json``, in a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    io.write_json(path, content)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A scratch folder whose files move into ``folder`` at the end, each whole or not at all.

    Loaded weights may still be mapped from the very file that is being replaced, so that writing into it would
    destroy them.
    """
    scratch = folder / ".saving"
    for leftover in folder.glob(".saving*"):  # of a save that was killed
        shutil.rmtree(leftover)
    scratch.mkdir(parents=True)
    try:
        yield scratch
        for path in sorted(p for p in scratch.rglob("*") if p.is_file()):
            target = folder / path.relative_to(scratch)
            target.parent.mkdir(parents=True, exist_ok=True)
            with io.replacing_file(target) as new:
                path.replace(new)
    finally:
        shutil.rmtree(scratch)


def _adapter_alone(folder: Path) -> ModelError:
    return ModelError(f"{folder} is a PEFT adapter, no model; name its base model as --generator and this as --adapter")


def read_config(folder: Path) -> PretrainedConfig:
    """config.json as the configuration class of its model_type.

    Raises: ModelError if it is missing, broken, or of a model_type that transformers does not know.
    """
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise _adapter_alone(folder)
    return config_of(read_object(folder / "config.json"), folder / "config.json")


def config_of(content: Mapping[str, object], path: Path) -> PretrainedConfig:
    """A configuration from JSON values; code that a folder brings along is never run.

    Args:
        path: where the values came from, for error messages.
    Raises: ModelError as ``read_config``.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, PretrainedConfig

    content = PretrainedConfig._decode_special_floats(dict(content))  # noqa: SLF001  ({"__float__": "Infinity"})
    model_type = content.get("model_type")
    if model_type not in CONFIG_MAPPING:
        raise ModelError(f"{path} has model_type={model_type!r}; needed one that transformers knows")
    try:
        with quiet():
            config: PretrainedConfig = CONFIG_MAPPING[model_type].from_dict(content)
    except (StrictDataclassError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path} is not usable ({one_line(error)}); fetch it again") from error
    return config


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder's safetensors: model.safetensors, its shards, or whatever lies there.

    Raises: ModelError if there are none, only pickled ones, or a file is truncated or corrupt.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        try:
            weights |= load_file(path)
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"{path} is missing, truncated or corrupt ({one_line(error)}); fetch the file again"
            ) from error
    return weights


def _weight_files(folder: Path) -> list[Path]:
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_object(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ModelError(f"{index} has no weight_map; fetch the file again")
        return [folder / name for name in sorted(set(weight_map.values()))]
    found = sorted(folder.glob("*.safetensors"))
    if found:
        return found
    refuse_pickles(folder)
    raise ModelError(f"{folder} has no weights; needed model.safetensors")


def refuse_pickles(folder: Path) -> None:
    """Raises: ModelError if a folder has weights as pickles and not as safetensors."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles and not any(name.endswith(".safetensors") for name in names):
        raise ModelError(
            f"{folder} has pickled weights only ({pickles[0]}), which can run code when opened; if you trust them, "
            "convert them to safetensors: from_pretrained and save_pretrained of transformers do that"
        )


def build(
    model_class: type[PreTrainedModel],
    config: PretrainedConfig,
    weights: Mapping[str, Tensor],
    *,
    folder: Path,
    dtype: torch.dtype,
    **options: object,
) -> PreTrainedModel:
    """A transformers model with these weights, in eval mode; no weight is left at a random value.

    Args:
        folder: where the weights came from, for error messages.
        options: further arguments of the model's class.
    Raises: ModelError if weights are missing or of another shape than config.json says.
    """
    try:
        with quiet():
            model, info = model_class.from_pretrained(
                None,
                config=config,
                state_dict=dict(weights),
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are reported below, by name
                **options,
            )
    except (ImportError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"{folder} does not load as {model_class.__name__} ({one_line(error)})") from error
    wrong = sorted(str(key) for key in (*info["missing_keys"], *info["mismatched_keys"]))
    if wrong or info["error_msgs"]:
        raise ModelError(
            f"{folder} lacks {len(wrong)} weights of {model_class.__name__}, or has them in another shape "
            f"({', '.join(wrong[:2] or info['error_msgs'])}…); it is incomplete or another kind of model"
        )
    _keep_to_this_process(model)
    built: PreTrainedModel = model.eval()
    return built


def _keep_to_this_process(model: nn.Module) -> None:
    """Refuse to compute in a process that is forked off this one later. Raises: ModelError in one that was before."""
    from torch import nn

    require_unforked(ModelError)
    for module in model.modules():
        if isinstance(module, nn.Embedding):  # where a token enters, whichever part of the model is called
            module.register_forward_pre_hook(_require_unforked)


def _require_unforked(*_: object) -> None:
    require_unforked(ModelError)


def load_tokenizer(folder: Path, *, what: str) -> PreTrainedTokenizerBase:
    """The fast tokenizer beside a model. Raises: ModelError if there is none."""
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in VOCABULARIES):  # transformers would make one up
        raise ModelError(f"{what} {folder}: no tokenizer.json; needed the tokenizer beside the model; fetch it again")
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, ImportError) as error:
        raise ModelError(f"{what} {folder}: no tokenizer could be read ({one_line(error)}); fetch it again") from error
    if not tokenizer.is_fast:
        raise ModelError(f"{what} {folder}: the tokenizer is a slow one; needed tokenizer.json; convert it")
    return tokenizer
