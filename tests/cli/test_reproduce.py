"""`latentrag reproduce` as it is typed: everything in small, what is recorded, what is refused."""

import json

import pytest

from latentrag.evaluation.reproduce.rows import read_rows
from tests.cli.conftest import cli


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduced")
    ran = cli("reproduce", "all", "--quick", "--work", folder)
    assert ran.code == 0, ran.stderr
    return folder


def test_every_row_runs_in_small(work):
    rows = {name: row for name, row in read_rows().rows.items() if not row.needs}
    for name, row in rows.items():
        recorded = {path.stem for path in (work / "quick" / "results" / name).glob("*.json")}
        assert recorded == set(row.arms)


def test_what_ran_is_not_run_again(work):
    ran = cli("reproduce", "all", "--quick", "--work", work)
    assert ran.code == 0
    for name, row in read_rows().rows.items():
        if not row.needs:
            assert f"{name}: {len(row.arms)} of {len(row.arms)} arms are there" in ran.stderr
    assert f"latentrag reproduce check --work {work} --quick" in ran.stderr.replace("\n", "")


def test_the_list_says_what_is_recorded(work):
    listed = cli("reproduce", "list", "--json", "--quick", "--work", work).json["rows"]
    assert [row["name"] for row in listed] == list(read_rows().rows)
    assert all(row["recorded"] == len(row["arms"]) for row in listed if not row["needs"])


def test_check_ends_with_1_where_something_is_off(work):
    ran = cli("reproduce", "check", "--json", "--quick", "--work", work)
    outcomes = {check["outcome"] for check in json.loads(ran.stdout)["checks"]}
    assert "off" in outcomes  # models with random weights
    assert ran.code == 1


def test_what_ran_in_small_is_no_record_of_the_rows(work):
    results = work / "quick" / "results"
    listed = cli("reproduce", "list", "--json", "--results", results).json["rows"]
    assert all(row["recorded"] == 0 for row in listed)
    assert "holds no record of a row as its commands are now" in cli("reproduce", "check", "--results", results).error()


def test_figures_are_drawn_from_the_records(work):
    pytest.importorskip("matplotlib")
    for name, row in read_rows().rows.items():
        if row.figure:
            drawn = (work / "quick" / "results" / f"{name}.svg").read_text("utf-8")
            assert "<svg" in drawn
            assert "passage" in drawn


def test_the_page_is_written_beside_the_records(work):
    assert (work / "quick" / "results" / "README.md").read_text().startswith("# Results")


def test_bad_words_are_refused_in_one_line(tmp_path):
    assert "is no row" in cli("reproduce", "table-99", "--work", tmp_path).error()
    assert "holds no record" in cli("reproduce", "check", "--work", tmp_path).error()
    assert "--json has no effect on all" in cli("reproduce", "all", "--json", "--work", tmp_path).error()
    assert "name their folder by --data" in cli("reproduce", "all", "--data", tmp_path, "--work", tmp_path).error()
