"""score: a stream of JSON lines in and out."""

import json
from collections.abc import Iterator

import pytest

import latentrag
from latentrag.cli.score import batches, pairs
from latentrag.errors import DataError
from tests.cli.conftest import QUESTION, cli

PAIRS = [(QUESTION, "Beethoven"), ("Who wrote Emma?", "Austen"), ("What is the capital of France?", "Paris")]


def lines(rows: list[tuple[str, str]]) -> str:
    return "".join(json.dumps({"x": x, "y": y}) + "\n" for x, y in rows)


@pytest.fixture
def score(model, memory):
    def run(*arguments: object, stdin: str | bytes | None = None):
        return cli("score", "-m", model, "-i", memory, *arguments, stdin=stdin)

    return run


@pytest.mark.parametrize("variant", ["sequence", "token"])
def test_json_is_the_library_s_score(score, model, memory, variant) -> None:
    done = score("--json", "--variant", variant, "--batch-size", "2", stdin=lines(PAIRS))
    assert (done.code, done.stderr) == (0, "")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    rag = latentrag.load(model, memory=memory)
    for record, (x, y) in zip(records, PAIRS, strict=True):
        expected = rag.score(x, y, variant=variant)
        assert list(record) == [
            "x",
            "y",
            "log_likelihood",
            "closed_book_log_likelihood",
            "num_tokens",
            "posterior",
            "sources",
            "without_passage",
        ]
        assert (record["x"], record["y"], record["num_tokens"]) == (x, y, expected.num_tokens)
        # Rows of a batch are padded, which changes the last bits of float32 sums.
        assert record["log_likelihood"] == pytest.approx(expected.log_likelihood, abs=1e-4)
        assert record["closed_book_log_likelihood"] == pytest.approx(expected.closed_book_log_likelihood, abs=1e-4)
        assert record["posterior"] == pytest.approx([s.posterior for s in expected.sources], abs=1e-5)
        assert record["without_passage"] == pytest.approx(expected.without_passage, abs=1e-4)
        for source, given in zip(record["sources"], expected.sources, strict=True):
            assert list(source) == ["id", "title", "prior", "posterior", "sentences", "parts"]
            assert (source["id"], source["title"]) == (given.passage.id, given.passage.title)
            assert source["prior"] == pytest.approx(given.prior, abs=1e-6)


def test_sentences(score, model, memory) -> None:
    x, y = PAIRS[0]
    rag = latentrag.load(model, memory=memory)
    source = next(each for each in rag.score(x, y, sentences=True).sources if each.sentences)
    line = score("--json", "--sentences", stdin=lines(PAIRS)).stdout.splitlines()[0]
    found = next(each for each in json.loads(line)["sources"] if each["id"] == source.passage.id)["sentences"]
    assert [source.passage.text[each["start"] : each["end"]] for each in found] == [each["text"] for each in found]
    expected = [each.log_prob_without for each in source.sentences]
    assert [each["log_prob_without"] for each in found] == pytest.approx(expected, abs=1e-4)
    shown = " ".join(score("--sentences", stdin=lines(PAIRS)).stdout.split())
    most = min(source.sentences, key=lambda each: each.log_prob_without)
    assert f"without “{source.passage.text[most.start : most.end]}”" in shown


def test_file_and_standard_input_are_the_same(score, tmp_path) -> None:
    (tmp_path / "pairs.jsonl").write_text(lines(PAIRS) + "\n\n")
    from_file = score("--json", tmp_path / "pairs.jsonl")
    assert from_file.stdout == score("--json", "-", stdin=lines(PAIRS)).stdout
    assert len(from_file.stdout.splitlines()) == 3


def test_what_people_see(score) -> None:
    done = score("--batch-size", "1", stdin=lines(PAIRS))
    assert (done.code, done.stderr) == (0, "")
    shown = done.stdout.splitlines()
    assert all(len(line) <= 80 for line in shown)
    assert sum("log p(y|x)" in line for line in shown) == 1
    record = json.loads(score("--json", "--batch-size", "1", stdin=lines(PAIRS)).stdout.splitlines()[1])
    row = next(line for line in shown if "Emma" in line)
    closed_book = record["closed_book_log_likelihood"]
    gain = record["log_likelihood"] - closed_book
    numbers = [f"{record['log_likelihood']:.3f}", f"{closed_book:.3f}", f"{gain:+.2f}", str(record["num_tokens"])]
    assert row.split()[:4] == numbers
    assert "Austen" in row


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (b"{", "not valid JSON"),
        (b'["x", "y"]', "not an object"),
        (b'{"x": "who?"}', "y is missing"),
        (b'{"x": "who?", "y": 3}', "y is a int"),
        (b'{"x": "who?", "y": "\\ud800"}', "half a character"),
        (b'{"x": "who?", "y": "\xff"}', "not valid JSON"),
        (b'{"x": " ", "y": "one"}', "the question is empty"),
        (json.dumps({"x": "who " * 100, "y": "one"}).encode(), "tokens"),
        (b'{"x": "who?", "y": "one\\ntwo"}', "one line"),
    ],
)
def test_a_bad_line_is_named_and_what_came_before_it_is_written(score, bad, problem) -> None:
    stdin = lines(PAIRS[:1]).encode() + b"\n" + lines(PAIRS[1:]).encode() + bad + b"\n" + lines(PAIRS).encode()
    done = score("--json", stdin=stdin)
    assert done.code == 2
    assert [json.loads(line)["y"] for line in done.stdout.splitlines()] == ["Beethoven", "Austen", "Paris"]
    (error,) = done.stderr.splitlines()
    assert error.startswith("error: standard input line 5: ")
    assert problem in error


def test_a_file_that_is_not_there(score, tmp_path) -> None:
    assert "none.jsonl: cannot be read (No such file" in score(tmp_path / "none.jsonl").error()


def test_batches_do_not_read_ahead() -> None:
    read: list[int] = []

    def source() -> Iterator[bytes]:
        for number in range(6):
            read.append(number)
            yield json.dumps({"x": str(number), "y": ""}).encode()

    stream = batches(pairs(source(), name="test"), size=2)
    assert [pair.x for pair in next(stream)] == ["0", "1"]
    assert read == [0, 1]


def test_batches_end_with_the_error_after_what_came_before() -> None:
    good = json.dumps({"x": "a", "y": "b"}).encode()
    stream = batches(pairs([good, good, good, b"{"], name="test"), size=2)
    assert [len(next(stream)), len(next(stream))] == [2, 1]
    with pytest.raises(DataError, match="test line 4"):
        next(stream)
