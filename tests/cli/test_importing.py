"""index import: vectors made elsewhere, by the encoder as its options have it."""

import json
from pathlib import Path

import numpy as np
import pytest

from latentrag.assemble import load_passage_encoder
from latentrag.memory import Memory
from latentrag.options import EncoderOptions
from latentrag.types import Passage
from tests.cli.conftest import DOCUMENTS, cli


def vectors_of_others(encoder: Path, folder: Path) -> Path:
    """Four passages as BEIR has them, encoded after a prompt."""
    prompted = load_passage_encoder(str(encoder), encoding=EncoderOptions(passage_prompt="title "))
    passages = [Passage(name, text) for name, text in DOCUMENTS.items()]
    np.save(folder / "notes.npy", prompted.encode_passages(passages).detach().numpy())
    lines = [json.dumps({"_id": z.id, "text": z.text}) for z in passages]
    (folder / "notes.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "notes.jsonl"


@pytest.fixture
def source(encoder, tmp_path) -> Path:
    return vectors_of_others(encoder, tmp_path)


def test_the_sample_is_encoded_with_the_prompt_that_was_given(source, encoder, tmp_path) -> None:
    path = tmp_path / "m.lance"
    refused = cli("index", "import", path, source, "--encoder", encoder)
    assert "the vectors are not those of" in refused.error()  # one line
    assert not path.exists()
    done = cli("index", "import", path, source, "--encoder", encoder, "--passage-prompt", "title ", "--json")
    assert (done.code, done.json["added"], done.json["passages"]) == (0, 4, 4)
    prompted = load_passage_encoder(str(encoder), encoding=EncoderOptions(passage_prompt="title "))
    assert Memory.open(path).card.fingerprint == prompted.fingerprint
    again = cli("index", "import", path, source, "--encoder", encoder, "--passage-prompt", "title ", "--json")
    assert (again.json["added"], again.json["unchanged"]) == (0, 4)
