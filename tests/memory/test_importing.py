"""Vectors made elsewhere: every layout, bounded, resumed, and refused where they are another encoder's."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentrag.errors import DataError, EncoderMismatchError, InputError
from latentrag.memory import Memory, Writer
from latentrag.memory.exchange import push
from latentrag.memory.importing import import_vectors
from latentrag.memory.sources import read_source
from latentrag.types import Passage
from tests.memory.conftest import FakePassageEncoder

N = 2_500
PASSAGES = [Passage(f"p{i}", f"Text number {i}.", f"Title {i % 7}") for i in range(N)]


class Counting(FakePassageEncoder):
    """Counts what it encodes."""

    num_encoded = 0

    def encode_passages(self, passages, *, progress=False):
        self.num_encoded += len(passages)
        return super().encode_passages(passages, progress=progress)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return FakePassageEncoder().encode_passages(PASSAGES).numpy()


@pytest.fixture(scope="module")
def sources(tmp_path_factory, vectors) -> Path:
    """The same passages in every layout."""
    import faiss

    folder = tmp_path_factory.mktemp("sources")
    columns = {
        "id": [z.id for z in PASSAGES],
        "text": [z.text for z in PASSAGES],
        "title": [z.title for z in PASSAGES],
        "embeddings": pa.array(list(vectors), pa.list_(pa.float32())),
    }
    table = pa.table(columns)
    pq.write_table(table, folder / "wiki.parquet", row_group_size=700)
    (folder / "parts").mkdir()
    pq.write_table(table[:1200], folder / "parts" / "a.parquet")
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(vectors[1200:].astype(np.float16).ravel()), vectors.shape[1])
    pq.write_table(table[1200:].drop_columns("embeddings").append_column("vector", fixed), folder / "parts/b.parquet")
    for name in ("beir", "beir.npz"):
        (folder / name).mkdir()
        lines = [json.dumps({"_id": z.id, "title": z.title, "text": z.text}) for z in PASSAGES]
        (folder / name / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    np.save(folder / "beir" / "corpus.npy", vectors)
    np.savez_compressed(folder / "beir.npz" / "corpus.npz", embeddings=vectors.astype(np.float16))
    with gzip.open(folder / "texts.jsonl.gz", "wt") as file:
        file.write("\n".join(lines))
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    faiss.write_index(flat, str(folder / "flat.faiss"))
    graph = faiss.IndexHNSWFlat(vectors.shape[1], 8, faiss.METRIC_INNER_PRODUCT)
    graph.add(vectors)
    faiss.write_index(graph, str(folder / "graph.index"))
    (folder / "datasets").mkdir()
    without = table.drop_columns("embeddings")
    for name, rows in (("data-00000-of-00001.arrow", table),):
        with pa.OSFile(str(folder / "datasets" / name), "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_table(rows, max_chunksize=900)
    (folder / "passages").mkdir()
    path = str(folder / "passages" / "data.arrow")
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_stream(sink, without.schema) as writer:
        writer.write_table(without)
    return folder


def imported(folder: Path, source: Path, vectors: Path | None = None, encoder=None, **options) -> Memory:
    count, batches = read_source(source, vectors)
    assert count == N
    return import_vectors(folder / "m", batches, encoder or FakePassageEncoder(), **options).memory


@pytest.mark.parametrize(
    ("source", "beside"),
    [
        ("wiki.parquet", None),
        ("parts", None),
        ("beir", None),
        ("beir/corpus.jsonl", None),
        ("beir.npz", None),
        ("texts.jsonl.gz", "beir/corpus.npy"),
        ("texts.jsonl.gz", "flat.faiss"),
        ("datasets", None),
        ("passages", "graph.index"),
    ],
)
def test_every_layout_gives_the_same_memory(source, beside, sources, vectors, tmp_path) -> None:
    encoder = Counting()
    memory = imported(tmp_path, sources / source, beside and sources / beside, encoder)
    rows = list(memory.passages())
    assert [(z.id, z.text, z.title) for z in rows] == [(z.id, z.text, z.title) for z in PASSAGES]
    assert all(z.text == z.text[z.start : z.end] for z in rows)
    found = memory.search(vectors[[3, 1700]], 1)
    places = [int(of_one[0].id[1:]) for of_one in found.passages]
    assert np.array_equal(found.vectors[:, 0], vectors[places].astype(np.float16).astype(np.float32))
    assert memory.card.fingerprint == encoder.fingerprint
    assert encoder.num_encoded < 50


def test_what_was_pushed_is_imported(sources, tmp_path) -> None:
    push(imported(tmp_path, sources / "wiki.parquet").name, str(tmp_path / "pushed"))
    (tmp_path / "pushed" / "memory.json").unlink()
    again = imported(tmp_path / "again", tmp_path / "pushed")
    assert [z.text for z in again.passages()] == [z.text for z in PASSAGES]


def test_it_goes_on_after_the_last_commit(sources, tmp_path, monkeypatch) -> None:
    put = Writer.put
    calls: list[int] = []

    def stopping(self, passages, vectors=None):
        calls.append(len(passages))
        if len(calls) == 3:
            raise KeyboardInterrupt
        put(self, passages, vectors)

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "put", stopping)
        with pytest.raises(KeyboardInterrupt):
            imported(tmp_path, sources / "wiki.parquet", passages_per_commit=1000)
    assert len(Memory.open(tmp_path / "m")) == 2000
    _, batches = read_source(sources / "wiki.parquet")
    done = import_vectors(tmp_path / "m", batches, FakePassageEncoder(), passages_per_commit=1000)
    assert (done.added, done.unchanged) == (500, 2000)
    whole = imported(tmp_path / "whole", sources / "wiki.parquet")
    assert list(done.memory.passages()) == list(whole.passages())
    q = FakePassageEncoder().encode_passages(PASSAGES[:5]).numpy()
    assert np.array_equal(done.memory.search(q, 9).scores, whole.search(q, 9).scores)


@pytest.mark.parametrize("change", [lambda v: v[::-1].copy(), lambda v: 3 * v, lambda v: v * np.nan])
def test_vectors_of_another_encoder_are_refused_and_nothing_is_left(change, sources, vectors, tmp_path) -> None:
    np.save(tmp_path / "other.npy", change(vectors))
    with pytest.raises(EncoderMismatchError, match="are not those of"):
        imported(tmp_path, sources / "texts.jsonl.gz", tmp_path / "other.npy")
    assert not (tmp_path / "m").exists()


def test_vectors_of_another_dimension(sources, vectors, tmp_path) -> None:
    np.save(tmp_path / "other.npy", vectors[:, :-1])
    with pytest.raises(EncoderMismatchError, match="dimensions"):
        imported(tmp_path, sources / "texts.jsonl.gz", tmp_path / "other.npy")


def test_what_cannot_be_read_is_refused_in_one_line(sources, vectors, tmp_path) -> None:
    texts = sources / "texts.jsonl.gz"

    def refused(kind, said: str, source: Path, beside: Path | None = None) -> None:
        with pytest.raises(kind, match=said) as caught:
            for _ in read_source(source, beside)[1]:
                pass
        assert "\n" not in str(caught.value)

    (tmp_path / "x.pkl").write_bytes(b"\x80\x04N.")
    refused(InputError, "pickled", tmp_path / "x.pkl")
    np.save(tmp_path / "objects.npy", np.array([[object()]] * 3), allow_pickle=True)
    refused(DataError, "cannot be read", texts, tmp_path / "objects.npy")
    np.save(tmp_path / "few.npy", vectors[:-1])
    refused(DataError, r"2,500 passages.*2,499 vectors", texts, tmp_path / "few.npy")
    (tmp_path / "cut.npy").write_bytes((sources / "beir/corpus.npy").read_bytes()[:-5])
    refused(DataError, "cannot be read", texts, tmp_path / "cut.npy")
    (tmp_path / "rubbish.npy").write_bytes(b"rubbish")
    refused(DataError, "cannot be read", texts, tmp_path / "rubbish.npy")
    np.savez(tmp_path / "two.npz", a=vectors, b=vectors)
    refused(DataError, "the arrays a, b; needed one", texts, tmp_path / "two.npz")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 rubbish")
    refused(DataError, "cannot be read", tmp_path / "bad.parquet")
    refused(DataError, "needed one called embeddings or", sources / "passages")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("text")
    refused(InputError, "nothing that can be imported", tmp_path / "notes")
    refused(InputError, "no vectors", texts)
    refused(InputError, "no file or folder", tmp_path / "none")
    (tmp_path / "bad.jsonl").write_text('{"_id": "1", "text": "a"}\n{"_id": "2"}\n')
    np.save(tmp_path / "bad.npy", vectors[:2])
    refused(DataError, "line 2: no passage", tmp_path / "bad.jsonl")
    import faiss

    rounded = faiss.IndexScalarQuantizer(vectors.shape[1], faiss.ScalarQuantizer.QT_8bit)
    rounded.train(vectors)
    rounded.add(vectors)
    faiss.write_index(rounded, str(tmp_path / "rounded.faiss"))
    refused(InputError, "vectors whole", texts, tmp_path / "rounded.faiss")
