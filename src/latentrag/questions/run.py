"""From a memory to a file of questions with answers: passages in a random order, a pair from each, kept or dropped."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from latentrag import io
from latentrag.errors import DataError, InputError
from latentrag.evaluation.report import append, begun, settings_path
from latentrag.protocols import Memory
from latentrag.questions.keeping import NEAR, REASONS, Kept, Pair, Reason, fault_of, is_answered, parsed
from latentrag.questions.writing import MAX_ANSWER_TOKENS, MAX_TOKENS
from latentrag.types import Passage

FORMAT = 1
BATCH_SIZE = 8

Row = dict[str, Any]


class Writes(Protocol):
    """What ``Writer`` does."""

    def written(self, passages: Sequence[Passage]) -> list[str]:
        """A pair to each passage, as text."""
        ...

    def answered(self, questions: Sequence[str], passages: Sequence[Passage]) -> list[str]:
        """The answer to each question from its passage alone."""
        ...


@dataclass(frozen=True, slots=True)
class Made:
    """What was made.

    Attributes:
        num_pairs: pairs in the file.
        dropped: for each reason how many passages' pairs were dropped.
        all_tried: every passage of the memory has been tried.
    """

    num_pairs: int
    dropped: Mapping[Reason, int]
    all_tried: bool
    settings: Mapping[str, object]

    @property
    def num_tried(self) -> int:
        """Passages to which a pair was written."""
        return self.num_pairs + sum(self.dropped.values())

    def as_record(self) -> dict[str, object]:
        """As JSON has it."""
        counts = {"tried": self.num_tried, "dropped": dict(self.dropped), "all_tried": self.all_tried}
        return {"settings": dict(self.settings), "examples": self.num_pairs, "metrics": counts}


def make_questions(
    writer: Writes,
    memory: Memory,
    out: Path,
    *,
    number: int,
    seed: int = 0,
    near: float = NEAR,
    batch_size: int = BATCH_SIZE,
    about: Mapping[str, object] | None = None,
    progress: bool = False,
) -> Made:
    """Write ``number`` questions with answers to passages of a memory, each to another one.

    A pair stays if the answer stands in the passage and not in the question, if the generator gives the same answer
    again when it is asked the question with the passage, and if no kept question is nearly the same.

    A row of ``out`` holds: question, answer · id, passage_ids, title: of its passage, for measuring retrieval only;
    training does not look at them. OUT.tried.jsonl has a row for every passage that was tried, with the reason where
    its pair was dropped; OUT.tried.json the settings and, at the end, how many. Rows are on the disk as soon as their
    batch is done, and an interrupted run goes on with the passages that it has not tried; with a larger ``number`` so
    does one that is done.

    Args:
        seed: of the order of the passages, in which each one's place depends on its id and the seed alone.
        near: share of trigrams from which on two questions are nearly the same.
        batch_size: passages written to together.
        about: what else to keep with the settings, as JSON values. A run goes on only with the same.
    Raises: InputError for options that cannot be, or that differ from those of ``out``; DataError for files.
    """
    if number < 1 or batch_size < 1:
        raise InputError(f"number={number}, batch_size={batch_size}; needed 1 or more of each")
    settings = {
        "format": FORMAT,
        **(about or {}),
        "memory_version": memory.version,
        "memory_identity": getattr(memory, "identity", None),
        "seed": seed,
        "near": near,
        "max_tokens": [MAX_TOKENS, MAX_ANSWER_TOKENS],
    }
    settings = json.loads(json.dumps(settings))
    _check_name(out)
    tried_file = out.with_suffix(".tried.jsonl")
    with ExitStack() as opened:
        tried = opened.enter_context(begun(tried_file, settings))
        kept = Kept(near)
        for row in tried.values():
            if "reason" not in row or (row["reason"] is None and "question" not in row):
                raise DataError(f"{tried_file}: its row {row['id']!r} is not one of make-questions; remove the line")
            if row["reason"] is None:
                kept.add(row["question"])
        _write(out, tried.values())
        order = shuffled(memory, seed)
        todo = [passage_id for passage_id in order if passage_id not in tried]
        bar = opened.enter_context(io.progress("writing questions", number, wanted=progress, completed=len(kept)))
        for start in range(0, len(todo), batch_size):
            room = number - len(kept)
            if room <= 0:
                break
            new = _tried(writer, memory.get(todo[start : start + batch_size]), kept, room=room)
            append(tried_file, new)
            append(out, _pairs(new))
            tried.update((row["id"], row) for row in new)
            bar.advance(room - (number - len(kept)))
        counts = Counter(row["reason"] for row in tried.values())
        dropped: dict[Reason, int] = {reason: counts[reason] for reason in REASONS}
        made = Made(len(kept), dropped, len(tried) == len(order), settings)
        io.write_json(settings_path(tried_file), made.as_record())
    return made


def _check_name(out: Path) -> None:
    """Raises: InputError for a file that something else has written."""
    if out.suffix != ".jsonl":
        raise InputError(f"{out} does not end with .jsonl; needed such a name")
    if out.exists() and out.stat().st_size and not out.with_suffix(".tried.jsonl").exists():
        raise InputError(f"{out} is there already and was made otherwise; name another file")


def _pairs(tried: Iterable[Row]) -> list[Row]:
    """The rows of the pairs that stayed."""
    return [{key: row[key] for key in row if key != "reason"} for row in tried if row["reason"] is None]


def _write(out: Path, tried: Iterable[Row]) -> None:
    """The file of pairs as the tried passages say, whatever a kill has left of it."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in _pairs(tried)]
    try:
        io.write_file(out, "".join(lines).encode())
    except OSError as error:
        raise DataError(f"{out}: {error.strerror}; check the path, its permissions and the space") from error


def shuffled(memory: Memory, seed: int) -> list[str]:
    """The ids of all passages in a random order."""

    def place(passage_id: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{passage_id}".encode(errors="replace")).digest()

    return sorted((passage.id for passage in memory.passages()), key=place)


def _tried(writer: Writes, passages: Sequence[Passage], kept: Kept, *, room: int) -> list[Row]:
    """A row for each passage, until as many pairs have stayed as there is room for."""
    written = writer.written(passages)
    pairs = [parsed(text) for text in written]
    found = [_fault(pair, passage) for pair, passage in zip(pairs, passages, strict=True)]
    asked = [(p, pair) for p, (pair, fault) in enumerate(zip(pairs, found, strict=True)) if pair and fault is None]
    decoded = writer.answered([pair.question for _, pair in asked], [passages[p] for p, _ in asked])
    said = {p: text for (p, _), text in zip(asked, decoded, strict=True)}
    rows: list[Row] = []
    for p, (passage, pair) in enumerate(zip(passages, pairs, strict=True)):
        if room == 0:
            break
        fault = found[p] if pair is None or found[p] is not None else _last_fault(pair, said[p], kept)
        if pair is None or fault is not None:
            rows.append({"id": passage.id, "reason": fault, "written": written[p], "decoded": said.get(p)})
            continue
        kept.add(pair.question)
        rows.append(_row(passage, pair))
        room -= 1
    return rows


def _fault(pair: Pair | None, passage: Passage) -> Reason | None:
    return "no_pair" if pair is None else fault_of(pair, passage.text)


def _last_fault(pair: Pair, decoded: str, kept: Kept) -> Reason | None:
    if not is_answered(pair, decoded):
        return "answered_otherwise"
    return "near_duplicate" if kept.is_near(pair.question) else None


def _row(passage: Passage, pair: Pair) -> Row:
    title = {"title": passage.title} if passage.title else {}
    return {"id": passage.id, "reason": None, **asdict(pair), "passage_ids": [passage.id], **title}
