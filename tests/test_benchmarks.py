"""The benchmarks run, and both sides find the same: a round of each with tiny models."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("module", "ways"),
    [("decoding", ["their token", "token", "exact"]), ("training_step", ["their sequence", "sequence"])],
)
def test_a_round_beside_transformers(module, ways, tmp_path) -> None:
    command = ["-m", f"benchmarks.{module}", "--size", "tiny", "--runs", "1", "--malloc", "default", "--ways", *ways]
    file = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, *command, "--json", str(file)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = {each["way"]: each["runs"][0] for each in json.loads(file.read_text("utf-8"))["ways"]}
    assert list(found) == ways
    theirs, ours = (found[way]["found"] for way in ways[:2])
    assert theirs == ours
    assert f"| {ways[0]} / {ways[1]} | default |" in done.stdout
    assert all(run["cpu_s"] > 0 and run["peak_bytes"] > 0 for run in found.values())
