"""The kinds of generators, by the name that saved models have for them, and generators from folders and hub ids."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from latentrag.errors import InputError, ModelError
from latentrag.generator.base import SETTINGS_FILE
from latentrag.place import Place
from latentrag.pretrained import read_config, read_object, resolve
from latentrag.protocols import SavableGenerator
from latentrag.registry import Table

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class GeneratorKind(Protocol):
    """Opens generators of a kind; the class of the generators, usually."""

    def load(self, folder: Path, settings: Mapping[str, object], place: Place) -> SavableGenerator:
        """A generator from a folder.

        Args:
            settings: as the generator's ``settings()`` gave them when it was saved, by name, without "kind"; none for
                a folder that latentrag did not write.
        Raises: ModelError if the folder or its settings cannot be used.
        """
        ...


GENERATOR_KINDS: Table[GeneratorKind] = Table(
    "generator kind",
    {
        "seq2seq": "latentrag.generator.seq2seq:Seq2SeqGenerator",
        "causal": "latentrag.generator.causal:CausalGenerator",
        "llama-cpp": "latentrag.generator.llama_cpp:LlamaCppGenerator",
        "spans": "latentrag.generator.spans:SpanGenerator",
    },
    group="latentrag.generator_kinds",
)


def load_generator(
    source: str | os.PathLike[str], *, settings: Mapping[str, object] | None = None, place: Place | None = None
) -> SavableGenerator:
    """A generator from a folder or hub id; of the kind that its settings name, else the one its configuration is for.

    Args:
        settings: in place of those saved in the folder, by name.
        place: where it computes; None: on the processor in float32.
    Raises: ModelError if the model or its settings cannot be used.
    """
    folder = resolve(source)
    saved = read_object(folder / SETTINGS_FILE) if (folder / SETTINGS_FILE).is_file() else {}
    chosen = {**saved, **(settings or {})}
    name = chosen.pop("kind", None)
    if name is None:
        name = _kind_of(read_config(folder))
    try:
        kind = GENERATOR_KINDS[str(name)]
    except InputError as error:
        raise ModelError(f"{folder / SETTINGS_FILE}: {error}") from error
    return kind.load(folder, chosen, place or Place(number_format="float32"))


def _kind_of(config: PretrainedConfig) -> str:
    """The kind that reads a model with this configuration."""
    if config.is_encoder_decoder:
        return "seq2seq"
    made_as = (config.architectures or [""])[0]
    return "spans" if made_as.endswith("ForQuestionAnswering") or made_as == "DPRReader" else "causal"
