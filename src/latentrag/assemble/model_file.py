"""latentrag.json, the file that makes a folder a model of ours. Format 2 has sections:

parts     name → folder: query_encoder, passage_encoder, generator, and what else a retriever is made of
prior     where p_η comes from: variant, k, the retriever's name and its settings, the logit of "no passage"
decoding  options of answers, by name
template  the generator's prompt; beats what the generator's own folder says, as ``adapter`` does
adapter   the settings of the generator's adapter; null: it has none
calibration  from what is known of an answer to the probability that it is right (``confidence.Calibration``)
readings  the weights of the readings of a conversation's last question, where they were trained (``readings``)

A section that this version does not know was saved by a newer one: the model is refused, since what it computes may
depend on it. Format 1 had variant, k, retriever, bm25_scale and decoding side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, cast

from latentrag import io
from latentrag.confidence import Calibration
from latentrag.errors import InputError, ModelError
from latentrag.options import DecodingOptions, chosen_options
from latentrag.pretrained import read_object
from latentrag.types import Variant

FILE_NAME = "latentrag.json"
FORMAT = 2
SECTIONS = ("parts", "prior", "decoding", "template", "adapter", "calibration", "readings")
PRIOR = ("variant", "k", "retriever", "settings", "null_passage", "set_bonus", "neighbours")


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What a model's file says.

    Attributes:
        parts: name → folder, relative to the model's.
        retriever: its name in the table of retrievers.
        settings: of the retriever.
        null_passage: the logit of "no passage"; None: it is no value of z.
        set_bonus: γ of the sets of two passages; None: they are no values of z.
        neighbours: passages on each side that are read with each passage; None: none.
        decoding: options of ``DecodingOptions``, by name.
        generator: settings of the generator that the model has in place of those in the generator's own folder.
        calibration: from what is known of an answer to the probability that it is right; None: it has none.
        readings: the weights of p(r|h) by name; None: they were not trained.
    """

    parts: Mapping[str, str] = field(default_factory=dict)
    variant: Variant = "sequence"
    k: int = 5
    retriever: str = "dense"
    settings: Mapping[str, object] = field(default_factory=dict)
    null_passage: float | None = None
    set_bonus: float | None = None
    neighbours: int | None = None
    decoding: Mapping[str, object] = field(default_factory=dict)
    generator: Mapping[str, object] = field(default_factory=dict)
    calibration: Calibration | None = None
    readings: Mapping[str, float] | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises: ModelError for a file that is missing, damaged, or says what this version does not know."""
        content = read_object(path)
        if content.get("format") == 1:
            content = _from_format_1(content, path.parent)
        elif content.get("format") != FORMAT:
            raise ModelError(
                f"{path} has format={content.get('format')!r}; this version reads 1 and {FORMAT}; "
                "save the model again or update latentrag"
            )
        sections: dict[str, Mapping[str, Any]] = {}
        for name, section in content.items():
            if name not in (*SECTIONS, "format"):
                raise ModelError(f"{path} has a section {name!r} of a newer version of latentrag; update latentrag")
            if name in ("parts", "prior", "decoding") and not isinstance(section, dict):
                raise ModelError(f"{path} has no usable section {name!r}; save the model again")
            sections[name] = section
        prior = sections.get("prior", {})
        _check_prior(prior, path)
        generator = {ours: sections[name] for name, ours in _OF_GENERATOR.items() if name in sections}
        found = sections.get("calibration")
        model = cls(
            sections.get("parts", {}),
            **prior,
            decoding=sections.get("decoding", {}),
            generator=generator,
            calibration=None if found is None else Calibration.of_record(found, where=str(path)),
            readings=sections.get("readings"),
        )
        _check_readings(model.readings, path)
        try:
            DecodingOptions(**chosen_options(model.decoding))
        except (TypeError, InputError) as error:
            raise ModelError(
                f"{path}: its section 'decoding' cannot be used ({error}); save the model again"
            ) from error
        return model

    def write(self, path: Path) -> None:
        """In format 2."""
        prior = {name: value for name in PRIOR if (value := getattr(self, name)) is not None}
        of_generator = {name: self.generator[ours] for name, ours in _OF_GENERATOR.items() if ours in self.generator}
        content = {"format": FORMAT, "parts": self.parts, "prior": prior, "decoding": self.decoding, **of_generator}
        if self.calibration is not None:
            content["calibration"] = self.calibration.as_record()
        if self.readings is not None:
            content["readings"] = dict(self.readings)
        io.write_json(path, content)


_OF_GENERATOR = {"template": "template", "adapter": "lora"}
"""Sections that are settings of the generator, under its names."""


def _from_format_1(content: Mapping[str, Any], folder: Path) -> dict[str, object]:
    """Its parts are those whose folders are there."""
    parts = {name: name for name in ("query_encoder", "passage_encoder", "generator") if (folder / name).is_dir()}
    retriever = content.get("retriever", "dense")
    prior = {"variant": content.get("variant"), "k": content.get("k"), "retriever": retriever}
    if retriever == "bm25":
        prior["settings"] = {"scale": content.get("bm25_scale", 1.0)}
    return {"format": FORMAT, "parts": parts, "prior": prior, "decoding": content.get("decoding")}


def _check_readings(numbers: object, path: Path) -> None:
    if numbers is None:
        return
    from latentrag.readings import ReadingWeights

    try:
        ReadingWeights.of(cast("Mapping[str, float]", numbers))
    except (InputError, AttributeError, TypeError) as error:
        raise ModelError(f"{path}: its section 'readings' cannot be used ({error}); save the model again") from error


def _check_prior(prior: Mapping[str, Any], path: Path) -> None:
    unknown = sorted(set(prior) - set(PRIOR))
    if unknown:
        raise ModelError(f"{path} has prior.{unknown[0]} of a newer version of latentrag; update latentrag")
    k, retriever = prior.get("k", 5), prior.get("retriever", "dense")
    if prior.get("variant", "sequence") not in {"sequence", "token"} or not isinstance(k, int) or k < 1:
        raise ModelError(f"{path} has no usable prior.variant and prior.k; save the model again")
    for name in ("null_passage", "set_bonus"):
        logit = prior.get(name, 0.0)
        if not isinstance(logit, int | float) or not math.isfinite(logit):
            raise ModelError(f"{path} has no usable prior.{name}; save the model again")
    neighbours = prior.get("neighbours", 0)
    if type(neighbours) is not int or neighbours < 0:
        raise ModelError(f"{path} has no usable prior.neighbours; save the model again")
    if not isinstance(retriever, str) or not isinstance(prior.get("settings", {}), dict):
        raise ModelError(f"{path} has no usable prior.retriever and prior.settings; save the model again")
