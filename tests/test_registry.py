"""Tables of names: rows are imported when they are asked for, other packages add rows by entry points."""

import sys
from importlib import metadata

import pytest

from latentrag.errors import InputError
from latentrag.registry import Table


def test_a_row_is_imported_when_it_is_asked_for():
    sys.modules.pop("this", None)
    table = Table[object]("thing", {"zen": "this:d", "own": len})
    assert list(table) == ["zen", "own"]
    assert "zen" in table
    assert "this" not in sys.modules
    assert table["own"] is len


def test_unknown_names_are_refused_in_one_line_that_names_the_others():
    table = Table[object]("retriever", {"dense": len, "bm25": len})
    with pytest.raises(InputError, match=r"^retriever 'sparse' is unknown; needed one of dense, bm25$"):
        table["sparse"]


def test_other_packages_add_rows(monkeypatch):
    good = metadata.EntryPoint("toy", "builtins:len", "latentrag.toys")
    bad = metadata.EntryPoint("bad", "no_such_package:thing", "latentrag.toys")
    monkeypatch.setattr(metadata, "entry_points", lambda *, group: [good, bad] if group == "latentrag.toys" else [])
    table = Table[object]("toy", {"own": max}, group="latentrag.toys")
    assert list(table) == ["own", "bad", "toy"]
    assert table["toy"] is len
    with pytest.raises(InputError, match=r"^toy 'bad' of no_such_package:thing cannot be imported"):
        table["bad"]


def test_rows_come_and_go():
    table = Table[object]("toy", {})
    table.add("toy", len)
    assert table["toy"] is len
    table.remove("toy")
    assert "toy" not in table
