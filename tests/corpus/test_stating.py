"""Titles that programs make up, and titles that only look like it."""

import pytest

from latentrag.corpus.stating import is_made_up, title_of

MADE_UP = """untitled|Untitled 2|UNTITLED DOCUMENT|Untitled-1|Unbenannt|Unbenanntes Dokument|sans titre|Sin título
无标题
Microsoft Word - Document1|Microsoft Word - final report.doc|Microsoft PowerPoint - talk|Document1|Dokument 2
Presentation1|PowerPoint Presentation|PowerPoint-Präsentation|Book1|Slide 1|title|report_v2.docx|paper.dvi|brochure.indd
(anonymous)|none|-|...|"""
REAL = """1984|Book of Hours|The Untitled Room|Document control in harbours|Presentation of the Petrel|A
Title IX|Slide rules|Nobody|What is a .docx file?|Word for Word"""


@pytest.mark.parametrize("title", MADE_UP.replace("\n", "|").split("|"))
def test_made_up(title):
    assert is_made_up(title)
    assert title_of(title, " The \n heading ", "sub/name.pdf") == "The heading"
    assert title_of(title, "", "sub/name.pdf") == "name"


@pytest.mark.parametrize("title", REAL.replace("\n", "|").split("|"))
def test_real(title):
    assert title_of(title, "heading", "name.pdf") == title
