"""What is read from files: documents for a memory, and rows of questions to train on and to measure with."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from latentrag.errors import InputError
from latentrag.options.declaring import Option, check_options

TIME_LIMIT_S = 300.0
"""For reading one document; thousands of pages take seconds."""

MEMORY_LIMIT = "2GB"
"""For a process that reads files."""
MIN_MEMORY_LIMIT_BYTES = 100_000_000
"""Such a process has some 25 MB of its own before it reads anything."""


@dataclass(frozen=True, slots=True)
class FileOptions:
    """How files are read.

    Attributes:
        workers: Processes that read the files; 0: read in this process, without limits of time and memory.
        time_limit_s: Longest time for reading one document; a file with a longer one is skipped.
        memory_limit: Most memory that a process which reads files may take; a file that needs more is skipped.
        encoding: Encoding of text files that do not state theirs, such as cp1252.
        exclude: Files and folders to leave out, by a pattern as in .gitignore; may be repeated.
        no_gitignore: Read files of a folder that its .gitignore files exclude.
        follow_links: Read what links in a folder lead to outside of it.
    """

    workers: Annotated[int, Option(ge=0)] = 1
    time_limit_s: Annotated[float, Option(name="time_limit", metavar="SECONDS", gt=0)] = TIME_LIMIT_S
    memory_limit: Annotated[str, Option(metavar="SIZE")] = MEMORY_LIMIT
    encoding: Annotated[str | None, Option(default="UTF-8, else a guess, which is reported")] = None
    exclude: Annotated[tuple[str, ...], Option(metavar="PATTERN")] = ()
    no_gitignore: Annotated[bool, Option()] = False
    follow_links: Annotated[bool, Option()] = False

    def __post_init__(self) -> None:
        check_options(self)
        if self.memory_limit_bytes < MIN_MEMORY_LIMIT_BYTES:
            raise InputError(f"memory_limit={self.memory_limit!r} is too little to read anything; give at least 100MB")
        if self.encoding is not None and not _is_text_encoding(self.encoding):
            raise InputError(f"encoding={self.encoding!r} is unknown; needed the name of one, as utf-16 or cp1252")
        if not self.workers and self.time_limit_s != TIME_LIMIT_S:
            raise InputError("time_limit has no effect, since workers=0 reads in this process; leave one of them out")
        if not self.workers and self.memory_limit != MEMORY_LIMIT:
            raise InputError("memory_limit has no effect, since workers=0 reads in this process; leave one of them out")

    @property
    def memory_limit_bytes(self) -> int:
        """Raises: InputError if it is no size."""
        return size_in_bytes(self.memory_limit, "memory_limit")

    def of_files(self) -> dict[str, Any]:
        """What ``corpus.read`` takes of them, by name."""
        return {each.name: getattr(self, each.name) for each in fields(FileOptions)}


@dataclass(frozen=True, slots=True)
class PreviewOptions(FileOptions):
    """How files are read, and cut as `index add` does.

    Attributes:
        encoder: Cut passages that are longer than this encoder reads: a model, a folder, a hub id, or demo. It is
            loaded.
    """

    encoder: Annotated[str | None, Option(default="none; passages are as long as --words says")] = None


def size_in_bytes(text: str, what: str) -> int:
    """A size as people write it: 4GB, 1.5 GiB, 800M. Raises: InputError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text, re.ASCII | re.IGNORECASE)
    if match is None:
        raise InputError(f"{what} {text!r} is not a size; give a number with MB or GB, as 4GB")
    number, prefix, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** (" kmgt".index(prefix.lower() or " ")))


def _is_text_encoding(name: str) -> bool:
    try:
        return bool(" ".encode(name))
    except (LookupError, ValueError):
        return False


@dataclass(frozen=True, slots=True)
class ReadingOptions(FileOptions):
    """How files are read into a memory.

    Attributes:
        passages_per_commit: Passages per commit; each commit is a version, and an interrupted run loses at most
            this many.
    """

    passages_per_commit: Annotated[int, Option(name="commit_every", metavar="PASSAGES", ge=1)] = 8_192


@dataclass(frozen=True, slots=True)
class SyncOptions(ReadingOptions):
    """How a folder is synced with a memory.

    Attributes:
        name: Name of the folder, with which ids and sources begin.
        words: Length of a passage, in words.
        delete_missing: Remove the passages of files that are gone.
        dry_run: Show what would be done, and change nothing.
        checksum: Hash all files, also those whose size and time are unchanged.
        keep: Afterwards keep so many of the newest versions, as `index prune --keep`.
    """

    name: Annotated[str | None, Option(default="the folder's own name")] = None
    words: Annotated[int | None, Option(default="as in the last sync, else 100", ge=1)] = None
    delete_missing: Annotated[bool, Option()] = False
    dry_run: Annotated[bool, Option()] = False
    checksum: Annotated[bool, Option()] = False
    keep: Annotated[int | None, Option(default="all", ge=1)] = None


@dataclass(frozen=True, slots=True)
class RowOptions:
    """How a file of questions with answers is read.

    Attributes:
        task: What the rows are for: open-qa, abstractive-qa, question-generation, fact-verification-2way or -3way,
            yes-no, classification, choice, or a package's own; docs/evaluation.md.
        labels: Words that the model says for a label of the task, as SUPPORTS=true; may be repeated.
        prefix_field: Field of a row whose text is put before its question: "category" makes "CATEGORY: clue" of
            Jeopardy's rows.
        answers_from: Field of a row with its answers; "answer.2020" is the field 2020 of the object in answer.
        skip_bad: Leave out rows without question or answer; in training also those too long for the model.
    """

    task: Annotated[str, Option(metavar="NAME")] = "open-qa"
    labels: Annotated[
        tuple[str, ...], Option(flags=("--label",), metavar="NAME=WORDS", default="the task's own words")
    ] = ()
    prefix_field: Annotated[str | None, Option(metavar="NAME", default="none")] = None
    answers_from: Annotated[str | None, Option(metavar="FIELD", default="where the rows' format has them")] = None
    skip_bad: Annotated[bool, Option()] = False


@dataclass(frozen=True)  # without slots: those of a run have a second base
class GivenOptions:
    """Passages that come with a question.

    Attributes:
        passages_from: Field of a row with the passages that come with its question: each question then has a memory
            of its own. "id:FIELD": the field has ids of passages or documents, whose texts the memory (-i) has.
    """

    passages_from: Annotated[str | None, Option(metavar="FIELD", default="none: the memory is searched")] = None


@dataclass(frozen=True, slots=True)
class RankingOptions:
    """How retrieval is measured by itself.

    Attributes:
        retrieval_only: Measure what is retrieved, without a generator: recall of answers, titles and passages,
            R-precision, nDCG@10 and reciprocal rank. DATA may be a BEIR folder.
        by: With --retrieval-only: what is ranked and relevant: passages by their ids, the documents that they are
            parts of, or articles by title.
        qrels: With --retrieval-only: judgements in TREC's or BEIR's columns, in place of what the rows name.
        run_in: With --retrieval-only: measure this TREC run; no model is opened.
        run_out: With --retrieval-only: write what was retrieved as a TREC run.
        qrels_out: With --retrieval-only: write what is relevant as TREC judgements.
    """

    retrieval_only: Annotated[bool, Option()] = False
    by: Annotated[
        Literal["passage", "document", "title"] | None,
        Option(default="passage where the rows have their ids, else title"),
    ] = None
    qrels: Annotated[Path | None, Option(metavar="FILE")] = None
    run_in: Annotated[Path | None, Option(metavar="FILE")] = None
    run_out: Annotated[Path | None, Option(metavar="FILE")] = None
    qrels_out: Annotated[Path | None, Option(metavar="FILE")] = None

    def __post_init__(self) -> None:
        given = next((name for name in ("by", "qrels", "run_in", "run_out", "qrels_out") if getattr(self, name)), None)
        if given is not None and not self.retrieval_only:
            raise InputError(f"--{given.replace('_', '-')} has no effect without --retrieval-only; leave it out")


@dataclass(frozen=True, slots=True)
class MakingOptions:
    """How questions are made of a memory's passages.

    Attributes:
        number: Pairs of a question and an answer to make, each from another passage.
        seed: Random seed for the order of the passages.
        near: Share of the character trigrams of two questions, of those in either, that both have, from which on they
            count as near-duplicates.
        batch_size: Passages written to together. Except in float32 a pair depends a little on those beside it.
    """

    number: Annotated[int, Option(flags=("-n", "--number"), ge=1)] = 500
    seed: Annotated[int, Option(ge=0)] = 0
    near: Annotated[float, Option(gt=0, le=1)] = 0.75
    batch_size: Annotated[int, Option(ge=1)] = 8
