"""What every kind of source of a model gives: its parts, each opened when it is asked for, and its settings."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING

from latentrag import io
from latentrag.addresses import GENERATORS, MODELS, model_place, opener
from latentrag.assemble.model_file import FILE_NAME, ModelFile
from latentrag.errors import InputError, ModelError
from latentrag.options import EncoderOptions
from latentrag.place import Place, Places
from latentrag.pretrained import read_object, resolve

if TYPE_CHECKING:
    from latentrag.encoder import DprPassageEncoder, DprQueryEncoder, SentenceEncoder
    from latentrag.protocols import SavableGenerator

    QueryEncoder = DprQueryEncoder | SentenceEncoder
    PassageEncoder = DprPassageEncoder | SentenceEncoder

Source = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model put together from parts, each a folder or hub id.

    Attributes:
        encoder: of the questions, and of the passages unless ``passage_encoder`` says otherwise.
        generator: any encoder–decoder or causal language model, or with another kind what that reads.
        passage_encoder: DPR's context encoder, for instance.
        adapter: of the generator, in PEFT's layout; it is merged into the weights.
        encoding: prompts and dimension of the encoders.
        generator_settings: of the generator, by name, in place of its own: "kind", in the table of kinds, and those of
            that kind.
    """

    encoder: Source
    generator: Source
    passage_encoder: Source | None = None
    adapter: Source | None = None
    encoding: EncoderOptions = field(default=EncoderOptions(), repr=False)  # the others name runs that are resumed
    generator_settings: Mapping[str, object] = field(default_factory=dict, repr=False, hash=False)

    @property
    def parts(self) -> tuple[Source | None, ...]:
        """What it is put together from."""
        return self.encoder, self.generator, self.passage_encoder, self.adapter


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a model, as ``retriever.table.ModelParts``: what is not asked for is not opened.

    Attributes:
        name: for messages.
        file: its settings.
        root: the folder in which its parts were saved; None: they were not saved together.
    """

    name: str
    query_encoder: Callable[[], QueryEncoder]
    generator: Callable[[], SavableGenerator]
    file: ModelFile = field(default_factory=ModelFile)
    root: Path | None = None

    def folder(self, name: str) -> Path:
        """Where a part was saved. Raises: ModelError if the model has none of this name."""
        folder = None if self.root is None else self.root / self.file.parts.get(name, name)
        if folder is None or name not in self.file.parts or not folder.is_dir():
            raise ModelError(f"{self.name} was saved with {self.file.retriever} and has no {name}; leave retriever out")
        return folder


def open_parts(
    source: Source | ModelSpec | tuple[Source, Source], places: Places, settings: Mapping[str, object] | None = None
) -> Parts:
    """
    Args:
        settings: of the generator, by name, in place of those that are saved with it.
    Raises: ModelError for a source that is no model; InputError for settings of one that takes none.
    """
    settings = settings or {}
    if isinstance(source, tuple):
        source = ModelSpec(*source)
    if isinstance(source, ModelSpec):
        settings = {**source.generator_settings, **settings}
        if source.adapter is not None:
            settings = {**settings, "adapter": model_place(source.adapter)}
        generator = _generator_at(source.generator, places.generator, settings)
        return Parts(str(source.encoder), partial(_query_encoder_of, source, places.encoder), generator)
    opens = opener(source, MODELS)
    if opens is not None:
        _refuse(settings, source)
        parts: Parts = opens(source, places)
        return parts
    place = model_place(source)
    folder = Path(place)
    if (folder / FILE_NAME).is_file():
        return _open_own(folder, places, settings)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelError(f"{source} holds neither {FILE_NAME} nor config.json; needed a model folder")
    if not folder.is_dir():
        folder = resolve(str(place))
    if _model_type(folder) == "rag":
        _refuse(settings, source)
        return _open_rag_layout(folder, str(source), places)
    raise ModelError(
        f"{source} is one model; needed a folder that latentrag saved, one in the layout of facebook/rag-*, "
        "or a pair of encoder and generator"
    )


def content_key(source: Source | ModelSpec | tuple[Source, Source]) -> str:
    """Names a model by the names and bytes of its files, those that are hidden aside: 16 hexadecimal digits.

    It takes a second for about a GB. Of an address that another package opens only the address counts.
    """
    if isinstance(source, tuple):
        source = ModelSpec(*source)
    named: tuple[Source | None, ...] = (source,) if not isinstance(source, ModelSpec) else source.parts
    digest = hashlib.sha256()
    if isinstance(source, ModelSpec) and source.encoding != EncoderOptions():
        digest.update(repr(source.encoding).encode())
    if isinstance(source, ModelSpec) and source.generator_settings:
        digest.update(repr(sorted(source.generator_settings.items())).encode())
    for part in named:
        digest.update(b"\0" if part is None else b"\1")
        if part is None:
            continue
        place = model_place(part)
        is_address = opener(part, MODELS) is not None or opener(part, GENERATORS) is not None
        root = Path(place) if is_address or Path(place).exists() else resolve(str(place))
        files = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [root]
        for file in files:
            name = file.relative_to(root).as_posix()
            if not any(each.startswith(".") for each in name.split("/")) or file == root:
                digest.update(f"{name}\0{io.sha256_of_file(file) if file.is_file() else part}\n".encode())
    return digest.hexdigest()[:16]


def load_generator(source: Source, *, device: str = "auto", dtype: str = "auto") -> SavableGenerator:
    """p_θ(y|x,z) of a model (as for ``load``) without its retriever, or of a generator's own folder, hub id or file.

    Args:
        device, dtype: as for ``load``.
    Raises: as ``load``.
    """
    places = Places.of(device, number_format=dtype)
    if opener(source, MODELS) is None:
        place = model_place(source)
        is_model = (Path(place) / FILE_NAME).is_file() or _model_type(Path(place)) == "rag"
        if opener(source, GENERATORS) is not None or not is_model:
            return _generator_at(source, places.generator, {})()
    return open_parts(source, places).generator()


def load_passage_encoder(
    source: Source | ModelSpec, *, device: str = "auto", encoding: EncoderOptions | None = None
) -> PassageEncoder:
    """d(z) of a model (as for ``load``), or from an encoder's own folder or hub id.

    Args:
        device: where it computes, as for ``load``.
        encoding: prompt and dimension in place of the encoder's own.
    Raises: InputError for a device that is not there; ModelError if the model has none, as ``facebook/rag-*``, which
        ship without their passage encoder.
    """
    from latentrag import encoder

    place = Places.of(device).encoder
    if isinstance(source, ModelSpec):
        encoding = source.encoding
        source = source.passage_encoder or source.encoder
    folder = model_place(source)
    if (Path(folder) / FILE_NAME).is_file():
        own = [Path(folder) / name for name in ("passage_encoder", "query_encoder")]
        folder = next((path for path in own if path.is_dir()), folder)
        if folder not in own:
            raise ModelError(f"{source} holds no encoder; name the one whose vectors the memory has or is to have")
    elif _model_type(Path(folder)) == "rag":
        raise ModelError(
            f"{source} holds no passage encoder; name the one it was trained with, "
            "for instance facebook/dpr-ctx_encoder-multiset-base"
        )
    return encoder.load_passage_encoder(folder, place=place, options=encoding or EncoderOptions())


def _refuse(settings: Mapping[str, object], source: Source) -> None:
    if settings:
        raise InputError(f"{source} has a prompt and settings of its own; leave {', '.join(settings)} out")


def _open_own(folder: Path, places: Places, settings: Mapping[str, object]) -> Parts:
    from latentrag.encoder import load_query_encoder

    file = ModelFile.read(folder / FILE_NAME)

    def query_encoder() -> QueryEncoder:
        return load_query_encoder(parts.folder("query_encoder"), place=places.encoder)

    def generator() -> SavableGenerator:
        return _generator(parts.folder("generator"), places.generator, {**file.generator, **settings})

    parts = Parts(str(folder), query_encoder, generator, file, folder)
    return parts


def _query_encoder_of(spec: ModelSpec, place: Place) -> QueryEncoder:
    from latentrag import encoder

    fingerprint = None
    if spec.passage_encoder is not None:
        fingerprint = load_passage_encoder(spec, device="cpu").fingerprint
    return encoder.load_query_encoder(
        model_place(spec.encoder), passage_fingerprint=fingerprint, place=place, options=spec.encoding
    )


def _open_rag_layout(folder: Path, name: str, places: Places) -> Parts:
    from latentrag.assemble.rag_layout import RagCheckpoint

    checkpoint = RagCheckpoint(folder, name=name)
    file = ModelFile(
        variant="token" if "RagToken" in str(checkpoint.config.get("architectures")) else "sequence",
        k=int(checkpoint.config.get("n_docs", 5)),
    )
    # Both halves lie in one file and in one number format.
    of_encoder = Place(places.encoder.device, places.generator.number_format)
    return Parts(
        name, partial(checkpoint.query_encoder, of_encoder), partial(checkpoint.generator, places.generator), file
    )


def _generator_at(source: Source, place: Place, settings: Mapping[str, object]) -> Callable[[], SavableGenerator]:
    """What opens a generator, which is looked up now."""
    opens = opener(source, GENERATORS)
    if opens is None:
        return partial(_generator, model_place(source), place, settings)
    opening = partial(opens, source, place, **settings)
    try:
        signature(opening).bind()
    except TypeError:
        _refuse(settings, source)
    return opening


def _generator(source: Source, place: Place, settings: Mapping[str, object] | None = None) -> SavableGenerator:
    from latentrag.generator import load_generator

    return load_generator(source, settings=settings, place=place)


def _model_type(folder: Path) -> str | None:
    if not (folder / "config.json").is_file():
        return None
    model_type = read_object(folder / "config.json").get("model_type")
    return None if model_type is None else str(model_type)
