"""Encoders from folders or hub ids. What a folder holds is told by its files, never by its name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from latentrag.encoder import dpr
from latentrag.encoder.dpr import DprPassageEncoder, DprQueryEncoder
from latentrag.encoder.saved import DTYPES, FILE_NAME, Role, Saved
from latentrag.encoder.sentence import SentenceEncoder
from latentrag.encoder.sentence_folder import MODULES, load_sentence_module
from latentrag.errors import ModelError
from latentrag.pretrained import read_config, read_weights, resolve

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

Source = str | os.PathLike[str]


def load_query_encoder(
    source: Source,
    *,
    scale: float | None = None,
    passage_fingerprint: str | None = None,
    name: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> DprQueryEncoder | SentenceEncoder:
    """q(x): DPR's question encoder, a sentence encoder, or any transformers encoder with mean pooling.

    Args:
        source: a folder in the layout of transformers, of sentence-transformers or of ``save``, or with a DPR
            checkpoint under its original names. A string that is no path is a hub id. For a folder the network
            is never touched.
        scale: s in p_η(z|x) ∝ exp(s·d(z)·q(x)). None: as saved; else 20 for normalised vectors, 1 for others.
        passage_fingerprint: of the passage encoder it is paired with. None: as saved; else itself for a
            sentence encoder, unknown for DPR.
        name: what messages call it. None: as saved; else the folder's name or the hub id.
        dtype: of the transformer's weights. None: as saved; else float32. Vectors are float32 in any case.
    Raises: ModelError if the source is missing, incomplete, corrupt or not supported. InputError for a scale
        that is not positive.
    """
    found = _find(source, role="query", name=name, scale=scale, dtype=dtype)
    if passage_fingerprint is None and found.saved is not None:
        passage_fingerprint = found.saved.passage_fingerprint
    files = _dpr_files(found)
    if files is None:
        return _sentence_encoder(found, device=device, passage_fingerprint=passage_fingerprint)
    module, tokenizer = dpr.load_query_module(found.folder, *files, dtype=found.dtype)
    return DprQueryEncoder(
        module.to(device),
        tokenizer,
        name=found.name,
        scale=dpr.SCALE if found.scale is None else found.scale,
        passage_fingerprint=passage_fingerprint,
    )


def load_passage_encoder(
    source: Source,
    *,
    scale: float | None = None,
    name: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> DprPassageEncoder | SentenceEncoder:
    """d(z): DPR's context encoder, a sentence encoder, or any transformers encoder with mean pooling.

    Args: as those of ``load_query_encoder``.
    Raises: as ``load_query_encoder``.
    """
    found = _find(source, role="passage", name=name, scale=scale, dtype=dtype)
    files = _dpr_files(found)
    if files is None:
        saved_pair = None if found.saved is None else found.saved.passage_fingerprint
        return _sentence_encoder(found, device=device, passage_fingerprint=saved_pair)
    module, tokenizer = dpr.load_passage_module(found.folder, *files, dtype=found.dtype)
    return DprPassageEncoder(
        module.to(device),
        tokenizer,
        name=found.name,
        scale=dpr.SCALE if found.scale is None else found.scale,
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """A model's folder, and its settings: from the arguments, else latentrag_encoder.json, else a default."""

    folder: Path
    saved: Saved | None
    name: str
    scale: float | None
    dtype: torch.dtype


def _find(source: Source, *, role: Role, name: str | None, scale: float | None, dtype: torch.dtype | None) -> _Found:
    folder = resolve(source)
    saved = Saved.read(folder)
    if saved is None:
        is_path = Path(source).expanduser().is_dir()
        return _Found(
            folder,
            saved,
            name=name or (folder.resolve().name if is_path else str(source)),
            scale=scale,
            dtype=dtype or torch.float32,
        )
    if saved.role not in (role, "both"):
        raise ModelError(f"{folder / FILE_NAME} is of a {saved.role} encoder, needed a {role} encoder; name its folder")
    return _Found(
        folder,
        saved,
        name=name or saved.name,
        scale=saved.scale if scale is None else scale,
        dtype=dtype or DTYPES[saved.dtype],
    )


def _dpr_files(found: _Found) -> tuple[PretrainedConfig, dict[str, Tensor]] | None:
    """Configuration and weights of a folder that holds DPR, under its original names or transformers'."""
    is_sentence = (found.folder / MODULES).exists() if found.saved is None else found.saved.kind == "sentence"
    if is_sentence:
        return None
    config, weights = read_config(found.folder), read_weights(found.folder)
    return (config, weights) if config.model_type == "dpr" or dpr.has_original_names(weights) else None


def _sentence_encoder(found: _Found, *, device: torch.device | str, passage_fingerprint: str | None) -> SentenceEncoder:
    module, tokenizer, settings = load_sentence_module(found.folder, dtype=found.dtype)
    return SentenceEncoder(
        module.to(device),
        tokenizer,
        name=found.name,
        settings=settings,
        scale=found.scale,
        passage_fingerprint=passage_fingerprint,
    )
