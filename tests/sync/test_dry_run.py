"""A dry run tells the truth, and a sync ends where an obvious one would, whatever happened to the folder."""

import contextlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latentrag.corpus import passages
from latentrag.types import Passage
from tests.sync.conftest import Synced, words_of

FILES = ["1.jsonl", "2.jsonl", "sub/3.jsonl"]
ROWS = st.dictionaries(
    st.sampled_from("abcdef"), st.tuples(st.sampled_from(FILES), st.sampled_from(["x", "y"])), max_size=6
)
TEXTS = st.dictionaries(st.sampled_from(["4.txt", "5.txt"]), st.sampled_from([0, 30, 55]), max_size=2)
STEP = st.tuples(ROWS, TEXTS, st.booleans(), st.sampled_from(["", "1.jsonl", "4.txt"]), st.integers(0, 6))


def lay_out(folder: Path, rows: dict[str, tuple[str, str]], texts: dict[str, int], broken: str) -> None:
    """The folder as it is to be; a file that would not change is not written."""
    wanted = {name: "".join(f"{name} word{i} " for i in range(num_words)) for name, num_words in texts.items()}
    for key, (name, text) in rows.items():
        wanted[name] = wanted.get(name, "") + json.dumps({"id": key, "text": text, "title": key}) + "\n"
    raw = {name: text.encode() for name, text in wanted.items()}
    if broken in raw:
        raw[broken] += b"\xff\x00"
    raw["always.txt"] = b"here"
    for file in [*folder.rglob("*.jsonl"), *folder.rglob("*.txt")]:
        if str(file.relative_to(folder)) not in raw:
            file.unlink()
    for name, content in raw.items():
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        if not file.exists() or file.read_bytes() != content:
            file.write_bytes(content)


def everything(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEP, min_size=2, max_size=4))
def test_a_dry_run_says_exactly_what_a_sync_does(steps):
    with tempfile.TemporaryDirectory() as place:
        synced = Synced(Path(place))
        for rows, texts, delete, broken, fail_after in steps:
            lay_out(synced.folder, rows, texts, broken)
            options = {"words": 10, "passages_per_commit": 4, "delete_missing": delete, "workers": 0}
            interrupt(synced, fail_after, options)
            before = everything(Path(place))
            expected = synced.sync(**options, dry_run=True)
            assert everything(Path(place)) == before
            assert synced.encoder.texts == []
            done = synced.sync(**options)
            assert replace(expected, dry_run=False, version=done.version) == done
            assert len(synced.encoder.texts) == done.num_encoded
            assert done.num_passages == len(synced.memory)
            check(synced, delete=delete, broken=bool(done.skipped))


def interrupt(synced: Synced, after: int, options: dict) -> None:
    """A sync that is broken off at some encoding; often there is none so late, and it runs to its end."""
    if not after:
        return
    working = synced.encoder.encode_passages
    calls = iter(range(after))

    def failing(passages, **more):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return working(passages, **more)

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(synced.encoder, "encode_passages", failing)
        synced.sync(**options)


def own_passages(synced: Synced) -> list[Passage]:
    return list(passages(synced.folder, words=10, on_skip=lambda *_: None))


def check(synced: Synced, *, delete: bool, broken: bool) -> None:
    """The oracle reads the whole folder anew."""
    found = synced.passages()
    read = [replace(z, origin=f"notes/{Path(z.source).relative_to(synced.folder)}") for z in own_passages(synced)]
    rows = {z.id: (z.text, z.title, z.start, z.end) for z in read if len(z.id) == 1}
    if not broken:
        assert rows.items() <= {key: (z.text, z.title, z.start, z.end) for key, z in found.items()}.items()
        assert words_of(read).items() <= words_of(found.values()).items()
        if delete:
            assert words_of(read) == words_of(found.values())
        assert synced.sync(delete_missing=delete, workers=0).version == synced.memory.version
        assert synced.sync(delete_missing=delete, workers=0).files.changed == 0
