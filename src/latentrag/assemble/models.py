"""A model with its memory, and a model as a folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from latentrag import io
from latentrag.addresses import memory_for
from latentrag.assemble.card import card
from latentrag.assemble.memories import memory_at, some_of
from latentrag.assemble.model_file import FILE_NAME, ModelFile
from latentrag.assemble.parts import ModelSpec, Parts, Source, load_passage_encoder, open_parts
from latentrag.errors import InputError, ModelError
from latentrag.options import PASSAGE_FOLDER_BYTES, CacheMemory, chosen_options
from latentrag.place import Places
from latentrag.pretrained import read_object
from latentrag.protocols import ChecksSaving, KeepsPassages, SavableRetriever, WeighsExperts

if TYPE_CHECKING:
    import torch

    from latentrag.conditions import Where
    from latentrag.protocols import Memory, Retriever, SavablePart, Scores
    from latentrag.rag import Rag
    from latentrag.readings import ReadingWeights
    from latentrag.types import Variant


def load(
    source: Source | ModelSpec | tuple[Source, Source],
    *,
    memory: Source | Memory,
    version: int | str | None = None,
    num_given: int | None = None,
    where: Where | None = None,
    passage_encoder: Source | None = None,
    variant: Variant | None = None,
    k: int | None = None,
    retriever: str | None = None,
    reranker: Source | None = None,
    candidates: int | None = None,
    instruction: str | None = None,
    template: Source | None = None,
    null_passage: float | None = None,
    set_size: int | None = None,
    set_bonus: float | None = None,
    rewrites: int | None = None,
    neighbours: int | None = None,
    device: str = "auto",
    encoder_device: str | None = None,
    dtype: torch.dtype | str = "auto",
    passage_cache_bytes: int | None = None,
    passage_cache_in: CacheMemory = "ram",
    passage_cache_folder: Source | None = None,
    passage_cache_folder_bytes: int = PASSAGE_FOLDER_BYTES,
) -> Rag:
    """A model with its memory, ready to answer.

    Args:
        source: a folder that ``save`` wrote, a folder or hub id in the layout of ``facebook/rag-*``, the name
            "demo", or a pair (encoder, generator) of folders or hub ids.
        memory: a path, "demo", an address with a scheme, or an open memory; a ``LiveMemory`` to exchange it while the
            model answers.
        version: of the memory, as for ``Memory.open``; None: the one that `latentrag index use` has chosen, else the
            newest.
        num_given: every question comes with passages of its own (``Question.passages``), as many as this at most; they
            are scored by the model's encoders, or by words, and no memory is opened. None: the memory is searched.
        where: a condition that all passages retrieved satisfy, as for ``Rag.answer``, which may name another beside it.
        passage_encoder: what encodes these passages; None: the model's own. A model that was trained over a memory has
            none: its query encoder goes with the encoder that made the memory.
        variant: "sequence" or "token"; None: as the model says, else "sequence".
        k: passages retrieved for a question; None: as the model says, else 5.
        retriever: "dense"; "bm25", which needs no query encoder and fits any memory; "hybrid", the sum of both and of
            a reranker if there is one; or one that another package adds. None: as the model says, else "dense".
        reranker: for "hybrid", a folder or hub id of a cross-encoder, whose logit is one more part of the prior. None:
            as the model says, else none.
        candidates: for "hybrid", how many passages vectors propose, and how many words do. None: as the model says,
            else 20.
        instruction: what an instruct model is told before the passage and the question; None: as the model says, else
            to answer in as few words as the passage allows, in the question's language.
        template: in place of an instruction: a JSON file with the generator's prompt, as latentrag.json has it under
            "template". ``save`` keeps either.
        null_passage: the logit of "no passage", as for ``Rag``; None: as the model says, else it is no value of z.
        set_size: 1: passages are read one by one; 2: sets of two are values of z, too. None: as the model says, else 1.
        set_bonus: γ of the sets, as for ``Rag``; None: as the model says, else 0.
        rewrites: how many rewrites of a conversation's last question the generator proposes, each one more way to read
            it; None: none. Costs decoding them before the search.
        neighbours: how many passages on each side of a passage in its document are read with it, as for ``Rag``; None:
            as the model says, else 0.
        device: where the model computes: "cpu", "cuda", "cuda:1", "mps", "xpu"; "auto": the best device of this
            machine. The memory is searched on the CPU.
        encoder_device: where the query encoder computes; None: on ``device``.
        dtype: of the generator: "auto" (as its files have it, float32 where its device does not compute in
            that), "float32", "bfloat16", "float16" or a torch dtype; or "int8", for answering on a CPU only:
            linear layers in eight bits, the rest in float32.
        passage_cache_bytes: memory in which a causal generator keeps what it has read of passages for the next
            question; it changes no result. None: 1 GiB.
        passage_cache_in: which memory that is: "ram", or "device", that of ``device``.
        passage_cache_folder: keeps that on disk too, for later runs of the same weights. Several processes may share
            the folder.
        passage_cache_folder_bytes: how large the folder may become; what was used longest ago is deleted.
    Raises: ModelError or MemoryStoreError for what cannot be opened; EncoderMismatchError if they do not fit;
        InputError for options that cannot be, or a condition that no passage satisfies.
    """
    from latentrag.rag import Rag

    places = Places.of(device, encoder_device=encoder_device, number_format=dtype)
    made, parts = _retrieving(
        source,
        memory_for(memory, source),
        version=version,
        num_given=num_given,
        where=where,
        passage_encoder=passage_encoder,
        retriever=retriever,
        reranker=reranker,
        candidates=candidates,
        places=places,
        has_place=encoder_device is not None,
        settings=prompt_settings(instruction, template),
    )
    generator = parts.generator()
    if not isinstance(generator, KeepsPassages):
        if passage_cache_bytes is not None or passage_cache_folder is not None or passage_cache_in != "ram":
            raise InputError("a passage cache has no effect, since this generator reads passages with the question")
    else:
        generator.keep_passages(
            1 << 30 if passage_cache_bytes is None else passage_cache_bytes,
            on_device=passage_cache_in == "device",
            folder=passage_cache_folder,
            max_folder_bytes=passage_cache_folder_bytes,
        )
    return Rag(
        made,
        generator,
        variant=variant or parts.file.variant,
        k=parts.file.k if k is None else k,
        defaults=chosen_options(parts.file.decoding),
        null_passage=parts.file.null_passage if null_passage is None else null_passage,
        set_bonus=_set_bonus(set_size, set_bonus, parts.file.set_bonus),
        calibration=parts.file.calibration,
        readings=parts.file.readings,
        rewrites=rewrites or 0,
        neighbours=_neighbours(neighbours, parts.file.neighbours, num_given=num_given),
    )


def load_retriever(
    source: Source | ModelSpec | tuple[Source, Source],
    *,
    memory: Source | Memory,
    version: int | str | None = None,
    num_given: int | None = None,
    where: Where | None = None,
    passage_encoder: Source | None = None,
    retriever: str | None = None,
    reranker: Source | None = None,
    candidates: int | None = None,
    device: str = "auto",
    encoder_device: str | None = None,
) -> Retriever:
    """The retriever of a model over its memory; the generator is not opened.

    Args:
        source, memory, version, num_given, where, passage_encoder, retriever, reranker, candidates, device,
            encoder_device: as for ``load``.
    Raises: as ``load``.
    """
    return _retrieving(
        source,
        memory_for(memory, source),
        version=version,
        num_given=num_given,
        where=where,
        passage_encoder=passage_encoder,
        retriever=retriever,
        reranker=reranker,
        candidates=candidates,
        places=Places.of(device, encoder_device=encoder_device),
        has_place=encoder_device is not None,
    )[0]


def load_readings(source: Source | ModelSpec | tuple[Source, Source]) -> ReadingWeights:
    """The weights of the readings of conversations that a model was trained with, else the default ones; no part of it
    is opened. Raises: as ``load``."""
    from latentrag.readings import ReadingWeights

    return ReadingWeights.of(open_parts(source, Places.of("cpu")).file.readings)


def _retrieving(
    source: Source | ModelSpec | tuple[Source, Source],
    memory: Source | Memory,
    *,
    version: int | str | None,
    num_given: int | None,
    where: Where | None,
    passage_encoder: Source | None,
    retriever: str | None,
    reranker: Source | None,
    candidates: int | None,
    places: Places,
    has_place: bool,
    settings: Mapping[str, object] | None = None,
) -> tuple[Retriever, Parts]:
    """
    Args:
        has_place: whether a device was named for the encoders.
        settings: of the generator.
    """
    from latentrag.retriever import RETRIEVERS

    if retriever is not None:
        RETRIEVERS[retriever]  # refused before anything is opened
    if num_given is not None and where is not None:
        raise InputError("where has no effect, since the passages come with the questions; leave it out")
    opened = memory_at(memory, version=version) if num_given is None else None
    if opened is not None and where is not None:
        opened = some_of(opened, where)
    parts = open_parts(source, places, settings)
    name = retriever or parts.file.retriever
    of_hybrid = {"reranker": reranker, "num_candidates": candidates}
    given = {each: value for each, value in of_hybrid.items() if value is not None}
    if given and (name in {"dense", "bm25"} or num_given is not None):
        what = "--candidates" if reranker is None else "--reranker"
        raise InputError(f"{what} has no effect on {name} retrieval; retrieve with hybrid, or leave it out")
    if opened is None:
        made: Retriever = _given(passage_encoder or source, parts, places, name=name, num_given=num_given or 0)
    else:
        made = _retriever(parts, opened, places, name=name, given=given)
    if has_place and isinstance(made, SavableRetriever) and not made.parts():
        raise InputError(f"encoder_device has no effect, since {made.kind} retrieval has no encoder; leave it out")
    return made, parts


def prompt_settings(instruction: str | None, template: Source | None) -> dict[str, object]:
    """Settings of a generator that give it another prompt. Raises: InputError if both are given; ModelError for a file
    that cannot be read."""
    if instruction is None:
        if template is None:
            return {}
        if not Path(template).is_file():
            raise InputError(f"{template} is no file; needed a JSON file with the generator's prompt")
        return {"template": read_object(Path(template))}
    if template is not None:
        raise InputError("got both instruction and template; give one of them")
    return {"template": {"kind": "chat", "instruction": instruction}}


def save(
    rag: Rag,
    folder: Source,
    *,
    passage_encoder: SavablePart | None = None,
    training: Mapping[str, object] | None = None,
) -> None:
    """Write a model as a folder that ``load`` opens: safetensors, JSON and a model card, whole or not at all.

    Args:
        passage_encoder: saved too, where passages have an encoder of their own, so that the folder can also
            fill memories.
        training: how it was trained, name → value, for the model card.
    Raises: InputError if the folder exists and is not a model that latentrag saved, or for a retriever that cannot be
        saved.
    """
    retriever = check_save(rag, folder)
    generator: Any = rag.generator
    parts = dict(retriever.parts())
    if passage_encoder is not None:
        parts["passage_encoder"] = passage_encoder
    file = _described(rag, retriever, {name: name for name in (*parts, "generator")})
    with _published(Path(folder)) as scratch:
        for name, part in parts.items():
            part.save(scratch / name)
        generator.save(scratch / "generator")
        file.write(scratch / FILE_NAME)
        about = {
            "variant": f"RAG-{rag.variant.capitalize()}",
            "passages retrieved for a question": rag.k,
            "retriever": retriever.kind,
            "generator": generator.kind,
        }
        (scratch / "README.md").write_text(card(about, training), "utf-8")


def check_save(rag: Rag, folder: Source) -> SavableRetriever:
    """The retriever of a model that ``save`` can write to this folder: for commands that compute for long before.

    Raises: InputError as ``save``, as far as can be known before anything is written.
    """
    retriever = _savable(rag.retriever)
    if isinstance(rag.generator, ChecksSaving):
        rag.generator.check_save()
    _check_replaced(Path(folder))
    return retriever


def check_save_settings(rag: Rag, folder: Source) -> ModelFile:
    """The same for ``save_settings``. Returns: the folder's file. Raises: as ``save_settings``."""
    file, retriever = ModelFile.read(Path(folder) / FILE_NAME), _savable(rag.retriever)
    missing = [name for name in retriever.parts() if name not in file.parts]
    if missing:
        raise InputError(f"{folder} has no {missing[0]}, with which this model retrieves; save it in another folder")
    return file


def _savable(retriever: Retriever) -> SavableRetriever:
    if not isinstance(retriever, SavableRetriever):
        raise InputError(f"a {type(retriever).__name__} cannot be saved; it has no kind, settings() and parts()")
    return retriever


def _check_replaced(folder: Path) -> None:
    """Raises: InputError if a model cannot take the place of what is there."""
    if folder.exists() and not (folder / FILE_NAME).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is no model that latentrag saved; name a new folder")


def _described(rag: Rag, retriever: SavableRetriever, parts: Mapping[str, str]) -> ModelFile:
    """What the file of a model says. parts: name → folder."""
    generator: Any = rag.generator
    settings = generator.settings()
    return ModelFile(
        parts,
        variant=rag.variant,
        k=rag.k,
        retriever=retriever.kind,
        settings=retriever.settings(),
        null_passage=rag.null_passage,
        set_bonus=rag.set_bonus,
        decoding=chosen_options(rag.defaults),
        generator={name: settings[name] for name in ("template", "lora") if name in settings},
        calibration=rag.calibration,
        readings=rag.readings,
        neighbours=rag.neighbours or None,
    )


def save_settings(rag: Rag, folder: Source) -> None:
    """Make a model's settings, its calibration among them, those of the folder that it was loaded from; its parts stay.

    Raises: ModelError for a folder that is no such model; InputError if it cannot be written, or for a retriever with
        a part that the folder lacks.
    """
    path, file = Path(folder) / FILE_NAME, check_save_settings(rag, folder)
    try:
        _described(rag, _savable(rag.retriever), file.parts).write(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error}); choose another place or make room") from error


def export(source: Source, folder: Source) -> bool:
    """Write a saved model with its adapter merged, so that each part is a plain folder of its library.

    Returns: whether an adapter was merged that had worked on questions and answers alone; the merged one reads
        passages too.
    Raises: as ``load`` and ``save`` do; InputError for a model whose generator is no model of transformers.
    """
    parts = open_parts(source, Places.of("cpu"))
    if parts.root is None:
        raise InputError(f"{source} is no folder that latentrag saved; its parts are plain folders already")
    generator: Any = parts.generator()
    if not generator.capabilities.differentiable:
        raise InputError(f"{source}: a generator of the kind {generator.kind} is a file already; copy it")
    lora, merged = generator.lora, generator.merged()
    settings = merged.settings()
    file = replace(parts.file, generator={name: settings[name] for name in ("template",) if name in settings})
    with _published(Path(folder)) as scratch:
        for name, place in file.parts.items():
            if name != "generator":
                shutil.copytree(parts.folder(name), scratch / place)
        merged.save(scratch / file.parts["generator"])
        file.write(scratch / FILE_NAME)
        if (parts.root / "README.md").is_file():
            shutil.copyfile(parts.root / "README.md", scratch / "README.md")
    return lora is not None and lora.scope == "question"


def with_parts(rag: Rag, retriever: Retriever, generator: Scores) -> Rag:
    """The same settings around other parts. How sure answers of the former ones were says nothing of these.

    With the same generator nothing is computed: another thread may be using it.
    """
    from latentrag.rag import Rag

    rewrites = rag.rewriter if generator is rag.generator and rag.rewriter is not None else rag.rewrites
    return Rag(
        retriever,
        generator,
        variant=rag.variant,
        k=rag.k,
        defaults=rag.defaults,
        null_passage=rag.null_passage,
        set_bonus=rag.set_bonus,
        readings=rag.readings,
        rewrites=rewrites,
        neighbours=rag.neighbours,
    )


def _neighbours(given: int | None, saved: int | None, *, num_given: int | None) -> int:
    """Passages read on each side. Raises: InputError for some where passages come with the questions."""
    if num_given is None:
        return (saved or 0) if given is None else given
    if given:
        raise InputError("neighbours has no effect, since the passages come with the questions; leave it out")
    return 0


def _set_bonus(size: int | None, given: float | None, saved: float | None) -> float | None:
    """γ; None: passages are read one by one. Raises: InputError for a size that cannot be, or a γ without sets."""
    if size not in (None, 1, 2):
        raise InputError(f"set_size={size}; needed 1 or 2")
    if size == 1 or (size is None and saved is None):
        if given is not None:
            raise InputError(
                "set_bonus has no effect, since passages are read one by one; add set_size=2 (--set-size 2)"
            )
        return None
    return given if given is not None else saved or 0.0


def experts_of(rag: Rag, biases: Sequence[str] = ()) -> WeighsExperts:
    """The model's retriever, which is a sum of experts, with biases of the weight 0 where it has none of them.

    Raises: InputError for another retriever, or an unknown bias.
    """
    retriever = rag.retriever
    if not isinstance(retriever, WeighsExperts):
        raise InputError(f"a {type(retriever).__name__} has no experts to weigh; retrieve with hybrid")
    return retriever.weighing({**dict.fromkeys(biases, 0.0), **retriever.settings()["weights"]})


def with_weights(rag: Rag, weights: Mapping[str, float]) -> Rag:
    """The same model with these weights of its prior's experts. Raises: as ``experts_of``."""
    return with_parts(rag, experts_of(rag).weighing(weights), rag.generator)


def with_memory(rag: Rag, memory: Memory) -> Rag:
    """The same model over another memory. Raises: EncoderMismatchError if it does not fit."""
    made = with_parts(rag, rag.retriever.over(memory), rag.generator)
    made.calibration = rag.calibration  # which knows its memory
    return made


def _given(
    source: Source | ModelSpec | tuple[Source, Source], parts: Parts, places: Places, *, name: str, num_given: int
) -> Retriever:
    """Scores the passages that come with each question, as the retriever of this name would."""
    from latentrag.retriever.given import DenseScores, GivenRetriever, ScoresPassages, WordScores

    scores: ScoresPassages
    if name == "bm25":
        settings: Mapping[str, Any] = parts.file.settings if name == parts.file.retriever else {}
        scores = WordScores(**settings, device=places.memory.device)
    elif name == "dense":
        spec = ModelSpec(*source) if isinstance(source, tuple) else source
        scores = DenseScores(parts.query_encoder(), load_passage_encoder(spec, device=places.encoder.device))
    else:
        raise InputError(f"the retriever {name} cannot score passages that come with a question; use dense or bm25")
    return GivenRetriever(scores, num_passages=num_given)


def _retriever(parts: Parts, memory: Memory, places: Places, *, name: str, given: Mapping[str, object]) -> Retriever:
    """Raises: ModelError for a name or settings that were saved and cannot be used here."""
    from latentrag.retriever import RETRIEVERS

    settings: Mapping[str, Any] = parts.file.settings if name == parts.file.retriever else {}
    settings = {**settings, **given}
    try:
        return RETRIEVERS[name](parts, memory, places, **settings)
    except (InputError, TypeError) as error:
        if name != parts.file.retriever:
            raise
        raise ModelError(f"{parts.name}: its section 'prior' has no usable retriever ({error})") from error


@contextmanager
def _published(folder: Path) -> Iterator[Path]:
    """A scratch folder that takes the place of a model, which it must be if there is anything."""
    _check_replaced(folder)
    try:
        with io.replacing_folder(folder) as scratch:
            yield scratch
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder} cannot be written ({error}); choose another place or make room") from error
