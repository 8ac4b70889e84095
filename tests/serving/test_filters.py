"""Conditions over HTTP, and keys bound to one: what such a key hears does not depend on any passage beyond it.

Two servers have the same passages of team x, and nothing else in common. Whatever a key bound to team x asks, both say
the same, byte for byte.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from copy import copy
from functools import partial
from typing import Any

import pytest

from latentrag.assemble import live_memory, load, load_passage_encoder
from latentrag.conditions import condition_of
from latentrag.errors import InputError
from latentrag.memory import LiveMemory, Memory
from latentrag.memory.filtered import num_seen_apart, seen_diff
from latentrag.memory.upkeep import compact
from latentrag.serving import memories
from latentrag.serving.app import create_app
from latentrag.serving.guard import Access
from latentrag.serving.options import ServeOptions
from latentrag.serving.rights import Rights
from latentrag.serving.run import access_to
from latentrag.types import Passage
from tests.cli.conftest import QUESTION, cli
from tests.serving.conftest import Served, serving
from tests.serving.test_stream import events

BOUND, OTHER, WHOLE = ("a-key-bound-to-team-x", "a-key-bound-to-team-y", "a-key-that-sees-everything")
WRITER = "a-key-that-may-write"
ACCESS = Access(
    keys=(BOUND, OTHER, WHOLE, WRITER),
    rights={
        BOUND: Rights(condition_of("team = 'x'"), write=True),
        OTHER: Rights(condition_of("team = 'y'")),
        WRITER: Rights(write=True),
    },
)
SEEN = [
    Passage("x1", "Beethoven wrote the opera Fidelio.", "Fidelio", "x/a.md", fields={"team": "x", "level": 1}),
    Passage("x2", "Emma is a novel. Austen wrote Emma.", "Emma", "x/b.md", fields={"team": "x", "level": 2}),
    Passage("x3", "Rome is the capital of Italy.", "Rome", "/home/ann/x/c.md", fields={"team": "x", "date": "2024"}),
]
HIDDEN: dict[str, list[Passage]] = {
    "one": [
        Passage("y1", "Beethoven wrote the secret opera Fidelio.", "Secret", "y/a.md", fields={"team": "y", "pay": 9}),
        Passage("y2", "Salaries of the secret city.", "Secret", "/home/bob/y.md", fields={"team": "y", "level": "top"}),
        *(Passage(f"y{n}", f"Fidelio secret number {n}", fields={"team": "y"}) for n in range(3, 12)),
    ],
    "other": [Passage("z1", "Nothing of note.", fields={"team": "z", "level": True, "pay": "none"})],
}
NEW = Passage("x4", "Paris is the capital city of France.", "Paris", fields={"team": "x", "level": 3})


def filled(path, encoder, hidden: list[Passage], name: str) -> None:
    """Three versions, at the same moments in what a bound key may know."""
    memory = Memory.create(path, encoder).add([*hidden, *SEEN], encoder)
    changed = Passage("x2", "Emma is a novel by Austen.", "Emma", "x/b.md", fields={"team": "x", "level": 2})
    moved = [Passage(hidden[0].id, "Another secret.", fields=hidden[0].fields)]
    memory.upsert([changed, NEW, *moved], encoder).tag(f"secret-{name}", 2)


@pytest.fixture(scope="module", params=["dense", "bm25", "hybrid"])
def pair(request, tmp_path_factory, model, encoder):
    """The two servers."""
    made = load_passage_encoder(encoder)
    with ExitStack() as opened:
        running = []
        for name, hidden in HIDDEN.items():
            path = tmp_path_factory.mktemp(name) / "memory.lance"
            filled(path, made, hidden, name)
            live = live_memory(path)
            rag = load(model, memory=live, retriever=request.param)
            app = create_app(rag, live, name="tiny", access=ACCESS, load=partial(copy, rag))
            running.append(opened.enter_context(serving(app)))
        yield running


def said(served: Served, key: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """The status and the text of a response, without what differs from call to call."""
    response = served.client.request(method, path, json=body, headers={"authorization": f"Bearer {key}"})
    try:
        record = response.json()
    except ValueError:
        return response.status_code, response.text
    for name in ("id", "created", "loaded"):
        record.pop(name, None)
    return response.status_code, record


def asking(**more: Any) -> tuple[str, str, Any]:
    return "POST", "/v1/answer", {"question": QUESTION, **more}


def finding(question: str = QUESTION, **more: Any) -> tuple[str, str, Any]:
    return "POST", "/v1/search", {"question": question, **more}


def chatting(**ours: Any) -> tuple[str, str, Any]:
    messages = [{"role": "user", "content": QUESTION}]
    return "POST", "/v1/chat/completions", {"model": "tiny", "messages": messages, "latentrag": ours}


def compared(**query: str) -> tuple[str, str, None]:
    return "GET", "/v1/memory/diff?" + "&".join(f"{name}={value}" for name, value in query.items()), None


ATTEMPTS: dict[str, tuple[str, str, Any]] = {
    "answer": asking(),
    "more than there are": asking(k=100),
    "a condition that holds for all": asking(where="id is not null", k=10),
    "a condition that holds beyond": asking(where="team = 'y'"),
    "its negation": asking(where="not (team = 'x')", k=10),
    "either": asking(where="team = 'x' or team != 'x' or team is null", k=10),
    "a parenthesis that closes the key's": asking(where="id is null) or (id is not null"),
    "a comment": asking(where="id is not null --"),
    "a field that is only beyond": asking(where="pay is not null"),
    "a field that is nowhere": asking(where="salary is not null"),
    "a value of a kind that is only beyond": asking(where="level = 'top'"),
    "another kind that is only beyond": asking(where="level = true"),
    "an id beyond": asking(where="id = 'y1'"),
    "examples": ("GET", "/api/examples", None),
    "a passage in its place": ("GET", "/api/passage?id=x1", None),
    "a passage beyond in its place": ("GET", "/api/passage?id=y1", None),
    "a passage of an earlier version": ("GET", "/api/passage?id=x4&as_of=2", None),
    "documents": ("GET", "/api/documents", None),
    "how far a change of documents is": ("GET", "/api/documents/progress", None),
    "deleting a document beyond": ("DELETE", "/api/documents?id=y1", None),
    "deleting one that is nowhere": ("DELETE", "/api/documents?id=nowhere", None),
    "adding a document": ("POST", "/api/documents", {}),
    "ids like those beyond": asking(where="id like 'y%'"),
    "a title beyond": asking(where="title = 'Secret'"),
    "the folders of the machine": asking(where="source like '/home/%'"),
    "the place of a source": asking(where="place like '%c.md'"),
    "null where others have it": asking(where="date is null and level is null"),
    "without a passage beyond": asking(without=["y1"]),
    "without one that is seen": asking(without=["x1"], k=10),
    "sentences": asking(sentences=True),
    "thorough": asking(decoding="thorough"),
    "fast": asking(decoding="fast"),
    "token": asking(variant="token"),
    "an earlier version": asking(as_of=2, k=10),
    "the version before there was anything": asking(as_of=1),
    "a version that there is not": asking(as_of=9),
    "a tag": asking(as_of="secret-one"),
    "another's tag": asking(as_of="secret-other"),
    "a date": asking(as_of="2020-01-01"),
    "newest": asking(as_of="newest"),
    "an earlier version with a condition": asking(as_of=2, where="level >= 2"),
    "scores of a text beyond": ("POST", "/v1/score", {"x": QUESTION, "y": "secret"}),
    "scores under a condition": ("POST", "/v1/score", {"x": QUESTION, "y": "red", "where": "pay > 3"}),
    "labels": ("POST", "/v1/classify", {"question": QUESTION, "labels": ["secret", "opera"]}),
    "labels under a condition": (
        "POST",
        "/v1/classify",
        {"question": QUESTION, "labels": ["a", "b"], "where": "level = 2"},
    ),
    "search": finding(k=100),
    "words that are only beyond": finding("secret salaries", k=100),
    "words that are more frequent beyond": finding("Fidelio", k=100),
    "words of both": finding("the secret opera Beethoven wrote", k=2),
    "search under a condition": finding(where="team in ('x', 'y', 'z')", k=100),
    "search of an earlier version": finding(as_of=2, k=100),
    "a stream": ("POST", "/v1/answer/stream", {"question": QUESTION, "k": 10}),
    "a stream under a condition": ("POST", "/v1/answer/stream", {"question": QUESTION, "where": "team = 'y'"}),
    "chat": chatting(k=10),
    "chat under a condition": chatting(where="id like 'y%' or id like 'z%'"),
    "the memory": ("GET", "/v1/memory", None),
    "the head of the memory": ("HEAD", "/v1/memory", None),
    "the difference": compared(**{"from": "2", "to": "3"}),
    "the difference the other way": compared(**{"from": "3", "to": "2"}),
    "the difference from the beginning": compared(**{"from": "1", "to": "newest"}),
    "the difference from a tag": compared(**{"from": "secret-one", "to": "3"}),
    "the difference from a version that there is not": compared(**{"from": "7", "to": "3"}),
    "serving another version": ("POST", "/v1/memory", {"action": "use", "version": 2}),
    "naming a version": ("POST", "/v1/memory", {"action": "tag", "name": "mine"}),
    "taking a name away": ("POST", "/v1/memory", {"action": "untag", "name": "secret-one"}),
    "loading the model": ("POST", "/v1/model", {"action": "reload"}),
    "the model": ("GET", "/v1/model", None),
    "the models": ("GET", "/v1/models", None),
    "counters": ("GET", "/metrics", None),
    "ready": ("GET", "/readyz", None),
    "the description": ("GET", "/openapi.json", None),
    "vectors": ("POST", "/v1/embeddings", {"model": "tiny", "input": "secret"}),
    "a path that there is not": ("GET", "/v1/secret", None),
}
FORBIDDEN = {
    "adding a document",
    "serving another version",
    "naming a version",
    "taking a name away",
    "loading the model",
    "counters",
}


@pytest.mark.parametrize("most", [1, 2, 3])
def test_the_limit_on_differences_counts_what_a_bound_key_sees(pair, monkeypatch, most) -> None:
    """Of team x the third version has a new passage and a changed one, which is two rows; of others more."""
    monkeypatch.setattr(memories, "MAX_COMPARED", most)
    for attempt in ("the difference", "the difference the other way"):
        one, other = (said(served, BOUND, *ATTEMPTS[attempt]) for served in pair)
        assert one == other
        assert one[0] == (200 if most == 3 else 422), one
        assert said(pair[0], WHOLE, *ATTEMPTS[attempt])[0] == 422


def test_files_that_are_merged_are_no_difference_to_a_bound_key(tmp_path, encoder) -> None:
    """How the rows lie in files depends on passages beyond, too."""
    made = load_passage_encoder(encoder)
    filled(tmp_path / "memory.lance", made, HIDDEN["one"], "one")
    before = Memory.open(tmp_path / "memory.lance")
    before.delete(["y3", "y4", "y5", "y6", "y7"])
    compact(before.path)
    after = before.at("newest")
    seen = before.only("team = 'x'"), after.only("team = 'x'")
    assert before.num_compared(after) > 0
    assert num_seen_apart(*seen) == 0
    found = seen_diff(*seen)
    assert (found.added, found.changed, found.removed) == ([], [], [])


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_a_bound_key_learns_nothing_of_the_rest(pair, attempt) -> None:
    one, other = (said(served, BOUND, *ATTEMPTS[attempt]) for served in pair)
    assert one == other
    assert (one[0] == 403) == (attempt in FORBIDDEN)
    if one[0] == 200:
        assert not [name for name in ('"y1"', '"y2"', '"z1"', "Salaries", "/home/") if name in json.dumps(one[1])]


def test_the_attempts_would_tell(pair) -> None:
    """With a key that sees everything many of them do; with one that is bound many are answered."""
    whole = [said(pair[0], WHOLE, *each) != said(pair[1], WHOLE, *each) for each in MOST.values()]
    assert sum(whole) > len(whole) / 3
    codes = [said(pair[0], BOUND, *each)[0] for each in MOST.values()]
    assert codes.count(200) > len(codes) / 3


MOST = dict([(name, each) for name, each in ATTEMPTS.items() if name not in FORBIDDEN][::3])


@pytest.fixture
def own(tmp_path, encoder) -> LiveMemory:
    """A memory that may be changed."""
    filled(tmp_path / "memory.lance", load_passage_encoder(encoder), HIDDEN["one"], "one")
    return live_memory(tmp_path / "memory.lance")


EXCHANGES = ("serving another version", "naming a version", "taking a name away", "loading the model")


@pytest.mark.parametrize("attempt", EXCHANGES)
def test_what_everybody_is_served_takes_the_right_to_write(own, model, attempt) -> None:
    """A key that only asks changes it for nobody; without keys everybody on this machine may, as `index use` may."""
    app = create_app(load(model, memory=own), own, name="tiny", access=ACCESS, load=lambda: load(model, memory=own))
    before = own.version, own.snapshot().tags()
    with serving(app) as served:
        for key, remedy in ((WHOLE, "needed one with the right to write"), (BOUND, "sees all passages")):
            status, error = said(served, key, *ATTEMPTS[attempt])
            assert (status, error["error"]["code"]) == (403, "forbidden")
            assert remedy in error["error"]["message"]
            assert said(served, key, "GET", "/v1/model")[1]["exchanges"] is False
        assert said(served, WRITER, "GET", "/v1/model")[1]["exchanges"] is True
        assert (own.version, own.snapshot().tags()) == before
        assert said(served, WRITER, *ATTEMPTS[attempt])[0] == 200
    app = create_app(load(model, memory=own), own, name="tiny", load=lambda: load(model, memory=own))
    with serving(app) as served:
        assert served.post("/v1/memory", {"action": "use", "version": 2}).status_code == 200
        assert served.post("/v1/model", {"action": "reload"}).status_code == 200


def test_what_a_bound_key_sees(pair) -> None:
    served = pair[0]
    _, found = said(served, BOUND, *finding(k=100))
    assert {z["id"] for z in found["passages"]} == {"x1", "x2", "x3", "x4"}
    assert sum(z["prior"] for z in found["passages"]) == pytest.approx(1)
    _, record = said(served, BOUND, "GET", "/v1/memory")
    assert (record["version"], record["passages"], record["tags"], record["versions"]) == (3, 4, {}, [])
    _, changes = said(served, BOUND, *compared(**{"from": "2", "to": "3"}))
    assert changes["added"] == {"count": 1, "passages": [{"id": "x4", "title": "Paris"}]}
    assert changes["changed"] == {"count": 1, "passages": [{"id": "x2", "title": "Emma"}]}
    assert changes["removed"] == {"count": 0, "passages": []}
    _, error = said(served, BOUND, *asking(where="pay is not null"))
    assert error["error"]["message"] == (
        "no passage has a field 'pay'; there are: id, title, source, page, date, level, team"
    )
    _, others = said(served, OTHER, *finding(k=100))
    assert {z["id"] for z in others["passages"]} == {z.id for z in HIDDEN["one"]}
    status, error = said(pair[1], OTHER, *finding())
    assert (status, error["error"]["code"]) == (409, "memory")


def test_requests_that_are_done_together(pair) -> None:
    """The same question of three keys at once, again and again: each gets what it gets alone."""
    served = pair[0]
    served.batcher._options = ServeOptions(gather_s=0.3)  # so that they meet
    alone = {key: said(served, key, *asking(k=9)) for key in (BOUND, OTHER, WHOLE)}
    assert len({json.dumps(each) for each in alone.values()}) == 3
    keys = [BOUND, OTHER, WHOLE, BOUND, WHOLE, OTHER]
    with ThreadPoolExecutor(len(keys)) as threads:
        together = list(threads.map(lambda key: said(served, key, *asking(k=9)), keys))
    served.batcher._options = ServeOptions()
    assert together == [alone[key] for key in keys]


def test_a_condition_of_a_request(pair) -> None:
    served = pair[0]

    def ids(attempt: tuple[str, str, Any]) -> set[str]:
        _, record = said(served, WHOLE, *attempt)
        return {z["id"] for z in record.get("sources", record.get("passages", ()))}

    assert ids(asking(where="level >= 2", k=9)) == {"x2", "x4"}
    assert ids(finding(where="level >= 2", k=9)) == {"x2", "x4"}
    assert ids(("POST", "/v1/score", {"x": QUESTION, "y": "red", "where": "level = 1"})) == {"x1"}
    assert ids(("POST", "/v1/classify", {"question": QUESTION, "labels": ["a", "b"], "where": "level = 1"})) == {"x1"}
    _, chat = said(served, WHOLE, *chatting(where="level = 1"))
    assert {z["id"] for z in chat["latentrag"]["sources"]} == {"x1"}
    stream = served.client.post(
        "/v1/answer/stream",
        json={"question": QUESTION, "where": "level = 1"},
        headers={"authorization": f"Bearer {WHOLE}"},
    )
    assert {z["id"] for z in events(stream.text)[0][1]["sources"]} == {"x1"}
    for where, message in {
        "level >": "the condition ends after \">\"; needed a 'text', a number, true or false",
        "level > 99": "0 passages satisfy level > 99; widen the condition",
    }.items():
        status, record = said(served, WHOLE, *asking(where=where))
        assert (status, record["error"]["message"]) == (422, message)


def test_a_condition_of_the_server(pair, model) -> None:
    """It is joined to that of the request, and a key that sees everything still sees what is served."""
    live = live_memory(pair[0].app.state.service.memories.live.snapshot())
    app = create_app(load(model, memory=live), live, name="tiny", access=ACCESS, where=condition_of("level >= 2"))
    with serving(app) as served:
        _, found = said(served, WHOLE, *finding(k=100))
        assert {z["id"] for z in found["passages"]} == {"x2", "x4"}
        _, found = said(served, BOUND, *finding(k=100, where="level < 3"))
        assert {z["id"] for z in found["passages"]} == {"x2"}
        _, error = said(served, BOUND, *finding(where="level = 1"))
        assert error["error"]["message"] == "0 passages satisfy level = 1; widen the condition"
        assert said(served, WHOLE, "GET", "/v1/memory")[1]["passages"] == len(live)


def test_the_key_file(tmp_path) -> None:
    file = tmp_path / "keys"
    file.write_text(
        f"{WHOLE}\n\n  {BOUND}   where=team = 'x' and level >= 2  \nkey-that-may-write write\n"
        f"key-with-both-rights write where=team = 'y'\nkey-with-both-again1 where=team = 'y' write\n"
    )
    access = access_to("0.0.0.0", key_file=file)  # noqa: S104
    both = Rights(condition_of("team = 'y'"), write=True)
    assert {key: access.rights_of(key) for key in access.keys} == {
        WHOLE: Rights(),
        BOUND: Rights(condition_of("team = 'x' and level >= 2")),
        "key-that-may-write": Rights(write=True),
        "key-with-both-rights": both,
        "key-with-both-again1": both,
    }
    assert access.rights_of("another") is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{BOUND} read", "keys:1: 'read' is no right; needed write, or where= and a condition"),
        (f"{BOUND} where=", "keys:1: the condition is empty"),
        (f"{BOUND} where=team = x", 'keys:1: the condition has "x" after "="; needed a \'text\''),
        (f"{BOUND} Where=team = 'x'", 'keys:1: "Where=team" is no right'.replace('"', "'")),
        (f"{WHOLE}\n{WHOLE} where=a = 1", "keys:2: the API key of an earlier line"),
        ("short where=a = 1", "an API key is shorter than 16 characters"),
    ],
)
def test_a_key_file_that_cannot_be(tmp_path, line, message) -> None:
    (tmp_path / "keys").write_text(line + "\n")
    with pytest.raises(InputError) as caught:
        access_to("127.0.0.1", key_file=tmp_path / "keys")
    assert message in str(caught.value)
    assert BOUND not in str(caught.value)


def test_serve_refuses_a_condition_that_no_passage_satisfies(model, memory) -> None:
    error = cli("serve", "--port", 0, "-m", model, "-i", memory, "--where", "title = 'none'").error()
    assert "0 passages satisfy title = 'none'; widen the condition" in error
