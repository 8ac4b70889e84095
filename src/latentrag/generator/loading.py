"""Generators from folders and hub ids, and back into folders."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentrag.errors import InputError, ModelError
from latentrag.generator.causal import CausalGenerator
from latentrag.generator.inputs import InputTemplate, PromptTemplate
from latentrag.generator.seq2seq import Seq2SeqGenerator
from latentrag.pretrained import Source, load_model, load_tokenizer, quiet, read_json

SETTINGS_FILE = "latentrag_generator.json"


def load_generator(
    source: Source,
    *,
    settings: Mapping[str, Any] | None = None,
    device: Any = "cpu",
    dtype: Any = None,
) -> Seq2SeqGenerator | CausalGenerator:
    """A generator from a folder or hub id; encoder–decoder or causal, as its configuration says.

    Args:
        settings: template, limits and decoder prefix as ``generator.settings()`` gives them; default: those saved
            in the folder, else the kind's own defaults.
        dtype: torch dtype of the weights; None: float32.
    Raises: ModelError if the model or its settings cannot be used.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    saved = Path(source) / SETTINGS_FILE
    if settings is None and saved.is_file():
        settings = read_json(saved, what="generator")
    if _is_encoder_decoder(source):
        model = load_model(AutoModelForSeq2SeqLM, source, what="generator", dtype=dtype, device=device)
    else:
        model = load_model(AutoModelForCausalLM, source, what="generator", dtype=dtype, device=device)
    return build_generator(model, load_tokenizer(source, what="generator"), settings)


def build_generator(
    model: Any, tokenizer: Any, settings: Mapping[str, Any] | None
) -> Seq2SeqGenerator | CausalGenerator:
    """A generator around a loaded model. Raises: ModelError if the settings do not fit it."""
    kind = Seq2SeqGenerator.kind if model.config.is_encoder_decoder else CausalGenerator.kind
    given = dict(settings or {})
    if given.pop("kind", kind) != kind:
        raise ModelError(f"the generator's settings are for another kind of model; this one is {kind}")
    template = given.pop("template", None)
    try:
        if kind == Seq2SeqGenerator.kind:
            return Seq2SeqGenerator(
                model, tokenizer, template=InputTemplate(**template) if template else None, **given
            )
        return CausalGenerator(model, tokenizer, template=PromptTemplate(**template) if template else None, **given)
    except (TypeError, InputError) as error:
        raise ModelError(f"the generator's settings cannot be used: {error}") from error


def save_generator(generator: Seq2SeqGenerator | CausalGenerator, folder: Path) -> None:
    """Weights as safetensors, tokenizer and settings, so that ``load_generator(folder)`` restores the generator."""
    with quiet():
        generator.model.save_pretrained(folder)
        generator.tokenizer.save_pretrained(folder)
    (folder / SETTINGS_FILE).write_text(json.dumps(generator.settings(), indent=2, ensure_ascii=False) + "\n")


def _is_encoder_decoder(source: Source) -> bool:
    from transformers import AutoConfig

    from latentrag.pretrained import check_folder, first_line

    local = check_folder(source, what="generator")
    with quiet():
        try:
            config = AutoConfig.from_pretrained(source, local_files_only=local)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"generator {source}: not a model folder or hub id that can be read ({first_line(error)})"
            ) from error
    return bool(config.is_encoder_decoder)
