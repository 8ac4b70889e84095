"""Does training retriever and generator together help? Clues of Jeopardy! over the demo's memory.

    clue "CATEGORY: clue" → the entity it is about;  no label says which article holds the evidence

Every arm learns from the same examples, in the same order and number, and starts from the demo's model. The generator
learns through an adapter that leaves passages as they were read (LoRA, scope "question"), so that all arms share what
has been read of them. This generator can read, and says most clearly which passage helps before it is tuned: so the
joint arms go on from the encoder that query-side training made of the same examples; "at once" does not.

    closed book    generator without passages               query side    the query encoder alone, hindsight
    BM25           generator over BM25                      at once       both from the first step, RAG-Sequence
    frozen         generator over the untrained encoder     sequence      query side, then both, RAG-Sequence
                                                            token         query side, then both, RAG-Token
                                                            emdr2         query side, then both, EMDR²
                                                            hindsight     query side, then both, hindsight still

Results stand under OUT, arm by arm; whatever is there is not done again, and what is interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from jeopardy_report import write_report
from running import run

from latentrag import assemble
from latentrag.addresses import model_place
from latentrag.encoder import load_query_encoder
from latentrag.evaluation.run import evaluate
from latentrag.generator import CausalGenerator
from latentrag.generator.tuning import Lora
from latentrag.place import computes_bfloat16
from latentrag.rag import Rag
from latentrag.retriever import BM25Retriever, DenseRetriever
from latentrag.training import checkpoint
from latentrag.training.data import read_examples
from latentrag.training.loop import Trainer
from latentrag.training.options import TrainingOptions

TRAIN, DEV = "jeopardy-vital.train.jsonl.gz", "jeopardy-vital.dev.jsonl.gz"
K = 5
LORA = Lora(rank=16, alpha=32, scope="question")
SECONDS_PER_EXAMPLE = 4.5
"""Of all arms together, on two cores with bfloat16, to turn a budget of minutes into a number of steps."""
QUERY_SIDE_FIRST = ("sequence", "token", "emdr2", "hindsight")
ARMS = ("closed book", "BM25", "frozen", "query side", "at once", *QUERY_SIDE_FIRST)
NUM_RANKED = 2000
"""Clues on which the retriever is measured on the way."""
LR_RETRIEVER = 5e-5
LR_RETRIEVER_AGAIN = 1e-5
"""Of the arms that go on from a trained query encoder."""


class Experiment:
    """The arms over one memory.

    Args:
        out: where results stand.
        num_steps: of every arm.
        cache: folder for what the generator has read of passages.
    """

    def __init__(self, data: Path, out: Path, *, num_steps: int, num_dev: int, cache: Path | None, seed: int) -> None:
        self.out = out
        self.cache = cache
        self.memory = assemble.open_memory("demo")
        self.examples = read_examples(data / TRAIN, prefix_field="category").rows
        dev = read_examples(data / DEV, prefix_field="category").rows
        self.test, self.ranked, self.dev = dev[:num_dev], dev[:NUM_RANKED], dev[-64:]
        self.options = TrainingOptions(
            k=K,
            num_steps=num_steps,
            batch_size=16,
            micro_batch_size=8,
            lr_retriever=LR_RETRIEVER,
            lr_generator=3e-4,
            warmup_steps=max(1, num_steps // 20),
            eval_every=max(1, num_steps // 5),
            save_every=10,
            seed=seed,
        )

    # Models

    def generator(self, *, frozen: bool = False) -> Any:
        """The demo's, its prompt without worked examples, with a fresh adapter unless it is not to learn."""
        bare = assemble.load("demo", memory=self.memory, retriever="bm25").generator
        assert isinstance(bare, CausalGenerator)
        return assemble.generator_for_training(
            bare,
            lora=None if frozen else LORA,
            frozen=frozen,
            seed=self.options.seed,
            passage_cache_bytes=3 << 30,
            passage_cache_folder=self.cache,
        )

    def retriever(self, arm: str) -> Any:
        """What the arm begins with: the demo's query encoder over the memory, or the one that "query side" trained."""
        if arm in ("closed book", "BM25"):
            return None if arm == "closed book" else BM25Retriever(self.memory)
        if arm in QUERY_SIDE_FIRST:
            return self.trained("query side").retriever
        return DenseRetriever(load_query_encoder(Path(model_place("demo"), "query_encoder")), self.memory)

    # Training

    def trained(self, arm: str) -> Rag:
        """The arm's model, trained as far as it is not yet; on the way, how well its retriever finds."""
        options = self._options(arm)
        retriever = self.retriever(arm)
        generator = self.generator(frozen=options.freeze == "generator")
        folder = self.out / arm.replace(" ", "-")
        trainer = Trainer(
            retriever, generator, self.examples, options=options, folder=folder, dev=self.dev, progress=True
        )
        found = checkpoint.newest(folder)
        step = 0 if found is None else found.step
        if options.trains_retriever and step == 0:
            self._measure_retriever(retriever, folder, 0)
        while step < options.num_steps or found is None:
            until = (step // options.eval_every + 1) * options.eval_every
            if trainer.run(resume=found is not None, until=until).step < min(until, options.num_steps):
                raise KeyboardInterrupt
            found = checkpoint.newest(folder)
            step = found.step if found is not None else options.num_steps
            if options.trains_retriever:
                self._measure_retriever(retriever, folder, step)
        trainer.run(resume=True)
        return Rag(retriever or BM25Retriever(self.memory), generator, variant=options.variant, k=K)

    def _options(self, arm: str) -> TrainingOptions:
        again = {"lr_retriever": LR_RETRIEVER_AGAIN}
        changes: dict[str, dict[str, Any]] = {
            "closed book": {"closed_book": True},
            "BM25": {"freeze": "retriever"},
            "frozen": {"freeze": "retriever"},
            "query side": {"freeze": "generator", "hindsight": K},
            "at once": {},
            "sequence": again,
            "token": {"variant": "token", **again},
            "emdr2": {"objective": "emdr2", **again},
            "hindsight": {"hindsight": K, **again},
        }
        return replace(self.options, **changes[arm])

    @torch.no_grad()
    def _measure_retriever(self, retriever: DenseRetriever, folder: Path, step: int) -> None:
        """Title recall of the measured clues, a line for the step."""
        ranks = []
        for start in range(0, len(self.ranked), 100):
            rows = self.ranked[start : start + 100]
            found = retriever.retrieve([row.x for row in rows], 50).passages
            titles = [[passage.title for passage in of_one] for of_one in found]
            wanted = [row.titles[0] for row in rows]
            ranks += [each.index(one) if one in each else 50 for one, each in zip(wanted, titles, strict=True)]
        recall = {str(k): sum(rank < k for rank in ranks) / len(ranks) for k in (1, 5, 10, 20, 50)}
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "retriever.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "title_recall": recall}) + "\n")
        print(f"{folder.name}, step {step}: title recall {recall}", file=sys.stderr)

    # Measuring

    def measured(self, arm: str) -> None:
        """Train the arm and measure it on the development clues."""
        file = self.out / f"{arm.replace(' ', '-')}.jsonl"
        done = json.loads(file.with_suffix(".json").read_text("utf-8")) if file.with_suffix(".json").exists() else {}
        if "metrics" in done and done["examples"] >= len(self.test):
            return
        began = time.monotonic()
        rag = self.trained(arm)
        self._evaluate(rag, file, closed_book=arm == "closed book")
        print(f"{arm}: {(time.monotonic() - began) / 60:.1f} min", file=sys.stderr)

    @torch.no_grad()
    def _evaluate(self, rag: Rag, file: Path, *, closed_book: bool) -> None:
        evaluate(
            rag,
            self.test,
            file,
            k=K,
            options=rag.options(num_beams=1, max_tokens=16),
            batch_size=16,
            closed_book=closed_book,
            about={"steps": self.options.num_steps, "seed": self.options.seed},
            progress=True,
        )


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import transformers

    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return {
        "cpu": model,
        "threads": torch.get_num_threads(),
        "bfloat16": computes_bfloat16(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the clues")
    parser.add_argument("--out", type=Path, default=Path("runs/jeopardy"))
    parser.add_argument("--budget-min", type=float, default=180.0, help="minutes of training for all arms together")
    parser.add_argument("--steps", type=int, help="in place of the budget: steps of 16 examples for every arm")
    parser.add_argument("--dev", type=int, default=4000, help="the first so many clues to measure on")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--cache", type=Path, help="folder for passages as the generator has read them, 1.6 MB each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, default=Path("docs/experiments/jeopardy.md"))
    given = parser.parse_args()
    missing = [name for name in (TRAIN, DEV) if not (given.data / name).is_file()]
    if missing:
        print(f"error: {given.data / missing[0]} is missing; name its folder with --data", file=sys.stderr)
        return 2
    steps = given.steps or max(20, int(60 * given.budget_min / (SECONDS_PER_EXAMPLE * 16)))
    experiment = Experiment(
        given.data, given.out, num_steps=steps, num_dev=given.dev, cache=given.cache, seed=given.seed
    )
    for arm in given.arms:
        experiment.measured(arm)
    write_report(given.out, given.report, arms=ARMS, options=asdict(experiment.options), machine=machine())
    return 0


if __name__ == "__main__":
    run(main)
