"""A bit of a data file that is wrong, wherever it is: one line, and nothing that was there is lost."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from latentrag.errors import LatentRagError
from latentrag.memory import Memory, upkeep
from latentrag.memory.verify import verify
from latentrag.memory.version_files import version_numbers
from latentrag.protocols import PassageEncoder

QUERY = np.ones((1, 8), np.float32)
ACTIONS: dict[str, Callable[[Path, PassageEncoder], object]] = {
    "search": lambda path, _: Memory.open(path).search(QUERY, 3),
    "passages": lambda path, _: list(Memory.open(path).passages()),
    "build": lambda path, _: Memory.open(path).build_index("ivf-rabitq"),
    "delete": lambda path, _: Memory.open(path).delete(["p0"]),
    "compact": lambda path, _: upkeep.compact(path),
    "reencode": lambda path, encoder: Memory.open(path).reencode(encoder),
    "forget": lambda path, _: upkeep.forget(path, ["p5"]),
    "prune": lambda path, _: upkeep.prune(path, keep=1),
}


def places(size: int) -> list[int]:
    """Some of the rows, and of the footer, which says what is where."""
    return [*range(0, size, size // 7), size - 1, size - 8, size - 20, size - 40]


@pytest.mark.parametrize("name", list(ACTIONS))
def test_a_wrong_bit_costs_one_line_at_most_and_is_found_by_verify(path, encoder, filled, tmp_path, name):
    filled.delete(["p3", "p4"])
    (data,) = (path / "data").iterdir()
    content = data.read_bytes()
    errors = []
    for place in places(len(content)):
        other = shutil.copytree(path, tmp_path / "other.lance")
        wrong = content[:place] + bytes([content[place] ^ 0x81]) + content[place + 1 :]
        (other / "data" / data.name).write_bytes(wrong)
        before = version_numbers(other)
        assert any("is not as it was written" in problem.what for problem in verify(other).problems)
        try:
            ACTIONS[name](other, encoder)
        except LatentRagError as error:
            errors.append(str(error))
            assert version_numbers(other)[: len(before)] == before
        shutil.rmtree(other)
    assert errors
    assert all("index verify" in error and "\n" not in error for error in errors)
