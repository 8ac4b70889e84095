"""Which files of a folder are read: their names, the formats that are known, what is excluded, where links lead."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from stat import S_ISDIR
from typing import TYPE_CHECKING, TypeAlias

from latentrag.corpus.readers import File, Formats, UnreadableError, refusal
from latentrag.errors import DataError, InputError
from latentrag.io import text_of
from latentrag.options import FileOptions

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec
    from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

StrPath: TypeAlias = str | os.PathLike[str]
OnSkip: TypeAlias = Callable[[Path, str], None]
"""Called with a file that is left out, wholly or from some row on, and the reason."""

_PICKLES = (".pkl", ".pickle", ".pt", ".bin")
_TABLE = {"_versions", "_transactions"}
"""What a folder of Lance's has in it."""
_IS_MEMORY = "it is a memory, and its files are no documents; leave it out, or `latentrag index pull` it"
_RULES = ".gitignore"


def find_files(
    path: StrPath, options: FileOptions, on_skip: OnSkip | None = None, formats: Formats | None = None
) -> list[File]:
    """The files that ``read`` reads, sorted by name. Arguments and errors are those of ``read``."""
    path, formats = Path(path), formats or Formats()
    try:
        is_folder = S_ISDIR(path.stat().st_mode)
    except OSError as error:
        raise DataError(f"{path}: {refusal(error)}") from error
    rules = [_Rules("", "", _patterns(options.exclude))] if options.exclude else []
    if is_folder:
        files = sorted(_Folder(path, options, rules, on_skip, formats).files(), key=lambda file: file.name)
    elif _exclude(rules, path.name, is_folder=False):
        return []
    else:
        file = file_at(path, name_of(path.name), formats, in_folder=False)
        if isinstance(file, str):
            raise DataError(f"{path}: {file}")
        files = [file]
    return [replace(file, encoding=options.encoding or "") for file in files]


def name_of(path: PurePath | str) -> str:
    """A relative path as ids have it: in Unicode's form NFC, since a file that macOS wrote may be named in NFD."""
    return in_nfc(text_of(PurePath(path).as_posix()))


def in_nfc(name: str) -> str:
    """A name that is text already, in Unicode's form NFC."""
    return unicodedata.normalize("NFC", name)


def file_at(path: Path, name: str, formats: Formats, *, in_folder: bool) -> File | str:
    """The file with its format, or why it is not read."""
    known = formats.of_file(path)
    if known is None:
        return _unknown(path, formats)
    file = File(path, name, known, in_folder=in_folder)
    return file.reader.missing or file


def refuse(path: Path, error: UnreadableError, on_skip: OnSkip | None) -> None:
    """Report that the file, or the rest of it, is left out. Raises: DataError if nobody wants the report."""
    if on_skip is None:
        place = f" line {error.line}" if error.line else ""
        raise DataError(f"{path}{place}: {error.problem}") from error
    on_skip(path, str(error))


def _unknown(path: Path, formats: Formats) -> str:
    extension, readable = path.suffix.lower(), formats.readable
    if extension in _PICKLES:
        return f"pickle files are never read, since that can run any code; convert it to one of {readable}"
    return f"{extension or 'no extension'} is not a format that is read; convert it to one of {readable}"


# What is excluded


@dataclass(frozen=True, slots=True)
class _Rules:
    """Patterns as git reads them, for names relative to one folder.

    Attributes:
        above: path from that folder to the one that is read, with a slash at its end; empty if it is that one.
        below: path from the one that is read to that folder, likewise.
    """

    above: str
    below: str
    patterns: GitIgnoreSpec

    def exclude(self, name: str, *, is_folder: bool) -> bool | None:
        """Args: name: relative to the folder that is read. Returns: None if they do not say."""
        relative = self.above + name.removeprefix(self.below)
        return self.patterns.check_file(f"{relative}/" if is_folder else relative).include


def _exclude(rules: Iterable[_Rules], name: str, *, is_folder: bool) -> bool:
    """What the last rules say that say anything."""
    verdict = False
    for each in rules:
        said = each.exclude(name, is_folder=is_folder)
        verdict = verdict if said is None else said
    return verdict


def _patterns(given: Iterable[str]) -> GitIgnoreSpec:
    """Raises: InputError for one that is none."""
    from pathspec import GitIgnoreSpec

    for pattern in given:
        try:
            GitIgnoreSpec.from_lines([pattern])
        except (ValueError, re.error) as error:
            raise InputError(f"exclude={pattern!r} is no pattern; write it as in .gitignore: *.tmp, drafts/") from error
    return GitIgnoreSpec.from_lines(given)


def _rules_of(folder: Path, *, above: str = "", below: str = "") -> _Rules:
    """Those of a folder's .gitignore, but for lines that are no patterns, as git does. Raises: OSError."""
    from pathspec import GitIgnoreSpec

    patterns: list[GitIgnoreSpecPattern] = []
    for line in (folder / _RULES).read_text("utf-8-sig", errors="surrogateescape").split("\n"):
        with suppress(InputError):
            patterns += _patterns([line.removesuffix("\r")]).patterns
    return _Rules(above, below, GitIgnoreSpec(patterns))


# The walk


class _Folder:
    """The files of a folder. Each is read in one place: where it lies itself, else under the first link to it."""

    def __init__(
        self, root: Path, options: FileOptions, asked: list[_Rules], on_skip: OnSkip | None, formats: Formats
    ) -> None:
        """Args: asked: what the user excludes, which decides before any .gitignore."""
        self._root = root
        self._real_root = Path(os.path.realpath(root))
        self._options = options
        self._asked = asked
        self._on_skip = on_skip
        self._formats = formats
        self._links: list[Path] = []
        # The real paths of the folders that were entered and the files that are read.
        self._seen: set[str] = set()

    def files(self) -> list[File]:
        """Unsorted. What is left out is reported, but for what is hidden, excluded, or linked to and read elsewhere."""
        around = [] if self._options.no_gitignore else self._rules_around()
        paths = list(self._walk(self._root, around))
        own = around if self._options.no_gitignore else [*around, *self._rules_in(self._root)]
        while self._links:
            links, self._links = sorted(self._links), []
            paths += (path for link in links for path in self._linked(link, own))
        by_name: dict[str, Path] = {}
        names = {path: text_of(path.relative_to(self._root).as_posix()) for path in paths}
        for path in sorted(paths, key=lambda path: (names[path] != in_nfc(names[path]), names[path])):
            first = by_name.setdefault(in_nfc(names[path]), path)
            if first is not path:
                problem = "its name differs from another only in how accents are encoded (NFC, NFD); rename one of them"
                refuse(path, UnreadableError(problem), self._on_skip)
        return [file for name, path in sorted(by_name.items()) if (file := self._file(path, name))]

    def _file(self, path: Path, name: str) -> File | None:
        file = file_at(path, name, self._formats, in_folder=True)
        if isinstance(file, File):
            return file
        if self._on_skip is not None or self._formats.of(path.name):
            refuse(path, UnreadableError(file), self._on_skip)
        return None

    def _entries(self, folder: Path) -> list[os.DirEntry[str]]:
        """Sorted; none if it cannot be read, or is no folder of documents, which is reported."""
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
            problem = _IS_MEMORY if {entry.name for entry in found} >= _TABLE else ""
        except OSError as error:
            problem = refusal(error)
        if not problem:
            return found
        refuse(folder, UnreadableError(problem), None if folder == self._root else self._on_skip)
        return []

    def _walk(self, top: Path, rules: list[_Rules]) -> Iterator[Path]:
        """What lies in a folder and its subfolders; links are set aside."""
        stack = [(top, os.path.realpath(top), rules)]
        while stack:
            folder, real, rules = stack.pop()
            if real in self._seen:
                continue
            self._seen.add(real)
            found = self._entries(folder)
            if not self._options.no_gitignore and any(entry.name == _RULES for entry in found):
                rules = [*rules, *self._rules_in(folder)]
            for entry in found:
                path, is_folder = folder / entry.name, entry.is_dir(follow_symlinks=False)
                if entry.name.startswith(".") or self._is_excluded(path, rules, is_folder=is_folder):
                    continue
                if is_folder:
                    stack.append((path, f"{real}/{entry.name}", rules))
                elif entry.is_symlink() and path.exists():
                    self._links.append(path)
                elif f"{real}/{entry.name}" not in self._seen:
                    self._seen.add(f"{real}/{entry.name}")
                    yield path

    def _linked(self, link: Path, rules: list[_Rules]) -> Iterator[Path]:
        """What a link leads to, unless it is read elsewhere."""
        target = Path(os.path.realpath(link))
        is_folder = target.is_dir()
        if str(target) in self._seen:
            return
        if target.is_relative_to(self._real_root):
            if self._is_excluded(self._root / target.relative_to(self._real_root), rules, is_folder=is_folder):
                return
        elif not self._options.follow_links:
            what = "folder" if is_folder else "file"
            problem = f"a link to a {what} outside; pass that {what} as well, or follow_links (--follow-links)"
            if self._on_skip is not None or is_folder or self._formats.of(link.name):
                refuse(link, UnreadableError(problem), self._on_skip)
            return
        if is_folder:
            yield from self._walk(link, rules)
        else:
            self._seen.add(str(target))
            yield link

    def _is_excluded(self, path: Path, rules: list[_Rules], *, is_folder: bool) -> bool:
        if not rules and not self._asked:
            return False
        name = path.relative_to(self._root).as_posix()
        return _exclude([*rules, *self._asked], name, is_folder=is_folder)

    def _rules_in(self, folder: Path) -> list[_Rules]:
        """Those of its .gitignore, if it has one that can be read; else that is reported."""
        if not (folder / _RULES).is_file():
            return []
        below = "" if folder == self._root else f"{folder.relative_to(self._root).as_posix()}/"
        try:
            return [_rules_of(folder, below=below)]
        except OSError as error:
            refuse(folder / _RULES, UnreadableError(refusal(error)), self._on_skip)
            return []

    def _rules_around(self) -> list[_Rules]:
        """Those of the folders above, up to that of the repository, unless they exclude this folder as a whole."""
        above = list(self._real_root.parents)
        places = [self._real_root, *above]
        repository = next((i for i, folder in enumerate(places) if (folder / ".git").exists()), 0)
        rules = []
        for folder in reversed(above[:repository]):
            if (folder / _RULES).is_file():
                with suppress(OSError):
                    rules.append(_rules_of(folder, above=f"{self._real_root.relative_to(folder).as_posix()}/"))
        return [] if _exclude(rules, "", is_folder=False) else rules
