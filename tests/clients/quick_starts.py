"""The examples of docs/clients: what runs each, and what each shows of an answer."""

import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.clients.environments import ROOT, Environment

DOCS = ROOT / "docs" / "clients"
QUESTION = "Who wrote the opera Fidelio?"
URL, KEY, MODEL, MEMORY = "http://127.0.0.1:8000", "0123456789abcdef", "demo", "notes.lance"
"""What the examples have in place of a user's own."""

Reply = Mapping[str, Any]
Part = Callable[[Reply], Iterator[str]]


def answer(reply: Reply) -> Iterator[str]:
    yield reply["choices"][0]["message"]["content"]


def annotations(reply: Reply) -> Iterator[str]:
    for each in reply["choices"][0]["message"]["annotations"]:
        yield f"because of {each['url_citation']['title']} {each['url_citation']['url']}"


def usage(reply: Reply) -> Iterator[str]:
    yield f"tokens {reply['usage']['prompt_tokens']} {reply['usage']['completion_tokens']}"


def shares(reply: Reply) -> Iterator[str]:
    for source in reply["latentrag"]["sources"]:
        yield f"share {source['id']} {source['posterior']}"


def shares_of_tokens(reply: Reply) -> Iterator[str]:
    for token in reply["latentrag"]["tokens"]:
        for source, share in zip(reply["latentrag"]["sources"], token["posterior"], strict=True):
            yield f"share {source['id']} {share}"


def tools(reply: Reply) -> Iterator[str]:
    yield "tools ask search"


@dataclass(frozen=True)
class QuickStart:
    """An example, and what it prints: first of the plain answer, then of the streamed one."""

    file: str
    environment: Environment
    plain: tuple[Part, ...]
    streamed: tuple[Part, ...] = ()

    @property
    def text(self) -> str:
        return (DOCS / self.file).read_text("utf-8")

    def lines(self, reply: Reply) -> list[str]:
        """What it prints where the server's reply to the question is this one."""
        return [line for part in (*self.plain, *self.streamed) for line in part(reply)]

    def copy(self, replaced: Mapping[str, str]) -> Path:
        """The example with a user's own values in it, where its imports are found."""
        text = self.text
        for written, own in replaced.items():
            text = text.replace(written, own)
        path = self.environment.folder / self.file
        path.write_text(text, "utf-8")
        return path


ALL = (answer, annotations, usage, shares)
"""Everything."""

AI_SDK = Environment("ai-sdk", "npm", ("ai@6.0.326", "@ai-sdk/openai@3.0.141", "@ai-sdk/openai-compatible@2.0.92"))
LLM = Environment("llm", "pypi", ("llm==0.36",))
OPENAI = Environment("openai-python", "pypi", ("openai==3.57.0",))

QUICK_STARTS = (
    QuickStart("with_openai.py", OPENAI, ALL, ALL),
    QuickStart("with_openai.mjs", Environment("openai-node", "npm", ("openai@6.49.0",)), ALL, ALL),
    QuickStart(
        "with_langchain.py",
        Environment("langchain", "pypi", ("langchain-openai==1.7.4",)),
        (answer, usage, shares),
        (answer, usage, shares_of_tokens),
    ),
    QuickStart(
        "with_llama_index.py",
        Environment("llama-index", "pypi", ("llama-index-llms-openai-like==0.8.1",)),
        ALL,
        ALL,
    ),
    QuickStart("with_litellm.py", Environment("litellm", "pypi", ("litellm==1.110.2",)), ALL, ALL),
    QuickStart(
        "with_haystack.py",
        Environment("haystack", "pypi", ("haystack-ai==3.4.1",)),
        (answer, usage, shares),
        (answer, usage, shares_of_tokens),
    ),
    QuickStart("with_ai_sdk.mjs", AI_SDK, ALL, ALL),
    QuickStart("with_ai_sdk_compatible.mjs", AI_SDK, (answer, usage, shares), (answer, usage, shares)),
    QuickStart("with_mcp.py", Environment("mcp-python", "pypi", ("mcp==2.3.0",)), (tools, answer, shares)),
    QuickStart(
        "with_mcp.mjs", Environment("mcp-node", "npm", ("@modelcontextprotocol/sdk@1.32.2",)), (tools, answer, shares)
    ),
)


def of_extra(name: str) -> Environment:
    """What an extra of ours installs beside it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return Environment(f"in-{name}", "pypi", tuple(project["optional-dependencies"][name]), beside_ours=True)


INTEGRATIONS = {name.replace("-", "_"): of_extra(name) for name in ("haystack", "langchain", "llama-index")}
"""By the module of `latentrag.integrations` its framework, over our own environment."""
