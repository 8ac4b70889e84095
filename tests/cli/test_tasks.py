"""Every task from a file to a report, with a tiny model: eval, compare, and training on labels and on long targets."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import latentrag
from tests.cli.conftest import Ran, cli

ANSWERS = ["red", "one two three four", "blue", "paris", "rome", "emma"]
ROWS: Any = {
    "open-qa": [{"question": f"what is {each} ?", "answer": [each, "moon"]} for each in ANSWERS],
    "abstractive-qa": [{"question": f"what is {each} ?", "answer": [each, "the moon"]} for each in ANSWERS],
    "question-generation": [{"question": f"what is {each} ?", "answer": each} for each in ANSWERS],
    "fact-verification-3way": [
        {"claim": f"{each} red", "label": label, "titles": ["paris"]}
        for each in ANSWERS
        for label in ("SUPPORTS", "REFUTES", "NOT ENOUGH INFO")
    ],
    "yes-no": [{"question": f"is {each} ?", "answer": ["yes", "no"][i % 2]} for i, each in enumerate(ANSWERS)],
    "classification": [{"text": each, "label": ["a", "b"][i % 2]} for i, each in enumerate(ANSWERS)],
    "choice": [
        {"question": f"what is {each} ?", "choices": ["sun", each, *ANSWERS[:i]][: 2 + i % 2], "answer": each}
        for i, each in enumerate(ANSWERS)
    ],
}
ROWS["fact-verification-2way"] = ROWS["fact-verification-3way"]
WORDS = {
    "fact-verification-3way": ["SUPPORTS=red", "REFUTES=blue", "NOT ENOUGH INFO=the moon"],
    "fact-verification-2way": ["SUPPORTS=red", "REFUTES=blue"],
    "yes-no": ["yes=one", "no=two three"],
    "classification": ["a=red", "b=blue"],
}
MEASURES = {
    "open-qa": ["exact_match", "f1", "recall@1"],
    "abstractive-qa": ["rouge_l", "exact_match", "bleu", "bleu_1"],
    "question-generation": ["q_bleu_1", "rouge_l", "bleu_1", "distinct_trigrams", "distinct_trigrams_of_gold"],
    "fact-verification-3way": ["accuracy", "macro_f1", "title_recall@1"],
    "fact-verification-2way": ["accuracy", "macro_f1"],
    "yes-no": ["accuracy", "macro_f1"],
    "classification": ["accuracy", "macro_f1"],
    "choice": ["accuracy"],
}


def arguments(task: str) -> list[str]:
    return ["--task", task, *(part for each in WORDS.get(task, []) for part in ("--label", each))]


@pytest.fixture
def written(tmp_path) -> Callable[[str], Path]:
    def write(task: str) -> Path:
        path = tmp_path / f"{task}.jsonl"
        path.write_text("".join(json.dumps({"id": f"r{i}", **row}) + "\n" for i, row in enumerate(ROWS[task])))
        return path

    return write


@pytest.fixture
def measure(written, model, memory) -> Callable[..., Ran]:
    def run(task: str, *more: object) -> Ran:
        return cli("eval", written(task), "-m", model, "-i", memory, *arguments(task), *more)

    return run


@pytest.mark.parametrize("task", ROWS)
def test_eval_and_compare(measure, task, tmp_path) -> None:
    out = tmp_path / "run.jsonl"
    done = measure(task, "--json", "--out", out)
    assert done.code == 0
    record = done.json
    assert set(MEASURES[task]) <= set(record["metrics"])
    assert list(record["metrics"])[-1] == "log_likelihood_per_answer"
    assert all(0 <= each["mean"] <= 1 for name, each in record["metrics"].items() if not name.startswith("log"))
    assert record["settings"].get("task", "open-qa") == task
    closed = measure(task, "--closed-book", "--out", tmp_path / "closed.jsonl")
    assert (closed.code, "right, then given" in closed.stdout) == (0, task in WORDS)
    both = cli("compare", out, tmp_path / "closed.jsonl", "--json")
    compared = both.json["metrics"]
    assert {name for name in MEASURES[task] if "recall" not in name} <= set(compared)
    for name in set(compared) & set(record["metrics"]):
        assert compared[name]["ours"] == pytest.approx(record["metrics"][name]["mean"])
    assert cli("compare", out, tmp_path / "closed.jsonl").code == 0


def test_labels_are_chosen_as_classify_chooses(measure, model, memory, tmp_path) -> None:
    out = tmp_path / "run.jsonl"
    done = measure("fact-verification-3way", "--json", "--out", out)
    rag = latentrag.load(model, memory=memory)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    labels = ["red", "blue", "the moon"]
    for row in rows[:4]:
        found = rag.classify(row["x"], labels)
        assert row["text"] == found.best
        assert row["log_prob"] == pytest.approx(found.labels[0].log_likelihood, abs=1e-4)
        assert row["log_likelihood"] == pytest.approx(rag.log_likelihood(row["x"], row["answers"][0]), abs=1e-4)
    confusion = done.json["details"]["confusion"]
    right = sum(confusion[label][label] for label in labels)
    assert right / len(rows) == pytest.approx(done.json["metrics"]["accuracy"]["mean"])
    assert sum(sum(given.values()) for given in confusion.values()) == len(rows)


@pytest.mark.parametrize("task", ["yes-no", "question-generation"])
def test_an_interrupted_run_goes_on(measure, task, tmp_path) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    assert measure(task, "--batch-size", 2, "--out", whole).code == 0
    assert measure(task, "--batch-size", 2, "--out", cut, "--limit", 4).code == 0
    with cut.open("r+b") as file:  # as a kill in the middle of a line leaves it
        file.truncate(cut.stat().st_size - 30)
    assert measure(task, "--batch-size", 2, "--out", cut).code == 0
    rows = [{row["id"]: row for row in map(json.loads, path.read_text().splitlines())} for path in (whole, cut)]
    for name, row in rows[0].items():
        assert rows[1][name]["text"] == row["text"]
        assert rows[1][name]["log_prob"] == pytest.approx(row["log_prob"], abs=1e-4)
    refused = cli("eval", *map(str, [tmp_path / f"{task}.jsonl", "--task", "open-qa", "--out", cut]))
    assert refused.code == 2


@pytest.mark.parametrize("task", ["fact-verification-2way", "question-generation", "choice"])
def test_training_on_labels_and_on_long_targets(written, model, memory, task, tmp_path) -> None:
    """What is learned is what is then measured: log p of the targets rises."""
    data, out = written(task), tmp_path / "run"
    train = ["train", data, "-m", model, "-i", memory, *arguments(task), "-k", 2, "--out", out]
    before = cli("eval", data, "-m", model, "-i", memory, *arguments(task), "--json", "-k", 2)
    done = cli(*train, "--batch-size", 6, "--steps", 8, "--lr-generator", "0.01", "--lr-retriever", "0.001")
    assert done.code == 0, done.stderr
    after = cli("eval", data, "-m", out / "model", "-i", memory, *arguments(task), "--json", "-k", 2)
    name = "log_likelihood_per_answer"
    assert after.json["metrics"][name]["mean"] > before.json["metrics"][name]["mean"] + 0.5
    request = json.loads((out / "run.json").read_text())
    assert (request["task"], request["labels"]) == (task, WORDS.get(task))
    other = [*train, "--batch-size", 6, "--steps", 8, "--lr-generator", "0.01", "--lr-retriever", "0.001", "--resume"]
    other[other.index(task)] = "open-qa" if task == "question-generation" else "abstractive-qa"
    assert cli(*[each for each in other if each != "--label" and "=" not in str(each)]).code == 2


def test_bad_input_is_one_line(measure, written, model, memory) -> None:
    run = ["eval", written("yes-no"), "-m", model, "-i", memory]
    for more, problem in [
        (["--task", "fact-verification-2way"], "does not fit the task fact-verification-2way: 6 of 6 rows"),
        (["--task", "nothing"], "task 'nothing' is unknown; needed one of open-qa, abstractive-qa"),
        (["--label", "yes=one"], "--label has no effect, since the task open-qa has no labels"),
        (["--task", "yes-no"], "label 'yes' is given twice"),  # two words that this tokenizer does not know
        (["--task", "retrieval"], "the task retrieval has no decoder; measure it with --retrieval-only"),
    ]:
        assert problem in cli(*run, *more).error()
    one = written("yes-no").read_text().splitlines()[0]
    written("yes-no").write_text(one + "\n")
    assert "has no row with the label no (found yes 1)" in cli(*run, "--task", "yes-no").error()
