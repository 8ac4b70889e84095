"""What the page promises whoever opens it, a test for each promise, in a real Chromium."""

import math
import re
import shutil
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import pytest

from latentrag.assemble import live_memory, load, load_passage_encoder
from latentrag.memory import Memory
from latentrag.serving.app import create_app
from latentrag.serving.options import ServeOptions
from latentrag.types import Passage
from tests.cli.conftest import QUESTION
from tests.serving.browser import NETWORK, asked, chromium, opened
from tests.serving.conftest import Served, serving
from tests.serving.test_page_browser import choose, expect, percent, without

__all__ = ["chromium"]
pytestmark = pytest.mark.browser

LONG = "The Petrel is a ship of the north, and nobody knows who keeps her. " * 12
SOURCES = [
    Passage("web", f"{LONG}Ann keeps her.", "A web page with a long title of many words", "https://example.org/a?b=1"),
    Passage("pdf", f"{LONG}Bea keeps her.", "A PDF", "https://example.org/a.pdf", page=7),
    Passage("script", f"{LONG}Cy.", "Internationalisation", "javascript:alert(1)"),
    *(Passage(f"doc#{n:012x}", f"Part {n}. {LONG}", "Petrel", "doc.md", start=1000 * n) for n in range(17)),
]


@pytest.fixture(scope="module")
def many(tmp_path_factory, model, encoder) -> Iterator[Served]:
    """Twenty long passages."""
    made = load_passage_encoder(encoder)
    path = tmp_path_factory.mktemp("many") / "many.lance"
    Memory.create(path, made).add(SOURCES, made)
    live = live_memory(path)
    with serving(create_app(load(model, memory=live), live, name="tiny")) as running:
        yield running


@pytest.fixture
def own(tmp_path, model, memory) -> Iterator[Served]:
    """A server whose documents everybody may change."""
    live = live_memory(shutil.copytree(memory, tmp_path / "own.lance"))
    options = ServeOptions(allow_writes=True, max_upload="20KB")
    with serving(create_app(load(model, memory=live), live, name="tiny", options=options), options) as running:
        yield running


def question(page: Any) -> Any:
    return page.get_by_label("Question", exact=True)


@pytest.mark.parametrize("size", ["phone", "desktop"])
def test_the_effect_of_leaving_a_passage_out_is_beside_it(chromium, many, size) -> None:
    with opened(chromium, many.url, size=size) as page:
        choose(page, k=20)
        asked(page, QUESTION)
        item = page.locator("#passages > li").nth(12)
        button = item.locator(".take")
        button.click()
        expect(item.locator(".again strong")).to_be_visible()
        effect, place = item.locator(".effect").bounding_box(), button.bounding_box()
        assert 0 <= effect["y"] - place["y"] < 150
        expect(item.locator(".effect")).to_be_in_viewport()


@pytest.mark.parametrize("size", ["phone", "desktop"])
def test_the_answer_changes_where_it_is_read(chromium, served, size) -> None:
    """Not before the new one is known; what it was then stays to be seen beside it."""
    first = served.post("/v1/answer", {"question": QUESTION}).json()
    found = {**first, "answer": "Something else"}
    with opened(chromium, served.url, size=size) as page:
        asked(page, QUESTION)
        held: list[Any] = []
        page.route("**/v1/answer", lambda route: held.append(route))  # noqa: PLW0108  it is looked into
        without(page, 0)
        expect(page.locator(".again")).to_have_text("Answering without it …")
        expect(page.locator("#instead")).to_be_hidden()
        expect(page.locator("#answer.replaced")).to_have_count(0)
        held[0].fulfill(json=found)
        expect(page.locator("#instead strong")).to_have_text("Something else")
        expect(page.locator("#answer.replaced")).to_have_text(first["answer"])
        expect(page.locator(".again strong")).to_be_in_viewport()
        page.get_by_role("button", name="Put all passages back").click()
        expect(page.locator("#answer.replaced")).to_have_count(0)
        without(page, 0)
        held[1].fulfill(json=first)
        expect(page.locator("#instead")).to_contain_text("the same answer")
        expect(page.locator("#answer.replaced")).to_have_count(0)


def test_the_same_answer_has_one_probability(chromium, served) -> None:
    """In low precision it differs a little when it is scored beside other passages."""
    of_b = {"id": "b", "posterior": 1.0}
    answer = {
        "answer": "Ann", "variant": "sequence", "decoding": "exact", "memory_version": 1, "log_prob": math.log(0.375),
        "sources": [{"id": "a", "posterior": 2 / 3}, {**of_b, "posterior": 1 / 3}],
        "log_p_eta": [math.log(0.5)] * 2, "log_p_theta": [[math.log(0.5)], [math.log(0.25)]],
        "tokens": [{"text": "Ann", "log_prob": math.log(0.375), "posterior": [2 / 3, 1 / 3]}],
    }  # fmt: skip
    tokens = [{"text": "Ann", "log_prob": math.log(0.2), "posterior": [1.0]}]
    found = {**answer, "log_prob": math.log(0.2), "sources": [of_b], "tokens": tokens}
    with opened(chromium, served.url) as page:
        page.route("**/v1/answer", lambda route: route.fulfill(json=found))
        said, seen = page.evaluate(
            """async (answer) => {
                const { Evidence } = await import("/static/evidence.js");
                const place = document.createElement("div");
                return await new Promise((resolve, reject) => new Evidence({
                    current: () => ({ request: {}, answer, off: new Set([0]) }),
                    place: () => place,
                    shown: (seen) => seen.isFound && resolve([place.textContent, seen]),
                    fail: reject,
                }).update());
            }""",
            answer,
        )
    assert "The answer stays Ann, with a probability of 25.0 %" in said
    assert "is 1.50 times less probable" in said
    assert seen["log_prob"] == pytest.approx(math.log(0.25))
    assert seen["tokens"][0]["posterior"] == [0, 1]


def test_the_answer_stays_in_sight_beside_many_passages(chromium, many) -> None:
    with opened(chromium, many.url) as page:
        choose(page, k=20)
        asked(page, QUESTION)
        without_last = page.locator("#passages > li").last.locator(".take")
        without_last.click()
        expect(page.locator(".again strong")).to_be_in_viewport()
        expect(page.locator("#instead")).to_be_in_viewport()


@pytest.mark.parametrize("variant", ["sequence", "token"])
def test_posteriors_and_heat_map_follow(chromium, served, variant) -> None:
    first = served.post("/v1/answer", {"question": QUESTION, "variant": variant}).json()
    gone = first["sources"][0]["id"]
    then = served.post("/v1/answer", {"question": QUESTION, "variant": variant, "without": [gone]}).json()
    with opened(chromium, served.url) as page:
        choose(page, variant=variant)
        asked(page, QUESTION)
        without(page, 0)
        expect(page.locator(".again strong")).to_be_visible()
        expect(page.locator("#instead")).to_contain_text("Without [1]: ")
        shares = {source["id"]: percent(source["posterior"]) for source in then["sources"]}
        for source in first["sources"]:
            item = page.locator("#passages > li").filter(has=page.locator("h3", has_text=source["title"]))
            assert item.locator(".share dd").inner_text() == shares.get(source["id"], "0 %")
        rows = page.locator("#heat-map tbody tr").all()
        assert len(rows) == 1 + len(then["tokens"])
        for row, token in zip(rows[1:], then["tokens"], strict=True):
            assert row.locator("td").all_inner_texts()[:-1] == ["0 %", *map(percent, token["posterior"])]
        page.get_by_role("button", name="Put it back").click()
        expect(page.locator("#instead")).to_be_hidden()
        expect(page.locator("#heat-map tbody tr")).to_have_count(1 + len(first["tokens"]))
        cells = page.locator("#heat-map tfoot td").all_inner_texts()
        assert cells[:-1] == [percent(source["posterior"]) for source in first["sources"]]


@pytest.mark.parametrize("variant", ["sequence", "token"])
def test_the_shares_follow_at_once_by_the_library_s_arithmetic(chromium, served, variant) -> None:
    """With all passages they are the server's own; with some, the server's of the same tokens."""
    import torch

    from latentrag.marginal import log_prior, prefix_posterior, token_posterior

    answer = served.post("/v1/answer", {"question": QUESTION, "variant": variant}).json()
    kept = [0, 2]
    with opened(chromium, served.url) as page:
        whole, some = page.evaluate(
            """async ([answer, kept]) => {
                const { posteriorsOf } = await import("/static/numbers.js");
                return [[0, 1, 2], kept].map((each) => posteriorsOf(answer, each));
            }""",
            [answer, kept],
        )
    assert whole["posteriors"] == pytest.approx([each["posterior"] for each in answer["sources"]], abs=1e-5)
    for ours, theirs in zip(whole["tokens"], answer["tokens"], strict=True):
        assert ours["posterior"] == pytest.approx(theirs["posterior"], abs=1e-5)
    log_p_eta = log_prior(torch.tensor([answer["log_p_eta"]])[:, kept])
    log_p_theta = torch.tensor([answer["log_p_theta"]])[:, kept]
    mask = torch.ones(1, log_p_theta.shape[2], dtype=torch.bool)
    posterior = (prefix_posterior if variant == "sequence" else token_posterior)(log_p_eta, log_p_theta, mask)[0]
    for i, token in enumerate(some["tokens"]):
        assert token["posterior"] == pytest.approx([posterior[0, i].item(), 0.0, posterior[1, i].item()], abs=1e-5)


def test_a_hidden_invalid_field_opens_itself(chromium, served) -> None:
    with opened(chromium, served.url) as page:
        choose(page, k=1000)
        page.get_by_text("Options").click()
        expect(page.locator("#k")).to_be_hidden()
        question(page).fill(QUESTION)
        page.get_by_role("button", name="Ask").click()
        expect(page.locator("#k")).to_be_visible()
        expect(page.locator("#k")).to_be_focused()
        expect(page.locator("#result")).to_be_hidden()


def test_what_is_refused_is_said_in_sight(chromium, served) -> None:
    with opened(chromium, served.url, size="phone", errors=NETWORK.pattern) as page:
        choose(page, where="date => 3")
        question(page).fill(QUESTION)
        page.get_by_role("button", name="Ask").click()
        expect(page.get_by_role("alert")).to_contain_text("The condition has")
        expect(page.get_by_role("alert")).to_be_in_viewport(ratio=1)


def is_finished(served: Served, body: dict[str, object]) -> bool:
    return bool(served.post("/v1/answer", body).json()["hypotheses"][0]["finished"])


def test_an_answer_that_was_cut_says_so_and_offers_more(chromium, served) -> None:
    body = {"question": QUESTION, "variant": "token"}
    long = next(n for n in (1, 2, 3) if not is_finished(served, {**body, "max_tokens": n}))
    with opened(chromium, served.url) as page:
        choose(page, variant="token", max_tokens=long)
        asked(page, QUESTION)
        expect(page.locator("#cut")).to_contain_text("The answer was cut off here.")
        sent = []
        page.on("request", lambda request: sent.append(request.post_data_json))
        page.get_by_role("button", name="Let it go on").click()
        expect(page.locator("#status")).to_have_text("Done.")
        assert sent[0]["max_tokens"] == 32
        assert "max_tokens=32" in page.url


def test_editing_the_question_greys_the_old_answer(chromium, served) -> None:
    with opened(chromium, served.url) as page:
        asked(page, QUESTION)
        expect(page.locator("#stale")).to_be_hidden()
        question(page).fill("Another?")
        expect(page.locator("#stale")).to_contain_text(f"This is the answer to “{QUESTION}”.")
        assert float(page.locator("#answer-part").evaluate("each => getComputedStyle(each).opacity")) < 0.7
        page.get_by_role("button", name="Back to it").click()
        expect(page.locator("#stale")).to_be_hidden()
        assert page.locator("#answer-part").evaluate("each => getComputedStyle(each).opacity") == "1"


def test_back_and_forward_go_through_the_questions(chromium, served) -> None:
    with opened(chromium, served.url) as page:
        asked(page, QUESTION)
        first = page.locator("#answer").inner_text()
        page.locator("#heat-map thead button").first.click()
        page.get_by_text("Options").click()
        page.locator("#k").fill("2")
        asked(page, "Who wrote Emma?")
        second = page.locator("#answer").inner_text()
        requests = []
        page.on("request", lambda request: requests.append(request.url))
        page.go_back()
        expect(question(page)).to_have_value(QUESTION)
        expect(page.locator("#answer")).to_have_text(first)
        expect(page.locator("#passages > li.pinned")).to_have_count(1)
        assert page.locator("#k").input_value() == ""
        page.go_forward()
        expect(question(page)).to_have_value("Who wrote Emma?")
        expect(page.locator("#answer")).to_have_text(second)
        assert page.locator("#passages > li").count() == 2
        page.go_back()
        page.go_back()
        expect(question(page)).to_have_value("")
        expect(page.locator("#result")).to_be_hidden()
        assert not [url for url in requests if "answer" in url]


@pytest.mark.parametrize("size", ["phone", "desktop"])
def test_the_heat_map_can_be_read(chromium, many, size) -> None:
    """Its caption is whole, and the titles above its columns are."""
    with opened(chromium, many.url, size=size) as page:
        choose(page, k=20)
        asked(page, QUESTION)
        width = page.evaluate("() => window.innerWidth")
        box = page.locator("#heat-caption").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        buttons = page.locator("#heat-map thead button").all()
        assert len(buttons) == 20
        for button in buttons:
            assert button.evaluate("it => it.scrollWidth <= it.clientWidth && it.scrollHeight <= it.clientHeight")
        titles = {each.inner_text().partition("] ")[2].replace("\n", " ") for each in buttons}
        assert titles == {passage.title for passage in SOURCES}


def test_forced_colours_show_bars(chromium, served) -> None:
    with opened(chromium, served.url, forced_colors="active") as page:
        asked(page, QUESTION)
        style = "each => getComputedStyle(each)"
        bar, ground = page.locator("#passages .filled").first, page.locator("body")
        colours = [each.evaluate(f"each => ({style})(each).backgroundColor") for each in (bar, ground)]
        assert colours[0] != colours[1]
        cells = page.locator("#heat-map td.heat").all()
        shown = {each.evaluate(f"each => ({style})(each).backgroundColor") for each in cells}
        assert len(shown) > 1


def test_the_first_visit(chromium, served) -> None:
    with opened(chromium, served.url) as page:
        expect(question(page)).to_be_focused()
        examples = page.locator("#example-list button")
        expect(examples).to_have_count(3)
        said = examples.all_inner_texts()
        titles = [each["title"] for each in served.post("/v1/search", {"question": "?", "k": 4}).json()["passages"]]
        assert all(any(title in text for title in titles) for text in said)
        examples.first.click()
        expect(page.locator("#status")).to_have_text("Done.")
        assert question(page).input_value() == said[0]
        expect(page.locator("#examples")).to_be_hidden()
        question(page).fill(QUESTION)
        question(page).press("Shift+Enter")
        assert question(page).input_value() == f"{QUESTION}\n"
        question(page).fill(QUESTION)
        question(page).press("Enter")
        expect(page.locator("#stale")).to_be_hidden()
        expect(page.locator("#status")).to_have_text("Done.")


def test_examples_that_come_late_are_not_shown(chromium, served) -> None:
    with opened(chromium, served.url) as page:
        expect(page.locator("#steps")).to_be_visible()
        held: list[Any] = []
        page.route("**/api/examples", lambda route: held.append(route))  # noqa: PLW0108  it is looked into
        page.reload()
        page.route("**/v1/answer/stream", lambda route: held.append(route))  # noqa: PLW0108
        question(page).fill(QUESTION)
        question(page).press("Enter")
        expect(page.locator("#status")).to_have_text("Retrieving passages …")
        expect(page.locator("#steps")).to_be_hidden()
        with page.expect_response("**/api/examples"):
            held[0].continue_()
        expect(page.locator("#example-list button")).to_have_count(3)
        expect(page.locator("#examples")).to_be_hidden()
        page.get_by_role("button", name="Cancel").click()


TERMS = re.compile(r"posterior|\bprior\b|log p|p\(|nats|RAG-|marginal|p_η|p_θ", re.IGNORECASE)


def test_words_that_a_newcomer_knows_come_first(chromium, served) -> None:
    """Terms and formulas are one step behind."""
    with opened(chromium, served.url) as page:
        asked(page, QUESTION)
        without(page, 1)
        expect(page.locator(".again strong")).to_be_visible()
        for part in ("#answer-part", "#passages-part", "#ask", "#tokens-part"):
            assert not TERMS.search(page.locator(part).inner_text()), part
        text = page.locator("#result").inner_text().lower()
        assert "because of" in text
        assert "without this passage" in text
        assert "how sure" not in text  # nothing was calibrated
        page.get_by_role("button", name="Numbers number 1").click()
        assert "Prior" in page.locator("#passages").inner_text()


def test_twenty_passages_are_short(chromium, many) -> None:
    with opened(chromium, many.url) as page:
        choose(page, k=20)
        asked(page, QUESTION)
        assert page.locator("#passages > li").count() == 20
        assert page.locator("#passages").bounding_box()["height"] < 4_200
        for item in page.locator("#passages > li").all():
            # What is cut off, by the page or by its style, can be had.
            if item.evaluate("each => each.classList.contains('little')"):
                expect(item.get_by_role("button", name=re.compile("^All of it"))).to_be_visible()
        item = page.locator("#passages > li").first
        assert len(item.locator(".snippet").inner_text()) < 300
        item.get_by_role("button", name=re.compile("^All of it")).click()
        expect(item.locator(".whole")).to_be_visible()
        assert len(item.locator(".whole").inner_text()) > 700


def test_what_is_shown_of_a_passage_has_the_answer_s_words(chromium, served) -> None:
    with opened(chromium, served.url) as page:
        found = page.evaluate(
            """async () => {
                const { telling } = await import("/static/snippets.js");
                const text = "word ".repeat(100) + "James Joyce wrote it. " + "other ".repeat(100);
                const of = (words) => text.slice(...telling(text, new Set(words)));
                return [of(["james", "joyce"]), of(["nothing"]), telling("short", new Set())];
            }"""
        )
        words = page.evaluate(
            """async () => {
                const { wordsOf } = await import("/static/text.js");
                return ["Otto I", "Charles IV of Bohemia", "IV", "the 3 of 1378"].map((text) => [...wordsOf(text)]);
            }"""
        )
    assert words == [["otto"], ["charles", "bohemia"], ["iv"], ["3", "1378"]]
    assert "James Joyce wrote it." in found[0]
    assert len(found[0]) < 300
    assert found[1].startswith("word word")
    assert found[2] == [0, 5]


def test_a_source_opens_at_its_place(chromium, many) -> None:
    with opened(chromium, many.url) as page:
        choose(page, k=20)
        asked(page, QUESTION)

        def item(title: str) -> Any:
            return page.locator("#passages > li").filter(has=page.locator("h3", has_text=title))

        web = item("A web page").locator(".place a").get_attribute("href")
        address, _, fragment = web.partition("#:~:text=")
        assert address == "https://example.org/a?b=1"
        assert unquote(fragment) == "The Petrel is a ship,keeps her. Ann keeps her."
        assert item("A PDF").locator(".place a").get_attribute("href") == "https://example.org/a.pdf#page=7"
        assert item("A PDF").locator(".place").inner_text().startswith("https://example.org/a.pdf, page 7")
        assert item("Internationalisation").locator("a").count() == 0
        middle = page.locator("#passages > li").filter(has=page.locator(".whole", has_text="Part 9."))
        middle.get_by_role("button", name=re.compile("^In its place")).click()
        texts = middle.locator(".neighbours .text")
        expect(texts).to_have_count(5)
        assert [re.match(r"Part (\d+)", text)[1] for text in texts.all_text_contents()] == ["7", "8", "9", "10", "11"]  # type: ignore[index]
        assert "Part 9" in middle.locator(".neighbours .own").inner_text()
        middle.get_by_role("button", name=re.compile("^In its place")).click()
        expect(middle.locator(".neighbours")).to_be_hidden()


# Documents


def test_documents_on_the_page(chromium, own, tmp_path) -> None:
    (tmp_path / "ship.md").write_text("# Petrel\n\nIngrid keeps the Petrel.")
    (tmp_path / "a.exe").write_bytes(b"MZ")
    (tmp_path / "large.md").write_text("word " * 5_000)
    with opened(chromium, own.url, errors=NETWORK.pattern) as page:
        page.get_by_role("button", name="Documents").click()
        expect(page.locator("#documents-count")).to_have_text("4 documents in version 2")
        page.locator("#files").set_input_files(tmp_path / "ship.md")
        expect(page.locator("#upload-status")).to_have_text("1 passage added. Version 3 answers now.")
        expect(page.locator("#documents-count")).to_have_text("5 documents in version 3")
        expect(page.locator("#memory")).to_contain_text("version 3, 5 passages")
        page.locator("#files").set_input_files(tmp_path / "a.exe")
        expect(page.locator("#upload-status")).to_contain_text("is not a format that is read")
        page.locator("#files").set_input_files(tmp_path / "large.md")
        expect(page.locator("#upload-status")).to_contain_text("can be added at once")
        page.get_by_label("Find a document").fill("SHIP")
        expect(page.locator("#document-list li")).to_have_count(1)
        page.get_by_role("button", name="Delete ship.md").click()
        expect(page.get_by_role("dialog")).to_contain_text("Delete “ship.md” (1 passage) from the memory?")
        expect(page.get_by_role("button", name="No", exact=True)).to_be_focused()
        page.keyboard.press("Enter")
        assert own.get("/v1/memory").json()["version"] == 3
        page.get_by_role("button", name="Delete ship.md").click()
        page.get_by_role("button", name="Delete it").click()
        expect(page.locator("#upload-status")).to_have_text("ship.md is deleted. Version 4 answers now.")
        expect(page.locator("#document-list li")).to_have_count(0)


def test_files_are_dropped_and_their_progress_is_shown(chromium, own) -> None:
    progress = {"stage": "reading", "files": 1, "read": 7, "encoded": 3}
    drop = """zone => {
        const data = new DataTransfer();
        data.items.add(new File(["One."], "a.md"));
        data.items.add(new File(["Two."], "b.md"));
        zone.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
    }"""
    with opened(chromium, own.url) as page:
        page.get_by_role("button", name="Documents").click()
        expect(page.locator("#documents-count")).to_have_text("4 documents in version 2")
        held: list[Any] = []
        page.route("**/api/documents", lambda route: held.append(route), times=1)  # noqa: PLW0108  it is looked into
        page.route("**/api/documents/progress", lambda route: route.fulfill(json=progress))
        page.locator("#documents").evaluate(drop)
        expect(page.locator("#upload-status")).to_have_text("Reading: 7 passages read, 3 made searchable …")
        expect(page.get_by_role("progressbar")).to_be_visible()
        held[0].continue_()
        expect(page.locator("#upload-status")).to_have_text("2 passages added. Version 3 answers now.")
        expect(page.get_by_role("progressbar")).to_have_count(0)
        page.locator("#documents").evaluate(drop)
        page.get_by_role("button", name="Cancel", exact=True).click()
        expect(page.locator("#upload-status")).to_have_text("Cancelled; nothing was added.")
        assert own.get("/v1/memory").json()["version"] == 3


def test_who_may_not_write_sees_no_documents(chromium, served) -> None:
    with opened(chromium, served.url) as page:
        expect(page.locator("#model")).to_have_text("tiny")
        expect(page.get_by_role("button", name="Documents")).to_be_hidden()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", ["phone", "desktop"])
def test_documents_are_in_nobody_s_way(chromium, own, size, dark) -> None:
    from tests.serving.browser import AXE

    if not AXE.exists():
        pytest.skip("needs axe-core; make test-page fetches it with npm")
    with opened(chromium, own.url, size=size, dark=dark, bypass_csp=True) as page:
        expect(page.locator("#example-list button")).to_have_count(3)
        page.get_by_role("button", name="Documents").click()
        page.get_by_role("button", name="Delete rome.txt").click()
        for _ in ("in the dialog", "without it"):
            page.add_script_tag(path=AXE)
            found = page.evaluate("() => axe.run({ runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa', 'best-practice'] })")
            assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found["violations"]] == []
            page.keyboard.press("Escape")
        assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
