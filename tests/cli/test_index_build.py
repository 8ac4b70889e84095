"""index build."""

import shutil
from pathlib import Path

import pytest

from latentrag.errors import InputError
from latentrag.memory import Memory
from latentrag.options import size_in_bytes
from tests.cli.conftest import QUESTION, cli


@pytest.fixture
def own(memory, tmp_path) -> Path:
    """A memory that the test may change."""
    return shutil.copytree(memory, tmp_path / "own.lance")


def test_build_says_what_it_built_and_the_memory_is_searched_by_it(own, model) -> None:
    before = cli("ask", QUESTION, "-m", model, "-i", own, "--json").json
    done = cli("index", "build", own, "--index", "ivf-rabitq", "--max-memory", "4GB", "--json")
    assert (done.code, done.stderr) == (0, "")
    made = done.json
    assert {made.pop(name) >= 0 for name in ("ram_bytes", "disk_bytes", "wall_s")} == {True}
    assert made == {
        "memory": str(own),
        "kind": "ivf-rabitq",
        "version": 2,
        "num_passages": 4,
        "recall": 1.0,
        "effort": 1.0,
    }
    assert Memory.open(own).index.kind == "ivf-rabitq"
    assert cli("ask", QUESTION, "-m", model, "-i", own, "--json").json == before

    shown = cli("index", "build", own, "--index", "ivf-rabitq").stdout
    assert shown.startswith(f"{own} version 2: ivf-rabitq of 4 passages in ")
    assert shown.endswith("on disk; finds 100.0% of the five best\n")
    assert cli("index", "build", own).stdout.startswith(f"{own} version 2: flat of 4 passages")
    assert Memory.open(own).index.kind == "flat"


def test_a_bound_that_cannot_be_kept_is_one_line(own) -> None:
    error = cli("index", "build", own, "--index", "ivf-rabitq", "--max-memory", "100 MB").error()
    assert "needs 0.29 GB of memory, it may take 0.10 GB; give it more" in error
    assert not (own / "_indexes").exists()
    assert (
        "--max-memory 'lots' is not a size; give a number with MB or GB"
        in cli("index", "build", own, "--max-memory", "lots").error()
    )
    refused = cli("index", "build", own, "--index", "sq8")
    assert refused.error().endswith("index 'sq8' is unknown; needed one of auto, flat, ivf-rabitq")


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4 * 10**9), ("1.5 GiB", 3 << 29), ("800m", 800 * 10**6), ("12", 12), ("2k", 2_000), ("1TB", 10**12)],
)
def test_sizes(text, size) -> None:
    assert size_in_bytes(text, "it") == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "4 gigs", "4GB!", "1e9", "٤GB", "nan"])
def test_what_is_no_size(text) -> None:
    with pytest.raises(InputError, match="it .* is not a size"):
        size_in_bytes(text, "it")
