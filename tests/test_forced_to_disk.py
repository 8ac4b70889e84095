"""What is renamed into place has been forced to the disk before: a power failure leaves no name without its content."""

import json
import os
from pathlib import Path

import pytest

from latentrag import demo
from latentrag.encoder import load_query_encoder
from tests.demo.test_demo import settings, shop  # noqa: F401  fixtures
from tests.encoder.tiny import write_sentence_encoder


@pytest.fixture
def unsynced(monkeypatch) -> list[str]:
    """Gathers the files that are renamed before they were forced to the disk, memories' aside, which see to that
    themselves."""
    synced: set[int] = set()
    early: list[str] = []
    fsync = os.fsync

    def noted(handle: int) -> None:
        synced.add(os.fstat(handle).st_ino)
        fsync(handle)

    def watched(name: str):
        move = getattr(Path, name)

        def moved(self: Path, target: Path) -> Path:
            files = [path for path in (self, *self.rglob("*")) if path.is_file() and ".lance" not in str(path)]
            # One that another library wrote to a scratch name of ours is synced under that name.
            if not str(target).endswith((".new", ".old")):
                early.extend(str(path) for path in files if path.stat().st_ino not in synced)
            moved_to: Path = move(self, target)
            return moved_to

        return moved

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "rename", watched("rename"))
    monkeypatch.setattr(Path, "replace", watched("replace"))
    return early


def test_the_demo(unsynced, shop, settings) -> None:  # noqa: F811
    demo.prepare(settings, pip=shop)
    assert (settings.models / "demo" / "latentrag.json").exists()
    assert unsynced == []


def test_an_encoder_that_is_saved_over_itself(unsynced, tmp_path) -> None:
    folder = write_sentence_encoder(tmp_path / "encoder")
    (folder / "notes.json").write_text(json.dumps("of the user"))
    load_query_encoder(folder).save(folder)
    assert json.loads((folder / "notes.json").read_text()) == "of the user"
    assert unsynced == []
