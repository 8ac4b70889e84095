"""Wikipedia: which pages of a dump are articles, and what of their wikitext is text."""

import bz2
import gzip
import json
import tracemalloc
from collections import deque
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from latentrag.corpus import Ledger, read, split
from latentrag.corpus.wikipedia import plain
from latentrag.errors import DataError
from tests.corpus.making import dump, page

PAGES = [
    page(12, "Anarchism", "'''Anarchism''' is a [[political philosophy]]."),
    page(13, "Talk:Anarchism", "I disagree.", ns=1),
    page(14, "AnarchismS", "#WEITERLEITUNG [[Anarchism]]", redirect=True),
    page(15, "Old redirect", " #redirect [[Anarchism]]"),
    page(25, "Autism & more", "first revision", "last ''revision''"),
]


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("dump.xml", bytes),
        ("dump.XML.GZ", gzip.compress),
        ("dump.xml.bz2", bz2.compress),
        ("wiki-20260101-pages-articles1.xml-p1p41242.bz2", bz2.compress),
        ("wiki-pages-articles-multistream.xml.bz2", lambda raw: bz2.compress(raw[:99]) + bz2.compress(raw[99:])),
    ],
)
def test_articles_of_a_dump(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(dump(*PAGES)))
    assert [(d.id, d.title, d.text, d.source) for d in read(tmp_path / name)] == [
        ("12", "Anarchism", "Anarchism is a political philosophy.", str(tmp_path / name)),
        ("25", "Autism & more", "last revision", str(tmp_path / name)),
    ]


def test_links_to_files_and_categories_are_hidden_under_the_names_the_wiki_has_for_them(tmp_path):
    text = (
        "a [[Datei:x.jpg|thumb|pic]] b [[KATEGORIE:C]] c [[File:y.png]] d [[:Kategorie:C]] e [[Star Wars: A New Hope]]"
    )
    (tmp_path / "a.xml").write_bytes(dump(page(1, "T", text)))
    assert [d.text for d in read(tmp_path)] == ["a b c d Kategorie:C e Star Wars: A New Hope"]


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"<rss><page/></rss>", "its root is <rss>, needed <mediawiki>"),
        (b"", "not well-formed XML (no element found)"),
        (dump(PAGES[0])[:-8], "not well-formed XML (unclosed token)"),
        (dump(PAGES[0], "<page><title>&bad;</title></page>"), "not well-formed XML (undefined entity)"),
        (b'<!DOCTYPE m [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><mediawiki>&b;</mediawiki>', "has a DOCTYPE"),
        (b'<!DOCTYPE m SYSTEM "http://127.0.0.1:9/x.dtd"><mediawiki/>', "has a DOCTYPE"),
    ],
)
def test_xml_that_cannot_be_read_is_named_with_its_line(tmp_path, raw, problem):
    (tmp_path / "a.xml").write_bytes(raw)
    documents = read(tmp_path / "a.xml")
    if raw.startswith(b"<mediawiki"):
        assert next(documents).id == "12"
    with pytest.raises(DataError) as raised:
        next(documents)
    assert problem in str(raised.value)
    assert problem.startswith("its root") or "a.xml line " in str(raised.value)


def test_a_dump_cut_off_keeps_its_articles_so_far(tmp_path):
    raw = bz2.compress(dump(*(page(i, f"T{i}", f"text {i} {i * 7919}" * 50) for i in range(2_000))), 1)
    (tmp_path / "a.xml.bz2").write_bytes(raw[: len(raw) // 2])
    (tmp_path / "b.xml.bz2").write_bytes(raw[:-100] + bytes(90))
    (tmp_path / "c.xml.bz2").write_bytes(b"no bzip2 at all")
    skipped = {}
    ids = [d.id for d in read(tmp_path, on_skip=lambda file, reason: skipped.update({file.name: reason}))]
    assert set(skipped) == {"a.xml.bz2", "b.xml.bz2", "c.xml.bz2"}
    assert all(reason.startswith("not a whole bzip2 file") for reason in skipped.values())
    assert ids[:500] == [str(i) for i in range(500)]
    assert len(ids) < 4_000


def test_an_article_that_does_not_end_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("latentrag.corpus.wikipedia._MAX_ARTICLE_CHARS", 10_000)
    (tmp_path / "a.xml").write_bytes(dump(page(1, "T", "x" * 9_000), page(2, "U", "x" * 20_000)))
    documents = read(tmp_path / "a.xml")
    assert next(documents).id == "1"
    with pytest.raises(DataError, match="the <text> of a page does not end"):
        next(documents)


def test_a_dump_is_read_in_constant_memory(tmp_path):
    with (tmp_path / "a.xml").open("wb") as file:
        file.write(dump()[: -len("</mediawiki>")])
        talk = page(1, "Talk:T", "x" * 50_000, ns=1).encode()
        file.writelines(talk for _ in range(200))
        file.write(page(2, "T", "text").encode() + b"</mediawiki>")
    tracemalloc.start()
    (last,) = deque(read(tmp_path / "a.xml"), maxlen=1)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert last.text == "text"
    assert peak_bytes < 3e6  # of 10 MB; a page of 50 kB, a chunk and the parser's library are about 1


@pytest.mark.parametrize("name", ["wiki_00", "AA/wiki_113", "wiki_01.bz2", "wiki_02.gz"])
def test_files_of_wikiextractor(tmp_path, name):
    rows = [
        {"id": "12", "revid": "7", "url": "https://x/wiki?curid=12", "title": "Anarchism", "text": "Anarchism is."},
        {"id": "25", "url": "https://x/wiki?curid=25", "title": "Autism", "text": "Autism\n\nAutism is.\nMore."},
        {"id": "26", "url": "", "title": "Empty", "text": ""},
    ]
    raw = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    packs: dict[str, Callable[[bytes], bytes]] = {".bz2": bz2.compress, ".gz": gzip.compress}
    pack = packs.get(Path(name).suffix, bytes)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(pack(raw))
    expected = [("12", "Anarchism", "Anarchism is."), ("25", "Autism", "Autism is.\nMore."), ("26", "Empty", "")]
    assert [(d.id, d.title, d.text) for d in read(tmp_path)] == expected
    (tmp_path / name).write_bytes(pack(b'<doc id="12" title="Anarchism">\n'))
    with pytest.raises(DataError, match="line 1: not valid JSON"):
        list(read(tmp_path))


HIDDEN = frozenset(("file", "category"))


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("'''Bold''' and ''italic'' and [[Link|the link]] and [[plain]]s.", "Bold and italic and the link and plains."),
        ("a<ref>source {{cite|b}}</ref> b<ref name=x /> c<!-- comment -->.", "a b c."),
        ("{{Infobox person\n| name = X\n| spouse = {{marriage|Y}}\n}}\nX was born.", "X was born."),
        ("Text\n{| class=wikitable\n! year\n|-\n| 1901 || {{n}}\n|}\nmore", "Text\n\nmore"),
        ("== Life ==\nBorn.\n\n\n\n=== ''Death'' ===\nDied.", "Life\n\nBorn.\n\nDeath\n\nDied."),
        ("* one\n* [[two]]\n# three\n; term : definition", "one\ntwo\nthree\nterm definition"),
        ("[[File:a.jpg|thumb|A [[linked]] caption]]See [http://x.org a site], [http://y.org] and http://z.org", None),
        ("35&nbsp;mm &ndash; &lt;b&gt; &#233;&#xD800;", "35 mm – <b> é\ufffd"),
        ("<nowiki>[[kept]]</nowiki> <math>x^2</math> H<sub>2</sub>O<br />next", "[[kept]] x^2 H2O\nnext"),
        ("<gallery>\na.jpg|caption\n</gallery><timeline>x</timeline>end", "end"),
        ("X ({{IPA|x}}; born 1901) and Y ({{lang-fr|y}}) __NOTOC__", "X (born 1901) and Y (y)"),
        ("{{convert|1,234|km|mi|0}} or {{cvt|5|to|6|ft}}, {{lang|fr|mot}}, {{nowrap|a [[b|c]]}}{{convert}}", None),
        ("<script>alert(1)</script>", "alert(1)"),
        ("unclosed [[link and {{template and ''' bold", "unclosed [[link and {{template and ''' bold"),
        ("", ""),
    ],
)
def test_plain(wikitext, text):
    text = {
        "[[Fi": "See a site, and http://z.org",
        "{{co": "1,234 km or 5 to 6 ft, mot, a c",
    }.get(wikitext[:4], text)
    assert plain(wikitext, HIDDEN) == text


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("{{convert|4500|m|ft|abbr=on}}", "4500 m"),
        ("{{convert|5|ft|11|in|cm}} and {{cvt|9|st|4|lb}}", "5 ft 11 in and 9 st 4 lb"),
        ("{{convert|5|km|mi|1}}, {{convert|5|km|1}}, {{convert|3|x|4|x|5|m|ft}}", "5 km, 5 km, 3 x 4 x 5 m"),
        ("10{{sup|3}}, 10<sup>−3</sup>, x{{sup|n+1}}, 4{{sup|th}}, CO{{sub|2}}", "10^3, 10^−3, x^(n+1), 4th, CO2"),
        ("1999{{ndash}}2004, red{{snd}}blue, no{{mdash}}yes, 5{{nbsp}}m", "1999–2004, red – blue, no—yes, 5 m"),
        (
            "{{formatnum:1234567.891}}, {{formatnum:{{convert|9000|m}}}}, {{formatnum:1,234|R}}",
            "1,234,567.891, 9,000 m, 1,234",
        ),
        ("{{ill|Ada Berg|de}}, {{interlanguage link|Bo|sv|lt=Mr Bo}}, {{ill|[[Cy]]|fr|Cy (x)}}", "Ada Berg, Mr Bo, Cy"),
        (
            "{{USS|Petrel|ASR-14}}, {{HMS|Ark|R07|2}}, {{HNoMS|Fram}}, {{ship|SS|Rex}}, {{ms|x}}",
            "USS Petrel (ASR-14), HMS Ark, HNoMS Fram, SS Rex,",
        ),
        ("{{circa|1920|1925}} {{c.|1800}}", "circa 1920 – circa 1925 circa 1800"),
        ("{{frac|3|1|2}}, {{sfrac|a|b}}, {{frac|4}}, {{val|6.02|e=23|u=mol}}", "3 1/2, a/b, 1/4, 6.02×10^23 mol"),
        (
            "{{As of|2010|5}}, {{as of|2011|lc=y}}, {{as of|2012|alt=in 2012}}",
            "As of May 2010, as of 2011, in 2012",
        ),
        ("{{US$|5}}, {{£|7}}, {{abbr|kn|knots}}, {{nihongo|Tea|茶|cha}}", "US$5, £7, kn, Tea (茶, cha)"),
        ("{{quote|text=Let it be.|author=X}}<chem>H2O</chem> {{lang-fr|mot}}", "Let it be.H2O mot"),
    ],
)
def test_templates_within_sentences(wikitext, text):
    assert plain(wikitext, HIDDEN) == text


def test_what_is_not_shown_is_counted(tmp_path):
    text = "{{Infobox|a={{USS|b}}}} <ref>r</ref><ref>s</ref> {{cvt|5|m}} {{unknown}}\n{|\n| x\n|}<gallery>y</gallery>"
    (tmp_path / "a.xml").write_bytes(dump(page(1, "T", text)))
    ledgers: list[Ledger] = []
    list(read(tmp_path, on_ledger=ledgers.append))
    assert ledgers[0].left_out == {
        "template in wikitext": 2,
        "reference in wikitext": 2,
        "table in wikitext": 1,
        "gallery in wikitext": 1,
    }


def test_nesting_is_bounded():
    assert plain("{{a|" * 5_000 + "x" + "}}" * 5_000) is not None
    assert plain("<div>" * 5_000 + "deep" + "</div>" * 5_000).count("deep") == 1


words = st.text("abcdef-.,()", min_size=1, max_size=6)
marks = st.sampled_from(["'''{}'''", "[[x|{}]]", "{}<ref>r</ref>", "\n== {} ==\n", "{}{{{{t|u}}}}", "\n* {}", "{}"])


@settings(max_examples=60)
@given(st.lists(st.tuples(words, marks), min_size=1, max_size=12), st.integers(1, 4))
def test_passages_are_slices_of_the_text(tmp_path_factory, parts, num_words):
    path = tmp_path_factory.mktemp("dump") / "a.xml"
    path.write_bytes(dump(page(1, "T", " ".join(mark.format(word) for word, mark in parts))))
    (document,) = read(path)
    letters = [c for c in "".join(word for word, _ in parts) if c.isalpha()]
    assert [c for c in document.text if c.isalpha()] == letters
    for z in split(document, words=num_words):
        assert z.text == document.text[z.start : z.end]
