"""What ``benchmarks.serving`` asks, what must be true of every answer, and where its figures are kept."""

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.turns import machine

K = 5
MARK = " (Second edition.)"


@dataclass(frozen=True)
class Plan:
    """A memory with two versions, and questions.

    Attributes:
        memory: its folder.
        questions: no two equal.
        versions: their numbers.
        changed: ids of passages whose texts end with ``MARK`` in the second version, and in the second alone.
    """

    memory: Path
    questions: Sequence[str]
    versions: tuple[int, int]
    changed: frozenset[str]

    def bodies(self, start: int, **options: Any) -> Iterator[dict[str, Any]]:
        """Requests with these questions, from one of them on; the first follows the last."""
        number = start
        while True:
            yield {"question": self.questions[number % len(self.questions)], "k": K, **options}
            number += 1


def prepared(given: argparse.Namespace, folder: Path) -> Plan:
    """A copy of the memory, with a second version in which passages that some questions find have other texts."""
    import latentrag
    from latentrag.assemble import load_passage_encoder, open_memory
    from latentrag.memory import Memory
    from latentrag.training.data import read_examples

    rows = read_examples(given.data, prefix_field=given.prefix_field).rows
    questions = list(dict.fromkeys(row.x for row in rows))
    path = Path(shutil.copytree(open_memory(given.memory).path, folder / "memory.lance"))
    retriever = latentrag.load(given.model, memory=path).retriever
    found = retriever.retrieve(questions[: given.changed], K).passages
    changed = {z.id: replace(z, text=z.text + MARK) for of_one in found for z in of_one}
    first = Memory.open(path, version="newest")
    second = first.upsert(list(changed.values()), load_passage_encoder(given.model))
    return Plan(path, questions, (first.version, second.version), frozenset(changed))


def fault(answer: Mapping[str, Any], plan: Plan) -> str | None:
    """What is wrong with an answer: a version that was never served, or passages of two versions in one answer."""
    version = answer["memory_version"]
    if version not in plan.versions:
        return f"version {version} was never served"
    of_second = {source["text"].endswith(MARK) for source in answer["sources"] if source["id"] in plan.changed}
    return "mixed" if of_second - {version == plan.versions[1]} else None


class Kept:
    """Figures in a JSON file, so that a run goes on where another one ended.

    Each row has ``part``, ``tree`` and ``round``, the settings it was measured with, and figures.

    Args:
        path: the file; None: nothing is kept.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self._path, self.settings = path, dict(settings)
        known = path is not None and path.exists()
        self._all: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["rows"] if path and known else []

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Those with the same settings."""
        return [row for row in self._all if row["settings"] == self.settings]

    def of_part(self, part: str, tree: str) -> list[dict[str, Any]]:
        """All rounds."""
        return [row for row in self.rows if (row["part"], row["tree"]) == (part, tree)]

    def has(self, part: str, tree: str, number: int) -> bool:
        """Whether this round was measured before."""
        return any(row["round"] == number for row in self.of_part(part, tree))

    def add(self, part: str, tree: str, number: int, figures: Mapping[str, Any]) -> None:
        """One more row."""
        self._all.append({"part": part, "tree": tree, "round": number, "settings": self.settings, **figures})
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            scratch = self._path.with_suffix(".new")
            scratch.write_text(json.dumps({"rows": self._all, **machine()}) + "\n", "utf-8")
            scratch.replace(self._path)
