"""Commands in a process of its own: a JSON list of their arguments on standard input, what came of each on output.

With the argument "fork" or "spawn" they run in a process that is started that way from one that has loaded a model and
a memory: those of the first command, its third last and its last argument.
"""

import json
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from typing import Any

from latentrag.cli import streams


def run(commands: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    from tests.cli.conftest import cli

    return [asdict(cli(*arguments)) for arguments in commands]


def run_in(method: str, commands: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    import latentrag

    *_, model, _, memory = commands[0]
    rag = latentrag.load(model, memory=memory)
    rag.answer("Who?")
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
        return pool.submit(run, commands).result()


if __name__ == "__main__":
    streams.prepare()
    given = json.load(sys.stdin)
    ran = run_in(sys.argv[1], given) if len(sys.argv) > 1 else run(given)
    sys.stdout.write(json.dumps(ran))
