"""Which files of a folder are read: what is excluded, where links lead, what names become."""

import unicodedata
from pathlib import Path
from typing import Any

import pytest

from latentrag.corpus import passages, read
from latentrag.errors import DataError, InputError


def fill(folder: Path, *names: str, **contents: str) -> Path:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(contents.get(file.stem, f"text of {name}"))
    return folder


def found(*paths: Path, **options: Any) -> tuple[list[str], dict[str, str]]:
    """Ids of the documents, and reasons by name of what was left out."""
    skipped: dict[str, str] = {}
    ids = [z.id for z in read(paths, on_skip=lambda file, reason: skipped.update({file.name: reason}), **options)]
    return ids, skipped


# What is excluded


def test_gitignore_files_exclude_as_git_reads_them(tmp_path):
    folder = fill(
        tmp_path / "f", "a.md", "node_modules/x.md", "sub/node_modules/y.md", "build/b.md", "sub/build/c.md",
        "sub/draft 1.md", "sub/keep.md", "sub/deep/d.txt", "sub/deep/kept.txt", "é.md",
    )  # fmt: skip
    (folder / ".gitignore").write_text("# ours\n\nnode_modules/\n/build\n!\né.md\n")
    (folder / "sub/.gitignore").write_text("draft*\n*.txt\n!keep.md\n")
    (folder / "sub/deep/.gitignore").write_text("!kept.txt\n")
    assert found(folder) == (["a.md", "sub/build/c.md", "sub/deep/kept.txt", "sub/keep.md"], {})
    assert len(found(folder, no_gitignore=True)[0]) == 10


def test_a_file_that_was_given_itself_is_read_though_git_ignores_it(tmp_path):
    folder = fill(tmp_path, "a.md", "b.md", "drafts/c.md")
    (folder / ".gitignore").write_text("*.md\ndrafts/\n")
    assert found(folder / "a.md")[0] == ["a.md"]
    assert found(folder / "a.md", folder / "b.md", exclude=["b*"])[0] == ["a.md"]


def test_the_repository_s_rules_hold_in_its_folders(tmp_path):
    """Unless they exclude the folder that was asked for as a whole."""
    (tmp_path / ".gitignore").write_text("*.md\n")  # above the repository
    repository = fill(tmp_path / "r", "docs/a.md", "docs/sub/b.md", "docs/c.md", "out/d.md", "out/e.txt")
    (repository / ".git").mkdir()
    (repository / ".gitignore").write_text("docs/sub\n/c.md\nout/\n*.txt\n")
    assert found(repository / "docs") == (["a.md", "c.md"], {})
    assert found(repository / "out") == (["d.md", "e.txt"], {})


def test_exclude_has_the_last_word(tmp_path):
    folder = fill(tmp_path, "a.md", "b.md", "sub/c.md", "sub/d.txt")
    (folder / ".gitignore").write_text("b.md\n")
    assert found(folder, exclude=["*.txt", "/a.md"])[0] == ["sub/c.md"]
    assert found(folder, exclude=["sub/", "!b.md"])[0] == ["a.md", "b.md"]
    assert [z.id for z in passages(folder, exclude=["sub"])] == ["a.md"]
    with pytest.raises(InputError, match=r"exclude='!' is no pattern; write it as in \.gitignore"):
        read(folder, exclude=["*.txt", "!"])


def test_rules_that_cannot_be_read_are_reported(tmp_path, monkeypatch):
    folder = fill(tmp_path, "a.md")
    (folder / ".gitignore").write_text("a.md")
    allowed = Path.read_text

    def refusing(path: Path, *args: Any, **options: Any) -> str:
        if path.name == ".gitignore":
            raise PermissionError(13, "Permission denied")
        return allowed(path, *args, **options)

    monkeypatch.setattr(Path, "read_text", refusing)
    ids, skipped = found(folder)
    assert (ids, list(skipped)) == (["a.md"], [".gitignore"])
    with pytest.raises(DataError, match="gitignore: cannot be read"):
        read(folder)


# Links


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder with links inside of it and out of it."""
    fill(tmp_path, "private/p.txt", "private/q.txt", "private/sub/r.txt", "photo.png")
    folder = fill(tmp_path / "f", "a.txt", "sub/b.txt", ".store/1/hidden.txt")
    (folder / "again.txt").symlink_to("a.txt")
    (folder / "same").symlink_to("sub")
    (folder / "up").symlink_to("..")
    (folder / "sub/loop").symlink_to("loop")
    (folder / "z.txt").symlink_to(tmp_path / "private/p.txt")
    (folder / "y.txt").symlink_to(tmp_path / "private/p.txt")
    (folder / "photo.png").symlink_to(tmp_path / "photo.png")
    return folder


def test_links_out_of_the_folder_are_refused(linked):
    (linked / "up").unlink()
    ids, skipped = found(linked)
    assert ids == ["a.txt", "sub/b.txt"]
    assert set(skipped) == {"y.txt", "z.txt", "photo.png", "loop"}
    assert skipped["z.txt"] == "a link to a file outside; pass that file as well, or follow_links (--follow-links)"
    with pytest.raises(DataError, match=r"y\.txt: a link to a file outside"):
        read(linked)


def test_links_that_are_followed_lead_to_each_file_once(linked):
    ids, skipped = found(linked, follow_links=True)
    assert ids == ["a.txt", "sub/b.txt", "up/private/p.txt", "up/private/q.txt", "up/private/sub/r.txt"]
    assert set(skipped) == {"loop", "photo.png"}
    (linked / "up").unlink()
    assert found(linked, follow_links=True)[0] == ["a.txt", "sub/b.txt", "y.txt"]


def test_a_link_shows_what_is_nowhere_else_in_the_folder(linked):
    """As in a volume of Kubernetes, whose files are links into a hidden folder."""
    (linked / "up").unlink()
    (linked / "current").symlink_to(".store/1")
    assert found(linked)[0] == ["a.txt", "current/hidden.txt", "sub/b.txt"]
    (linked / "0.txt").symlink_to(".store/1/hidden.txt")
    assert found(linked)[0] == ["0.txt", "a.txt", "sub/b.txt"]
    (linked / ".gitignore").write_text(".store/")
    assert found(linked)[0] == ["a.txt", "sub/b.txt"]


def test_a_folder_that_is_itself_a_link_is_read(linked, tmp_path):
    (tmp_path / "link").symlink_to(linked / "sub")
    assert found(tmp_path / "link")[0] == ["b.txt"]


# Names

NFC, NFD = (unicodedata.normalize(form, "Übersicht") for form in ("NFC", "NFD"))


def test_ids_and_titles_are_in_the_form_nfc(tmp_path):
    fill(tmp_path, f"{NFD}/{NFD}.txt")
    (document,) = read(tmp_path)
    assert (document.id, document.title) == (f"{NFC}/{NFC}.txt", NFC)
    assert Path(document.source).is_file()


def test_two_files_whose_names_differ_only_in_form_are_reported(tmp_path):
    fill(tmp_path, f"{NFD}.txt", f"{NFC}.txt")
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system takes them for one")
    skipped: list[tuple[Path, str]] = []
    (document,) = read(tmp_path, on_skip=lambda *each: skipped.append(each))
    assert document.text == f"text of {NFC}.txt"
    ((path, reason),) = skipped
    assert path.name == f"{NFD}.txt"
    assert reason.startswith("its name differs from another only in how accents are encoded (NFC, NFD)")
