"""Whatever is edited in a folder: each word in one passage, ids that name what they named, few passages encoded."""

import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest

from latentrag.types import Passage
from tests.sync.conftest import Synced

WORDS = 10


def counted(num_words: int, mark: str = "z") -> list[str]:
    return [f"{mark}{i}" for i in range(num_words)]


def test_one_word_in_front_of_fifty_passages_encodes_one(synced: Synced) -> None:
    synced.write("long.txt", " ".join(counted(5_000)))
    synced.sync()
    before = synced.texts()
    synced.write("long.txt", " ".join(["one", *counted(5_000)]))
    report = synced.sync()
    assert (report.num_encoded, len(synced.encoder.texts), report.num_passages) == (1, 1, 50)
    after = synced.texts()
    assert len(before.items() & after.items()) == 49
    assert all(before[key] == after[key] for key in before.keys() & after.keys())
    assert synced.sync().version == report.version


def test_a_memory_from_before_keeps_its_ids_and_encodes_nothing(synced: Synced) -> None:
    synced.write("long.txt", " ".join(counted(250)))
    synced.write("rows.jsonl", '{"text": "one"}\n{"text": "two"}\n')
    synced.sync(words=WORDS)
    numbered = [
        Passage(f"notes/long.txt#{i}", z.text, z.title, z.source, z.start, z.end, origin=z.origin)
        for i, z in enumerate(sorted(synced.passages().values(), key=lambda z: (z.origin, z.start)))
        if z.origin == "notes/long.txt"
    ]
    # The memory as it was when ids were numbers, and before there were notes.
    memory = synced.memory.delete([z.id for z in synced.passages().values() if z.origin == "notes/long.txt"])
    memory.add(numbered, synced.encoder)
    before = synced.passages()
    report = synced.sync(words=WORDS)
    assert (report.num_encoded, report.files.unchanged) == (0, 2)
    assert synced.passages() == before
    synced.write("long.txt", " ".join(["one", *counted(250)]))
    report = synced.sync()
    assert (report.num_encoded, report.passages.added, report.passages.removed) == (1, 1, 1)
    assert {z.id for z in numbered[1:]} < set(synced.passages())


def test_a_renamed_file_that_was_edited_before_encodes_nothing(synced: Synced) -> None:
    synced.write("a.md", "# Title\n\n" + " ".join(counted(95)))
    synced.sync(words=WORDS)
    synced.write("a.md", "# Title\n\nnew " + " ".join(counted(95)))
    assert synced.sync().num_encoded == 1
    before = sorted(synced.texts().values())
    (synced.folder / "a.md").rename(synced.folder / "b.md")
    report = synced.sync(delete_missing=True)
    assert (report.num_encoded, sorted(synced.texts().values())) == (0, before)


def test_rows_without_ids_keep_theirs_when_one_is_put_before_them(synced: Synced) -> None:
    rows = [f'{{"text": "row {i}", "title": "t"}}\n' for i in range(20)]
    synced.write("rows.jsonl", "".join(rows))
    synced.sync()
    before = synced.texts()
    synced.write("rows.jsonl", '{"text": "new", "title": "t"}\n' + "".join(rows[:10] + rows[11:]))
    report = synced.sync()
    after = synced.texts()
    assert (report.num_encoded, len(after)) == (1, 20)
    assert len(before.items() & after.items()) == 19
    assert all(before[key] == after[key] for key in before.keys() & after.keys())


class Edited:
    """A folder of two files, edited at random, and what is known of its ids."""

    def __init__(self, synced: Synced, chance: np.random.Generator) -> None:
        self.synced, self.chance = synced, chance
        self.texts = {"a.txt": counted(180, "a"), "b.txt": counted(60, "b")}
        self.fresh = itertools.count()
        self.named: dict[str, str] = {}
        self.write()

    def write(self) -> None:
        for name, text in self.texts.items():
            self.synced.write(name, " ".join(text))

    def edit(self) -> float:
        """One edit. Returns: how many passages may have to be encoded for it: 3 for each place, 2 for 10 words."""
        chance = self.chance
        name = str(chance.choice(list(self.texts)))
        text, length = self.texts[name], int(chance.integers(1, 30))
        place = int(chance.integers(0, len(text) + 1))
        taken, new = text[place : place + length], [f"n{next(self.fresh)}" for _ in range(length)]
        kind = chance.choice(["insert", "delete", "replace", "move", "copy"])
        if kind == "insert":
            text[place:place] = new
            return 3 + length / 5
        if kind == "delete":
            del text[place : place + length]
            return 3
        if kind == "replace":
            text[place : place + length] = new
            return 3 + length / 5
        if kind == "move":
            del text[place : place + length]
        other = self.texts[str(chance.choice(list(self.texts)))]
        to = int(chance.integers(0, len(other) + 1))
        other[to:to] = taken
        return 6 + length / 5

    def check(self) -> None:
        found = self.synced.passages()
        for name, text in self.texts.items():
            of_file = sorted((z for z in found.values() if z.origin == f"notes/{name}"), key=lambda z: z.start)
            assert [word for z in of_file for word in z.text.split()] == text
            whole = " ".join(text)
            assert all(whole[z.start : z.end] == z.text for z in of_file)
        assert all(self.named.setdefault(key, z.text) == z.text for key, z in found.items())


@pytest.mark.parametrize("number", range(3))
def test_any_edits_with_kills_between(number: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each round a sync is broken off at an encoding, and another one ends as one in a copy that was not broken off."""
    chance = np.random.default_rng([seed, number])
    with tempfile.TemporaryDirectory() as place:
        synced, whole = Synced(Path(place, "killed")), Synced(Path(place, "whole"))
        edited = Edited(synced, chance)
        for _ in range(6):
            before = synced.passages() if synced.path.exists() else {}
            budget = sum(edited.edit() for _ in range(int(chance.integers(1, 4)))) if before else np.inf
            edited.write()
            options = {"words": WORDS, "passages_per_commit": 4, "workers": 0}
            broken_off(synced, int(chance.integers(0, 3)), options, monkeypatch)
            synced.sync(**options)
            edited.check()
            whole.sync(synced.folder, **options)
            assert {z.id: z for z in whole.passages().values()} == synced.passages()
            assert whole.encoder.texts == [] or len(whole.encoder.texts) <= budget
            after = synced.passages()
            texts = {z.text for z in after.values()}
            assert all(key in after for key, z in before.items() if z.text in texts and unique(z, before))
            assert synced.sync(**options).num_encoded == 0
            assert synced.memory.version == synced.sync(**options).version


def unique(passage: Passage, among: dict[str, Passage]) -> bool:
    return sum(z.text == passage.text for z in among.values()) == 1


def broken_off(synced: Synced, after: int, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    working, calls = synced.encoder.encode_passages, iter(range(after))

    def failing(passages, **more):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return working(passages, **more)

    with monkeypatch.context() as patch:
        patch.setattr(synced.encoder, "encode_passages", failing)
        try:
            synced.sync(**options)
        except KeyboardInterrupt:
            return
