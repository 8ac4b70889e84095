"""The clients of ``benchmarks.serving``, for locust: each asks, waits for the answer, looks at it, and asks again.

What they ask, and how the memory's versions differ, stands in the JSON file that PLAN_VARIABLE names: questions of
which some come up often (Zipf, exponent 1), or all in turn, so that no two clients wait for the same answer.
"""

import itertools
import json
import os
import random
from pathlib import Path
from typing import Any

from locust import HttpUser, constant, task

from benchmarks.serving import PLAN_VARIABLE

_NUMBERS, _TURNS = itertools.count(), itertools.count()


def fault(answer: dict[str, Any], plan: dict[str, Any]) -> str | None:
    """What is wrong with an answer: a version that was never served, or passages of two versions in one answer."""
    version = answer["memory_version"]
    if version not in (plan["first"], plan["second"]):
        return f"version {version} was never served"
    changed = set(plan["changed"])
    of_second = {source["text"].endswith(plan["mark"]) for source in answer["sources"] if source["id"] in changed}
    return "mixed" if of_second - {version == plan["second"]} else None


class Client(HttpUser):
    """One that never pauses."""

    wait_time = constant(0)

    def on_start(self) -> None:
        """As locust has it."""
        self._plan = json.loads(Path(os.environ[PLAN_VARIABLE]).read_text("utf-8"))
        self._random = random.Random(next(_NUMBERS))  # noqa: S311
        self._weights = [1 / rank for rank in range(1, len(self._plan["questions"]) + 1)]

    @task
    def ask(self) -> None:
        """One question."""
        questions = self._plan["questions"]
        if self._plan["in_turn"]:
            question = questions[next(_TURNS) % len(questions)]
        else:
            (question,) = self._random.choices(questions, self._weights)
        body = {"question": question, **self._plan["options"]}
        with self.client.post("/v1/answer", json=body, catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"status {response.status_code}")
            elif found := fault(response.json(), self._plan):
                response.failure(found)
