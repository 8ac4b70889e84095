"""Encoders from folders or hub ids. What a folder holds is told by its files, never by its name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from latentrag.encoder import dpr
from latentrag.encoder.dpr import DprPassageEncoder, DprQueryEncoder
from latentrag.encoder.identity import DTYPES, FILE_NAME, MODULES, Role, Saved
from latentrag.encoder.sentence import SentenceEncoder, load_sentence_module
from latentrag.errors import InputError, ModelError
from latentrag.options import EncoderOptions
from latentrag.place import Place, has_float64
from latentrag.pretrained import read_config, read_weights, resolve

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PretrainedConfig

Source = str | os.PathLike[str]


CPU = Place()
AS_SAVED = EncoderOptions()


def load_query_encoder(
    source: Source,
    *,
    scale: float | None = None,
    passage_fingerprint: str | None = None,
    name: str | None = None,
    place: Place = CPU,
    options: EncoderOptions = AS_SAVED,
) -> DprQueryEncoder | SentenceEncoder:
    """q(x): DPR's question encoder, an encoder of sentence-transformers, or any transformers encoder with mean pooling.

    Args:
        source: a folder in the layout of transformers, of sentence-transformers or of ``save``, or with a DPR
            checkpoint under its original names. A string that is no path is a hub id. For a folder the network
            is never touched.
        scale: s in p_η(z|x) ∝ exp(s·d(z)·q(x)). None: as saved; else 20 for normalised vectors, 1 for others.
        passage_fingerprint: of the passage encoder it is paired with. None: as saved; else itself for a
            sentence encoder, unknown for DPR.
        name: what messages call it. None: as saved; else the folder's name or the hub id.
        place: its device, and the number format of the transformer's weights. "auto": as saved; else float32. Vectors
            are float32 in any case.
        options: prompts and dimension in place of the folder's; not for DPR.
    Raises: ModelError if the source is missing, incomplete, corrupt or not supported. InputError for a scale
        that is not positive.
    """
    opened = _opened(source, role="query", name=name, scale=scale, place=place)
    if passage_fingerprint is None and opened.saved is not None:
        passage_fingerprint = opened.saved.passage_fingerprint
    files = _dpr_files(opened, options)
    if files is None:
        return _sentence_encoder(opened, options, place=place, passage_fingerprint=passage_fingerprint)
    module, tokenizer = dpr.load_module(opened.folder, *files, role="query", dtype=opened.dtype)
    return DprQueryEncoder(
        module.to(place.device),
        tokenizer,
        name=opened.name,
        scale=dpr.SCALE if opened.scale is None else opened.scale,
        passage_fingerprint=passage_fingerprint,
    )


def load_passage_encoder(
    source: Source,
    *,
    scale: float | None = None,
    name: str | None = None,
    place: Place = CPU,
    options: EncoderOptions = AS_SAVED,
) -> DprPassageEncoder | SentenceEncoder:
    """d(z): DPR's context encoder, an encoder of sentence-transformers, or any transformers encoder with mean pooling.

    Args: as those of ``load_query_encoder``.
    Raises: as ``load_query_encoder``.
    """
    opened = _opened(source, role="passage", name=name, scale=scale, place=place)
    files = _dpr_files(opened, options)
    if files is None:
        paired = None if opened.saved is None else opened.saved.passage_fingerprint
        return _sentence_encoder(opened, options, place=place, passage_fingerprint=paired)
    module, tokenizer = dpr.load_module(opened.folder, *files, role="passage", dtype=opened.dtype)
    scale = dpr.SCALE if opened.scale is None else opened.scale
    return DprPassageEncoder(module.to(place.device), tokenizer, name=opened.name, scale=scale)


@dataclass(frozen=True, slots=True)
class _Opened:
    """A model's folder, and its settings: from the arguments, else latentrag_encoder.json, else a default."""

    folder: Path
    saved: Saved | None
    name: str
    scale: float | None
    dtype: torch.dtype


def _opened(source: Source, *, role: Role, name: str | None, scale: float | None, place: Place) -> _Opened:
    folder = resolve(source)
    saved = Saved.read(folder)
    if saved is None:
        called = folder.resolve().name if Path(source).expanduser().is_dir() else str(source)
        return _Opened(folder, saved, name or called, scale, _dtype(place, "float32"))
    if saved.role not in (role, "both"):
        raise ModelError(f"{folder / FILE_NAME} is of a {saved.role} encoder, needed a {role} encoder; name its folder")
    scale = saved.scale if scale is None else scale
    return _Opened(folder, saved, name or saved.name, scale, _dtype(place, saved.dtype))


def _dtype(place: Place, saved: str) -> torch.dtype:
    """An encoder keeps the number format that it was saved in, on every device.

    Raises: ModelError for one that the device has not.
    """
    if place.number_format == "auto" and saved == "float64" and not has_float64(place.device):
        raise ModelError(f"the encoder is saved in float64, which {place.device} has not; use --encoder-device cpu")
    return DTYPES[saved] if place.number_format == "auto" else place.dtype()


def _dpr_files(opened: _Opened, options: EncoderOptions) -> tuple[PretrainedConfig, dict[str, Tensor]] | None:
    """Configuration and weights of a folder that holds DPR, under its original names or transformers'.

    Raises: InputError if it does, and options are given that DPR has not.
    """
    is_sentence = (opened.folder / MODULES).exists() if opened.saved is None else opened.saved.kind == "sentence"
    if is_sentence:
        return None
    config, weights = read_config(opened.folder), read_weights(opened.folder)
    if config.model_type != "dpr" and not dpr.has_original_names(weights):
        return None
    if options != AS_SAVED:
        raise InputError(f"{opened.folder} is an encoder of DPR, which has no prompts and no smaller dimensions")
    return config, weights


def _sentence_encoder(
    opened: _Opened, options: EncoderOptions, *, place: Place, passage_fingerprint: str | None
) -> SentenceEncoder:
    module, settings = load_sentence_module(opened.folder, options, dtype=opened.dtype)
    return SentenceEncoder(
        module.to(place.device),
        name=opened.name,
        settings=settings,
        scale=opened.scale,
        passage_fingerprint=passage_fingerprint,
    )
