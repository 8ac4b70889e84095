"""What a multilingual encoder finds in Korean, beside words, the sum of both, and another encoder.

    make experiment-korean ENCODER=FOLDER          an hour; what has been encoded is not encoded again
    make experiment-korean ENCODER=FOLDER OTHERS=20000 BESIDE=FOLDER

MIRACL's Korean questions over leads of Korean Wikipedia: all relevant articles, and OTHERS drawn at random from the
rest, since encoding all of them takes a core a day. Recall of relevant articles among the first; BM25 searches the same
passages. The weights of the sum are the usual ones, chosen on English questions.
"""

import argparse
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from bm25_languages import corpus, relevant
from running import between_marks, filled, mean_shown, paired_shown, read_gzipped, run

from latentrag.assemble import load_retriever
from latentrag.memory import Memory
from latentrag.protocols import Retriever
from latentrag.types import Passage

RECALL_AT = (1, 5, 10)
DEPTH = max(RECALL_AT)
AT_ONCE = 16
SEED = 0


def chosen(data: Path, questions: Sequence[Mapping[str, Any]], others: int) -> list[Passage]:
    """Relevant articles, and so many others, in the corpus's order."""
    wanted = set().union(*map(relevant, questions))
    rows = corpus(data / "wiki-ko-2023.corpus.jsonl.gz")
    rest = [passage.id for passage in rows if passage.id not in wanted]
    wanted |= set(random.Random(SEED).sample(rest, min(others, len(rest))))  # noqa: S311
    return [passage for passage in rows if passage.id in wanted]


@torch.no_grad()
def recalls(retriever: Retriever, questions: Sequence[Mapping[str, Any]]) -> dict[int, list[float]]:
    """By k, of each question the share of relevant articles among the first k."""
    found: dict[int, list[float]] = {k: [] for k in RECALL_AT}
    for start in range(0, len(questions), AT_ONCE):
        part = questions[start : start + AT_ONCE]
        for question, passages in zip(
            part, retriever.retrieve([each["question"] for each in part], DEPTH).passages, strict=True
        ):
            right = relevant(question)
            for k, of_k in found.items():
                of_k.append(len(right & {passage.id for passage in passages[:k]}) / len(right))
    return found


def encoded(path: Path, passages: Sequence[Passage], encoder: str) -> tuple[Memory, float]:
    """A memory of the passages, and the seconds of a core that each took."""
    started = time.process_time()
    num_encoded = filled(path, passages, encoder, at_once=512)
    return Memory.open(path), (time.process_time() - started) / max(1, num_encoded)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the question sets and corpora")
    parser.add_argument("--encoder", required=True, help="folder or hub id of a multilingual encoder")
    parser.add_argument("--beside", help="folder or hub id of another encoder: of the small demo, say")
    parser.add_argument("--others", type=int, default=3_000, help="articles that no question is about")
    parser.add_argument("--work", type=Path, default=Path("runs/korean"))
    parser.add_argument("--report", type=Path, default=Path("docs/experiments/korean.md"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    questions = list(read_gzipped(given.data / "miracl-ko.dev.jsonl.gz"))
    passages = chosen(given.data, questions, given.others)
    given.work.mkdir(parents=True, exist_ok=True)
    memory, seconds = encoded(given.work / f"{given.others}.lance", passages, given.encoder)
    parts = (given.encoder, given.encoder)  # the second, a generator's place, is not opened
    found = {
        arm: recalls(load_retriever(parts, memory=memory, retriever=kind), questions)
        for arm, kind in (("words", "bm25"), ("vectors", "dense"), ("sum", "hybrid"))
    }
    if given.beside:
        beside, _ = encoded(given.work / f"{given.others}-beside.lance", passages, given.beside)
        retriever = load_retriever((given.beside, given.beside), memory=beside, retriever="dense")
        found[f"vectors of {beside.card.encoder}"] = recalls(retriever, questions)
    heads = " | ".join(f"recall@{k} of articles" for k in RECALL_AT)
    lines = [f"| {len(memory):,} passages, {len(questions)} questions | {heads} |", "|---" * (1 + len(RECALL_AT)) + "|"]
    for arm, of_arm in found.items():
        lines.append(f"| {arm} | {' | '.join(mean_shown(of_arm[k]) for k in RECALL_AT)} |")
    lines.append("")
    for one, other in (("vectors", "words"), ("sum", "vectors")):
        difference = paired_shown(found[one][DEPTH], found[other][DEPTH])
        lines.append(f"{one} less {other}, recall@{DEPTH}, paired: {difference}\n")
    lines.append(
        f"Encoded at {seconds:.2f} s of a core a passage, by {memory.card.encoder}, {memory.card.dimension} numbers."
    )
    between_marks(given.report, "\n".join(lines), title="A multilingual encoder in Korean")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    run(main)
