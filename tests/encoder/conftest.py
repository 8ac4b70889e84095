import pytest

from tests.encoder.tiny import write_dpr, write_sentence_encoder


@pytest.fixture
def sentence_folder(tmp_path):
    return write_sentence_encoder(tmp_path / "sentence", head=["Normalize"])


@pytest.fixture
def query_folder(tmp_path):
    return write_dpr(tmp_path / "dpr-query", "DPRQuestionEncoder")


@pytest.fixture
def passage_folder(tmp_path):
    return write_dpr(tmp_path / "dpr-passage", "DPRContextEncoder", seed=1)
