"""Every writer on a real disk of 8 MB, at 20 levels of what is left of it."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from latentrag.memory import Memory
from latentrag.memory.verify import verify
from tests.cli.conftest import cli
from tests.cli.test_disks import FULL

pytestmark = pytest.mark.environment
PAGE = 4096
LEVELS = [*range(13), 16, 20, 24, 32, 48, 64, 96]
"""Pages that are left, 0 to 384 kB."""
MAKING_ROOM = ("prune", "forget")


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A file system in RAM."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if mount is None or umount is None:
        pytest.skip("no mount")
    made = subprocess.run([mount, "-t", "tmpfs", "-o", "size=8m", "none", folder], check=False, capture_output=True)
    if made.returncode:
        pytest.skip(f"a file system of its own cannot be mounted here: {made.stderr.decode().strip()}")
    yield folder
    subprocess.run([umount, "-l", folder], check=True)


def fill(disk: Path, pages: int) -> None:
    """Leave so many pages free."""
    with (disk / "filler").open("wb", buffering=0) as filler:
        left = os.statvfs(disk)
        filler.write(bytes((left.f_bfree - pages) * left.f_bsize))
    assert os.statvfs(disk).f_bfree == pages


@pytest.mark.parametrize("command", FULL)
def test_a_writer_at_every_level(disk, memory, files, encoder, command) -> None:
    """It is done, or costs one line and leaves the memory whole; with room it is done afterwards."""
    refused = []
    for pages in LEVELS:
        place = disk / "place"
        own = shutil.copytree(memory, place / "own.lance")
        Memory.open(own).build_index("ivf-rabitq")
        assert cli("index", "delete", own, "emma.txt").code == 0
        shutil.copytree(files, disk / "notes")
        (disk / "more.txt").write_text("The moon is blue.")
        arguments = ["index", *FULL[command](own, disk / "more.txt", encoder)]
        fill(disk, pages)
        done = cli(*arguments)
        if done.code:
            refused.append(pages)
            assert "make room" in done.error(), (pages, done)
            (disk / "filler").unlink()
            assert verify(own).problems == [], pages
            assert Memory.open(own).version == 3, pages
            done = cli(*arguments)
        assert done.code == 0, (pages, done)
        assert verify(own).problems == [], pages
        for each in (place, disk / "notes"):
            shutil.rmtree(each)
        (disk / "filler").unlink(missing_ok=True)
    if command in MAKING_ROOM:
        assert refused == []


def test_forgetting_makes_its_room_of_older_versions(disk, encoder) -> None:
    """Where the newest version cannot be written anew, those that go anyway go first."""
    own, text = disk / "own.lance", disk / "long.txt"
    for version in ("one", "two"):
        text.write_text(f"{version} " * 20_000)
        assert cli("index", "sync", own, disk, "--encoder", encoder, "--name", "notes").code == 0
    (disk / "short.txt").write_text("The moon is blue.")
    assert cli("index", "add", own, disk / "short.txt", "--encoder", encoder).code == 0
    fill(disk, 0)
    ids = [passage.id for passage in Memory.open(own).passages() if passage.id != "short.txt"]
    done = cli("index", "forget", own, *ids)
    assert (done.code, verify(own).problems) == (0, [])
    assert [passage.id for passage in Memory.open(own).passages()] == ["short.txt"]
