"""The log survives kills and resumption; progress stays readable in a file and on a terminal."""

import io
import json
import sys
from types import SimpleNamespace

import pytest

from latentrag.errors import DataError, TrainingError
from latentrag.training.log import Progress, TrainingLog, read_log

TENSORBOARD = "torch.utils.tensorboard"


@pytest.fixture(autouse=True)
def without_tensorboard(monkeypatch):
    monkeypatch.setitem(sys.modules, TENSORBOARD, None)


def steps(path) -> list[int]:
    return [record["step"] for record in read_log(path)]


def test_lines(tmp_path):
    with TrainingLog(tmp_path / "run", append=False) as log:
        log.write("start", 0, model="tiny")
        log.write("train", 1, loss=2.5, lr={"retriever": 1e-5})
        # Before closing: a kill must not lose it.
        assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 2
        log.write("dev", 1, gap=float("nan"), health={"nll": float("inf"), "top": [1, float("-inf")]})
        log.write("warning", 1, message="naïve Ελλάδα\n")
    start, train, dev, warning = read_log(log.path)
    assert {key: start[key] for key in ("step", "event", "model")} == {"step": 0, "event": "start", "model": "tiny"}
    assert train["loss"] == 2.5
    assert train["lr"] == {"retriever": 1e-5}
    assert train["time_s"] >= start["time_s"] > 1.7e9
    assert dev["gap"] is None
    assert dev["health"] == {"nll": None, "top": [1, None]}
    assert warning["message"] == "naïve Ελλάδα\n"
    assert "NaN" not in log.path.read_text()


def test_a_new_run_begins_anew_and_a_resumed_one_goes_on(tmp_path):
    for append, expected in ((False, [1]), (True, [1, 2]), (False, [3])):
        with TrainingLog(tmp_path, append=append) as log:
            log.write("train", expected[-1])
        assert steps(log.path) == expected


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path, cut):
    with TrainingLog(tmp_path, append=False) as log:
        log.write("train", 1, text="Ελ")
        log.write("train", 2, text="Ελ")
    content = log.path.read_bytes()
    log.path.write_bytes(content[:-cut])
    assert steps(log.path) == [1]
    with TrainingLog(tmp_path, append=True) as log:
        log.write("train", 2, text="Ελ")
    assert steps(log.path) == [1, 2]
    assert log.path.read_bytes().startswith(content[: content.index(b"\n") + 1])


def test_lines_after_the_checkpoint_are_dropped(tmp_path):
    with TrainingLog(tmp_path, append=False) as log:
        for step in range(6):
            log.write("train", step, loss=1 / 3 + step)
        log.write("dev", 3, nll=2.0)
    before = log.path.read_text().splitlines()
    with TrainingLog(tmp_path, append=True) as log:
        log.drop_after(3)
        assert log.path.read_text().splitlines() == [*before[:4], before[6]]
        log.write("resume", 3)
    assert steps(log.path) == [0, 1, 2, 3, 3, 3]
    assert [file.name for file in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_log_that_cannot_be_rewritten_stays_as_it_is(tmp_path, monkeypatch):
    with TrainingLog(tmp_path, append=False) as log:
        log.write("train", 1)
        log.write("train", 2)
        monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(TrainingError, match=r"log.jsonl cannot be written \(disk full\); make room"):
            log.drop_after(1)
    assert steps(log.path) == [1, 2]
    assert [file.name for file in tmp_path.iterdir()] == ["log.jsonl"]


@pytest.mark.parametrize("line", ["{", "[1]", '{"event": "train"}', "\xff"])
def test_a_spoilt_line_is_named(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line.encode("latin-1") + b'\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"log.jsonl:2 is not a line"):
        read_log(path)


def test_no_log(tmp_path):
    with pytest.raises(DataError, match="is missing"):
        read_log(tmp_path / "log.jsonl")


class FakeWriter:
    """Keeps what TensorBoard would get."""

    made: list["FakeWriter"]

    def __init__(self, folder: str, purge_step: int | None) -> None:
        self.folder, self.purge_step, self.closed = folder, purge_step, False
        self.scalars: list[tuple[str, float, int]] = []
        self.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def flush(self) -> None: ...

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def writers(monkeypatch) -> list[FakeWriter]:
    FakeWriter.made = []
    monkeypatch.setitem(sys.modules, TENSORBOARD, SimpleNamespace(SummaryWriter=FakeWriter))
    return FakeWriter.made


def test_numbers_go_to_tensorboard(tmp_path, writers):
    with TrainingLog(tmp_path, append=False) as log:
        log.write("train", 4, loss=2.5, lr={"retriever": 1e-5}, phase="joint", best=True, gap=None)
    (writer,) = writers
    assert writer.folder == str(tmp_path / "tensorboard")
    assert writer.scalars == [("train/loss", 2.5, 4), ("train/lr/retriever", 1e-5, 4)]
    assert writer.purge_step is None
    assert writer.closed


def test_tensorboard_forgets_the_steps_after_the_checkpoint(tmp_path, writers):
    with TrainingLog(tmp_path, append=False, enabled=False) as log:
        log.write("train", 4)
    assert (writers, list(tmp_path.iterdir())) == ([], [])
    with TrainingLog(tmp_path, append=False) as log:
        log.write("train", 4)
    del writers[:]
    with TrainingLog(tmp_path, append=True) as log:
        log.drop_after(3)
        log.write("train", 4, loss=1)
    assert writers[0].purge_step == 4


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_in_a_file_a_plain_line_every_half_minute_and_at_the_end(capsys):
    clock = Clock()
    with Progress(10, clock=clock) as progress:
        progress.phase("joint")
        for step in range(1, 11):
            clock.now += 8
            progress.update(step, loss=float(step), num_tokens=4000)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "step 4/10 · joint · loss 2.5000 · 500 tokens/s · 0:00:48 left",
        "step 8/10 · joint · loss 4.5000 · 500 tokens/s · 0:00:16 left",
        "step 10/10 · joint · loss 5.5000 · 500 tokens/s · 0:00:00 left",
    ]


def test_an_evaluation_slows_no_step_but_counts_in_the_time_left(capsys):
    clock = Clock()
    with Progress(4, start=1, interval_s=0, clock=clock) as progress:
        clock.now += 10
        progress.update(2, loss=1.0, num_tokens=100)
        progress.phase("dev")
        clock.now += 80
        progress.phase("joint")
        clock.now += 10
        progress.update(3, loss=1.0, num_tokens=100)
    assert capsys.readouterr().err.splitlines()[-1] == "step 3/4 · joint · loss 1.0000 · 10 tokens/s · 0:00:50 left"


def test_the_loss_shown_is_the_mean_of_the_last_fifty_steps(capsys):
    with Progress(100, interval_s=1e9, clock=Clock()) as progress:
        for step in range(1, 101):
            progress.update(step, loss=float(step), num_tokens=1)
    assert "loss 75.5000" in capsys.readouterr().err


def test_switched_off_it_says_nothing(capsys):
    with Progress(1, enabled=False) as progress:
        progress.phase("joint")
        progress.update(1, loss=1.0, num_tokens=1)
        progress.say("message")
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_one_live_line_with_messages_above(monkeypatch):
    for name, value in {"TERM": "xterm", "COLUMNS": "120"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with Progress(2, clock=Clock()) as progress:
        progress.update(1, loss=1.25, num_tokens=1)
        progress.say("WARNING [bold]:smile: " + "long " * 40)
        progress.update(2, loss=0.75, num_tokens=1)
    shown = terminal.getvalue()
    assert "step 2/2 · loss 1.0000" in shown
    assert "WARNING [bold]:smile: " + "long " * 40 in shown
    assert "\x1b[" in shown  # it renews itself


def test_a_terminal_that_cannot_renew_a_line_gets_plain_ones(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with Progress(1) as progress:
        progress.update(1, loss=1.0, num_tokens=1)
    assert terminal.getvalue().startswith("step 1/1 · loss 1.0000")
    assert "\x1b" not in terminal.getvalue()


def test_lines_are_json_that_other_tools_read(tmp_path):
    with TrainingLog(tmp_path, append=False) as log:
        log.write("done", 7, loss=1.0)
    assert json.loads(log.path.read_text())["event"] == "done"
