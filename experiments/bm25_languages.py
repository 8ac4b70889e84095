"""Which passages BM25 finds, in Korean and English, by words alone as it was and by words and their parts.

    make experiment-bm25            minutes; writes docs/experiments/bm25.md

Korean: MIRACL's questions over the leads of Korean Wikipedia; recall@10 of relevant articles. English: open Natural
Questions over articles of 2018; the share of questions with an answer in the first 5 or 20 passages.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
from running import between_marks, read_gzipped, run

from latentrag.evaluation.metrics import contains_answer
from latentrag.postings import WordIndex, segment_of
from latentrag.types import Passage

Scores = Callable[[str], Any]
"""Question → the score of each passage, (N,)."""


def size_mb(index: Any) -> float:
    """Of what bm25s keeps."""
    return float(sum(index.scores[name].nbytes for name in ("data", "indices", "indptr"))) / 1e6


def words_alone(passages: Sequence[Passage]) -> tuple[Scores, float]:
    """As it was: runs of ``\\w`` in lower case."""
    tokenizer = bm25s.tokenization.Tokenizer(lower=True, stopwords="english", stemmer=None)
    texts = (f"{passage.title} {passage.text}" for passage in passages)
    rows = list(tokenizer.streaming_tokenize(texts, update_vocab=True, allow_empty=False))
    index = bm25s.BM25(k1=1.5, b=0.75, method="lucene", dtype="float64")
    index.index((rows, tokenizer.get_vocab_dict()), create_empty_token=False, show_progress=False)

    def scores(question: str) -> Any:
        (asked,) = tokenizer.streaming_tokenize([question], update_vocab="never", allow_empty=False)
        return index.get_scores_from_ids(asked)

    return scores, size_mb(index)


def words_and_parts(passages: Sequence[Passage]) -> tuple[Scores, float]:
    """As it is."""
    segment = segment_of(passages)
    index, places = WordIndex([(segment, None)]), np.arange(len(passages))
    return lambda question: index.scores(question, places), sum(each.nbytes for each in segment.arrays().values()) / 1e6


METHODS = {"words alone": words_alone, "words and parts": words_and_parts}


@dataclass(frozen=True, slots=True)
class Found:
    """What a method finds, and what it costs."""

    shares: dict[str, float]
    build_s: float
    search_ms: float
    size_mb: float


def measured(
    method: str,
    passages: Sequence[Passage],
    questions: Sequence[dict[str, Any]],
    shares_of: Callable[[dict[str, Any], Sequence[Passage]], dict[str, float]],
) -> Found:
    """The mean shares over the questions, CPU time, and the size of the index."""
    started = time.process_time()
    scores, size = METHODS[method](passages)
    build_s, rows, search_s = time.process_time() - started, [], 0.0
    for question in questions:
        started = time.process_time()
        of_passages = scores(question["question"])
        search_s += time.process_time() - started
        best = np.argsort(-of_passages, kind="stable")[:200]
        rows.append(shares_of(question, [passages[i] for i in best]))
    shares = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return Found(shares, build_s, 1000 * search_s / len(questions), size)


def relevant(question: Mapping[str, Any]) -> set[str]:
    """The ids of articles."""
    return {each.partition("#")[0] for each in question["relevant"]}


def of_articles(question: dict[str, Any], best: Sequence[Passage]) -> dict[str, float]:
    right = relevant(question)
    first = list(dict.fromkeys(passage.id for passage in best))[:10]
    return {"recall@10 of articles": len(right.intersection(first)) / len(right)}


def of_answers(question: dict[str, Any], best: Sequence[Passage]) -> dict[str, float]:
    holds = [contains_answer(passage.text, question["answer"]) for passage in best[:20]]
    return {"recall@5": float(any(holds[:5])), "recall@20": float(any(holds))}


def corpus(path: Path) -> list[Passage]:
    return [Passage(str(row["id"]), row["text"], row["title"]) for row in read_gzipped(path)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the question sets and corpora")
    parser.add_argument("--limit", type=int, default=1_000, help="questions of each set")
    parser.add_argument("--report", type=Path, default=Path("docs/experiments/bm25.md"))
    given = parser.parse_args()
    lines = ["| | method | found | built, CPU s | a question, CPU ms | index, MB |", "|---|---|---|---|---|---|"]
    for name, passages, questions, shares_of in (
        ("Korean", "wiki-ko-2023.corpus", "miracl-ko.dev", of_articles),
        ("English", "wiki-en-2018.corpus", "nq-open.dev", of_answers),
    ):
        kept = corpus(given.data / f"{passages}.jsonl.gz")
        asked = list(read_gzipped(given.data / f"{questions}.jsonl.gz"))[: given.limit]
        for method in METHODS:
            found = measured(method, kept, asked, shares_of)
            shares = ", ".join(f"{key} {value:.3f}" for key, value in found.shares.items())
            which = f"{name}, {len(kept):,} passages, {len(asked)} questions"
            cost = f"{found.build_s:.1f} | {found.search_ms:.2f} | {found.size_mb:.0f}"
            lines.append(f"| {which} | {method} | {shares} | {cost} |")
            print(lines[-1], flush=True)
    between_marks(given.report, "\n".join(lines), title="BM25 in Korean and English")
    return 0


if __name__ == "__main__":
    run(main)
