"""What users get wrong costs one line and exit code 2; what ends a run otherwise has its own code."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from latentrag.memory import Memory
from tests.cli.conftest import QUESTION, cli
from tests.encoder.tiny import write_dpr, write_sentence_encoder


@pytest.fixture
def broken(model, tmp_path) -> Path:
    """A copy of the model, to be damaged."""
    return shutil.copytree(model, tmp_path / "broken")


def test_an_empty_memory(model, memory, tmp_path, encoder) -> None:
    from latentrag.assemble import load_passage_encoder

    Memory.create(tmp_path / "empty.lance", load_passage_encoder(encoder))
    error = cli("ask", QUESTION, "-m", model, "-i", tmp_path / "empty.lance").error()
    assert "has no passages" in error
    assert "latentrag index add" in error


@pytest.mark.parametrize("command", [["ask", QUESTION], ["classify", QUESTION, "one", "two"]])
def test_more_passages_than_the_memory_has(command, model, memory) -> None:
    assert "k=50 exceeds the memory's 4 passages" in cli(*command, "-m", model, "-i", memory, "-k", 50).error()


def test_no_model_at_that_place(memory, tmp_path, home) -> None:
    assert "no model at" in cli("ask", QUESTION, "-m", tmp_path / "none", "-i", memory).error()
    (tmp_path / "empty").mkdir()
    assert "needed a model folder" in cli("ask", QUESTION, "-m", tmp_path / "empty", "-i", memory).error()
    assert "run `latentrag demo`" in cli("ask", QUESTION, "-i", memory).error()


@pytest.mark.parametrize("part", ["query_encoder/model.safetensors", "generator/model.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "pickled", "gone"])
def test_a_corrupt_model(part, damage, broken, memory) -> None:
    weights = broken / part
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif damage == "pickled":
        weights.rename(weights.with_name("pytorch_model.bin"))
    else:
        weights.unlink()
    error = cli("ask", QUESTION, "-m", broken, "-i", memory).error()
    assert str(broken / part.split("/")[0]) in error


def test_an_encoder_that_does_not_match_the_memory(memory, generator, tmp_path) -> None:
    other = write_sentence_encoder(tmp_path / "other", head=["Normalize"], seed=9)
    error = cli("ask", QUESTION, "--encoder", other, "--generator", generator, "-i", memory).error()
    assert "the memory was encoded by encoder with" in error


def test_an_encoder_that_may_or_may_not_match_is_a_warning_of_one_line(generator, tmp_path, files) -> None:
    query = write_dpr(tmp_path / "query", "DPRQuestionEncoder")
    passage = write_dpr(tmp_path / "passage", "DPRContextEncoder", seed=1)
    assert cli("index", "add", tmp_path / "m.lance", files, "--encoder", passage).code == 0
    parts = ["--encoder", query, "--generator", generator, "-i", tmp_path / "m.lance", "-k", 2, "--max-tokens", 3]
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # as outside of tests, where a warning is not an error
        done = cli("ask", "what is paris ?", *parts)
    assert done.code == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: cannot verify that the query encoder fits the memory")
    assert cli("ask", "what is paris ?", *parts, "--passage-encoder", passage).stderr == ""


@pytest.mark.parametrize(
    ("question", "problem"),
    [
        ("", "the question is empty"),
        (" \t", "the question is empty"),
        ("who " * 600, "shorten it"),
        ("\udcff", "not UTF-8"),
    ],
)
def test_questions_that_cannot_be_asked(question, problem, model, memory) -> None:
    assert problem in cli("ask", question, "-m", model, "-i", memory).error()
    assert problem in cli("classify", question, "one", "two", "-m", model, "-i", memory).error()


@pytest.mark.parametrize(
    ("labels", "problem"), [(["one"], "two or more"), (["one", "one"], "twice"), (["one", " "], "empty")]
)
def test_labels_that_cannot_be_compared(labels, problem, model, memory) -> None:
    assert problem in cli("classify", QUESTION, *labels, "-m", model, "-i", memory).error()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--beams", 0], "--beams=0"),
        (["--beams", 2, "--best", 3], "--best=3"),
        (["--max-tokens", 0], "--max-tokens=0"),
        (["--min-tokens", 9], "leaves no room"),
        (["--top-p", 2], "--top-p=2.0"),
        (["--temperature", 0], "--temperature=0.0"),
        (["--stop", ""], "stop="),
        (["-k", 0], "k=0"),
        (["--variant", "token", "--decoding", "fast"], "RAG-Token has one decoder"),
        (["--sample", "--decoding", "thorough"], "--sample needs"),
        (["--as-of", 9], "has no version 9"),
        (["--encoder", "x"], "give either -m, or"),
    ],
)
def test_options_that_cannot_be(options, problem, model, memory) -> None:
    assert problem in cli("ask", QUESTION, "-m", model, "-i", memory, *options).error()


@pytest.mark.parametrize("given", ["--encoder", "--generator", "--passage-encoder"])
def test_half_a_model(given, memory) -> None:
    assert "give --encoder and --generator" in cli("ask", QUESTION, given, "x", "-i", memory).error()


def test_a_pickle_offered_as_memory(model, tmp_path) -> None:
    (tmp_path / "index.pkl").write_bytes(b"\x80\x04.")
    error = cli("ask", QUESTION, "-m", model, "-i", tmp_path / "index.pkl").error()
    assert "pickles and foreign indexes are never loaded" in error


@pytest.mark.parametrize(
    "arguments", [["ask", "a", "b"], ["ask", "x", "--variant", "both"], ["nonsense"], ["score", "--lines", 3]]
)
def test_usage_errors(arguments) -> None:
    done = cli(*arguments)
    assert (done.code, done.stdout) == (2, "")
    assert "Usage: " in done.stderr
    assert "Error: " in done.stderr


def test_a_bug_keeps_its_traceback(memory, monkeypatch) -> None:
    def bug(*_args: object, **_options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("latentrag.assemble.open_memory", bug)
    with pytest.raises(ZeroDivisionError):
        cli("index", "log", memory)


def test_too_little_memory_on_a_device(memory, monkeypatch) -> None:
    said = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.78 GiB of which …"

    def full(*_: object, **__: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr("latentrag.assemble.load", full)
    line = cli("ask", "who", "-m", "any", "-i", memory).error()
    assert line.startswith("error: CUDA out of memory. Tried to allocate 2.00 GiB; lower -k or --beams")


def test_control_c(memory, monkeypatch) -> None:
    def interrupted(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("latentrag.assemble.open_memory", interrupted)
    done = cli("index", "log", memory)
    assert (done.code, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("arguments", [["index", "log", "MEMORY", "--json"], ["index", "log", "MEMORY"]])
def test_a_reader_that_has_gone_is_no_error(arguments, memory) -> None:
    arguments = [str(memory) if each == "MEMORY" else each for each in arguments]
    command = [sys.executable, "-c", "from latentrag.cli.main import run; run()", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_other_libraries_add_no_lines(model, encoder, tmp_path) -> None:
    """transformers logs that a passage is longer than its model reads, which is shortened anyway."""
    (tmp_path / "long.txt").write_text("one two three " * 30)
    assert cli("index", "add", tmp_path / "m.lance", tmp_path / "long.txt", "--encoder", encoder).code == 0
    arguments = ["ask", "who wrote emma ?", "-m", str(model), "-i", str(tmp_path / "m.lance"), "-k", "1", "--json"]
    command = [sys.executable, "-c", "from latentrag.cli.main import run; run()", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""


HEAVY = {"torch", "transformers", "lance", "faiss", "pyarrow", "numpy", "rich"}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["ask", "--help"], ["index", "--help"]])
def test_help_imports_nothing_heavy(arguments) -> None:
    code = "import atexit, sys; atexit.register(lambda: sys.stderr.write(' '.join(sys.modules)));"
    command = [sys.executable, "-c", code + "from latentrag.cli.main import run; run()", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "latentrag" in done.stdout
    assert set(done.stderr.split()) & HEAVY == set()
    assert "latentrag.cli.main" in done.stderr.split()


WITHOUT = """
import sys, tempfile
tempfile._candidate_tempdir_list = lambda: ["/nowhere"]
from latentrag.cli.main import run
sys.argv = ["latentrag", *sys.argv[1:]]
run()
"""


def test_no_folder_for_temporary_files(model, memory) -> None:
    """As on a read-only root, which test_environments.py mounts: torch looks for one when it is imported."""
    command = [sys.executable, "-c", WITHOUT, "ask", QUESTION, "-m", model, "-i", memory]
    known = {key: value for key, value in os.environ.items() if key != "TORCHINDUCTOR_CACHE_DIR"}  # torch sets it
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=known)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: no folder for temporary files can be written")
    assert "set TMPDIR" in line
