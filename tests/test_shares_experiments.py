"""The experiments about shares, on made results and tiny models: orders, reports, and rows that are measured once."""

import gzip
import json
import math
import random
from pathlib import Path
from typing import Any

import made_questions
import pytest
import removal
import shares
import torch
import typer
from answered import all_rows
from orders import AskedCitation, Attention
from removal_report import beginnings, key_of, orders_of
from removal_report import write_report as write_removal
from running import read_lines
from shares import curves
from shares import write_report as write_shares

from latentrag.addresses import home
from latentrag.cli.main import app
from latentrag.evaluation.removal import greedy_order
from latentrag.types import Passage
from tests import tiny

PASSAGES = [Passage("a", "paris is red", title="one"), Passage("b", "rome is blue", title="two"), Passage("c", "emma")]


def made(number: int) -> dict:
    """A question whose posterior is far from its prior; the answer stands in the best passage alone."""
    chance = random.Random(number)
    log_p_eta = torch.log_softmax(torch.tensor([chance.random() for _ in range(5)]), dim=0)
    log_p_theta = [[-4 * chance.random() for _ in range(3)] for _ in range(5)]
    log_p_theta[number % 5] = [-0.1, -0.1, -0.1]
    row = {
        "name": f"TriviaQA/{number}",
        "dataset": "TriviaQA",
        "y": "red",
        "right": number % 2 == 0,
        "log_p_eta": log_p_eta.tolist(),
        "log_p_theta": log_p_theta,
        "attention": [chance.random() for _ in range(5)],
        "citation": [chance.random() for _ in range(5)],
        "holds_answer": [z == number % 5 for z in range(5)],
        "holds_gold": [z == number % 5 for z in range(5)],
    }
    says = {key_of(gone): "blue" if number % 5 in gone else "the red" for gone in beginnings(row)}
    return row | {"says": says}


def test_every_order_has_every_passage():
    row = made(3)
    orders = orders_of(row)
    assert {name: sorted(order) for name, order in orders.items()} == {name: list(range(5)) for name in orders}
    assert orders["posterior"][0] == 3
    log_p = torch.tensor(row["log_p_eta"]).double(), torch.tensor(row["log_p_theta"]).double()
    assert orders["counterfactual"] == greedy_order(*log_p)
    assert {tuple(sorted(order[:2])) for order in orders.values()} <= set(beginnings(row))


def test_the_removal_report(tmp_path):
    file = tmp_path / "removal.md"
    file.write_text("# By hand\n\n<!-- measured: begin -->\nold\n<!-- measured: end -->\n\nafter\n", "utf-8")
    rows = [made(number) for number in range(30)]
    write_removal(file, rows, {"folder/other": rows[:25]}, about="tiny", num_empty=2)
    text = file.read_text("utf-8")
    assert text.startswith("# By hand\n")
    assert text.endswith("after\n")
    assert "tiny. 30 questions with an answer (30 of TriviaQA; 2 more were answered with nothing), 15 of" in text
    assert text.count("| posterior | ") == 4
    assert "## Judged by other\n\nThe first 25 of these questions." in text
    (ours,) = [line for line in text.splitlines() if line.startswith("| posterior |")][:1]
    assert "100 % [89, 100]" in ours  # without its first passage every answer changes
    citations = [line for line in text.splitlines() if line.startswith("| posterior | 0 %")]
    assert len(citations) == 2


def test_the_report_on_shares(tmp_path):
    rows = [made(number) for number in range(40)]
    found = curves(rows)
    assert found["posterior; in exactly one"].num_questions == 40
    assert found["posterior; right answers, any form of the answer"].num_questions == 20
    assert found["prior; all answers"].error > found["posterior; all answers"].error
    file = tmp_path / "shares.md"
    write_shares(file, rows, about="tiny", num_empty=0)
    text = file.read_text("utf-8")
    assert "| posterior; all answers | 40 |" in text
    assert text.count("| share | passages |") == len(found)


def test_rows_are_measured_once(tmp_path):
    file, measured = tmp_path / "runs" / "rows.jsonl", []

    def measure(name: str) -> dict:
        measured.append(name)
        return {"name": name, "value": len(measured)}

    assert [row["name"] for row in all_rows(file, ["a", "b"], name=str, measure=measure)] == ["a", "b"]
    file.write_bytes(file.read_bytes()[:-3])  # as a kill leaves it
    again = all_rows(file, ["c", "a", "b"], name=str, measure=measure)
    assert measured == ["a", "b", "c", "b"]
    assert [row["value"] for row in again] == [3, 1, 4]
    assert all_rows(file, ["b", "c"], name=str, measure=measure) == [again[2], again[0]]


@pytest.fixture
def folder(tmp_path) -> Path:
    tiny.save_tokenizer(tmp_path)
    tiny.save_llama(tmp_path)
    return tmp_path


def test_attention_is_a_share_for_each_passage(folder):
    """Masses in the passages' own order, and of the last passage's tokens what the model gives them."""
    template = tiny.load_causal(folder).template
    mass = Attention(folder, template).mass("who", "blue", PASSAGES)
    assert len(mass) == 3
    assert all(0 < each < 1 for each in mass)
    assert sum(mass) < 1
    prompt = str(template.render("who", tuple(reversed(PASSAGES)))) + template.say("blue")
    from transformers import AutoModel, AutoTokenizer

    encoded = AutoTokenizer.from_pretrained(folder)(prompt, return_tensors="pt", return_offsets_mapping=True)
    places = encoded.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        layers = AutoModel.from_pretrained(folder, attn_implementation="eager")(**encoded, output_attentions=True)
    start = prompt.index("one: paris")
    stop = prompt.index("Question")
    rows = torch.stack(layers.attentions)[:, 0].mean(dim=(0, 1))  # (S, S)
    first = next(i for i, (_, end) in enumerate(places) if end > len(prompt) - len("blue"))
    predicting = rows[first - 1 : len(places) - 1].mean(dim=0)
    of_passage = [i for i, (begin, end) in enumerate(places) if start <= begin < stop and end > begin]
    expected = float(predicting[of_passage].sum())
    assert mass[0] == pytest.approx(expected, abs=1e-5)


def test_an_asked_citation_is_a_distribution_over_the_passages(folder):
    generator = tiny.load_causal(folder, settings={"max_input_tokens": 4096})
    asked = AskedCitation(generator)
    shown = str(asked.generator.template.render("who Answer: red", (PASSAGES[0],)))
    assert shown.endswith("Question: who Answer: red\nNumber of the passage that says so:")
    assert "Number of the passage that says so: 3\n" in shown


def test_results_are_json(tmp_path):
    """−∞ among log p stays what it is."""
    row = made(1) | {"log_p_theta": [[-math.inf, 0.0, 0.0], *made(1)["log_p_theta"][1:]]}
    (kept,) = all_rows(tmp_path / "rows.jsonl", ["x"], name=str, measure=lambda _: row | {"name": "x"})
    assert json.loads(json.dumps(kept)) == row | {"name": "x"}
    assert sorted(orders_of(kept)["posterior"]) == list(range(5))


def test_made_questions_are_trained_on_and_measured_before_and_after(tmp_path, monkeypatch):
    """Its commands have the flags that it gives, and its report says what they say."""
    leaders = [
        {"id": "a", "country": "Ruritania", "question": "Who rules?", "answer": {"2016-11-26": ["Rudolf"]}},
        {"id": "b", "country": "Ruritania", "question": "Who governs?", "answer": {"2026-05-17": ["Flavia", "F."]}},
    ]
    rows = "\n".join(map(json.dumps, leaders))
    (tmp_path / "factbook.leaders.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    ran: list[list[str]] = []
    measure = {
        "ours": 0.5,
        "theirs": 0.25,
        "difference": 0.25,
        "low": 0.1,
        "high": 0.4,
        "p": 0.01,
        "wins": 3,
        "losses": 0,
    }

    def command(*arguments, wanted=""):
        ran.append(list(map(str, arguments)))
        if arguments[0] == "make-questions":
            return {"examples": 6, "metrics": {"tried": 8, "dropped": {"no_pair": 2, "near_duplicate": 0}}}
        return {"examples": 2, "metrics": {"exact_match": measure}} if arguments[0] == "compare" else None

    monkeypatch.setattr(made_questions, "command", command)
    report = tmp_path / "made.md"
    arguments = ["--data", tmp_path, "--out", tmp_path / "runs", "--report", report, "--freeze", "generator"]
    monkeypatch.setattr("sys.argv", ["made_questions", *map(str, arguments)])
    assert made_questions.main() == 0
    assert [words[0] for words in ran] == ["index", "make-questions", "train", "eval", "eval", "compare"] * 2
    for words in ran:
        found: Any = typer.main.get_command(app())
        for name in words[: 2 if words[0] == "index" else 1]:
            found = found.commands[name]
        known = {flag for each in found.params for flag in each.opts}
        assert {word for word in words if word.startswith("-")} <= known
    text = report.read_text("utf-8")
    assert "Factbook 2026: 6 pairs of 8 tried, 25 % dropped (no_pair 2, near_duplicate 0)." in text
    assert text.count("| exact_match | 0.500 | 0.250 | +0.250 [+0.100, +0.400] |") == 2
    (row,) = read_lines(tmp_path / "runs" / "factbook-2026" / "questions.jsonl")
    assert (row["question"], row["answer"], row["title"]) == ("Who governs?", ["Flavia", "F."], "Ruritania")


@pytest.mark.real
def test_with_the_demo_from_end_to_end(tmp_path, monkeypatch):
    """Both experiments on two questions; needs `latentrag demo`."""
    if not Path(home().memories / "demo.lance").exists():
        pytest.skip("needs the demo; run latentrag demo")
    for name, question, answer in (
        ("triviaqa.dev", "Who wrote the novel Ulysses?", "James Joyce"),
        ("nq-open.dev", "what is the capital of norway", "Oslo"),
    ):
        row = {"id": name, "question": question, "answer": [answer]}
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    monkeypatch.chdir(tmp_path)
    for experiment, report in ((shares, "shares.md"), (removal, "removal.md")):
        arguments = ["--data", str(tmp_path), "--limit", "2", "--report", str(tmp_path / report)]
        monkeypatch.setattr("sys.argv", [report, *arguments])
        assert experiment.main() == 0
    orders = read_lines(tmp_path / "runs" / "removal" / "orders.jsonl")
    assert len(orders) == 2
    for each in orders:
        assert 0 < sum(each["attention"]) < 1
        assert sum(math.exp(log_p) for log_p in each["citation"]) == pytest.approx(1, abs=1e-5)
        assert all(each["says"].values())
    assert "2 questions with an answer (1 of NQ, 1 of TriviaQA" in (tmp_path / "removal.md").read_text("utf-8")
