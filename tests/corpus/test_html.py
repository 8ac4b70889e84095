"""HTML: the main text and nothing else."""

import io
from html import escape

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from latentrag.corpus import passages, read, split
from latentrag.corpus.html import html
from latentrag.corpus.readers import Ledger
from latentrag.errors import DataError
from latentrag.types import Document

PROSE = "The keeper of the lighthouse writes down every evening what ships have passed, and which way the wind blew. "
OTHER = "In winter the boat comes once a month, if the sea allows, and brings letters, oil and a sack of flour. "


def of(source: str | bytes, name: str = "page.html") -> Document:
    raw = source.encode() if isinstance(source, str) else source
    (document,) = html(io.BytesIO(raw), name, Ledger(name))
    return document


def text_of(body: str) -> str:
    return of(f"<!doctype html><title>T</title><body>{body}").text


ARTICLE = f"""<!doctype html>
<html><head><title>The  lighthouse &amp; its keeper</title><meta charset="utf-8">
<style>p {{ color: red }}</style><script>document.write("written by a script")</script></head>
<body class="page has-sidebar">
<header><a href="/">Home</a> The daily gull, since 1902, the only paper of these islands and proud of it, too.</header>
<nav><ul><li><a href="/a">News</a><li><a href="/b">Weather</a></ul></nav>
<div class="wrap">
 <div id="cookie-banner">We use cookies to make this page slower; by looking at it you agree to all, forever.</div>
 <div class="story">
  <h1>The lighthouse</h1>
  <p>{PROSE}Fish &amp; chips&nbsp;cost 3&thinsp;&euro;.</p><!-- a comment -->
  <p>{OTHER}<a href="x">More</a> <b>bold</b><i>italic</i>.</p>
  <img src="http://127.0.0.1:9/x.png" alt="an image"><script>alert("never")</script>
  <noscript>Turn scripts on</noscript><template><p>template</p></template>
  <pre>
  def f():
      return 1
</pre>
  <table><tr><th>year</th><th>ships</th></tr><tr><td>1901</td><td>12</td></tr></table>
  first line<br>second line
  <p hidden>{PROSE}</p><div style="display: none">{PROSE}</div>
  <ul class="related"><li><a href="1">Another story about the sea</a></ul>
 </div>
 <aside>{OTHER[:50]}</aside>
</div>
<footer>© 1902</footer></body></html>"""


def test_the_main_text_of_a_page():
    document = of(ARTICLE, "notes/page.html")
    assert document.text.split("\n") == [
        "The lighthouse",
        f"{PROSE}Fish & chips cost 3 €.",
        f"{OTHER}More bolditalic.",
        "  def f():",
        "      return 1",
        "year\tships",
        "1901\t12",
        "first line",
        "second line",
    ]
    assert (document.id, document.title) == ("notes/page.html", "The lighthouse & its keeper")


@pytest.mark.parametrize(
    ("head", "title"),
    [
        ("<title> A\n title </title><h1>Heading</h1>", "A title"),
        ("<title> </title><h1> <b>Head</b>ing </h1><h1>Other</h1>", "Heading"),
        ("<svg><title>Icon</title></svg>", "page"),
    ],
)
def test_title(head, title):
    assert of(f"{head}<p>text").title == title


@pytest.mark.parametrize(
    "body",
    [
        f"<main><p>{PROSE}</main><p>{OTHER}",
        f"<article>{PROSE}</article><article></article><div>{OTHER}</div>",
        f"<div role=main>{PROSE}</div><div>{OTHER}</div>",
        f"<div><p>{PROSE * 20}</div><div>{OTHER}</div>",
    ],
)
def test_what_is_marked_as_the_text_or_has_nearly_all_of_it_is_taken(body):
    assert set(text_of(body).split()) == set(PROSE.split())


@pytest.mark.parametrize(
    "body",
    [
        f"<div><p>{PROSE}</div><div><p>{OTHER}</div>",
        f"<div class=sidebar>{PROSE}</div><div class=menu>{OTHER}</div><p>{PROSE}",
        f"<main>{PROSE[:10]}</main><p>{PROSE}<p>{OTHER}",
        f"<main>{OTHER}</main><p>{PROSE * 2}",
        f"<article>{OTHER * 2}</article><p>between<article>{PROSE}</article>",
        f"<aside>{PROSE}{OTHER}</aside>",
        f"<div id=content style='display:none'>{PROSE}{OTHER}</div>",
    ],
)
def test_text_is_not_lost_where_a_page_is_built_otherwise(body):
    assert set(text_of(body).split()) >= set(PROSE.split())


@pytest.mark.parametrize("around", ["<main>{}</main>", "<article>{}</article>", "<div>{}</div>", "{}"])
def test_what_is_short_beside_one_long_paragraph_is_kept(around):
    body = f"<h1>Keys</h1><p>Ask Ingrid.</p><p>{PROSE}</p><ul><li>Or Olav.</li></ul>"
    assert text_of(around.format(body)).split() == f"Keys Ask Ingrid. {PROSE} Or Olav.".split()


def test_a_short_page_without_prose_is_kept_whole():
    assert text_of("<h1>Keys</h1><p>Ask Ingrid.<p><a href=x>Call her</a>") == "Keys\nAsk Ingrid."
    assert text_of("<ul><li><a href=1>One</a><li><a href=2>Two</a></ul>") == "One\nTwo"


def test_text_in_scripts_without_much_space_between_characters_counts_as_long():
    chinese = "看守灯塔的人每天晚上都会写下有哪些船经过以及风从哪个方向吹来而且他从不忘记。"
    assert text_of(f"<div><a href=x>{'菜单' * 30}</a></div><div>{chinese}</div><div>页脚</div>") == chinese


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("<p>café".encode(), "café"),
        ("\ufeff<p>café".encode(), "café"),
        ("<p>café".encode("utf-16"), "café"),
        (b"<meta charset=iso-8859-1><p>\x93caf\xe9\x94", "“café”"),
        (b"<META http-equiv=content-type content='text/html; charset=Windows-1251'><p>\xcf\xf0", "Пр"),
        ("<meta charset=shift_jis><p>灯台".encode("shift_jis"), "灯台"),
        (b"<meta charset=utf-8><p>caf\xe9 x", "caf\ufffd x"),
        ("<meta charset=utf-7><p>+AGE- é".encode(), "+AGE- é"),
    ],
)
def test_encodings_are_those_that_browsers_take(raw, text):
    assert of(raw).text == text


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"<p>caf\xe9", "not UTF-8 text"),
        (b"<meta charset=unheard-of><p>caf\xe9", "not UTF-8 text"),
        (b"", "no text in the page"),
        (b"<script>render()</script><div id=app></div>", "no text in the page; if scripts fill it"),
    ],
)
def test_pages_that_cannot_be_read(tmp_path, raw, problem):
    (tmp_path / "a.htm").write_bytes(raw)
    with pytest.raises(DataError, match=problem):
        list(read(tmp_path / "a.htm"))
    skipped = []
    assert list(read(tmp_path, on_skip=lambda *each: skipped.append(each))) == []
    assert [file.name for file, _ in skipped] == ["a.htm"]


def test_a_page_cut_off_anywhere_is_read_as_far_as_it_goes():
    whole = set(of(ARTICLE).text.split())
    start = ARTICLE.index(PROSE) + len(PROSE)
    for end in range(start, len(ARTICLE), 37):
        assert set(PROSE.split()) <= set(of(ARTICLE[:end]).text.split())
    assert set(PROSE.split()) < whole


def test_deep_nesting_is_no_recursion():
    assert text_of("<div>" * 2_000 + PROSE) == PROSE.strip()


blocks = st.lists(st.tuples(st.sampled_from(["p", "div", "li", "td", "h2", "span", "pre"]), st.text()), max_size=8)


@given(blocks.filter(lambda found: any(text.split() for _, text in found)), st.integers(1, 5))
@example([("p", "0"), ("p", "x" * 80)], 1)
def test_passages_are_slices_of_the_text_and_every_word_is_there(found, num_words):
    plain = [(tag, "".join(c for c in text if c.isprintable() or c == " ")) for tag, text in found]
    if not any(text.split() for _, text in plain):
        return
    document = of("<main>" + "".join(f"<{tag}>{escape(text)}</{tag}> " for tag, text in plain))
    assert document.text.split() == " ".join(text for _, text in plain).split()
    for z in split(document, words=num_words):
        assert z.text == document.text[z.start : z.end]


def test_a_page_in_a_folder(tmp_path):
    (tmp_path / "page.html").write_text(ARTICLE)
    found = list(passages(tmp_path, words=20))
    (document,) = read(tmp_path)
    assert [z.id for z in found] == [f"page.html#{i}" for i in range(len(found))]
    assert all(z.text == document.text[z.start : z.end] for z in found)
    assert {z.page for z in found} == {None}
