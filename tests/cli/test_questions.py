"""make-questions: what the command says and writes."""

import json

from tests.cli.conftest import cli


def test_the_command(memory, model, generator, tmp_path):
    """A tiny model writes no pairs: all is dropped, and said so."""
    prompt = tmp_path / "prompt.json"
    prompt.write_text(json.dumps({"request": "a", "template": {}, "chat_request": "b", "instruction": "c"}), "utf-8")
    out = tmp_path / "pairs.jsonl"
    at = ("make-questions", memory, "-m", model, "--out", out, "--prompt", prompt, "-n", 3)
    done = cli(*at, "--json")
    assert done.code == 0
    assert "0 of 3 pairs: every passage of the memory has been tried" in done.stderr
    assert done.json["metrics"]["tried"] == 4
    assert done.json["metrics"]["dropped"]["no_pair"] == 4
    assert done.json["settings"]["prompt"]["request"] == "a"
    assert "what was written is not a question" in cli(*at).stdout
    other = ("--out", tmp_path / "other.jsonl", "--prompt", prompt, "--json")
    of_generator = cli("make-questions", memory, "-m", generator, *other)
    assert of_generator.json["metrics"]["tried"] == 4
    assert "seed=0, this run has 1" in cli(*at, "--seed", 1).error()
    assert "cannot be read" in cli(*at[:-4], "--prompt", tmp_path / "none.json").error()
