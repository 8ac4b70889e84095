"""A folder of 2,000 files synced into a memory: how long it takes, what an interruption costs, what a second sync does.

    python -m benchmarks.sync --work FOLDER [--files 2000] [--model demo] [--seed 0] [--json FILE]

The script makes the files: text, HTML and PDF in equal parts, ten in a thousand broken. `latentrag index sync` runs as
a process of its own, as users start it: once undisturbed; then into another memory, ended by SIGKILL, SIGKILL and
SIGINT after so many commits and finished by a fourth run; then again with nothing to do, and with its notes lost.
Both memories must hold the same passages and vectors, and the second sync must neither commit nor encode. Beside it
stand what reading the files once costs, and what starting the command costs. By default the encoder is tiny and random,
so that the time is that of the sync; --model demo encodes with the demo's.
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentrag.memory import Memory
from latentrag.memory.version_files import version_numbers
from tests.corpus import making
from tests.encoder.tiny import write_sentence_encoder

WORDS = """a an the of in is was who what where when which capital city river moon sun planet king queen opera emma
novel author question answer title text it he she they one two three four five red blue green""".split()
BROKEN_EVERY = 100
COMMAND = [sys.executable, "-c", "from latentrag.cli.main import run; run()"]


# The folder


def make_files(folder: Path, count: int, *, seed: int) -> int:
    """Text, HTML and PDF in turn, of 20 to 500 words; returns how many of them are broken."""
    drawn = random.Random(seed)  # noqa: S311
    broken = 0
    for number in range(count):
        words = [f"file{number}", *drawn.choices(WORDS, k=drawn.randint(20, 500))]
        lines = [" ".join(words[start : start + 12]) for start in range(0, len(words), 12)]
        suffix, content = (_text, _html, _pdf)[number % 3](lines)
        if number % BROKEN_EVERY == BROKEN_EVERY // 2:
            suffix, content = _broken(broken, suffix, content)
            broken += 1
        file = folder / f"{number % 20:02}" / f"{number:05}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return broken


def _text(lines: list[str]) -> tuple[str, bytes]:
    return ".txt", "\n".join(lines).encode()


def _html(lines: list[str]) -> tuple[str, bytes]:
    body = "".join(f"<p>{line}.</p>\n" for line in lines)
    page = f"<html><head><title>{lines[0][:30]}</title></head><body><nav>menu</nav><main>{body}</main></body></html>"
    return ".html", page.encode()


def _pdf(lines: list[str]) -> tuple[str, bytes]:
    return ".pdf", making.pdf([lines[start : start + 20] for start in range(0, len(lines), 20)])


def _broken(number: int, suffix: str, content: bytes) -> tuple[str, bytes]:
    """Cut short, encrypted, of another encoding, or something else under that name."""
    ways: tuple[tuple[str, bytes], ...] = (
        (".pdf", content[: len(content) // 3] if suffix == ".pdf" else b"%PDF-1.4\nnothing more"),
        (".pdf", making.pdf([["secret"]], encrypted=True)),
        (".txt", b"caf\xe9 " + content[:200].replace(b"\0", b"")),
        (".docx", b"PK\x03\x04 not an archive"),
        (".jsonl", b'{"id": "1", "text": "one"}\n{"id": "2", '),
    )
    return ways[number % len(ways)]


# The command


@dataclass(frozen=True)
class Sync:
    """`latentrag index sync` of this folder into a memory."""

    memory: Path
    folder: Path
    encoder: list[str]
    passages_per_commit: int

    def start(self) -> subprocess.Popen[str]:
        command = [*COMMAND, "index", "sync", str(self.memory), str(self.folder), *self.encoder]
        more = ["--commit-every", str(self.passages_per_commit), "--json"]
        return subprocess.Popen(  # noqa: S603
            [*command, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self) -> dict[str, Any]:
        """Its JSON, and the seconds that it took. Raises: RuntimeError if it fails."""
        started, used = time.perf_counter(), children_cpu_s()
        process = self.start()
        out, err = process.communicate()
        if process.returncode:
            raise RuntimeError(f"sync ended with {process.returncode}: {err}")
        wall_s = time.perf_counter() - started
        return {**json.loads(out), "wall_s": wall_s, "cpu_s": children_cpu_s() - used}

    def interrupted(self, by: signal.Signals, *, after_commits: int, delay_s: float) -> dict[str, Any]:
        """End it when the memory has so many versions more. Raises: AssertionError if it was done before that."""
        before = self._num_versions()
        started = time.perf_counter()
        with self.start() as process:
            while process.poll() is None and self._num_versions() < before + after_commits:
                time.sleep(0.005)
            time.sleep(delay_s)
            process.send_signal(by)
            _, err = process.communicate()
        wall_s = time.perf_counter() - started
        expected = 130 if by == signal.SIGINT else -by
        assert process.returncode == expected, (process.returncode, err)
        assert "Traceback" not in err
        return {"signal": by.name, "wall_s": wall_s, "passages": len(Memory.open(self.memory))}

    def _num_versions(self) -> int:
        return len(version_numbers(self.memory)) if (self.memory / "_versions").is_dir() else 0


def children_cpu_s() -> float:
    """Of the processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def contents(path: Path) -> dict[str, tuple[Any, bytes]]:
    """Passage and vector by id."""
    memory = Memory.open(path)
    vectors = [row.tobytes() for _, block in memory._table.vectors() for row in block]  # noqa: SLF001
    found = {passage.id: (passage, vector) for passage, vector in zip(memory.passages(), vectors, strict=True)}
    assert len(found) == len(memory)
    return found


def state(path: Path) -> dict[str, int]:
    """When each file of a memory was written, its notes on the folder aside."""
    files = [file for file in path.rglob("*") if file.is_file() and file.parent.name != "_sync"]
    return {str(file): file.stat().st_mtime_ns for file in files}


# Measuring


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def measure(work: Path, *, num_files: int, encoder: list[str], seed: int) -> dict[str, Any]:
    """Raises: AssertionError if a memory is not what it has to be."""
    folder = work / "folder"
    num_broken = make_files(folder, num_files, seed=seed)
    files = [file for file in folder.rglob("*") if file.is_file()]
    report: dict[str, Any] = {
        "files": len(files),
        "bytes": sum(file.stat().st_size for file in files),
        "broken": num_broken,
        "read_all_s": seconds(lambda: [file.read_bytes() for file in files]),
        "start_s": seconds(lambda: subprocess.run([*COMMAND, "--version"], check=True, capture_output=True)),  # noqa: S603
    }
    per_commit = max(1, num_files // 5)  # about a dozen commits
    whole, cut = (Sync(work / f"{name}.lance", folder, encoder, per_commit) for name in ("whole", "cut"))
    report["undisturbed"] = found = whole.run()
    say("undisturbed", found)
    assert found["files"]["skipped"] == num_broken

    drawn = random.Random(seed)  # noqa: S311
    report["interrupted"] = []
    for by in (signal.SIGKILL, signal.SIGKILL, signal.SIGINT):
        one = cut.interrupted(by, after_commits=drawn.randint(2, 3), delay_s=drawn.uniform(0, 0.2))
        say("interrupted", one)
        report["interrupted"].append(one)
    report["finished"] = cut.run()
    say("finished", report["finished"])
    assert contents(cut.memory) == contents(whole.memory), "the interrupted memory differs"

    before = state(cut.memory)
    report["second"] = cut.run()
    say("second", report["second"])
    assert report["second"]["version"] == report["finished"]["version"], "the second sync has committed"
    assert report["second"]["passages"]["encoded"] == 0
    assert state(cut.memory) == before, "the second sync has written to the memory"
    shutil.rmtree(cut.memory / "_sync")
    report["without_notes"] = cut.run()
    say("without notes", report["without_notes"])
    assert report["without_notes"]["version"] == report["finished"]["version"]
    assert report["without_notes"]["passages"]["encoded"] == 0
    return report


def say(what: str, found: dict[str, Any]) -> None:
    print(f"{what}: {found['wall_s']:.1f} s", file=sys.stderr)


def table(report: dict[str, Any]) -> str:
    head = (
        f"{report['files']} files, {report['bytes'] / 1e6:.1f} MB, {report['broken']} broken; reading them once "
        f"{report['read_all_s']:.2f} s, starting the command {report['start_s']:.2f} s"
    )
    lines = [
        head,
        "",
        "| run | wall s | CPU s | passages encoded | passages then |",
        "|---|---|---|---|---|",
    ]
    for name in ("undisturbed", "interrupted", "finished", "second", "without_notes"):
        for row in report[name] if name == "interrupted" else [report[name]]:
            if name == "interrupted":
                cells = (f"ended by {row['signal']}", f"{row['wall_s']:.1f}", "", "", row["passages"])
            else:
                passages = row["passages"]
                times = (f"{row['wall_s']:.1f}", f"{row['cpu_s']:.1f}")
                cells = (name.replace("_", " "), *times, passages["encoded"], passages["in_all"])
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder that is emptied first")
    parser.add_argument("--files", type=int, default=2_000)
    parser.add_argument("--model", help="in place of a tiny random encoder: demo, or a model folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write all figures")
    given = parser.parse_args()
    work = given.work / "bench-sync"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    if given.model is None:
        encoder = ["--encoder", str(write_sentence_encoder(work / "encoder", head=["Normalize"]))]
    else:
        encoder = ["-m", given.model]
    # Where this was started in the background it ignores the signal, and so would what it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    report = measure(work, num_files=given.files, encoder=encoder, seed=given.seed)
    report["machine"] = {"cpus": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()}
    if given.json:
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(table(report))


if __name__ == "__main__":
    main()
