"""Ended at moments that nobody chose: what was committed stays, the next run goes on, the end is the same."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.corpus import making
from tests.sync.conftest import Synced, checked_passages, words_of

ROOT = Path(__file__).parent.parent.parent
NUM_FILES, NUM_BROKEN, LIMIT = 300, 20, 50


def fill(synced: Synced) -> None:
    """Some hundred small files, five kinds, every fifteenth broken."""
    for i in range(NUM_FILES):
        if i % 15 == 7:
            broken = (".txt", f"broken {i} ".encode() + b"\xff\x00") if i % 2 else (".pdf", b"%PDF-1.4\nno more")
            synced.write(f"{i % 10}/{i:03}{broken[0]}", broken[1])
        elif i % 15 == 4:
            synced.write(f"{i % 10}/{i:03}.html", f"<title>t{i}</title><p>" + " ".join(f"f{i}w{j}" for j in range(20)))
        elif i % 15 == 5:
            lines = [" ".join(f"f{i}w{j}" for j in range(start, start + 5)) for start in range(0, 20, 5)]
            synced.write(f"{i % 10}/{i:03}.pdf", making.pdf([lines[:2], lines[2:]]))
        elif i % 3:
            synced.write(f"{i % 10}/{i:03}.txt", " ".join(f"f{i}w{j}" for j in range(i % 37)))
        else:
            records = [{"id": f"{i}-{j}", "text": f"row {j} of {i}"} for j in range(i % 7)]
            synced.write(f"{i % 10}/{i:03}.jsonl", "".join(json.dumps(record) + "\n" for record in records))


def edit(synced: Synced) -> None:
    """Appends, cuts, renames, deletions, new files."""
    for i, file in enumerate(sorted(synced.folder.rglob("*.txt")) + sorted(synced.folder.rglob("*.jsonl"))):
        if i % 15 == 0:
            file.unlink()
        elif i % 15 == 1:
            file.rename(file.with_name(f"renamed{i}{file.suffix}"))
        elif i % 3 == 0 and file.suffix == ".txt":
            file.write_bytes(file.read_bytes() + f" more of {i} and".encode() + b" more" * 9)
        elif i % 3 == 1:
            file.write_text("".join(file.read_text(errors="ignore").splitlines(keepends=True)[1:]))
        elif i % 3 == 2 and file.suffix == ".txt":
            synced.write(f"new/{i}.txt", f"new text {i}")


def run_and_end(synced: Synced, notes: Path, *, after_files: int, by: signal.Signals = signal.SIGKILL) -> None:
    command = [sys.executable, "-m", "tests.sync.killed_run", str(synced.path), str(synced.folder), str(notes)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= after_files:
                process.send_signal(by)
                break
        process.wait()
        assert process.returncode == -by


def test_killed_twice_and_interrupted_once_a_sync_ends_as_if_it_had_not_been(synced: Synced, tmp_path, seed):
    chance = np.random.default_rng(seed)
    notes = tmp_path / "encoded"
    options = {"words": 10, "delete_missing": True, "passages_per_commit": LIMIT}
    fill(synced)
    run_and_end(synced, notes, after_files=int(chance.integers(20, 100)))
    committed = len(checked_passages(synced.path, synced.encoder)) if synced.path.exists() else 0
    run_and_end(synced, notes, after_files=int(chance.integers(100, 250)))
    assert len(checked_passages(synced.path, synced.encoder)) >= committed
    report = synced.sync(**options)
    assert len(report.skipped) == NUM_BROKEN
    encoded = notes.read_text().splitlines() + synced.encoder.texts
    # Each kill may cost the chunk in hand, and the passages of it that were encoded.
    assert len(synced.memory) <= len(encoded) <= len(synced.memory) + 2 * LIMIT

    edit(synced)
    run_and_end(synced, notes, after_files=int(chance.integers(150, 250)), by=signal.SIGINT)
    synced.sync(**options)
    again = Synced(tmp_path / "again")
    again.sync(synced.folder, **options)
    assert words_of(synced.passages().values()) == words_of(again.passages().values())
    assert synced.sync(**options).version == synced.memory.version
