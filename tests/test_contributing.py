"""CONTRIBUTING.md tells the truth: its files and tests are there, and no change touches more than three files."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAKE = shutil.which("make")
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT[TEXT.index("| to add |") :].splitlines()[2:]
    if line.startswith("|")
]


def test_there_are_eleven_everyday_changes() -> None:
    assert len(ROWS) == 11


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_its_files_and_its_test_are_there(row: list[str]) -> None:
    _, write, touch, groups, test = row
    own = re.findall(r"`(src/[^`]+)`", write + touch)
    new = re.findall(r"`([a-z_/]+/NEW\.py)`", write)
    assert own
    assert 1 <= len({*own, *new}) <= 3
    for path in own:
        assert (ROOT / path).is_file(), path
    for path in new:
        assert (ROOT / "src/latentrag" / path).parent.is_dir(), path
    file, _, name = test.strip("`").partition("::")
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text("utf-8"), re.MULTILINE), test
    sources = [path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py")]
    for group in re.findall(r"`(latentrag\.[a-z.]+)`", groups):
        assert sum(f'group="{group}"' in source for source in sources) == 1, f"{group} is the group of one table"


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`?make ([a-z0-9-]+)", TEXT))))
def test_its_make_targets_are_there(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md"])
def test_the_rooms_that_are_listed_are_there(file: str) -> None:
    text = (ROOT / file).read_text("utf-8")
    lists = [part for part in re.findall(r"(?:^    .*\n)+", text, re.MULTILINE) if "marginal/" in part]
    (tree,) = lists
    listed = set(re.findall(r"(?<![\w/.])([a-z_]+(?:/|\.py))(?=[ ,\n])", tree))
    room = ROOT / "src/latentrag"
    assert {name for name in listed if not (room / name).exists()} == set()
    rooms = {f"{path.parent.name}/" for path in room.glob("*/__init__.py")}
    assert rooms - listed == set()


@pytest.mark.skipif(MAKE is None, reason="make is not installed")
def test_make_help_lists_every_target_with_a_text() -> None:
    described = re.findall(r"^([\w-]+):.*##", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    said = subprocess.run([str(MAKE), "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^make (\S+)", said, re.MULTILINE) == described
