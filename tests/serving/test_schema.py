"""Property tests made from our own OpenAPI: no failure of the server, no response that is not as described."""

import shutil
from collections.abc import Iterator

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from latentrag.assemble import live_memory
from latentrag.rag import Rag
from latentrag.serving.app import create_app
from tests.serving.conftest import serving
from tests.test_rag import FakeRetriever
from tests.toy import ToyGenerator, passages

CHECKS = [
    not_a_server_error,
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
]
SLOW_EXAMPLES = 300


@pytest.fixture(scope="module")
def api(tmp_path_factory, memory) -> Iterator[object]:
    path = shutil.copytree(memory, tmp_path_factory.mktemp("memories") / "own.lance")
    toy = Rag(FakeRetriever(passages(4)), ToyGenerator(4, seed=11), k=3)
    with serving(create_app(toy, live_memory(path), name="toy")) as running:
        yield schemathesis.openapi.from_url(f"{running.url}/openapi.json")


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@hypothesis.settings(max_examples=6, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
def test_responses_are_as_described(case) -> None:
    case.call_and_validate(checks=CHECKS)


@pytest.mark.slow
@schema.parametrize()
@hypothesis.settings(max_examples=SLOW_EXAMPLES, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
def test_many_responses_are_as_described(case) -> None:
    case.call_and_validate(checks=CHECKS)
