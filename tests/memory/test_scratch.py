"""Folders for files of a change under way: in use they stay, whoever sweeps; left by killed processes they go."""

import tempfile
from typing import Any

import pytest

from latentrag.errors import MemoryStoreError
from latentrag.memory.scratch import FOLDER, scratch_folder, sweep


def test_a_folder_in_use_is_not_swept_away(tmp_path):
    (tmp_path / FOLDER / "left").mkdir(parents=True)
    with scratch_folder(tmp_path) as first:
        assert [first] == list((tmp_path / FOLDER).iterdir())
        with scratch_folder(tmp_path) as second:
            assert first.is_dir()
            assert second.is_dir()
            sweep(tmp_path)
            assert second.is_dir()
        assert not second.exists()
    assert list(tmp_path.iterdir()) == []


def test_one_that_is_swept_away_before_it_has_its_lock_is_made_again(tmp_path, monkeypatch):
    made, folders = tempfile.mkdtemp, []

    def swept(**where: Any) -> str:
        folders.append(made(**where))
        if len(folders) == 1:
            sweep(tmp_path)
        return folders[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", swept)
    with scratch_folder(tmp_path) as folder:
        assert str(folder) == folders[1]
        assert folder.is_dir()


def test_a_memory_that_cannot_be_written_costs_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MemoryStoreError, match="file cannot be written"), scratch_folder(tmp_path / "file"):
        pass
