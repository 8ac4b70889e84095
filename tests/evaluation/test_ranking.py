"""Rankings: against trec_eval and ir-measures, KILT's R-precision by hand, files of TREC there and back."""

import math
from typing import Any

import ir_measures
import numpy as np
import pytest
import pytrec_eval

from latentrag.errors import DataError, InputError
from latentrag.evaluation.compare import compare
from latentrag.evaluation.kilt import KILT, kilt_r_precision
from latentrag.evaluation.ranking import (
    RANKING,
    best_r_precision,
    document_of,
    r_precision,
    ranked,
    ranking_measures,
    relevance,
)
from latentrag.evaluation.retrieval import check_written, evaluate_retrieval, evaluate_run, qrels_of, run_of
from latentrag.evaluation.trec import read_qrels, read_run, write_qrels, write_run
from latentrag.training.data import Example
from latentrag.types import Passage
from tests.evaluation.test_run import FakeRetriever

QRELS = {
    "q1": {"a": 1, "b": 2, "c": 0, "서울": 1},
    "q2": {"z": 1},
    "q3": {"a": 3, "d": 1},
    "q4": {"a": 1},
}
RUN = {  # ties, grades of 0, names that were not judged, one question with nothing
    "q1": {"a": 1.0, "b": 1.0, "c": 1.0, "x": 1.0, "서울": 0.5},
    "q2": {"a": 3.0, "b": 2.0},
    "q3": {"d": -1.0, "a": -1.0, "x": -2.5, "y": -2.5},
}


def lines(run) -> str:
    return "".join(f"{q} Q0 {name} 1 {score} t\n" for q, found in run.items() for name, score in found.items())


def test_measures_of_a_run_with_ties_are_trec_eval_s(tmp_path) -> None:
    path = tmp_path / "run.trec"
    path.write_text(lines(RUN), "utf-8")
    public = pytrec_eval.RelevanceEvaluator(QRELS, {"ndcg_cut.10", "recip_rank", "Rprec", "recall.1,2,5"}).evaluate(RUN)
    through = {
        (each.query_id, str(each.measure)): each.value
        for each in ir_measures.iter_calc([ir_measures.nDCG @ 10, ir_measures.RR, ir_measures.R @ 2], QRELS, RUN)
    }
    for question, found in read_run(path).items():
        ours = ranking_measures([name for name, _ in found], QRELS[question], (1, 2, 5))
        theirs = public[question]
        assert ours["ndcg@10"] == pytest.approx(theirs["ndcg_cut_10"], abs=1e-12)
        assert ours["mrr"] == pytest.approx(theirs["recip_rank"], abs=1e-12)
        assert ours["r_precision"] == pytest.approx(theirs["Rprec"], abs=1e-12)
        assert [ours[f"relevant_recall@{k}"] for k in (1, 2, 5)] == pytest.approx(
            [theirs[f"recall_{k}"] for k in (1, 2, 5)], abs=1e-12
        )
        assert ours["ndcg@10"] == pytest.approx(through[question, "nDCG@10"], abs=1e-12)
        assert ours["relevant_recall@2"] == pytest.approx(through[question, "R@2"], abs=1e-12)


def test_measures_by_hand() -> None:
    found = ranking_measures(["x", "a", "b"], {"a": 1, "b": 2, "c": 1}, (1, 3))
    dcg, ideal = 1 / math.log2(3) + 2 / 2, 2 + 1 / math.log2(3) + 1 / 2
    assert found == pytest.approx(
        {"relevant_recall@1": 0, "relevant_recall@3": 2 / 3, "r_precision": 2 / 3, "ndcg@10": dcg / ideal, "mrr": 0.5}
    )
    nothing = ranking_measures([], {"a": 1}, (1,))
    assert nothing == {"relevant_recall@1": 0, "r_precision": 0, "ndcg@10": 0, "mrr": 0}


def test_a_report_over_a_run_is_that_of_ir_measures(tmp_path) -> None:
    (tmp_path / "run.trec").write_text(lines(RUN), "utf-8")
    examples = [Example(name, "who?", ()) for name in QRELS]
    found = evaluate_run(read_run(tmp_path / "run.trec"), examples, qrels=QRELS, recall_at=(1, 5))
    public = ir_measures.calc_aggregate(
        [ir_measures.nDCG @ 10, ir_measures.RR, ir_measures.Rprec, ir_measures.R @ 5], QRELS, RUN
    )
    names = {"ndcg@10": "nDCG@10", "mrr": "RR", "r_precision": "Rprec", "relevant_recall@5": "R@5"}
    means = {str(measure): value for measure, value in public.items()}
    assert {name: found.estimates[name].mean for name in names} == pytest.approx(
        {name: means[theirs] for name, theirs in names.items()}
    )
    assert found.estimates["mrr"].num_examples == 4  # q4 counts, with nothing


def test_judged_questions_without_anything_relevant_count_as_ir_measures_has_them() -> None:
    qrels, run = {"q1": {"a": 1}, "q2": {"a": 0}}, {"q1": {"a": 1.0}, "q2": {"a": 1.0}}
    public = ir_measures.calc_aggregate([ir_measures.nDCG @ 10, ir_measures.RR], qrels, run)
    examples = [Example(name, "who?", ()) for name in qrels]
    runs = {name: list(found.items()) for name, found in run.items()}
    found = evaluate_run(runs, examples, qrels=qrels).estimates
    assert [found["ndcg@10"].mean, found["mrr"].mean] == [public[ir_measures.nDCG @ 10], public[ir_measures.RR]]
    assert (found["mrr"].mean, found["mrr"].num_examples) == (0.5, 2)
    assert set(ranking_measures(["a"], {"a": -2}, (1,)).values()) == {0}
    unjudged = RANKING.measures({"unit": "passage", "retrieved": [["a", "", 1.0]], "grades": {}}, (1,))
    assert set(unjudged.values()) == {None}


def test_what_a_passage_is_a_part_of() -> None:
    passages = [("d#1", "T"), ("d#0", "T"), ("e", "U"), ("f#3#1", "T")]
    assert ranked(passages, ["d"], "passage") == ["d", "e", "f"]
    assert ranked(passages, ["f#3"], "passage") == ["d#1", "d#0", "e", "f#3"]
    assert ranked(passages, ["d", "f#3"], "passage") == ["d", "e", "f#3"]
    assert ranked(passages, ["f#3"], "document") == ["d", "e", "f"]
    assert ranked(passages, [], "title") == ["T", "U"]
    assert document_of("a#b#c", depth=1) == "a#b"
    row = {"titles": ["T"], "relevant": ["x#1", "x#2", "y"], "relevant_sets": [["x#1", "y"]]}
    assert relevance(row, "document") == ({"x": 1, "y": 1}, [["x", "y"]])
    assert relevance(row, "title") == ({"T": 1}, [])
    graded = {"grades": {"x#1": 0, "x#2": 3}, "titles": []}
    assert relevance(graded, "document")[0] == {"x": 3}


def test_r_precision_is_kilt_s() -> None:
    # Petroni et al. 2021: r of the first R pages, where the set of evidence has R; the best of the sets.
    assert r_precision(["1", "2", "3"], ["2", "1"]) == 1
    assert r_precision(["3", "2", "1"], ["2", "1"]) == 0.5
    assert r_precision([], ["2"]) == 0
    assert best_r_precision(["3", "2", "1"], [["2", "1"], ["3"]]) == 1
    assert best_r_precision(["3", "2", "1"], [["2", "1"], ["9"]]) == 0.5


def test_kilt_s_combined_scores() -> None:
    example = Example("e", "q", ("a",), ("T", "U"), title_sets=(("T", "U"), ("V",)))
    first = [Passage("1", "", "U"), Passage("2", "", "U"), Passage("3", "", "T"), Passage("4", "", "V")]
    assert kilt_r_precision(example, "", first) == 1  # pages, each once
    assert kilt_r_precision(example, "", first[::-1]) == 1  # the other set
    assert kilt_r_precision(example, "", [Passage("1", "", "U"), *first[3:]]) == 0.5
    assert kilt_r_precision(Example("e", "q", ("a",), ("T",)), "", first) is None
    assert kilt_r_precision(example, "", []) is None
    by_id = Example("e", "q", ("a",), passages=("7",), passage_sets=(("7",),))
    assert kilt_r_precision(by_id, "", [Passage("7#4", ""), Passage("8", "")]) == 1
    row = {"exact_match": True, "f1": 0.5, "rouge_l": None}
    assert KILT.measures({**row, "kilt_r_precision": 1.0}, ()) == {
        "kilt_r_precision": 1.0,
        "kilt_exact_match": 1.0,
        "kilt_f1": 0.5,
        "kilt_rouge_l": None,
    }
    assert KILT.measures({**row, "kilt_r_precision": 0.5}, ()) == {
        "kilt_r_precision": 0.5,
        "kilt_exact_match": 0.0,
        "kilt_f1": 0.0,
        "kilt_rouge_l": None,
    }
    assert set(KILT.measures(row, ()).values()) == {None}  # rows of earlier versions


def test_rows_of_a_retriever(tmp_path) -> None:
    retriever = FakeRetriever()
    examples = [
        Example("one", "who?", ("c",), titles=("title 5",), passages=("z5", "z1")),
        Example("two", "what now?", ()),
    ]
    out = tmp_path / "run.jsonl"
    found = evaluate_retrieval(retriever, examples, out, recall_at=(1, 2, 50))
    assert retriever.searches == [(2, 6)]
    first = found.rows[0]
    assert [name for name, _, _ in first["retrieved"]] == ["z4", "z5", "z0", "z1", "z2", "z3"]
    assert (first["title_rank"], first["rank"], found.rows[1]["rank"]) == (2, 6, None)
    means = {name: each.mean for name, each in found.estimates.items()}
    assert means["relevant_recall@2"] == 0.5
    assert means["mrr"] == 0.5
    assert found.estimates["mrr"].num_examples == 1
    again = FakeRetriever()
    assert evaluate_retrieval(again, examples, out, recall_at=(1, 2, 50)).rows == found.rows
    assert again.searches == []
    write_run(tmp_path / "run.trec", run_of(found.rows))
    write_qrels(tmp_path / "qrels", qrels_of(found.rows))
    measured = evaluate_run(
        read_run(tmp_path / "run.trec"), examples[:1], qrels=read_qrels(tmp_path / "qrels"), recall_at=(1, 2)
    )
    assert measured.estimates["mrr"] == found.estimates["mrr"]


def test_judgements_take_the_place_of_what_the_rows_name(tmp_path) -> None:
    named = Example("one", "who?", ("c",), passages=("z3",), passage_sets=(("z3",),))
    examples = [named, Example("two", "what now?", ("c",))]
    qrels, out = {"one": {"z5": 2, "z1": 0}}, tmp_path / "run.jsonl"
    found = evaluate_retrieval(FakeRetriever(), examples, out, qrels=qrels)
    assert found.estimates["r_precision"].mean == 0  # of z5 alone, which is second
    assert found.estimates["mrr"].mean == 0.5
    assert found.estimates["mrr"].num_examples == 1  # the other question was not judged
    again = FakeRetriever()
    assert evaluate_retrieval(again, examples, out, qrels=qrels).rows == found.rows
    assert again.searches == []


def test_titles_there_and_back(tmp_path) -> None:
    examples = [Example("one", "who?", (), titles=("title 5", "title 1"))]
    found = evaluate_retrieval(FakeRetriever(), examples)
    write_run(tmp_path / "run", run_of(found.rows))
    write_qrels(tmp_path / "qrels", qrels_of(found.rows))
    assert read_qrels(tmp_path / "qrels") == {"one": {"title_5": 1, "title_1": 1}}
    again = evaluate_run(read_run(tmp_path / "run"), examples)
    assert again.estimates["ndcg@10"] == found.estimates["ndcg@10"]


def test_a_written_run_keeps_our_order_among_equal_scores(tmp_path) -> None:
    ours = {"q": [("a", 1.0), ("b", 1.0), ("c", 1.0), ("d", 0.99999999), ("e", -3.0), ("f", -3.0)]}
    write_run(tmp_path / "run", ours)
    assert [name for name, _ in read_run(tmp_path / "run")["q"]] == list("abcdef")
    run = {"q": dict(read_run(tmp_path / "run")["q"])}
    for wanted in "abcdef":
        found = pytrec_eval.RelevanceEvaluator({"q": {wanted: 1}}, {"recip_rank"}).evaluate(run)["q"]["recip_rank"]
        assert found == pytest.approx(1 / ("abcdef".index(wanted) + 1))
    assert np.float32(run["q"]["b"]) == np.nextafter(np.float32(1), np.float32(0))


@pytest.mark.parametrize(
    ("read", "content", "problem"),
    [
        (read_qrels, "q 0 a\n", "line 1 is no judgement"),
        (read_qrels, "q\n", "line 1 is no judgement"),
        (read_qrels, "q 0 a 1\nq 0 b high\n", "line 2 is no judgement"),
        (read_qrels, "query-id\tcorpus-id\tscore\n", "holds no judgement"),
        (read_run, "q Q0 a 1 0.5\n", "line 1 is no row of a run"),
        (read_run, "q Q0 a 1 nan t\n", "line 1 is no row of a run"),
        (read_run, "q Q0 a 1 0.5 t\nq Q0 a 2 0.4 t\n", "line 2 has a for q a second time"),
        (read_run, "", "holds no row of a run"),
        (read_qrels, "q\t\t1\n", "line 1 is no judgement"),
        (read_qrels, "q\ta b\t1\nq\tb\n", "line 2 is no judgement"),
        (read_run, "q\tQ0\t\t1\t0.5\tt\n", "line 1 is no row of a run"),
    ],
)
def test_bad_files(read, content, problem, tmp_path) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(DataError, match=problem):
        read(path)
    with pytest.raises(DataError, match="No such file"):
        read(tmp_path / "none")


@pytest.mark.parametrize("scores", [(0.50000000001, 0.5), (-0.5, -0.50000000001), (1e39, 2e39), (0.500001, 0.5)])
def test_scores_are_float32_as_trec_eval_has_them(scores, tmp_path) -> None:
    run = {"q": dict(zip("ab", scores, strict=True))}
    (tmp_path / "run").write_text(lines(run))
    found = [name for name, _ in read_run(tmp_path / "run")["q"]]
    for name in "ab":
        public = ir_measures.calc_aggregate([ir_measures.RR], {"q": {name: 1}}, run)[ir_measures.RR]
        assert ranking_measures(found, {name: 1}, (1,))["mrr"] == public


def test_lines_with_tabs_are_divided_at_tabs(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_text("query-id\tcorpus-id\tscore\nq 1\ta b\t1\nq 1\t0\td1\t2\nq2 0 c 1\nq3 0 d\t 1\nq4 0\td\t1\n")
    assert read_qrels(path) == {"q 1": {"a b": 1, "d1": 2}, "q2": {"c": 1}, "q3": {"d": 1}, "q4": {"d": 1}}
    path.write_text("q 1\tQ0\ta b\t1\t0.5\tmy tag\nq2 Q0 c 1 0.5 t\n")
    assert read_run(path) == {"q 1": [("a b", 0.5)], "q2": [("c", 0.5)]}


def test_titles_with_underscores_are_found_in_a_run(tmp_path) -> None:
    examples = [Example("one", "who?", (), titles=("snake_case", "a\u00a0b c"))]
    runs = {"one": [("x_y", 3.0), ("snake_case", 2.0), ("a_b_c", 1.0)]}
    found = evaluate_run(runs, examples)
    assert [title for _, title, _ in found.rows[0]["retrieved"]] == ["x y", "snake_case", "a\u00a0b c"]
    assert (found.estimates["mrr"].mean, found.estimates["relevant_recall@5"].mean) == (0.5, 1)
    write_run(tmp_path / "run", run_of(found.rows))
    assert read_run(tmp_path / "run") == runs


def test_passages_without_a_title_are_left_out_by_title(tmp_path) -> None:
    row = {"id": "q", "unit": "title", "retrieved": [["a", "", 2.0], ["b", "T", 1.0]], "titles": ["T"]}
    write_run(tmp_path / "run", run_of([row]))
    assert read_run(tmp_path / "run") == {"q": [("T", 1.0)]}
    assert RANKING.measures(row, (1,))["mrr"] == 1  # what trec_eval makes of the file


def test_a_run_over_rows_with_answers_alone_is_refused() -> None:
    with pytest.raises(DataError, match="no row says what is relevant: no title or passage, .* --qrels"):
        evaluate_run({"one": [("a", 1.0)]}, [Example("one", "who?", ("a",))])


def test_ids_that_cannot_be_written_are_refused_before_anything_is_measured(tmp_path) -> None:
    run, judgements = tmp_path / "run", tmp_path / "qrels"
    spaced = [Example("q 1", "who?", (), titles=("a b",))]
    for files in ((run, None), (None, judgements)):
        with pytest.raises(DataError, match="the id 'q 1' has white space"):
            check_written(spaced, *files, unit=None, qrels=None)
    named = [Example("q", "who?", (), passages=("a b",))]
    check_written(named, run, None, unit=None, qrels=None)
    with pytest.raises(DataError, match="qrels: the id 'a b' has white space"):
        check_written(named, run, judgements, unit=None, qrels=None)
    with pytest.raises(DataError, match="the id '' is empty"):
        write_run(run, {"q": [("", 1.0)]})


def test_names_with_spaces_are_not_written(tmp_path) -> None:
    with pytest.raises(DataError, match="'a b' has white space"):
        write_qrels(tmp_path / "qrels", {"q": {"a b": 1}})
    assert list(tmp_path.iterdir()) == []


def test_rankings_of_other_things_are_not_compared(tmp_path) -> None:
    examples = [Example("one", "who?", ("c",), titles=("title 5",), passages=("z5",))]
    ways: dict[str, dict[str, Any]] = {
        "passage": {},
        "title": {"unit": "title"},
        "z5": {"qrels": {"one": {"z5": 1}}},
        "z1": {"qrels": {"one": {"z1": 1}}},
    }
    files = {name: tmp_path / f"{name}.jsonl" for name in ways}
    for name, way in ways.items():
        evaluate_retrieval(FakeRetriever(), examples, files[name], **way)
    with pytest.raises(DataError, match="has unit='passage', .*title.jsonl 'title'; evaluate both with one --by"):
        compare(files["passage"], files["title"])
    for other in ("passage", "z1"):
        with pytest.raises(DataError, match=r"has judgements=.*; evaluate both against the same --qrels"):
            compare(files["z5"], files[other])
    assert compare(files["z5"], files["z5"]).differences["mrr"].difference == 0


def test_what_says_nothing_of_what_is_relevant() -> None:
    with pytest.raises(DataError, match="no row says what is relevant"):
        evaluate_retrieval(FakeRetriever(), [Example("one", "who?", ())])
    with pytest.raises(InputError, match="no row says which documents are relevant; use --by title"):
        evaluate_retrieval(FakeRetriever(), [Example("one", "who?", (), titles=("t",))], unit="document")
    with pytest.raises(InputError, match="k=9 exceeds the memory's 6"):
        evaluate_retrieval(FakeRetriever(), [Example("one", "who?", ("a",))], k=9)
    with pytest.raises(InputError, match="k=0; needed 1 or more"):
        evaluate_retrieval(FakeRetriever(), [Example("one", "who?", ("a",))], k=0)
    with pytest.raises(DataError, match="the run has none of the 1 questions, one first"):
        evaluate_run({"two": [("a", 1.0)]}, [Example("one", "who?", ())], qrels={"one": {"a": 1}})
    assert "relevant_recall@1" not in evaluate_retrieval(FakeRetriever(), [Example("one", "who?", ("a",))]).estimates
    assert RANKING.bounds == (0, 1)
