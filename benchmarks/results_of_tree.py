"""What the sources on PYTHONPATH answer, learn and find: one part of `benchmarks.same_results`, as JSON.

    PYTHONPATH=TREE/src python -m benchmarks.results_of_tree PART PLAN FILE

PLAN is a JSON object: ``tree``, ``scratch`` (an empty folder), ``models`` (a folder with "encoder", "bart" and "llama",
all tiny) and ``questions``, how many. Only what README documents is called: ``latentrag.load`` and what it returns,
``Memory``, and the commands, in this process. So one script runs under old and new sources. One thread computes.
"""

import io
import json
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

QUESTIONS = Path(__file__).with_name("questions.jsonl")
VARIANTS: tuple[Literal["sequence", "token"], ...] = ("sequence", "token")
Results = dict[str, Any]
"""Of each case, by its name: what JSON knows."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a part works, and how much it does."""

    tree: Path
    scratch: Path
    models: Path
    questions: int

    def rows(self, at_most: int | None = None) -> list[dict[str, str]]:
        lines = QUESTIONS.read_text("utf-8").splitlines()
        return [json.loads(line) for line in lines[: min(self.questions, at_most or self.questions)]]


def answers(plan: Plan, *, dtype: str) -> Results:
    """Answers, scores and classifications of the demo."""
    import latentrag

    rag = latentrag.load("demo", memory="demo", dtype=dtype)
    results: Results = {}
    for variant in VARIANTS:
        for row in plan.rows():
            results[f"answer, {variant}: {row['question']}"] = answer_of(rag.answer(row["question"], variant=variant))
        for row in plan.rows(None if dtype == "float32" else 10):
            score = rag.score(row["question"], row["answer"], variant=variant)
            results[f"score, {variant}: {row['question']}"] = score_of(score)
    few = plan.rows(8)
    batch = rag.answer_batch([row["question"] for row in few])
    results |= {f"answer, in a batch: {answer.question}": answer_of(answer) for answer in batch}
    for row in plan.rows(8 if dtype == "float32" else 4):
        for decoding in ("thorough", "fast"):
            answer = rag.answer(row["question"], decoding=decoding)
            results[f"answer, {decoding}: {row['question']}"] = answer_of(answer)
    labels = [row["answer"] for row in few]
    for row in few:
        results[f"classification: {row['question']}"] = classification_of(rag.classify(row["question"], labels))
    if dtype == "float32":
        results |= answers_with_options(rag, [row["question"] for row in plan.rows(5)])
    return results


OPTIONS: dict[str, dict[str, Any]] = {
    "several": {"num_beams": 6, "num_best": 3, "max_tokens": 8},
    "several token": {"num_beams": 6, "num_best": 3, "variant": "token"},
    "greedy": {"num_beams": 1},
    "long": {"min_tokens": 6, "max_tokens": 12, "no_repeat_ngram_size": 2, "length_penalty": 0.5},
    "cut": {"stop": ("a", "the"), "max_tokens": 10},
    "one passage": {"k": 1},
    "many passages": {"k": 12},
    "sampled": {"sample": True, "seed": 7, "num_beams": 3, "num_best": 3, "max_tokens": 10},
    "sampled token": {"sample": True, "seed": 8, "variant": "token", "temperature": 0.7, "top_p": 0.9, "top_k": 50},
}


def answers_with_options(rag: Any, questions: Sequence[str]) -> Results:
    """Each of OPTIONS, and every passage left out in turn."""
    results: Results = {}
    for x in questions:
        for name, options in OPTIONS.items():
            results[f"answer, {name}: {x}"] = answer_of(rag.answer(x, **options))
    for source in rag.answer(questions[0]).sources:
        without = (source.passage.id,)
        results[f"answer, a passage left out: {source.passage.id}"] = answer_of(
            rag.answer(questions[0], without=without)
        )
    return results


def bm25(plan: Plan) -> Results:
    """The same over BM25."""
    import latentrag

    rag = latentrag.load("demo", memory="demo", retriever="bm25", dtype="float32")
    results: Results = {}
    for row in plan.rows(10):
        for variant in VARIANTS:
            answer = rag.answer(row["question"], variant=variant)
            results[f"answer, bm25 {variant}: {row['question']}"] = answer_of(answer)
        results[f"score, bm25: {row['question']}"] = score_of(rag.score(row["question"], row["answer"]))
    return results


def answer_of(answer: Any) -> Results:
    """The fields of an answer that README documents."""
    return {
        "text": answer.text,
        "log_prob": answer.log_prob,
        "closed_book_log_prob": answer.closed_book_log_prob,
        "memory_version": answer.memory_version,
        **_shares(answer.sources),
        "tokens": [{"text": token.text, "log_prob": token.log_prob} for token in answer.tokens],
        "token posteriors": [list(token.posterior) for token in answer.tokens],
        "hypotheses": [
            {"text": hypothesis.text, "log_prob": hypothesis.log_prob, "finished": hypothesis.finished}
            for hypothesis in answer.hypotheses
        ],
        "log_p_eta": list(answer.log_p_eta),
        "log_p_theta": [list(of_passage) for of_passage in answer.log_p_theta],
    }


def score_of(score: Any) -> Results:
    return {
        "log_likelihood": score.log_likelihood,
        "closed_book_log_likelihood": score.closed_book_log_likelihood,
        "num_tokens": score.num_tokens,
        "without_passage": list(score.without_passage),
        **_shares(score.sources),
    }


def classification_of(classification: Any) -> Results:
    return {
        "text": classification.best,
        "labels": {label.text: [label.probability, label.log_likelihood] for label in classification.labels},
        **_shares(classification.sources),
    }


def _shares(sources: Sequence[Any]) -> Results:
    return {
        "passages": [source.passage.id for source in sources],
        "prior": [source.prior for source in sources],
        "posterior": [source.posterior for source in sources],
    }


# Training

ROWS = [
    ("Who wrote the opera Fidelio?", "Beethoven"),
    ("Who wrote the novel Emma?", "Austen"),
    ("What is the capital of France?", "Paris"),
    ("What is the capital of Italy?", "Rome"),
    ("What is the capital of Germany?", "Berlin"),
    ("What is the capital of Japan?", "Tokyo"),
    ("In which city is the river?", "Paris"),
    ("Who is the author of the novel?", "Austen"),
    ("Which planet is red?", "the planet"),
    ("Which is the king?", "one king"),
]
DOCUMENTS = {
    "paris": "Paris is the capital city of France. The river is in Paris.",
    "rome": "Rome is the capital city of Italy.",
    "berlin": "Berlin is the capital city of Germany.",
    "tokyo": "Tokyo is the capital city of Japan.",
    "fidelio": "Fidelio is an opera. Beethoven wrote Fidelio.",
    "emma": "Emma is a novel. Austen wrote Emma.",
    "sky": "The sun, the moon and a red planet.",
    "queen": "She is the queen and he is the king.",
}
BOTH: dict[str, list[object]] = {
    "nll": [],
    "nll token": ["--variant", "token"],
    "emdr2": ["--objective", "emdr2"],
    "pdist": ["--objective", "pdist", "--temperature", 0.7],
    "loop": ["--objective", "loop"],
    "hindsight": ["--hindsight", 2],
    "bm25": ["--retriever", "bm25"],
    "generator frozen": ["--freeze", "generator"],
}
ALONE: dict[str, dict[str, list[object]]] = {
    "bart": {
        "smoothed": ["--label-smoothing", 0.1],
        "closed book": ["--closed-book"],
        "retriever frozen": ["--freeze", "retriever", "--answers", "sample"],
        "refreshed": ["--refresh-every", 10, "--warmup-generator", 2],
    },
    "llama": {
        "whole": ["--lora", 0],
        "adapter on passages": ["--lora", 4, "--lora-scope", "all", "--recompute"],
        "smoothed token": ["--label-smoothing", 0.1, "--variant", "token"],
    },
}
LORA: dict[str, list[object]] = {"bart": [], "llama": ["--lora", 4, "--lora-scope", "question"]}
NUM_STEPS = 20


def training(plan: Plan) -> Results:
    """Losses and norms of 20 steps of tiny models by every objective, and answers of the models that were saved."""
    data, memory = training_files(plan)
    results: Results = {}
    for kind in ("bart", "llama"):
        for name, arguments in {**BOTH, **ALONE[kind]}.items():
            out = plan.scratch / f"{kind} {name}"
            over = memory
            if "--refresh-every" in arguments:
                over = plan.scratch / "refreshed.lance"
                shutil.copytree(memory, over)
            model = ["--encoder", plan.models / "encoder", "--generator", plan.models / kind]
            steps = ["--steps", NUM_STEPS, "--eval-every", 10, "--save-every", 10, "--lr-generator", 0.003]
            sizes = ["-k", 3, "--batch-size", 4, "--micro-batch-size", 2, "--dev", data, "--dtype", "float32"]
            lora = [] if "--lora" in arguments else LORA[kind]
            command("train", data, *model, "-i", over, "--out", out, *steps, *sizes, *lora, *arguments)
            results[f"{kind}, {name}"] = {**log_of(out), "answers": trained_answers(out / "model", over)}
    return results


def training_files(plan: Plan) -> tuple[Path, Path]:
    """Questions with answers, and a memory of DOCUMENTS."""
    data = plan.scratch / "data.jsonl"
    data.write_text("".join(json.dumps({"question": x, "answer": [y]}) + "\n" for x, y in ROWS), "utf-8")
    notes = plan.scratch / "notes"
    notes.mkdir()
    for name, text in DOCUMENTS.items():
        (notes / f"{name}.txt").write_text(text, "utf-8")
    memory = plan.scratch / "notes.lance"
    command("index", "add", memory, notes, "--encoder", plan.models / "encoder")
    return data, memory


def trained_answers(model: Path, memory: Path) -> list[Results]:
    import latentrag

    rag = latentrag.load(model, memory=memory, dtype="float32")
    return [answer_of(rag.answer(x, k=2, num_beams=2, min_tokens=2, max_tokens=6)) for x, _ in ROWS[:3]]


def log_of(run: Path) -> Results:
    """The lines of a run's log, by event."""
    events: dict[str, list[Results]] = {}
    for line in (run / "log.jsonl").read_text("utf-8").splitlines():
        record = json.loads(line)
        del record["time_s"]
        events.setdefault(record.pop("event"), []).append(record)
    return {name: events[name] for name in ("train", "dev", "refresh") if name in events}


def demo_training(plan: Plan) -> Results:
    """Losses of 5 steps of the demo: the query encoder first, then an adapter too."""
    results: Results = {}
    sizes = ["--steps", 5, "--batch-size", 4, "--micro-batch-size", 2, "-k", 3, "--dtype", "float32"]
    for variant in VARIANTS:
        out = plan.scratch / variant
        command("train", QUESTIONS, "--out", out, "--variant", variant, *sizes)
        results[f"demo, {variant}"] = log_of(out)
    return results


# Searching

NUM_VECTORS, DIMENSION, NUM_QUERIES = 20_000, 64, 200


class GivenVectors:
    """A passage encoder that has the vectors already: a passage's id is its row."""

    name, fingerprint, max_tokens, scale, dimension = "given", "given", 256, 1.0, DIMENSION

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = vectors

    def encode_passages(self, passages: Sequence[Any], *, progress: bool = False) -> Any:  # noqa: ARG002
        import torch

        return torch.from_numpy(self.vectors[[int(passage.id) for passage in passages]])


def searching(plan: Plan) -> Results:
    """What each index finds, with its recall, and the last one after a change."""
    import latentrag

    vectors, q = drawn()
    encoder = GivenVectors(vectors)
    passages = [latentrag.Passage(str(row), f"passage {row}") for row in range(NUM_VECTORS)]
    path = plan.scratch / "memory.lance"
    latentrag.Memory.create(path, encoder).add(passages[:-1000], encoder)
    results: Results = {}
    for kind in ("flat", "ivf-rabitq"):
        command("index", "build", path, "--index", kind)
        rows = np.arange(NUM_VECTORS - 1000)
        results[kind] = found_by(latentrag.Memory.open(path), vectors, rows, q)
    memory = latentrag.Memory.open(path).delete([str(row) for row in range(500)])
    memory.add(passages[-1000:], encoder)
    results["ivf-rabitq, changed"] = found_by(latentrag.Memory.open(path), vectors, np.arange(500, NUM_VECTORS), q)
    return results


def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Vectors (N, D) and queries (B, D), around 200 centres, all of length 1."""
    generator = np.random.default_rng(5)
    centres = generator.standard_normal((200, DIMENSION))
    rows = centres[generator.integers(0, 200, NUM_VECTORS + NUM_QUERIES)]
    rows = rows + 2.0 * generator.standard_normal(rows.shape)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return rows[:NUM_VECTORS], rows[NUM_VECTORS:]


def found_by(memory: Any, vectors: np.ndarray, rows: np.ndarray, q: np.ndarray) -> Results:
    """Ids and scores at two depths, and recall against all products."""
    exact = q @ vectors[rows].astype(np.float16).astype(np.float32).T
    results: Results = {}
    for k in (5, 100):
        best = rows[np.argsort(-exact, axis=1, kind="stable")[:, :k]]
        hits = memory.search(q, k)
        ids = [[passage.id for passage in of_query] for of_query in hits.passages]
        common = [len({*map(str, of_best)} & {*of_query}) for of_best, of_query in zip(best, ids, strict=True)]
        results |= {f"ids@{k}": ids, f"scores@{k}": hits.scores.tolist(), f"recall@{k}": sum(common) / k / len(q)}
    return results


# Commands


def commands(plan: Plan) -> Results:
    """What the commands print with --json, on tiny models."""
    data, memory = training_files(plan)
    parts = ["--encoder", plan.models / "encoder", "--generator", plan.models / "llama"]
    over = [*parts, "-i", memory, "--dtype", "float32", "-k", 3]
    pairs = plan.scratch / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"x": x, "y": y}) + "\n" for x, y in ROWS), "utf-8")
    more, synced = plan.scratch / "more.jsonl", plan.scratch / "synced.lance"
    more.write_text(json.dumps({"id": "seine", "title": "Seine", "text": "The river in Paris."}) + "\n", "utf-8")
    x = ROWS[0][0]
    steps: list[tuple[object, ...]] = [
        ("ask", x, *over, "--beams", 3, "--best", 2, "--max-tokens", 6),
        ("ask", x, *over, "--variant", "token", "--max-tokens", 6),
        ("ask", x, *over, "--decoding", "thorough", "--max-tokens", 6),
        ("ask", x, *over, "--sample", "--seed", 3, "--max-tokens", 6),
        ("score", pairs, *over),
        ("classify", x, "Paris", "Beethoven", "Austen", *over),
        ("eval", data, *over, "--max-tokens", 6, "--out", plan.scratch / "rag.jsonl"),
        ("eval", data, *over, "--max-tokens", 6, "--out", plan.scratch / "closed.jsonl", "--closed-book"),
        ("compare", plan.scratch / "rag.jsonl", plan.scratch / "closed.jsonl"),
        ("index", "add", memory, more, "--encoder", plan.models / "encoder"),
        ("ask", ROWS[6][0], *over, "--max-tokens", 6),
        ("ask", ROWS[6][0], *over, "--max-tokens", 6, "--as-of", 2),
        ("index", "tag", memory, "before", 2),
        ("index", "diff", memory, 2, "newest"),
        ("index", "use", memory, "before"),
        ("index", "delete", memory, "seine"),
        ("index", "log", memory),
        ("index", "verify", memory),
        ("index", "compact", memory),
        ("index", "prune", memory, "--keep", 1),
        ("index", "sync", synced, plan.scratch / "notes", "--encoder", plan.models / "encoder"),
        ("index", "sync", synced, plan.scratch / "notes", "--encoder", plan.models / "encoder"),
        ("index", "push", synced, plan.scratch / "pushed"),
        ("index", "pull", plan.scratch / "pushed", plan.scratch / "pulled.lance"),
    ]
    return {
        f"{number:02} {' '.join(map(str, step[: 2 if step[0] == 'index' else 1]))}": command(*step, as_json=True)
        for number, step in enumerate(steps, 1)
    }


def command(*arguments: object, as_json: bool = False) -> list[Any]:
    """Run ``latentrag …`` in this process. Returns: what it prints with --json, and how it ends if not with 0.

    Raises: SystemExit if it fails without --json.
    """
    import torch

    torch.manual_seed(0)
    words = [*map(str, arguments), *(["--json"] if as_json else [])]
    with _arguments(["latentrag", *words]), redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")) as printed:
        code = 0
        try:
            runpy.run_module("latentrag", run_name="__main__")
        except SystemExit as ended:
            code = int(ended.code or 0)
        printed.flush()
        text = printed.buffer.getvalue().decode()
    if code and not as_json:
        raise SystemExit(f"latentrag {' '.join(words)} ended with {code}")
    return [*(json.loads(line) for line in text.splitlines() if as_json), *([f"exit code {code}"] if code else [])]


@contextmanager
def _arguments(words: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, words
    try:
        yield
    finally:
        sys.argv = before


PARTS: Mapping[str, Callable[[Plan], Results]] = {
    "float32": lambda plan: answers(plan, dtype="float32"),
    "bfloat16": lambda plan: answers(plan, dtype="bfloat16"),
    "bm25": bm25,
    "training": training,
    "demo training": demo_training,
    "searching": searching,
    "commands": commands,
}


def main() -> None:
    import torch

    import latentrag

    part, content, file = sys.argv[1:]
    given = json.loads(content)
    plan = Plan(Path(given["tree"]), Path(given["scratch"]), Path(given["models"]), given["questions"])
    if not Path(latentrag.__file__).is_relative_to(plan.tree):
        raise SystemExit(f"error: latentrag is imported from {latentrag.__file__}, needed one below {plan.tree}")
    torch.set_num_threads(1)
    text = json.dumps(PARTS[part](plan))
    # What is printed may name files.
    for place, name in ((plan.scratch, "SCRATCH"), (plan.models, "MODELS"), (plan.tree, "TREE")):
        text = text.replace(json.dumps(str(place))[1:-1], name)
    Path(file).write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
