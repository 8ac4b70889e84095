"""Code lines and files below a folder, room by room, how often ``Any`` is written, and imports within functions.

    python -m benchmarks.code_lines [FOLDER …] [--json FILE]

A code line is a physical line that holds some part of a token of Python, but no comment alone, no blank line, and no
line of a docstring. A docstring is any string that is a statement by itself: that of a module, class or function, and
the one that says what the constant above it means. A string over several lines counts all its lines, blank ones too.
``Any`` is counted wherever it stands as a word, its imports and comments included. An import counts as within a
function if a ``def`` encloses it; imports for type checking at the top of a module do not.
A room is the first folder below FOLDER, or a module that lies there. Several folders are compared in columns.
"""

import argparse
import ast
import io
import json
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "latentrag"
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


@dataclass(frozen=True, slots=True)
class Counts:
    """Of one file, or of several added up."""

    files: int = 0
    code_lines: int = 0
    lines: int = 0
    any_words: int = 0
    function_imports: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(one + another for one, another in zip(astuple(self), astuple(other), strict=True)))


def count(source: str) -> Counts:
    """Counts of one file's text. Raises: SyntaxError if it is not Python."""
    tree = ast.parse(source)
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            code.update(range(token.start[0], token.end[0] + 1))
    return Counts(
        files=1,
        code_lines=len(code - set(_docstring_lines(tree))),
        lines=len(source.splitlines()),
        any_words=len(re.findall(r"\bAny\b", source)),
        function_imports=len(_imports_in_functions(tree)),
    )


def _docstring_lines(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield from range(node.lineno, (node.end_lineno or node.lineno) + 1)


def _imports_in_functions(tree: ast.AST) -> set[ast.AST]:
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {
        node for function in functions for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)
    }


def rooms(folder: Path) -> dict[str, Counts]:
    """Counts by room, in alphabetical order. Raises: SystemExit if there is no Python file."""
    counts: dict[str, Counts] = {}
    for file in sorted(folder.rglob("*.py")):
        room = file.relative_to(folder).parts[0]
        counts[room] = counts.get(room, Counts()) + count(file.read_text("utf-8"))
    if not counts:
        raise SystemExit(f"error: no Python file below {folder}; name a folder of sources")
    return counts


def table(folders: Sequence[dict[str, Counts]]) -> Iterator[str]:
    """A row for each room; a column of each count for each folder."""
    columns = ["files", "code lines", "all lines", "Any", "imports in functions"]
    yield "| room | " + " | ".join(columns * len(folders)) + " |"
    yield "|---" * (1 + len(columns) * len(folders)) + "|"
    for room in sorted({room for counts in folders for room in counts}):
        yield _row(room, [counts.get(room, Counts()) for counts in folders])
    yield _row("in all", [sum(counts.values(), Counts()) for counts in folders])


def _row(name: str, counts: Sequence[Counts]) -> str:
    return f"| {name} | " + " | ".join(f"{number:,}" for of_folder in counts for number in astuple(of_folder)) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", default=[SOURCE], metavar="FOLDER")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    by_folder = {str(folder): rooms(folder) for folder in given.folders}
    print("\n".join(table(list(by_folder.values()))))
    if given.json is not None:
        content = {folder: {room: asdict(of) for room, of in counts.items()} for folder, counts in by_folder.items()}
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
