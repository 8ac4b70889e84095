"""Passages of a synced folder are bounded in the tokens of the memory's encoder, and what is left out is reported."""

import json

import pytest

from latentrag.errors import EncoderMismatchError
from latentrag.memory import Memory
from latentrag.sync.journal import journals_in
from tests.sync.conftest import CountingEncoder, Synced


class ShortEncoder(CountingEncoder):
    """Reads 20 tokens: words of its title and text, and one of its own."""

    fingerprint, max_tokens = "short", 20

    def count_tokens(self, title: str, text: str) -> int:
        return 1 + len(f"{title} {text}".split())


@pytest.fixture
def bounded(synced) -> Synced:
    synced.encoder = ShortEncoder()
    return synced


def test_no_passage_is_longer_than_the_encoder_reads(bounded):
    bounded.write("a.txt", " ".join(f"word{i}" for i in range(150)))
    assert bounded.sync().num_encoded == 9
    found = bounded.passages().values()
    assert all(bounded.encoder.count_tokens(z.title, z.text) <= 20 for z in found)
    assert sorted(word for z in found for word in z.text.split()) == sorted(f"word{i}" for i in range(150))


def test_an_encoder_that_reads_other_lengths_has_the_files_read_anew(bounded):
    bounded.write("a.txt", " ".join(f"word{i}" for i in range(150)))
    bounded.sync()
    assert bounded.sync().files.unchanged == 1
    longer = CountingEncoder()
    Memory.open(bounded.path).reencode(longer)
    with pytest.raises(EncoderMismatchError):
        bounded.sync()
    bounded.encoder = longer
    report = bounded.sync()
    assert (report.files.changed, report.num_passages) == (1, 2)


def test_memories_from_before_there_were_bounds_encode_nothing(synced):
    """Their notes do not say which encoder bounded the passages, so the files are read, and found equal."""
    for i in range(3):
        synced.write(f"{i}.txt", " ".join(f"word{i}" for i in range(150)))
    synced.sync()
    (journal,) = journals_in(synced.path)
    lines = [json.loads(line) for line in journal.read_text().splitlines() if line]
    for line in lines:
        if "settings" in line:
            settings = json.loads(line["settings"])
            assert settings.pop("encoder") == synced.encoder.fingerprint
            line["settings"] = json.dumps(settings)
    journal.write_text("\n".join(map(json.dumps, lines)))
    version = synced.memory.version
    synced.encoder.count_tokens = lambda title, text: len(text.split())
    report = synced.sync()
    assert (report.files.unchanged, report.num_encoded, report.version) == (3, 0, version)


def test_data_in_place_of_text_is_reported(synced):
    synced.write("a.txt", f"one {'A' * 5_000} two")
    synced.write("b.txt", "Wärter".encode("cp1252"))
    synced.write("c.txt", "nothing to say")
    report = synced.sync()
    assert sorted(synced.texts().values()) == ["Wärter", "nothing to say", "one", "two"]
    data, guessed = report.ledgers
    assert data.file == str(synced.folder / "a.txt")
    assert list(data.left_out.values()) == [1, 5_000]
    assert (guessed.encoding, guessed.is_guess) == ("cp1252", True)
    assert synced.sync().ledgers == []
