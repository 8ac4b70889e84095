"""Property tests made from our own OpenAPI: no failure of the server, no response that is not as described."""

import shutil
from collections.abc import Iterator

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from latentrag.assemble import live_memory, load
from latentrag.serving.app import create_app
from latentrag.serving.options import ServeOptions
from tests.serving.conftest import serving

CHECKS = [
    not_a_server_error,
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
]
MANY = 500
REFUSED = [400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 428, 429, "5xx"]
"""Schemathesis's own statuses of what is refused, and that of a body which is too large."""


@pytest.fixture(scope="module")
def api(tmp_path_factory, model, memory) -> Iterator[object]:
    """With every route there is, over a memory of its own, whose versions may be named and used."""
    live = live_memory(shutil.copytree(memory, tmp_path_factory.mktemp("memories") / "own.lance"))
    options = ServeOptions(feedback=tmp_path_factory.mktemp("feedback") / "said.jsonl", allow_writes=True)
    with serving(create_app(load(model, memory=live), live, name="tiny", options=options), options) as running:
        config = schemathesis.Config.from_dict({"checks": {"negative_data_rejection": {"expected-statuses": REFUSED}}})
        yield schemathesis.openapi.from_url(f"{running.url}/openapi.json", config=config)


def check(api, mode: GenerationMode, *, max_examples: int) -> None:
    """Every operation, with data as described, or with data that is not."""
    for found in api.get_all_operations():
        cases = found.ok().as_strategy(generation_mode=mode)

        @hypothesis.settings(
            max_examples=max_examples,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=cases)
        def responds_as_described(case: schemathesis.Case) -> None:
            case.call_and_validate(checks=CHECKS)

        if mode is GenerationMode.POSITIVE or found.ok().body:
            responds_as_described()


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_responses_are_as_described(api, mode) -> None:
    check(api, mode, max_examples=5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_many_responses_are_as_described(api, mode) -> None:
    check(api, mode, max_examples=MANY)
