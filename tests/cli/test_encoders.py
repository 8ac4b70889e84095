"""Encoders from the command line: prompts and dimension go with the encoder, in the memory and in questions."""

from pathlib import Path

import pytest

from latentrag.encoder import DprPassageEncoder, SentenceEncoder
from latentrag.memory import Memory
from tests.cli.conftest import QUESTION, cli
from tests.encoder.tiny import write_dpr, write_sentence_encoder

E5 = ("--query-prompt", "query : ", "--passage-prompt", "passage : ")


def parts(encoder: Path, generator: Path) -> tuple[object, ...]:
    return ("--encoder", encoder, "--generator", generator)


def test_prompts_and_dimension_of_a_memory_and_of_its_questions(tmp_path, encoder, generator, files) -> None:
    path = tmp_path / "m.lance"
    made = cli("index", "add", path, files, "--encoder", encoder, "--passage-prompt", "passage : ", "--dimension", 8)
    assert made.code == 0
    assert Memory.open(path).card.dimension == 8
    asking = (*("ask", QUESTION, "-k", 3, "-i", path, "--max-tokens", 2, "--json"), *parts(encoder, generator))
    prompted = cli(*asking, *E5, "--dimension", 8)
    assert prompted.code == 0
    other = cli(*asking, *E5[2:], "--dimension", 8)  # the query's prompt is part of q
    assert prompted.json["sources"] != other.json["sources"]
    assert "has fingerprint" in cli(*asking, "--dimension", 8).error()  # the passages' is part of d
    assert "has 16 dimensions, the memory's vectors have 8" in cli(*asking, *E5).error()


def test_mistakes(tmp_path: Path, encoder, generator, files, memory) -> None:
    adding = ("index", "add", tmp_path / "m.lance", files, "--encoder", encoder)
    assert "--dimension=0; needed 1 or more" in cli(*adding, "--dimension", 0).error()
    assert "dimension=17 of an encoder of 16 dimensions; needed 1 to 16" in cli(*adding, "--dimension", 17).error()
    assert not (tmp_path / "m.lance").exists()


@pytest.mark.parametrize("option", [("--query-prompt", "q: "), ("--passage-prompt", "p: "), ("--dimension", 8)])
def test_a_model_has_its_own(memory, option) -> None:
    assert "without --encoder" in cli("ask", QUESTION, "-i", memory, *option).error()


@pytest.fixture
def another(tmp_path) -> Path:
    """An encoder of five dimensions."""
    return write_sentence_encoder(tmp_path / "another", head=["Dense", "Normalize"], seed=7)


def test_reencode(tmp_path, encoder, another, generator, files) -> None:
    path = tmp_path / "m.lance"
    assert cli("index", "add", path, files, "--encoder", encoder).code == 0
    asking = ("ask", QUESTION, "-k", 2, "-i", path, "--generator", generator, "--max-tokens", 2, "--json", "--encoder")
    before = cli(*asking, encoder).json
    refused = cli(*asking, another).error()
    assert "bring the memory to another encoder with `latentrag index reencode MEMORY --encoder NAME`" in refused
    assert "latentrag index reencode" in cli("index", "add", path, files, "--words", 3, "--encoder", another).error()

    done = cli("index", "reencode", path, "--encoder", another, "--json").json
    assert done == {
        "memory": str(path),
        "version": before["memory_version"] + 1,
        "reencoded": 4,
        "passages": 4,
        "encoder": "another",
        "dimension": 5,
    }
    assert cli(*asking, another).code == 0
    again = cli(*asking, encoder, "--as-of", before["memory_version"]).json  # older versions with theirs
    assert again["sources"] == before["sources"]
    assert "has 16 dimensions, the memory's vectors have 5" in cli(*asking, encoder).error()
    said = cli("index", "reencode", path, "--encoder", another).stdout
    assert "its vectors are already of another (5 dimensions)" in said
    assert cli("index", "log", path, "--json").json["versions"][-1]["change"] == "re-encoded 4 passages with another"


def test_reencode_with_a_prompt_and_a_dimension(tmp_path, encoder, files) -> None:
    path = tmp_path / "m.lance"
    assert cli("index", "add", path, files, "--encoder", encoder).code == 0
    options = ("--encoder", encoder, "--passage-prompt", "passage : ", "--dimension", 6)
    assert "re-encoded 4 passages with encoder (6 dimensions)" in cli("index", "reencode", path, *options).stdout
    assert "already of" in cli("index", "reencode", path, *options).stdout
    assert "re-encoded" in cli("index", "reencode", path, *options[:-1], 7).stdout


def test_an_interrupted_reencoding_says_how_to_go_on(tmp_path, encoder, another, files, monkeypatch) -> None:
    path = tmp_path / "m.lance"
    assert cli("index", "add", path, files, "--encoder", encoder).code == 0

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(SentenceEncoder, "encode_passages", interrupted)
        ran = cli("index", "reencode", path, "--encoder", another)
    assert (ran.code, ran.stdout) == (130, "")
    assert "run the same command again to continue" in ran.stderr
    assert "re-encoded 4" in cli("index", "reencode", path, "--encoder", another).stdout


def test_a_dpr_memory_with_two_segments_is_refused_with_the_remedy(tmp_path, generator, files, monkeypatch) -> None:
    """Its vectors were made before title and text were one segment: it has another fingerprint."""
    query = write_dpr(tmp_path / "q", "DPRQuestionEncoder")
    passage = write_dpr(tmp_path / "d", "DPRContextEncoder", seed=1)
    path = tmp_path / "m.lance"
    with monkeypatch.context() as patched:
        patched.setattr(DprPassageEncoder, "fingerprint", "f" * 32)
        assert cli("index", "add", path, files, "--encoder", passage).code == 0
    asking = (*("ask", QUESTION, "-k", 2, "-i", path, "--max-tokens", 2, "--json"), *parts(query, generator))
    asking = (*asking, "--passage-encoder", passage)
    assert "latentrag index reencode" in cli(*asking).error()
    assert "latentrag index reencode" in cli("index", "add", path, files, "--words", 3, "--encoder", passage).error()
    assert cli("index", "reencode", path, "--encoder", passage).code == 0
    assert cli(*asking).code == 0
