"""`latentrag doctor`: what is installed and set up, and whether model and memory fit each other."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from latentrag import addresses, assemble
from latentrag.cli import arguments as arg
from latentrag.cli.output import EXIT_PROBLEMS, print_json
from latentrag.errors import EncoderMismatchError, LatentRagError, ModelError
from latentrag.home import home
from latentrag.options import MemoryOptions, ModelOptions, PlaceOptions
from latentrag.place import computes_bfloat16, devices

if TYPE_CHECKING:
    from latentrag.memory import Memory
    from latentrag.rag import Rag

Facts = dict[str, Any]

_LIBRARIES = ("torch", "transformers", "faiss-cpu", "pylance", "pyarrow")


def doctor(
    memory: MemoryOptions,
    model: ModelOptions,
    place: PlaceOptions,
    as_json: arg.AsJson = False,
) -> None:
    """Check the installation, the devices, a model and a memory.

    Exits with 1 if something is wrong, for instance if they do not belong together.
    """
    source = arg.model_source(model)
    problems: list[str] = []
    facts: Facts = {"versions": _versions(), "machine": _machine(), "home": _home()}
    facts["devices"] = [asdict(device) for device in devices()]
    opened = _open_memory(addresses.memory_for(memory.memory, model.model), problems)
    facts["model"] = _model(source, opened, problems, {**arg.loading(model), **asdict(place)})
    facts["memory"] = None if opened is None else _memory(opened)
    facts["problems"] = problems
    if as_json:
        print_json(facts)
    else:
        from latentrag.cli.render import show_facts, terminal

        show_facts(_lines(facts), terminal())
    if problems:
        raise typer.Exit(EXIT_PROBLEMS)


def _versions() -> Facts:
    from importlib.metadata import version

    return {"latentrag": version("latentrag"), "python": platform.python_version()} | {
        name: version(name) for name in _LIBRARIES
    }


def _machine() -> Facts:
    return {
        "system": platform.platform(),
        "cores": _cores(),
        "memory_bytes": devices()[0].memory_bytes,
        "bfloat16": computes_bfloat16(),
    }


def _cores() -> int | None:
    """Those that this process may use, where the system says."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _home() -> Facts:
    place = home()
    folders = {"models_bytes": place.models, "memories_bytes": place.memories, "wheels_bytes": place.wheels}
    return {"path": str(place.path)} | {name: _size_bytes(folder) for name, folder in folders.items()}


def _size_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _open_memory(name: str, problems: list[str]) -> Memory | None:
    try:
        opened = assemble.open_memory(name)
    except LatentRagError as error:
        problems.append(str(error))
        return None
    if not len(opened):
        problems.append(f"{opened.name} has no passages; add some with `latentrag index add {opened.name} FILES…`")
    return opened


def _memory(opened: Memory) -> Facts:
    from latentrag.memory.upkeep import advice

    card = opened.card
    return {
        "path": opened.name,
        "version": opened.version,
        "passages": len(opened),
        "encoder": card.encoder,
        "dimension": card.dimension,
        "scale": card.scale,
        "max_tokens": card.max_tokens,
        "fingerprint": card.fingerprint,
        "advice": advice(opened.table),
    }


def _model(
    source: str | assemble.ModelSpec, memory: Memory | None, problems: list[str], options: Mapping[str, Any]
) -> Facts | None:
    try:
        with _loaded(source, memory, options) as rag:
            facts = _parts(rag, source)
            query_encoder = getattr(rag.retriever, "query_encoder", None)
    except LatentRagError as error:
        problems.append(str(error))
        return None
    if memory is not None and query_encoder is not None:
        try:
            memory.check(query_encoder)
        except EncoderMismatchError as error:
            problems.append(str(error))
    return facts


@contextmanager
def _loaded(source: str | assemble.ModelSpec, memory: Memory | None, options: Mapping[str, Any]) -> Iterator[Rag]:
    """The model over an empty memory of its own, so that it opens whatever the state of the real one.

    A model without a passage encoder can make none, and gets the real one.
    """
    from latentrag.memory import Memory

    with tempfile.TemporaryDirectory(prefix="latentrag-") as scratch:
        try:
            own = Memory.create(Path(scratch) / "empty.lance", assemble.load_passage_encoder(source, device="cpu"))
        except ModelError:
            if memory is None:
                raise
            own = memory
        yield assemble.load(source, memory=own, **options)


def _parts(rag: Rag, source: str | assemble.ModelSpec) -> Facts:
    model: Any = rag.generator
    return {
        "source": source if isinstance(source, str) else f"{source.encoder} + {source.generator}",
        "variant": rag.variant,
        "k": rag.k,
        **_retriever(rag),
        "generator": {
            **model.facts(),
            "kind": model.kind,
            "template": None if model.template is None else type(model.template).__name__,
            "instruction": getattr(model.template, "instruction", None),
            "device": str(model.device),
            "max_input_tokens": model.max_input_tokens,
        },
        "passage_cache": _passage_cache(model),
    }


def _passage_cache(generator: Any) -> Facts | None:
    """Which memory passages that were read are kept in, and how much of it; None: the generator keeps none."""
    cache = getattr(generator, "passage_cache", None)
    return None if cache is None else {"device": str(cache.device), "max_bytes": cache.max_bytes}


def _retriever(rag: Rag) -> Facts:
    """p_η(z|x): which kind, and of a dense one the query encoder."""
    retriever: Any = rag.retriever
    query_encoder = getattr(retriever, "query_encoder", None)
    if query_encoder is None:
        return {"retriever": {"kind": "bm25", "scale": retriever.scale}, "encoder": None}
    encoder = {name: getattr(query_encoder, name) for name in ("name", "dimension", "scale", "passage_fingerprint")}
    encoder["device"] = str(next(query_encoder.module.parameters()).device)
    if retriever.kind == "hybrid":
        reranker = None if retriever.reranker is None else retriever.reranker.name
        return {"retriever": {"kind": "hybrid", **retriever.settings(), "reranker": reranker}, "encoder": encoder}
    return {"retriever": {"kind": "dense", "scale": query_encoder.scale}, "encoder": encoder}


def _lines(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The report for people."""
    yield "versions", ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    machine, home, model, memory = facts["machine"], facts["home"], facts["model"], facts["memory"]
    yield "machine", f"{machine['system']}, {machine['cores']} cores, {_gigabytes(machine['memory_bytes'])} of RAM"
    yield "bfloat16", "computed by this CPU" if machine["bfloat16"] else "not computed by this CPU; float32 is used"
    yield from _device_lines(facts["devices"])
    sizes = ", ".join(f"{name} {_gigabytes(home[f'{name}_bytes'])}" for name in ("models", "memories", "wheels"))
    yield "home", f"{home['path']} ({sizes})"
    if model is None:
        yield "model", "cannot be used"
    else:
        retriever, encoder, generator = model["retriever"], model["encoder"], model["generator"]
        yield "model", f"{model['source']}, RAG-{model['variant'].capitalize()} with {model['k']} passages"
        if encoder is None:
            yield "retriever", f"BM25, scale {retriever['scale']:g}; needs no encoder"
        else:
            size = f"{encoder['dimension']} dimensions, scale {encoder['scale']:g}"
            yield "encoder", f"{encoder['name']}, {size}, on {encoder['device']}"
            if retriever["kind"] == "hybrid":
                weights = " + ".join(f"{weight:.3g} · {name}" for name, weight in retriever["weights"].items())
                yield "prior", f"{weights}, of {retriever['num_candidates']} passages by vectors and as many by words"
            yield "", f"for passages of {encoder['passage_fingerprint'] or 'an encoder that its files do not name'}"
        how = ", ".join(each for each in (generator["kind"], generator["template"]) if each)
        kind = f"{generator['class']} ({how})"
        size = f"{generator['parameters']:,} parameters in {generator['dtype']}"
        yield "generator", f"{kind}, {size}, reads {generator['max_input_tokens']:,} tokens, on {generator['device']}"
        if generator["packed_bytes"]:
            yield "", f"its packed weights take {_gigabytes(generator['packed_bytes'])} more RAM"
            yield "", "LATENTRAG_PACKED_WEIGHTS=0 does without, slower"
        cache = model["passage_cache"]
        if cache is not None:
            of = "RAM" if cache["device"] == "cpu" else f"the memory of {cache['device']}"
            yield "", f"keeps passages that it has read in {_gigabytes(cache['max_bytes'])} of {of}"
    if memory is None:
        yield "memory", "cannot be used"
    else:
        yield "memory", f"{memory['path']} version {memory['version']}, {memory['passages']:,} passages"
        yield "", f"encoded by {memory['encoder']} ({memory['fingerprint']})"
        if memory["advice"]:
            yield "", memory["advice"]
    for problem in facts["problems"]:
        yield "problem", problem
    if not facts["problems"]:
        yield "result", "model and memory fit; no problem found"


def _device_lines(found: Sequence[Facts]) -> Iterator[tuple[str, str]]:
    for number, device in enumerate(found):
        called = f" ({device['description']})" if device["description"] else ""
        size = f"{_gigabytes(device['memory_bytes'])} of memory, computes in {', '.join(device['formats'])}"
        yield "" if number else "devices", f"{device['name']}{called}: {size}"


def _gigabytes(size_bytes: int | None) -> str:
    return "an unknown amount" if size_bytes is None else f"{size_bytes / 1e9:.2f} GB"
