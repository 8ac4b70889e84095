"""HTML: the main text and nothing else."""

import io
import json
from html import escape

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from latentrag.corpus import passages, read, split
from latentrag.corpus.html import html
from latentrag.corpus.html_kinds import num_chars
from latentrag.corpus.readers import Ledger
from latentrag.errors import DataError
from latentrag.ids import id_of_part
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
        ("<title>Untitled Document</title><h1>Heading</h1>", "Heading"),
        ("<title>untitled</title><meta property='og:title' content='Of the page'><h1>Heading</h1>", "Of the page"),
        ("<title></title><h3>Third</h3><h2>Second</h2>", "Third"),
        ("<title>Untitled</title>", "page"),
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
        f"<div><p>{PROSE * 20}</div><div><a href=x>{OTHER}</a></div>",
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
        f"<div><p>{PROSE}</div><div>{OTHER * 20}</div>",
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
    assert text_of("<h1>Keys</h1><p>Ask Ingrid.<p><a href=x>Call her</a>") == "Keys\nAsk Ingrid.\nCall her"
    assert text_of("<ul><li><a href=1>One</a><li><a href=2>Two</a></ul>") == "One\nTwo"


def test_text_in_scripts_without_much_space_between_characters_counts_as_long():
    chinese = "看守灯塔的人每天晚上都会写下有哪些船经过以及风从哪个方向吹来而且他从不忘记。"
    assert text_of(f"<div><a href=x>{'菜单' * 30}</a></div><div>{chinese}</div><div>页脚</div>") == chinese


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("<p>café".encode(), "café"),
        ("\ufeff<p>café".encode(), "café"),
        (b"<meta charset=unheard-of><p>A caf\xe9 by the sea", "A café by the sea"),
        ("<p>café".encode("utf-16"), "café"),
        (b"<meta charset=iso-8859-1><p>\x93caf\xe9\x94", "“café”"),
        (b"<META http-equiv=content-type content='text/html; charset=Windows-1251'><p>\xcf\xf0", "Пр"),
        ("<meta charset=shift_jis><p>灯台".encode("shift_jis"), "灯台"),
        (b"<meta charset=utf-8><p>caf\xe9 x", "caf\ufffd x"),
        ("<meta charset=utf-7><p>+AGE- é".encode(), "+AGE- é"),
        ("<meta charset=tis-620><p>ประภาคาร".encode("cp874"), "ประภาคาร"),
        ("<meta charset=ks_c_5601-1987><p>등대 펲".encode("cp949"), "등대 펲"),
        ("<meta charset=gb2312><p>燈塔".encode("gb18030"), "燈塔"),
        ("<meta charset='x-sjis'><p>灯台①".encode("cp932"), "灯台①"),
        ("<meta charset=unicode-1-1-utf-8><p>café".encode(), "café"),
        ("<meta charset=utf-16><p>café".encode(), "café"),
        ("<meta charset=iso-2022-kr><p>café".encode(), "café"),
        ("<html><p>The light is out; the keeper is café".encode("utf-16-le"), "The light is out; the keeper is café"),
        ("<html><p>The light is out; the keeper is café".encode("utf-16-be"), "The light is out; the keeper is café"),
        (b"<?xml version='1.0' encoding='ISO-8859-15'?><html><p>3 \xa4", "3 €"),
        (b"<?xml version='1.0' encoding='windows-1251'?><meta charset=utf-8><p>\xcf\xf0", "Пр"),
        ("<!-- <meta charset=shift_jis> --><p>café".encode(), "café"),
        ("<!-- <meta charset=shift_jis> --><meta charset=windows-1251><p>Пр".encode("cp1251"), "Пр"),
        ("<meta name=description content='a charset=shift_jis page'><p>café".encode(), "café"),
        ("<meta charset=nonsense><meta charset=windows-1251><p>Пр".encode("cp1251"), "Пр"),
    ],
)
def test_encodings_are_those_that_browsers_take(raw, text):
    assert of(raw).text == text


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"\x00\x81<p>caf\xe9", "not UTF-8 text"),
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


def kept(body: str, *words: str) -> bool:
    """Whether a main text with this in it has all the words, each of which is in the page once."""
    text = text_of(f"<nav><a href=/>Home</a></nav><main><p>{PROSE}</p>{body}<p>{OTHER}</p></main>")
    return all(word in text for word in words)


@pytest.mark.parametrize(
    "name",
    [
        "class='field field--name-body field--label-hidden field__item'",
        "class='field field--label-visually_hidden'",
        "class='elementor-element elementor-widget elementor-widget-text-editor'",
        "class='elementor-widget-container'",
        "class='widget Blog' id=Blog1",
        "class='dialog-off-canvas-main-canvas'",
        "class='post has-sidebar category-cookies tag-share' ",
        "class='TestReport__Section TestReport__Section--Ads'",
        "class='o-section o-section--has-ads'",
        "class='hidden-contents-menu'",
        "class='news-teaser-text'",
        "class='content-with-sidebar no-comments'",
        "class='date-outer'",
        "class='wp-block-group is-layout-flow meta'",
    ],
)
def test_a_word_in_a_class_does_not_condemn_an_element(name):
    assert kept(f"<div {name}><p>Ask for OAKBARREL at the desk beside the gate.</p></div>", "OAKBARREL")


@pytest.mark.parametrize("name", "cookies pagination related-work share comments tags footer ads".split())
@pytest.mark.parametrize("element", ["section", "div class=section"])
def test_sections_that_are_named_by_their_headings_stay(name, element):
    heading = f"<h2>{name.replace('-', ' ').title()}<a class=headerlink href='#{name}'>¶</a></h2>"
    assert kept(f"<{element} id={name}>{heading}<p>Kept in OAKBARREL.</p></{element.split()[0]}>", "OAKBARREL")


def test_what_only_has_such_a_name_is_left_out():
    for name in ("comments", "related-posts", "share-buttons", "newsletter", "cookie-banner", "sidebar"):
        assert not kept(f"<div id={name}><h3>3 {name}</h3><p>OAKBARREL</p></div>", "OAKBARREL")
    assert not kept("<div class='noprint'>OAKBARREL</div>", "OAKBARREL")


def test_comments_go_even_if_they_are_longer_than_the_text():
    comments = f"<div class=comments>{f'<p>{OTHER}</p>' * 6}</div>"
    assert text_of(f"<div><h1>Keys</h1><p>{PROSE}</p>{comments}</div>") == f"Keys\n{PROSE.strip()}"


@pytest.mark.parametrize(
    "heading",
    [
        "<h2 id=tariff><a class=header href='#tariff'>TARIFF</a></h2>",
        "<h2><a href=tariff.html>TARIFF</a></h2>",
        "<a href='#tariff'><h3>TARIFF</h3></a>",
        "<h2><button aria-expanded=false>TARIFF</button></h2>",
        "<h4 class=related><span class=share>TARIFF</span></h4>",
    ],
)
def test_headings_that_are_links_or_buttons_stay(heading):
    assert kept(heading, "TARIFF")


def test_every_heading_of_a_book_stays():
    body = "".join(f"<h2><a class=header href='#{i}'>Part no{i}x</a></h2><p>{PROSE}</p>" for i in range(30))
    text = text_of(f"<main><h1><a href='#'>Book</a></h1>{body}</main>")
    assert [line for line in text.split("\n") if "no" in line and "x" in line] == [f"Part no{i}x" for i in range(30)]


@pytest.mark.parametrize("place", ["href='#x'", "href='form.pdf'", "href='https://example.org/x'"])
def test_lists_of_links_that_belong_to_the_text_stay(place):
    links = f"<ul><li><a {place}>Form H-17</a><li><a {place}>Form H-18</a></ul>"
    assert kept(links, "H-17", "H-18")
    assert "H-18" in text_of(f"<main><p>{PROSE}</p>{links}</main>")
    menu = f"<div><ul>{f'<li><a {place}>Another page of the islands</a>' * 9}</ul></div>"
    assert "Another" not in text_of(f"<div><div><p>{PROSE}</p></div>{menu}</div>")


@pytest.mark.parametrize(
    "aside",
    [
        "<aside class='admonition warning'><p>Never open VALVE two.</p></aside>",
        "<aside><p>Never open VALVE two.</p></aside>",
        "<aside role=note><p>Never open VALVE two, <a href=x>see</a> the plan of the plant.</p></aside>",
        "<aside id=footnotes class='footnotes' role=doc-endnotes><ol><li>VALVE</ol></aside>",
        "<blockquote><p>Beware.</p><footer>VALVE</footer></blockquote>",
        "<div class='alert alert-warning' role=alert>VALVE</div>",
        "<details><summary>More</summary><p>VALVE</p></details>",
        "<button class=faq>How often is the VALVE changed?</button><div><p>Yearly.</p></div>",
        "<h3><button aria-expanded=false>VALVE</button></h3>",
        "<dl><dt><button>VALVE</button><dd>Every forty days.</dl>",
        "<div role=tabpanel aria-hidden=true><p>VALVE</p></div>",
        "<div role=tabpanel hidden><p>VALVE</p></div>",
        "<div class=tab-pane style='display:none'><p>VALVE</p></div>",
        "<div class=accordion-panel hidden><p>VALVE</p></div>",
        "<div hidden=until-found><p>VALVE</p></div>",
    ],
)
def test_what_is_folded_away_or_stands_beside_the_text_stays(aside):
    assert kept(aside, "VALVE")


@pytest.mark.parametrize(
    "outside",
    [
        "<aside><ul><li><a href=x>Another story</a> VALVE</ul></aside>",
        "<aside class=newsletter>VALVE</aside>",
        "<button>VALVE</button>",
        "<select><option>VALVE</select>",
        "<div hidden>VALVE</div>",
        "<span class=sr-only>VALVE</span>",
    ],
)
def test_what_does_not_belong_to_the_text_goes(outside):
    assert not kept(outside, "VALVE")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("3.7 &times; 10<sup>10</sup> Bq", "3.7 × 10^10 Bq"),
        ("10<sup> -3 </sup>m", "10 ^-3 m"),
        ("2<sup><b>5</b></sup> barrels", "2^5 barrels"),
        ("a 4<sup>th</sup> time", "a 4th time"),
        ("H<sub>2</sub>O", "H2O"),
        ("1010<sub>2</sub>", "1010_2"),
        ("&frac12; litre", "½ litre"),
        ("<sup>1</sup>/<sub>2</sub> litre", "1/2 litre"),
        ("3<sup>1</sup>&frasl;<sub>2</sub> litres", "3 1/2 litres"),
        ("<math><mn>2.1</mn></math> m", "2.1 m"),
        ("<math><mfrac><mn>1</mn><mn>2</mn></mfrac></math> l", "1/2 l"),
        ("<math><msup><mn>10</mn><mrow><mo>-</mo><mn>3</mn></mrow></msup></math>", "10^(-3)"),
        ("<math><msub><mi>x</mi><mi>i</mi></msub></math>", "x_i"),
        ("<math><mroot><mi>x</mi><mn>3</mn></mroot></math>", "3√(x)"),
        (r"<math alttext='{\displaystyle x^{2}}'><msup><mi>x</mi><mn>2</mn></msup></math>", "x^{2}"),
        ("schlen&shy;dern", "schlendern"),
        ("<script type='math/tex'>x^2</script> holds", "x^2 holds"),
        ("<span style='display:none'><math><mn>48</mn></math></span><img alt=48> m", "48 m"),
    ],
)
def test_numbers_and_formulas_stay_what_they_are(source, text):
    assert text_of(f"<p>{source}") == text


def test_katex_is_read_once_and_parts_no_line():
    tex = r"<annotation encoding='application/x-tex'>4^{8}</annotation>"
    math = f"<math><semantics><msup><mn>4</mn><mn>8</mn></msup>{tex}</semantics></math>"
    shown = "<span class=katex-html aria-hidden=true>48</span>"
    katex = f"<span class=katex><span class=katex-mathml>{math}</span>{shown}</span>"
    assert text_of(f"<p>the area is {katex} square metres") == "the area is 4^{8} square metres"


@pytest.mark.parametrize(
    ("head", "fields"),
    [
        ("", {"language": "de"}),
        ("<meta name=author content='Ann  Lee'>", {"author": "Ann Lee"}),
        ("<meta name=Date content=2020-05-01>", {"date": "2020-05-01"}),
        ("<meta property='article:published_time' content='2021-01-02T03:04Z'>", {"date": "2021-01-02T03:04Z"}),
        ("<meta property='article:section' content=Sea>", {"section": "Sea"}),
        ("<meta property='article:author' content='https://example.org/ann'>", {}),
        ("<meta name=citation_author content=Ann><meta name=citation_author content=Bo>", {"author": "Ann, Bo"}),
        (
            """<script type="application/ld+json">{"@graph": [{"@type": "WebSite"}, {"datePublished": "2019-03-04",
            "author": [{"name": "Ann"}, {"name": "Bo"}], "articleSection": "Sea"}]}</script>""",
            {"date": "2019-03-04", "author": "Ann, Bo", "section": "Sea"},
        ),
        ('<script type="application/ld+json">{"author": </script>', {}),
    ],
)
def test_fields_are_what_the_page_states(head, fields):
    assert dict(of(f"<html lang=de><title>T</title>{head}<p>text").fields) == {"language": "de", **fields}


def test_a_text_that_scripts_would_show_is_read_where_the_page_states_it():
    stated = json.dumps({"articleBody": f"{PROSE}<p>{OTHER}", "author": "Ann"})
    page = f"<script type='application/ld+json'>{stated}</script><div id=app>Loading</div>"
    assert of(page).text == f"{PROSE.strip()}\n{OTHER.strip()}"


words_and_tags = st.lists(
    st.tuples(
        st.sampled_from(
            "p|div|li|td|h2|span|nav|footer|aside|button|select|textarea|noscript|div hidden|div class=comments|"
            "span aria-hidden=true|a href=x|ul class=menu|option|iframe".split("|")
        ),
        st.text("abc ü灯", min_size=1, max_size=120),
    ),
    max_size=12,
)


@given(words_and_tags)
@example([("p", "abc " * 30), ("span aria-hidden=true", "b"), ("select", "c"), ("nav", "ü")])
def test_every_character_is_in_the_document_or_in_the_ledger(found):
    page = "".join(f"<{tag}>{text}</{tag.split()[0]}>" for tag, text in found)
    ledger = Ledger("page.html")
    (document,) = html(io.BytesIO(f"<meta charset=utf-8><p>A text.</p>{page}".encode()), "page.html", ledger)
    num_chars = sum(map(len, document.text.split())) + sum(ledger.left_out.values())
    assert num_chars == len("Atext.") + sum(len("".join(text.split())) for _, text in found)


blocks = st.lists(st.tuples(st.sampled_from(["p", "div", "li", "td", "h2", "span", "pre"]), st.text()), max_size=8)


@given(blocks.filter(lambda found: any(text.split() for _, text in found)), st.integers(1, 5))
@example([("p", "0"), ("p", "x" * 80)], 1)
@example([("p", "0"), ("div", "x" * 80)], 1)
def test_passages_are_slices_of_the_text_and_every_word_is_there(found, num_words):
    plain = [(tag, "".join(c for c in text if c.isprintable() or c == " ")) for tag, text in found]
    if not any(text.split() for _, text in plain):
        return
    page = "<main>" + "".join(f"<{tag}>{escape(text)}</{tag}> " for tag, text in plain)
    ledger = Ledger("page.html")
    (document,) = html(io.BytesIO(f"<meta charset=utf-8>{page}".encode()), "page.html", ledger)
    # A few words beside a place with all the prose (80 bytes and more) are left out, and counted.
    expected = " ".join(text for _, text in plain).split()
    if not any(tag == "div" and len(text.encode()) >= 80 for tag, text in plain):
        assert document.text.split() == expected
    assert num_chars(document.text) + sum(ledger.left_out.values()) == sum(map(len, expected))
    for z in split(document, words=num_words):
        assert z.text == document.text[z.start : z.end]


def test_a_page_in_a_folder(tmp_path):
    (tmp_path / "page.html").write_text(ARTICLE)
    found = list(passages(tmp_path, words=20))
    (document,) = read(tmp_path)
    assert [z.id for z in found] == [id_of_part("page.html", z.text) for z in found]
    assert all(z.text == document.text[z.start : z.end] for z in found)
    assert {z.page for z in found} == {None}


@pytest.mark.parametrize("hidden", ['aria-hidden="true"', "hidden", 'style="display: none"'])
def test_a_caption_that_is_hidden_from_screen_readers_is_shown(tmp_path, hidden):
    """As Pandoc writes every caption that is its picture's alt text too."""
    figure = f'<figure><img src="a.png" alt="The mill"/><figcaption {hidden}>The mill</figcaption></figure>'
    (tmp_path / "a.html").write_text(f"<main><h1>Village</h1><p>It has one.</p>{figure}</main>")
    (document,) = read(tmp_path / "a.html")
    assert ("The mill" in document.text) == hidden.startswith("aria")
