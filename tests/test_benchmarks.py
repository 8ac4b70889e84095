"""The benchmarks run, and both sides find the same: a round of each with tiny models."""

import argparse
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentrag.assemble import ModelSpec, load, load_passage_encoder, save
from latentrag.memory import Memory
from latentrag.types import Passage
from tests import tiny
from tests.encoder.tiny import write_sentence_encoder
from tests.generator.test_spans import write_encoder

ROOT = Path(__file__).parent.parent
TEXTS = ["paris is the capital of france", "rome", "the seine is a river in france", "hamlet , a play", "a queen"]


def run(module, *arguments, file):
    """What a benchmark prints, and its report."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments), "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text("utf-8"))
    assert report["processor"]
    assert report["torch"]
    return done.stdout, report


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders of a tiny model and of its memory."""
    place = tmp_path_factory.mktemp("tiny")
    encoder = write_sentence_encoder(place / "encoder", head=["Normalize"])
    generator = place / "generator"
    tiny.save_tokenizer(generator, end=False)
    tiny.save_llama(generator)
    reader = load_passage_encoder(encoder)
    passages = [Passage(str(number), text, title="page" * (number % 2)) for number, text in enumerate(TEXTS)]
    memory = Memory.create(place / "memory.lance", reader).add(passages, reader)
    save(load(ModelSpec(encoder, generator), memory=memory, k=2), place / "model")
    return place / "model", place / "memory.lance"


@pytest.mark.parametrize(
    ("module", "ways"),
    [("decoding", ["their token", "token"]), ("training_step", ["their sequence", "sequence"])],
)
def test_a_round_beside_transformers(module, ways, tmp_path) -> None:
    asked = ["--size", "tiny", "--runs", 1, "--malloc", "default", "--ways", *ways]
    printed, report = run(module, *asked, file=tmp_path / "found.json")
    found = {each["way"]: each["runs"][0] for each in report["ways"]}
    assert list(found) == ways
    theirs, ours = (found[way]["found"] for way in ways[:2])
    assert theirs == ours
    assert f"| {ways[0]} / {ways[1]} | default |" in printed
    assert all(run["cpu_s"] > 0 and run["peak_bytes"] > 0 for run in found.values())


def test_a_reader_beside_its_encoder(tmp_path) -> None:
    folder = write_encoder(tmp_path / "bert")
    asked = ("--reader", folder, "--passages", 2, "--words", 8, "--runs", 3)
    printed, report = run("spans", *asked, file=tmp_path / "found.json")
    assert report["ratio"] > 1
    assert {name: len(seconds) for name, seconds in report["times_s"].items()} == {"encode": 3, "answer": 3}
    assert "| answer / encode |" in printed


def test_a_step_beside_what_the_machine_can_do(tmp_path) -> None:
    printed, report = run(
        "roofline", "--size", "tiny", "--runs", 1, "--tokens", 2, "--side", 64, "--mib", 1, file=tmp_path / "found.json"
    )
    vocabulary, width, inner, rows, seen = 50_265, 16, 64, 4 * 5 * 4, 128 + 3
    products = vocabulary * width + (4 + 2) * width**2 + 2 * width * inner
    assert report["flops"] == 2 * rows * products + 4 * rows * seen * width
    kept = 2 * width * (4 * 5 * 128 + rows * 3)
    assert report["bytes"] == 4 * (products + kept + 2 * rows * vocabulary)
    assert min(report[name] for name in ("step_s", "flops_per_s", "bytes_per_s")) > 0
    assert f"| {rows} |" in printed


def test_a_round_of_encoding(places, tmp_path) -> None:
    first = "theirs float32"
    model, memory = places
    asked = ["--model", model, "--memory", memory, "--limit", 4, "--runs", 1, "--malloc", "default", "--ways", first]
    printed, report = run("encoding", *asked, "ours bfloat16", file=tmp_path / "found.json")
    assert [each["way"] for each in report["ways"]] == [first, "ours bfloat16"]
    (cosine,) = report["cosines"]
    assert (cosine["way"], cosine["with"]) == ("ours bfloat16", first)
    assert 0.99 < cosine["lowest"] <= cosine["mean"] < 1  # bfloat16 moves them, a little
    assert f"| ours bfloat16 | {first} |" in printed


def test_where_the_time_of_an_answer_goes(places, tmp_path) -> None:
    model, memory = places
    clues = tmp_path / "clues.jsonl"
    rows = [{"question": f"what is {text} ?", "answer": ["paris"]} for text in TEXTS[:3]]
    clues.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["--data", clues, "--questions", 2, "--model", model, "--memory", memory]
    printed, report = run("ask", *asked, file=tmp_path / "found.json")
    for state in ("new passages", "known passages"):
        parts = report["answer_cpu_s"][state]
        assert {"query encoder", "search", "prepare prompts", "generator", "output layer", "rest"} <= set(parts)
        assert all(seconds >= 0 for seconds in parts.values())
        assert f"an answer, {state}" in printed
    assert {"import torch", "load the model", "first answer"} <= set(report["start_up_cpu_s"])


def test_a_part_counts_its_own_time_alone(monkeypatch) -> None:
    from benchmarks.ask import Stopwatch

    now = iter([0.0, 1.0, 3.0, 7.0, 15.0, 31.0])
    monkeypatch.setattr(time, "process_time", lambda: next(now))
    clock = Stopwatch()
    inner = clock.timed("inner", lambda: None)
    with clock.part("outer"):  # from 0
        inner()  # from 1 to 3
        inner()  # from 7 to 15
    assert clock.seconds == {"outer": 1 + 4 + 16, "inner": 2 + 8}


def test_the_benchmark_for_a_gpu_runs_on_a_processor_if_told_so(tmp_path) -> None:
    asked = ["--device", "cpu", "--size", "tiny", "--passages", 2, 3, "--runs", 1]
    printed, report = run("gpu", *asked, file=tmp_path / "found.json")
    ways = ["read", "token", "exact", "fast", "thorough", "train"]
    found = [(row["model"], row["passages"], row["way"]) for row in report["rows"]]
    assert found == [(model, k, way) for model in ("bart", "llama") for k in (2, 3) for way in ways]
    assert all(row["s"] and not row["out_of_memory"] for row in report["rows"])
    assert "| llama | 3 | train |" in printed


def test_without_a_gpu_it_says_so(monkeypatch, capsys) -> None:
    from benchmarks import gpu

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert gpu.main() == 2
    assert capsys.readouterr().err.startswith("error: torch sees no GPU here; run it where there is one, or")


@pytest.mark.parametrize("quick", [False, True])
def test_all_of_them_understand_how_they_are_called(tmp_path, monkeypatch, quick) -> None:
    from benchmarks import every

    class UnderstoodError(Exception):
        pass

    def parse(self):
        parsed = parse_args(self)
        raise UnderstoodError(parsed)

    parse_args = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    each = every.commands(data=tmp_path, work=tmp_path, runs=2, quick=quick)
    for name, (module, *arguments) in each.items():
        monkeypatch.setattr(sys, "argv", [module, *arguments, "--json", str(tmp_path / f"{name}.json")])
        with pytest.raises(UnderstoodError):
            importlib.import_module(f"benchmarks.{module}").main()


def test_all_of_them_run_in_turn_and_one_that_fails_does_not_end_it(tmp_path, monkeypatch, capsys) -> None:
    from benchmarks import every

    modules = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    for quick in (False, True):
        each = every.commands(data=tmp_path, work=tmp_path / "work", runs=2, quick=quick)
        assert {module for module, *_ in each.values()} <= modules
    given = []

    def started(command, *, stdout, **_):
        given.append(command[2])
        stdout.write("a table\n")
        return subprocess.CompletedProcess(command, returncode=int(command[2] == "benchmarks.b"))

    monkeypatch.setattr(subprocess, "run", started)
    assert every.run({"one": ["a"], "two": ["b", "--size", "tiny"], "three": ["c"]}, tmp_path / "out") == ["two"]
    assert given == ["benchmarks.a", "benchmarks.b", "benchmarks.c"]
    assert (tmp_path / "out" / "three.md").read_text("utf-8") == "a table\n"
    assert "two: failed with 1 after" in capsys.readouterr().err


def test_code_lines_are_those_without_blanks_comments_and_docstrings(tmp_path, monkeypatch, capsys) -> None:
    from benchmarks import code_lines

    source = '''"""A module.

Two paragraphs."""

from typing import Any

LIMIT = 3
"""What LIMIT means."""

# A comment.
def two() -> Any:
    """Docstring."""
    import json

    return json.loads(
        """[1,

        2]"""  # a string over three lines
    )
'''
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "a.py").write_text(source)
    (tmp_path / "b.py").write_text("x = 1\n")
    monkeypatch.setattr(sys, "argv", ["code_lines", str(tmp_path), str(tmp_path / "room")])
    assert code_lines.main() == 0
    counts = code_lines.count(source)
    assert (counts.files, counts.code_lines, counts.any_words, counts.function_imports) == (1, 9, 2, 1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].count("code lines") == 2
    assert lines[-1] == "| in all | 2 | 10 | 20 | 2 | 1 | 1 | 9 | 19 | 2 | 1 |"


def test_same_results_tells_what_differs_and_by_how_much(tmp_path, monkeypatch, capsys) -> None:
    from benchmarks import same_results

    before = {
        "answer: x": {"text": "paris", "log_prob": -1.0, "tokens": [{"text": "paris", "log_prob": -1.0}], "time": 1},
        "answer: y": {"text": "rome", "log_prob": -2.0, "tokens": []},
    }
    after = json.loads(json.dumps(before))
    after["answer: x"] |= {"log_prob": -1.000002, "time": 2, "new": "field"}
    after["answer: y"] = {"text": "Rome", "log_prob": -2.0001, "tokens": [{"text": "Rome", "log_prob": -2.0}]}
    differences = same_results.compare(before, after, allowed=1e-5)
    assert {kind: (of.numbers, of.texts, len(of.examples)) for kind, of in differences.items()} == {
        "answer · text": (0, 2, 1),
        "answer · log_prob": (2, 0, 1),
        "answer · tokens": (1, 2, 1),  # a list that was empty; its token's fields are new for this question
    }
    assert differences["answer · log_prob"].largest == pytest.approx(1e-4)

    given = {"tree before": before, "tree after": after}
    asked = []

    def results(self, tree, part):
        asked.append(tree.name)
        return given[tree.name]

    monkeypatch.setattr(same_results.Runner, "results", results)
    arguments = ["--reference", tmp_path / "kept.json", "--work", tmp_path, "--parts", "float32"]
    arguments += ["--before", tmp_path / "tree before", "--after"]
    for tree, code in (("tree after", 1), ("tree before", 0)):
        monkeypatch.setattr(sys, "argv", ["same_results", *map(str, arguments), str(tmp_path / tree)])
        assert same_results.main() == code
        printed = capsys.readouterr().out
        assert ("different: float32" in printed) == bool(code)
        assert ("| NO: 1 |" in printed) == bool(code)
    assert asked == ["tree before", "tree after", "tree before"]  # the first is kept


@pytest.mark.slow
@pytest.mark.parametrize("part", ["commands", "searching", "training"])
def test_a_tree_gives_the_same_results_as_itself(tmp_path, part) -> None:
    asked = ["--before", ROOT, "--after", ROOT, "--work", tmp_path / "work", "--parts", part]
    printed, report = run("same_results", *asked, file=tmp_path / "found.json")
    assert printed.endswith("\nall the same\n")
    assert sum(kind["numbers"] for kind in report["parts"][part].values()) > 500


def test_two_trees_beside_each_other(tmp_path, monkeypatch, capsys) -> None:
    from benchmarks import beside

    report = {
        "config": {"patience_s": 600},
        "ways": [{"way": "token", "runs": [{"cpu_s": 2.0, "peak_bytes": 5}]}],
        "answer_cpu_s": {"search": 0.5},
        "p50_s@5": 0.25,
        "load": {"answers_per_s": 4.0},
    }
    assert dict(beside.times(report)) == {
        "ways / token / runs / 0 / cpu_s": 2.0,
        "answer_cpu_s / search": 0.5,
        "p50_s@5": 0.25,
        "load / answers_per_s": 0.25,
    }

    asked = []

    def figures(self, part, data):
        asked.append(self.path.name)
        before = {beside.WHOLE: 1.0, "token": 2.0, "short": 0.001, f"only {self.path.name}": 1.0}
        return before if self.path.name == "before" else before | {beside.WHOLE: 1.2, "token": len(asked) / 2}

    monkeypatch.setattr(beside.Tree, "figures", figures)
    arguments = ["--before", tmp_path / "before", "--after", tmp_path / "after", "--data", tmp_path, "--only", "ask"]
    for more, code in ((["--allowed", "1.3"], 0), ([], 1)):
        asked.clear()
        monkeypatch.setattr(sys, "argv", ["beside", *map(str, [*arguments, "--rounds", 2, *more])])
        assert beside.main() == code
        assert asked == ["before", "after", "after", "before"]
        _, _, whole, token, _, last = capsys.readouterr().out.splitlines()
        assert whole == f"| ask | {beside.WHOLE} | 1 | 1.2 | 1.20 | 1.20 | 1.20 |"
        assert token == "| ask | token | 2 | 1.25 | 0.62 | 0.50 | 0.75 |"
        assert last.endswith("none" if code == 0 else ": ask")


def test_vectors_that_are_made_again_are_those_of_a_file(tmp_path, monkeypatch) -> None:
    from benchmarks import memory_vectors

    monkeypatch.setattr(memory_vectors, "ROWS_PER_BLOCK", 20)
    kept = memory_vectors.Vectors.make(tmp_path / "kept", 50, 8)
    again = memory_vectors.Vectors.make(tmp_path / "again", 50, 8, made_again=True)
    assert (tmp_path / "kept" / "vectors.f16").stat().st_size == 50 * 8 * 2
    assert not (tmp_path / "again" / "vectors.f16").exists()
    np.testing.assert_array_equal(kept.queries, again.queries)
    for first, num_blocks in ((0, 3), (20, 2)):
        ours, theirs = (list(each.blocks(first)) for each in (kept, memory_vectors.Vectors.read(tmp_path / "again")))
        assert len(ours) == len(theirs) == num_blocks
        np.testing.assert_array_equal(np.concatenate(ours), np.concatenate(theirs))
    places = np.array([3, 45, 21])
    np.testing.assert_array_equal(kept.stored[places], again.stored[places])


def test_a_table_that_was_interrupted_goes_on_after_its_last_commit(tmp_path, monkeypatch) -> None:
    from benchmarks import memory_steps, memory_vectors

    monkeypatch.setattr(memory_vectors, "ROWS_PER_BLOCK", 20)
    monkeypatch.setattr(memory_steps, "ROWS_PER_BLOCK", 20)
    monkeypatch.setattr(memory_steps, "ROWS_PER_COMMIT", 40)
    vectors = memory_vectors.Vectors.make(tmp_path, 100, 8, made_again=True)
    make, calls = memory_vectors.make_table, []

    def interrupted(*arguments: Any, **options: Any) -> None:
        calls.append(options["first_id"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        make(*arguments, **options)

    monkeypatch.setattr(memory_steps, "make_table", interrupted)
    with pytest.raises(KeyboardInterrupt):
        memory_steps.fill_memory(tmp_path)
    assert memory_steps.fill_memory(tmp_path)["table_bytes"] > 0
    assert calls == [0, 40, 40, 80]
    memory = Memory.open(tmp_path / "memory.lance")
    np.testing.assert_array_equal(
        np.concatenate([rows for _, rows in memory.table.vectors()]), np.concatenate(list(vectors.blocks()))
    )
    assert [z.id for z in memory.table.passages()] == [str(number) for number in range(100)]


def test_a_memory_beside_lances_own_index(tmp_path) -> None:
    asked = ["--work", tmp_path / "work", "--size", 3_000, "--dimension", 64, "--runs", 1, "--parts"]
    command = [sys.executable, "-m", "benchmarks.memory", *map(str, asked)]
    command += ["--ways", "ivf-rabitq", "lance-ivf-rq", "--made-again"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {line.split(" | ")[0].strip("| "): line for line in done.stdout.splitlines() if line.startswith("| ")}
    figures = json.loads((tmp_path / "work" / "figures.json").read_text("utf-8"))
    for way in ("ivf-rabitq", "lance-ivf-rq"):
        assert figures[f"run 1 {way}"]["recall@5"] > 0.9
        assert 0 < figures[f"run 1 {way}"]["p50_s@5"] <= figures[f"run 1 {way}"]["p95_s@5"]
        assert way in rows
