"""train, from a file of questions to a model that answers, with a real tiny model."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import latentrag
from latentrag import io
from latentrag.cli.train import resuming
from latentrag.generator import CausalGenerator
from latentrag.memory import Memory
from latentrag.rag import Rag
from tests import tiny
from tests.cli.conftest import DOCUMENTS, QUESTION, change_weights, cli
from tests.encoder.tiny import write_sentence_encoder

ROWS: list[dict[str, Any]] = [
    {"question": QUESTION, "answer": ["Beethoven"]},
    {"question": "Who wrote the novel Emma?", "answer": ["Austen"]},
    {"question": "What is the capital of France?", "answer": ["Paris"]},
    {"question": "What is the capital of Italy?", "answer": ["Rome"]},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "data.jsonl", ROWS)


@pytest.fixture
def train(data, model, memory, tmp_path):
    def run(*arguments: object, out="run", data=data, memory=memory, parts=None):
        settings = ["-i", memory, "--out", tmp_path / out, "--k", 2, "--batch-size", 4, "--save-every", 2]
        return cli("train", data, *(parts or ["-m", model]), *settings, *arguments)

    return run


@pytest.fixture(scope="session")
def seq2seq(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts") / "bart"
    tiny.save_tokenizer(folder)
    tiny.save_bart(folder)
    return folder


def log(folder, event):
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == event]


def test_a_trained_model_is_asked_like_any_other(train, data, memory, tmp_path) -> None:
    done = train("--dev", data, "--steps", 12, "--eval-every", 4, "--lr-generator", 0.01, "--json")
    assert done.code == 0
    run = tmp_path / "run"
    assert done.json["step"] == 12
    assert done.json["model"] == str(run / "model")
    dev = [line["nll_per_token"] for line in log(run, "dev")]
    assert len(dev) == 4  # before the first step, too
    assert done.json["best_nll_per_token"] == min(dev) < dev[0]
    rag = latentrag.load(run / "model", memory=memory)
    total = [rag.score(row["question"], row["answer"][0]) for row in ROWS]
    per_token = -sum(each.log_likelihood for each in total) / sum(each.num_tokens for each in total)
    assert per_token == pytest.approx(min(dev), abs=1e-4)
    assert cli("ask", QUESTION, "-m", run / "model", "-i", memory).code == 0


@pytest.mark.parametrize(
    ("arguments", "sought"),
    [
        ([], (2, 1)),  # while the retriever learns alone
        (["--warmup-retriever", 2], (2, 2)),
        (["--warmup-generator", 1], (2, None)),  # no such time: always
        (["--freeze", "generator"], (2, None)),
        (["--freeze", "retriever"], (0, None)),
        (["--hindsight", 1], (1, None)),
        (["--hindsight", 1, "--hindsight-steps", 2], (1, 2)),
        (["--hindsight-steps", 2], (2, 2)),
        (["--hindsight", 0], (0, None)),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_when_passages_are_sought_with_the_answer(train, tmp_path, arguments, sought) -> None:
    assert train("--steps", 3, *arguments).code == 0
    options = json.loads((tmp_path / "run" / "run.json").read_text())["options"]
    assert (options["hindsight"], options["hindsight_steps"]) == sought


def test_what_people_see(train, memory, tmp_path) -> None:
    done = train("--epochs", 2)
    assert (done.code, done.stdout) == (0, "")
    *_, last = done.stderr.splitlines()
    model = tmp_path / "run" / "model"
    asked = ["latentrag", "ask", "-m", str(model), "-i", str(memory), "QUESTION"]
    assert last == f"the model is in {model}; ask it with: {shlex.join(asked)}"
    assert [line["step"] for line in log(tmp_path / "run", "train")] == [1, 2]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--variant", "token"],
        ["--objective", "emdr2"],
        ["--objective", "pdist"],
        ["--objective", "loop"],
        ["--hindsight", 2],
        ["--closed-book"],
        ["--freeze", "generator"],
        ["--freeze", "retriever", "--label-smoothing", 0.1],
        ["--retriever", "bm25"],
        ["--lora", 2, "--passage-cache-folder", "cache"],
        ["--lora", 2, "--lora-scope", "all", "--recompute"],
        ["--answers", "sample", "--warmup-generator", 1],
    ],
    ids=lambda arguments: " ".join(map(str, arguments)),
)
def test_options(train, memory, tmp_path, arguments, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = train("--steps", 2, *arguments)
    assert done.code == 0, done.stderr
    losses = [line["loss"] for line in log(tmp_path / "run", "train")]
    assert len(losses) == 2
    latentrag.load(tmp_path / "run" / "model", memory=memory).answer(QUESTION)


def test_the_passage_encoder_is_trained_too(train, memory, tmp_path) -> None:
    copy = tmp_path / "memory.lance"
    shutil.copytree(memory, copy)
    before = Memory.open(copy)
    done = train("--steps", 4, "--refresh-every", 2, "--warmup-generator", 0, memory=copy)
    assert done.code == 0, done.stderr
    after = Memory.open(copy)
    assert after.version > before.version
    assert after.card.fingerprint != before.card.fingerprint
    latentrag.load(tmp_path / "run" / "model", memory=copy).answer(QUESTION)
    assert Memory.open(copy, version=before.version).card.fingerprint == before.card.fingerprint


@pytest.fixture
def with_examples(model, memory, tmp_path):
    """The model with a worked example in its prompt."""
    rag = latentrag.load(model, memory=memory)
    old = tiny.causal_of(rag)
    template = replace(old.template, preamble="the moon is red\n", closed_book_preamble="red\n")
    folder = tmp_path / "with-examples"
    latentrag.save(Rag(rag.retriever, CausalGenerator(old.model, old.tokenizer, template=template), k=2), folder)
    return folder


@pytest.mark.parametrize(
    ("arguments", "kept"), [(["--freeze", "generator"], True), ([], False), (["--keep-preamble"], True)], ids=str
)
def test_worked_examples_stay_where_training_does_not_take_their_place(
    train, with_examples, memory, tmp_path, arguments, kept
) -> None:
    assert train("-m", with_examples, "--steps", 2, *arguments).code == 0
    template = tiny.causal_of(latentrag.load(tmp_path / "run" / "model", memory=memory)).template
    assert (template.preamble, template.closed_book_preamble) == (("the moon is red\n", "red\n") if kept else ("", ""))


def test_a_run_that_began_without_worked_examples_goes_on_without_them(train, with_examples, memory, tmp_path) -> None:
    """Earlier versions left them out with a frozen generator; kept scores are of that prompt."""
    arguments = ["-m", with_examples, "--steps", 4, "--freeze", "generator"]
    run = tmp_path / "run"
    assert train(*arguments).code == 0
    record = json.loads((run / "run.json").read_text())
    assert record["keep_preamble"]
    (run / "run.json").write_text(json.dumps({**record, "keep_preamble": False}))
    shutil.rmtree(run / "model")
    assert train(*arguments, "--resume").code == 0
    assert tiny.causal_of(latentrag.load(run / "model", memory=memory)).template.preamble == ""
    assert "has keep_preamble=False, now asked for True" in train(*arguments, "--resume", "--keep-preamble").error()


def test_a_run_that_was_stopped_goes_on_by_the_line_it_prints(data, model, memory, tmp_path) -> None:
    """Ctrl-C: the step in flight is finished and saved."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "latentrag", "train", data, "-m", model, "-i", memory, "--out", run, "-k", 2]
    command = [*map(str, command), "--batch-size", "4", "--steps", "3000", "--save-every", "1000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not ((run / "log.jsonl").exists() and log(run, "train")):
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    step = log(run, "train")[-1]["step"]
    last = said.splitlines()[-1]
    assert last.startswith(f"stopped after step {step}; continue with: latentrag train ")
    assert last.endswith(" --resume")
    assert (run / f"step-{step:08d}").is_dir()
    assert not (run / "model").exists()


def test_resumed(train, tmp_path) -> None:
    assert train("--steps", 4).code == 0
    whole = [line["loss"] for line in log(tmp_path / "run", "train")]
    assert train("--steps", 4, out="cut").code == 0
    cut = tmp_path / "cut"
    shutil.rmtree(cut / "model")
    shutil.rmtree(cut / "step-00000004")
    assert train("--steps", 4, "--resume", out="cut").code == 0
    assert [line["loss"] for line in log(cut, "train")] == whole
    assert (cut / "model").is_dir()


def test_a_finished_run_says_the_same_again(train, data, tmp_path) -> None:
    done = train("--steps", 2, "--dev", data, "--json")
    assert train("--steps", 2, "--dev", data, "--json", "--resume").json == done.json
    assert done.json["nll"] == log(tmp_path / "run", "train")[-1]["nll"]


def test_after_running_out_of_memory_a_run_goes_on_in_smaller_batches(train, tmp_path) -> None:
    assert train("--steps", 4).code == 0
    cut = shutil.copytree(tmp_path / "run", tmp_path / "cut")
    shutil.rmtree(cut / "model")
    done = train("--steps", 4, "--micro-batch-size", 1, "--save-every", 1, "--resume", out="cut")
    assert done.code == 0, done.stderr
    assert (cut / "model").is_dir()


def test_what_killed_saves_of_a_model_left_is_removed(train, tmp_path) -> None:
    assert train("--steps", 2).code == 0
    run = tmp_path / "run"
    shutil.rmtree(run / "model")
    for name in (".model.saving-4711", ".model.new"):
        (run / name / "generator").mkdir(parents=True)
        (run / name / "generator" / "model.safetensors").write_bytes(b"600 MB")
    assert train("--steps", 2, "--resume").code == 0
    assert (run / "model").is_dir()
    assert not list(run.glob(".*"))


def test_a_model_that_was_better_before_training_is_said_to_be(train, data) -> None:
    done = train("--steps", 2, "--dev", data, "--lr-generator", 10, "--json")
    assert done.json["best_nll_per_token"] > done.json["untrained_nll_per_token"]
    untrained = f"{done.json['untrained_nll_per_token']:.4f} nats per token on --dev before the first step"
    assert f"warning: training made the model no better: {untrained}" in done.stderr
    better = train("--steps", 4, "--dev", data, "--lr-generator", 0.01, "--json", out="better")
    assert better.json["best_nll_per_token"] < better.json["untrained_nll_per_token"]
    assert "warning" not in better.stderr


def test_the_line_that_resumes_begins_with_the_launcher(monkeypatch) -> None:
    given = ["train", "my data.jsonl", "--out", "run", "--resume"]
    monkeypatch.setattr(sys, "argv", ["latentrag", *given])
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert resuming() == "latentrag train 'my data.jsonl' --out run --resume"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(os, "getppid", lambda: 0)  # nobody knows the launcher's command
    launch = "accelerate launch --num_processes 2 --module latentrag"
    assert resuming() == f"{launch} train 'my data.jsonl' --out run --resume"
    launcher = ["--cpu", "--num_processes", "2", "--module", "latentrag"]
    launched = [sys.executable, "-c", "print(flush=True); input()", *launcher, *given]
    with subprocess.Popen(launched, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()  # it runs
        monkeypatch.setattr(os, "getppid", lambda: parent.pid)
        line = resuming()
        parent.communicate(b"\n")
    if Path("/proc").exists():
        assert shlex.split(line) == launched


def test_of_several_processes_one_speaks(train, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "1")
    done = train("--steps", 1, "--json")
    assert (done.code, done.stdout) == (0, "")


def test_a_run_goes_on_with_the_memory_and_the_weights_that_it_began_with(
    train, model, encoder, files, tmp_path
) -> None:
    base, memory = shutil.copytree(model, tmp_path / "base"), tmp_path / "m.lance"
    assert cli("index", "add", memory, files, "--encoder", encoder).code == 0
    rows = write(tmp_path / "rows.jsonl", [{**row, "category": "A"} for row in ROWS])
    command = ["-m", base, "--steps", 2]
    assert train(*command, memory=memory, data=rows).code == 0
    assert train(*command, "--resume", memory=memory, data=rows).code == 0
    shutil.copytree(memory, tmp_path / "kept.lance")
    shutil.rmtree(memory)
    assert cli("index", "add", memory, files, "--encoder", encoder).code == 0
    assert "run has memory.identity=" in train(*command, "--resume", memory=memory, data=rows).error()
    shutil.rmtree(memory)
    (tmp_path / "kept.lance").rename(memory)
    change_weights(base / "generator")
    assert "run has model.files=" in train(*command, "--resume", memory=memory, data=rows).error()
    change_weights(base / "generator")
    assert train(*command, "--resume", memory=memory, data=rows).code == 0
    refused = train(*command, "--resume", "--prefix-field", "category", memory=memory, data=rows)
    assert "run has prefix_field=None, now asked for 'category'" in refused.error()


MISTAKES = {
    "a run is there": (["--steps", 2], "holds a run already; continue it with --resume"),
    "other settings": (["--steps", 2, "-k", 3, "--resume"], "has k=2, now asked for 3; resume with what it began with"),
    "other steps": (["--steps", 3, "--resume"], "has num_steps=2, now asked for 3"),
}


def test_mistakes_with_a_folder_in_use(train, tmp_path) -> None:
    assert train("--steps", 2).code == 0
    kept = sorted(path.name for path in (tmp_path / "run").rglob("*"))
    for arguments, message in MISTAKES.values():
        assert message in train(*arguments).error()
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == kept
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("a year's work")
    assert "mine exists and is no run of latentrag" in train("--steps", 2, out="mine").error()
    assert "leave --resume out to begin one" in train("--steps", 2, "--resume", out="none").error()


def test_a_run_that_goes_on_elsewhere_is_not_touched(train, tmp_path) -> None:
    assert train("--steps", 2).code == 0
    run = tmp_path / "run"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with io.exclusive(run):
        assert "run is going on in another process; wait for it" in train("--steps", 2, "--resume").error()
        (tmp_path / "new").mkdir()
        with io.exclusive(tmp_path / "new"):
            assert "new is going on in another process" in train("--steps", 2, out="new").error()
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert not any((tmp_path / "new").iterdir())
    assert train("--steps", 2, "--resume").code == 0


def test_mistakes_in_the_data(train, tmp_path) -> None:
    rows = [*ROWS, {"question": "Who?"}, {"answer": ["x"]}]
    done = train("--steps", 1, data=write(tmp_path / "bad.jsonl", rows))
    assert "row 5 has no answer" in done.error() or "line 5" in done.error()
    assert not (tmp_path / "run").exists()
    done = train("--steps", 1, "--skip-bad", data=write(tmp_path / "bad.jsonl", rows))
    assert done.code == 0
    assert "2 of 6" in done.stderr
    assert "empty.jsonl" in train("--steps", 1, out="e", data=write(tmp_path / "empty.jsonl", [])).error()
    assert "none.jsonl" in train("--steps", 1, out="n", data=tmp_path / "none.jsonl").error()
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--objective", "emdr2", "--label-smoothing", 0.1], "label_smoothing"),
        (["--closed-book", "--hindsight", 3], "closed"),
        (["--retriever", "bm25", "--hindsight", 3], "hindsight proposes"),
        (["--freeze", "retriever", "--hindsight-steps", 3], "hindsight proposes"),
        (["--retriever", "bm25", "--refresh-every", 2], "refresh"),
        (["--retriever", "bm25", "--freeze", "generator"], "freeze"),
        (["--lr-retriever", 0], "--lr-retriever=0.0; needed more than 0"),
        (["--lr-generator", 0], "--lr-generator=0.0; needed more than 0"),
        (["--epochs", "inf"], "--epochs=inf; needed a finite number"),
        (["--passage-cache", "inf"], "--passage-cache=inf; needed a finite number"),
        (["--objective", ""], "--objective is empty"),
    ],
)
def test_settings_that_exclude_each_other(train, tmp_path, arguments, message) -> None:
    assert message in train("--steps", 1, *arguments).error().lower()
    assert not (tmp_path / "run").exists()


def test_eight_bits_are_for_answering(train, tmp_path) -> None:
    refused = train("--steps", 1, "--dtype", "int8")
    assert refused.code == 2
    assert "'int8' is not one of 'auto', 'float32', 'bfloat16'" in refused.stderr
    assert not (tmp_path / "run").exists()


def test_a_memory_of_another_encoder(train, tmp_path) -> None:
    documents = write(tmp_path / "d.jsonl", [{"id": n, "title": n, "text": text} for n, text in DOCUMENTS.items()])
    other = write_sentence_encoder(tmp_path / "other", head=["Normalize"], seed=5)
    assert cli("index", "add", tmp_path / "other.lance", documents, "--encoder", other).code == 0
    assert "use the query encoder that belongs to other" in train("--steps", 1, memory=tmp_path / "other.lance").error()
    assert not (tmp_path / "run").exists()


START_AGAIN: dict[str, tuple[list[object], str, list[object]]] = {
    "passages": (["-k", 50], "k=50 exceeds the memory's 4 passages", []),
    "hindsight": (
        ["--hindsight", 3],
        "k=2 passages and 3 more by hindsight exceed the memory's 4; lower either, or add passages",
        ["--hindsight", 2],
    ),
    "hindsight, by words": (
        ["--hindsight", 3, "--retriever", "bm25", "--freeze", "retriever"],
        "hindsight proposes passages to a retriever that learns",
        ["--retriever", "bm25"],
    ),
    "number format": (["--dtype", "bfloat16"], "use --autocast, which computes in bfloat16", ["--autocast"]),
    "adapter": (["--lora", 2, "--lora-scope", "question", "--hindsight", 9], "by hindsight", ["--lora", 2]),
}


@pytest.mark.parametrize("name", START_AGAIN)
def test_a_start_that_fails_leaves_the_folder_free(train, tmp_path, name) -> None:
    wrong, message, right = START_AGAIN[name]
    assert message in train("--steps", 1, *wrong).error()
    assert not (tmp_path / "run").exists()
    done = train("--steps", 1, *right)
    assert done.code == 0, done.stderr


LONG = "Who wrote " + 80 * "the opera " + "Fidelio?"
UNUSABLE: dict[str, dict[str, Any]] = {
    "question": {"id": "q", "question": LONG, "answer": "Beethoven"},
    "answer": {"id": "a", "question": QUESTION, "answer": "one two three " * 60},
    "one of its answers": {"id": "o", "question": QUESTION, "answer": ["Beethoven", "one two three " * 60]},
}


@pytest.mark.parametrize(
    ("name", "kind", "in_dev"),
    [
        ("question", "causal", False),
        ("question", "encoder-decoder", True),
        ("answer", "encoder-decoder", False),
        ("answer", "causal", True),
        ("one of its answers", "causal", False),
    ],
)
def test_rows_that_are_too_long_are_known_before_the_first_step(
    train, encoder, seq2seq, tmp_path, name, in_dev, kind
) -> None:
    rows = write(tmp_path / "long.jsonl", [*ROWS, UNUSABLE[name]])
    parts = ["--encoder", encoder, "--generator", seq2seq] if kind == "encoder-decoder" else None
    where = {"data": rows} if not in_dev else {}
    more = ["--steps", 1, "--answers", "sample", *(["--dev", rows] if in_dev else [])]

    def run(*arguments: object, out: str) -> Any:
        return train(*more, *arguments, out=out, parts=parts, **where)

    refused = run(out="run")
    assert refused.code == 2
    error = refused.stderr.splitlines()[-1]
    assert f"long.jsonl: 1 of 5 examples ({UNUSABLE[name]['id']}: " in error
    assert error.endswith("cannot be used; correct them or pass --truncate or --skip-bad")
    assert not (tmp_path / "run").exists()
    for option, said in (("--skip-bad", "they are left out"), ("--truncate", "they are cut")):
        done = run(option, out=option)
        assert done.code == 0, done.stderr
        assert "1 of 5 examples" in done.stderr
        assert said in done.stderr
    assert run("--truncate", "--resume", out="--truncate").code == 0
    refused = run("--skip-bad", "--resume", out="--truncate")
    assert refused.code == 2
    assert "has truncate=True, now asked for None; resume with what it began with" in refused.stderr


def test_several_files_are_one_training_set(train, tmp_path) -> None:
    first, second = write(tmp_path / "a.jsonl", ROWS[:1]), write(tmp_path / "b.jsonl", ROWS[1:])
    assert train("--steps", 3).code == 0
    done = train(second, "--steps", 3, data=first, out="two")
    assert done.code == 0, done.stderr
    logs = [(tmp_path / out / "log.jsonl").read_text().splitlines() for out in ("run", "two")]
    losses = [[line.get("nll") for line in map(json.loads, log)] for log in logs]
    assert losses[0] == losses[1]
    assert any(losses[0])
    resumed = train("--steps", 3, "--resume", data=first, out="two")
    assert "has data=" in resumed.error()
    assert "needed one or more, each once" in train(first, data=first, out="three").error()


def test_answers_of_several_lines_are_learned(train, model, memory, tmp_path) -> None:
    """The end of the line ends an answer of this model, until it learns others."""
    answer = "one two\nthree four\n\nfive"
    rows = write(tmp_path / "lines.jsonl", [{"question": row["question"], "answer": answer} for row in ROWS])
    done = train("--epochs", 80, "--lr-generator", 0.01, data=rows)
    assert done.code == 0, done.stderr
    rag = latentrag.load(tmp_path / "run" / "model", memory=memory)
    lines = [line.strip() for line in rag.answer(QUESTION, max_tokens=20).text.split("\n")]
    assert lines == answer.split("\n")
    frozen = train("--steps", 1, "--freeze", "generator", data=rows, out="frozen").error()
    assert "4 of 4 examples" in frozen
    assert train("--steps", 1, "--freeze", "generator", "--truncate", data=rows, out="frozen").code == 0


def test_an_encoder_in_half_precision_is_trained_in_float32(train, model, tmp_path) -> None:
    """A step changes nearly every weight; in bfloat16 it would change few."""
    half = shutil.copytree(model, tmp_path / "half")
    weights = half / "query_encoder" / "model.safetensors"
    before = {name: tensor.bfloat16() for name, tensor in load_file(weights).items()}
    save_file(before, weights, {"format": "pt"})
    saved = half / "query_encoder" / "latentrag_encoder.json"
    saved.write_text(json.dumps({**json.loads(saved.read_text()), "dtype": "bfloat16"}))
    done = train("-m", half, "--steps", 1, "--freeze", "generator", "--lr-retriever", 1e-5)
    assert done.code == 0, done.stderr
    after = load_file(tmp_path / "run" / "model" / "query_encoder" / "model.safetensors")
    layers = [name for name in before if "encoder.layer" in name and name.endswith("weight")]
    moved = [(after[name].float() != before[name].float()).double().mean() for name in layers]
    assert min(moved) > 0.5


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(train, tmp_path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "cannot be written" in train("--steps", 1, out="closed/run").error()
