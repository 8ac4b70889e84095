"""Generators from folders and hub ids, and back into folders."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentrag.errors import InputError, ModelError
from latentrag.generator.causal import CausalGenerator
from latentrag.generator.inputs import InputTemplate, PromptTemplate
from latentrag.generator.lora import from_settings, load_adapter, split_weights
from latentrag.generator.seq2seq import Seq2SeqGenerator
from latentrag.pretrained import build, load_tokenizer, one_line, quiet, read_config, read_object, read_weights, resolve

SETTINGS_FILE = "latentrag_generator.json"
ADAPTER_FILE = "lora.safetensors"


def load_generator(
    source: str | os.PathLike[str],
    *,
    settings: Mapping[str, Any] | None = None,
    device: Any = "cpu",
    dtype: Any = None,
    int8: bool = False,
) -> Seq2SeqGenerator | CausalGenerator:
    """A generator from a folder or hub id; encoder–decoder or causal, as its configuration says.

    Args:
        settings: template, limits and decoder prefix as ``generator.settings()`` gives them; default: those saved
            in the folder, else the kind's own defaults.
        dtype: torch dtype of the weights; None: float32.
        int8: compute linear layers in eight bits.
    Raises: ModelError if the model or its settings cannot be used.
    """
    import torch

    folder = resolve(source)
    config = read_config(folder)
    if settings is None and (folder / SETTINGS_FILE).is_file():
        settings = read_object(folder / SETTINGS_FILE)
    model = build(model_class(config), config, read_weights(folder), folder=folder, dtype=dtype or torch.float32)
    take_generation_settings(model, folder, {})
    generator = build_generator(model.to(device), load_tokenizer(folder, what="generator"), settings, int8=int8)
    if generator.lora is not None:
        load_adapter(generator.model, _adapter_weights(folder))
    return generator


def _adapter_weights(folder: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(folder / ADAPTER_FILE)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder / ADAPTER_FILE} cannot be read ({one_line(error)}); save the model again") from error


def model_class(config: Any) -> Any:
    """transformers' class for generation with this configuration: encoder–decoder, else causal.

    Raises: ModelError if it has neither.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

    mapping = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if config.is_encoder_decoder else MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) not in mapping:
        raise ModelError(
            f"model_type={config.model_type!r} does not generate text; needed an encoder–decoder or a causal "
            "language model as generator"
        )
    return mapping[type(config)]


def take_generation_settings(model: Any, folder: Path, older: Mapping[str, Any]) -> None:
    """Gives the model its saved generation settings.

    Args:
        older: JSON values among which they are where there is no generation_config.json.
    Raises: ModelError if they cannot be read.
    """
    from transformers import GenerationConfig

    try:
        with quiet():
            if (folder / "generation_config.json").is_file():
                saved = GenerationConfig.from_pretrained(folder, local_files_only=True)
            else:
                known = GenerationConfig().to_dict()
                saved = GenerationConfig.from_dict({key: older[key] for key in known if key in older})
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{folder}: its generation settings cannot be read ({one_line(error)})") from error
    model.generation_config = saved


def build_generator(
    model: Any, tokenizer: Any, settings: Mapping[str, Any] | None, *, int8: bool = False
) -> Seq2SeqGenerator | CausalGenerator:
    """A generator around a loaded model. Raises: ModelError if the settings do not fit it."""
    kind = Seq2SeqGenerator.kind if model.config.is_encoder_decoder else CausalGenerator.kind
    given = {**(settings or {}), "int8": int8}
    if given.pop("kind", kind) != kind:
        raise ModelError(f"the generator's settings are for another kind of model; this one is {kind}")
    template = given.pop("template", None)
    if given.get("lora") is not None:
        given["lora"] = from_settings(given["lora"])
    try:
        if kind == Seq2SeqGenerator.kind:
            return Seq2SeqGenerator(model, tokenizer, template=InputTemplate(**template) if template else None, **given)
        return CausalGenerator(model, tokenizer, template=PromptTemplate(**template) if template else None, **given)
    except (TypeError, InputError) as error:
        raise ModelError(f"the generator's settings cannot be used: {error}") from error


def save_generator(generator: Seq2SeqGenerator | CausalGenerator, folder: Path) -> None:
    """Weights as safetensors, tokenizer and settings, so that ``load_generator(folder)`` restores the generator.

    An adapter stays beside the weights that it was trained on, which other tools then read as they were.

    Raises: InputError for one in int8, whose weights are not those of the model any more.
    """
    from safetensors.torch import save_file

    if generator.int8:
        raise InputError("a generator in int8 cannot be saved; load it in another dtype and save that")
    weights, adapter = split_weights(generator.model.state_dict())
    with quiet():
        generator.model.save_pretrained(folder, state_dict=weights)
        generator.tokenizer.save_pretrained(folder)
    if adapter:
        save_file({name: tensor.contiguous() for name, tensor in adapter.items()}, folder / ADAPTER_FILE)
    (folder / SETTINGS_FILE).write_text(json.dumps(generator.settings(), indent=2, ensure_ascii=False) + "\n")
