"""`latentrag index preview`: what files become, without a model; and what is told of files that were read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentrag import assemble
from latentrag.cli import arguments as arg
from latentrag.cli.output import EXIT_PROBLEMS, print_json, print_line, say
from latentrag.corpus import Ledger, bounds_of, passages
from latentrag.corpus.splitting import Bounds
from latentrag.errors import InputError
from latentrag.io import write_file
from latentrag.options import FileOptions, PreviewOptions
from latentrag.records import file_record

if TYPE_CHECKING:
    from latentrag.corpus.reading import Passages
    from latentrag.protocols import PassageEncoder

Files = Annotated[
    list[Path],
    typer.Argument(help="Files and folders: text, HTML, PDF, Office, EPUB, tables, JSON lines, Wikipedia's dumps."),
]
_KEYS = {"file", "characters", "left_out", "encoding", "is_guess"}
Words = Annotated[int, typer.Option(help="Length of a passage, in words.")]


@dataclass(slots=True)
class FileReport:
    """What became of the files that were read, and why others were not."""

    ledgers: list[Ledger] = field(default_factory=list)
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    encoder: PassageEncoder | None = None
    """Whose tokens bounded the passages."""

    def passages(
        self,
        files: Sequence[Path],
        encoder: Callable[[], PassageEncoder] | None,
        *,
        words: int,
        reading: FileOptions,
    ) -> Passages:
        """The passages that files become, streamed; what becomes of the files is noted meanwhile.

        Args:
            encoder: loads the one that bounds them; None: words alone do.
        Raises: InputError for a name that is not there.
        """
        return passages(
            files,
            words=words,
            bounds=None if encoder is None else lambda: self._bounds(encoder()),
            on_skip=lambda file, reason: self.skipped.append((file, reason)),
            on_ledger=self.ledgers.append,
            **reading.of_files(),
        )

    def _bounds(self, encoder: PassageEncoder) -> Bounds:
        self.encoder = encoder
        return bounds_of(encoder)

    def records(self) -> list[dict[str, object]]:
        """One for each file. Those that were never opened come last."""
        read = {ledger.file for ledger in self.ledgers}
        closed = [Ledger(str(file), left_out={reason: 1}) for file, reason in self.skipped if str(file) not in read]
        bound = {
            "encoder": self.encoder and self.encoder.name,
            "max_tokens": self.encoder and self.encoder.max_tokens,
        }
        return [{**file_record(ledger), **bound} for ledger in (*self.ledgers, *closed)]

    def write_first(self, path: Path) -> None:
        """Show at once what ``write`` will come to. Raises: InputError, also if something else is there already."""
        try:
            lines = path.read_bytes().splitlines() if path.is_file() else []
            is_ours = not path.exists() or (path.is_file() and all(json.loads(line).keys() >= _KEYS for line in lines))
        except (OSError, ValueError, AttributeError):
            is_ours = False
        if not is_ours:
            raise InputError(f"--report {path} is there and is no report of files; name another file")
        self.write(path)

    def write(self, path: Path) -> None:
        """As JSON lines. Raises: InputError."""
        lines = "".join(json.dumps(record) + "\n" for record in self.records())
        try:
            write_file(path, lines.encode())
        except OSError as error:
            raise InputError(f"--report {path} cannot be written ({error.strerror}); choose another file") from error

    @contextmanager
    def told_of(self, found: Passages, report: Path | None) -> Iterator[None]:
        """Within: the passages are read. Afterwards the processes that read end, and what became of the files is told,
        and written to a file if one is named."""
        try:
            yield
        finally:
            found.close()
            self.tell()
            if report is not None:
                self.write(report)

    def tell(self) -> None:
        """On standard error, which files were skipped, how many encodings were guessed, and what was left out."""
        for file, reason in self.skipped:
            say(f"skipped {file}: {reason}")
        guesses = Counter(ledger.encoding for ledger in self.ledgers if ledger.is_guess)
        for encoding, num_files in guesses.items():
            say(f"files without a stated encoding, taken for {encoding}: {num_files}; --encoding states it")
        # Not what most files have: characters of markup, and the skipped files again.
        skips = {reason for _, reason in self.skipped}
        left_out = Counter[str]()
        for ledger in self.ledgers:
            left_out.update({why: n for why, n in ledger.left_out.items() if not why.startswith("character")})
        told = [f"{count} × {why}" for why, count in left_out.items() if why not in skips]
        if told:
            say(f"left out: {'; '.join(told)}; `latentrag index preview` and --report say of which files")


def preview(
    files: Files,
    *,
    options: PreviewOptions,
    words: Words = 100,
    strict: arg.Strict = False,
    as_json: arg.AsJson = False,
) -> None:
    """Show the passages that files become, and what is left out of each file, without loading a model.

    A line for each passage, then one for each file: how many characters were kept, what was left out and why, which
    encoding was assumed, which encoder's tokens bounded the passages. With --json each line is an object: passages with
    "text", files with "file" and "left_out".
    """
    report = FileReport()
    name = options.encoder
    encoder = None if name is None else partial(assemble.load_passage_encoder, name)
    found = report.passages(files, encoder, words=words, reading=options)
    with closing(found):
        for z in found:
            if as_json:
                place = {"page": z.page, "start": z.start, "end": z.end, "fields": dict(z.fields)}
                print_json({"id": z.id, "title": z.title, **place, "text": z.text})
                continue
            page = "" if z.page is None else f" | page {z.page}"
            print_line(f"{z.id} | {z.title}{page} | {z.start}:{z.end} | {z.text}")
    for record in report.records():
        if as_json:
            print_json(record)
            continue
        left_out = record["left_out"]
        assert isinstance(left_out, dict)
        encoding = f", {record['encoding']}{' (a guess)' if record['is_guess'] else ''}" if record["encoding"] else ""
        why = "; ".join(f"{count} × {reason}" for reason, count in left_out.items()) or "nothing"
        bound = f", bounded by {record['encoder']}, {record['max_tokens']} tokens" if record["encoder"] else ""
        print_line(f"{record['file']}: {record['characters']} characters kept{encoding}{bound}; left out: {why}")
    if strict and report.skipped:
        raise typer.Exit(EXIT_PROBLEMS)
