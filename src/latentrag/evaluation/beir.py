"""Folders in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/test.tsv."""

from __future__ import annotations

from pathlib import Path

from latentrag.errors import DataError

_SPLITS = ("test", "dev", "train")


def files_of(folder: Path, *, needs_qrels: bool = True) -> tuple[Path, Path | None]:
    """Its questions, and the judgements of test, else dev, else train.

    Raises: DataError for a folder without questions, or without judgements that are needed.
    """
    queries = next((path for name in ("queries.jsonl", "queries.jsonl.gz") if (path := folder / name).is_file()), None)
    if queries is None:
        raise DataError(f"{folder} is a folder without queries.jsonl; needed a BEIR folder or a file of questions")
    found = next((path for name in _SPLITS if (path := folder / "qrels" / f"{name}.tsv").is_file()), None)
    if found is None and needs_qrels:
        raise DataError(f"{folder} has no qrels/test.tsv; give judgements with --qrels")
    return queries, found
