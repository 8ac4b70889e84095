"""docs/clients shows the very examples that `make test-clients` runs, and names the versions it runs them with."""

import re

import pytest

from tests.clients.quick_starts import DOCS, INTEGRATIONS, LLM, QUICK_STARTS

README = (DOCS / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```\w+\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
EXAMPLES = sorted(path for path in DOCS.iterdir() if path.name != "README.md")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_shown_as_it_is(example) -> None:
    assert example.read_text("utf-8") in BLOCKS


def test_no_other_code_is_shown() -> None:
    assert sorted(BLOCKS) == sorted(example.read_text("utf-8") for example in EXAMPLES)


def test_every_example_is_run() -> None:
    others = {"extra-openai-models.yaml", "with_llm.sh", "nginx.conf"}
    of_clients = {each.file for each in QUICK_STARTS}
    of_integrations = {f"in_{name}.py" for name in INTEGRATIONS}
    assert {path.name for path in EXAMPLES} == others | of_clients | of_integrations


@pytest.mark.parametrize(
    "package", sorted({package for start in QUICK_STARTS for package in start.environment.packages} | {*LLM.packages})
)
def test_the_version_that_is_tested_is_named(package) -> None:
    found = re.fullmatch(r"(.+?)={0,2}@?([\d.]+)", package)
    assert found is not None
    assert f"{found[1]} {found[2]}" in README
