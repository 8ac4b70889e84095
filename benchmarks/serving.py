"""A server under load: many clients, requests decoded together and one by one, memory exchanged, memory used.

    python -m benchmarks.serving --data CLUES.jsonl[.gz] [--clients 64] [--seconds 180] [--long-seconds 600]

The server is `latentrag serve` over a copy of the memory with two versions, in which the passages that the questions
find have other texts. The clients (locust, on loopback) wait for nothing between an answer and the next question. They
ask a server that decodes one question at a time, then one that batches them: first some questions often (Zipf, exponent
1), so that both answer the same question once for all who wait, then all in turn. Both have read the passages that are
needed before, the second from what the first has kept on disk. Then they go on with the latter for long, while the
memory is exchanged at even distances. An answer that is no 200, or is made of two versions, counts as failed.
"""

import argparse
import csv
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

K = 5
MARK = " (Second edition.)"
CLIENTS = Path(__file__).with_name("serving_clients.py")
PLAN_VARIABLE = "LATENTRAG_LOAD_PLAN"
SAMPLED_EVERY_S = 2.0
WAYS = ("one by one", "batched")
IN_TURN = "all in turn"
LOADS = ("some often", IN_TURN)
MIB = 1 << 20
PATIENCE_S = 600
"""How long a request may wait for its turn, too: clients that never pause wait for all others."""


@dataclass(frozen=True)
class Server:
    """A process that serves.

    Attributes:
        ready_s: seconds from its start until it said so.
    """

    process: "subprocess.Popen[str]"
    url: str
    ready_s: float

    def rss_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text("ascii")
        found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
        return int(found[1]) * 1024 if found else 0

    def use(self, version: int) -> None:
        import httpx

        body = {"action": "use", "version": version}
        httpx.post(f"{self.url}/v1/memory", json=body, timeout=PATIENCE_S).raise_for_status()


def prepared(given: argparse.Namespace, folder: Path) -> tuple[Path, dict[str, Any]]:
    """A memory with two versions, and the clients' plan."""
    import latentrag
    from latentrag.assemble import load_passage_encoder, open_memory
    from latentrag.memory import Memory
    from latentrag.training.data import read_examples

    questions = [row.x for row in read_examples(given.data, prefix_field=given.prefix_field).rows[: given.questions]]
    path = Path(shutil.copytree(open_memory(given.memory).path, folder / "memory.lance"))
    found = latentrag.load(given.model, memory=path).retriever.retrieve(questions, K).passages
    changed = {z.id: replace(z, text=z.text + MARK) for of_one in found for z in of_one}
    first = Memory.open(path, version="newest")
    second = first.upsert(list(changed.values()), load_passage_encoder(given.model))
    versions = {"first": first.version, "second": second.version, "changed": list(changed), "mark": MARK}
    return path, {"questions": questions, "options": {"k": K}, **versions}


@contextmanager
def serving(given: argparse.Namespace, memory: Path, *, batch: int) -> Iterator[Server]:
    """A server that decodes so many requests together; at the end it must stop in order."""
    command = [sys.executable, "-m", "latentrag", "serve", "-m", given.model, "-i", memory, "--port", "0", "--quiet"]
    began_s = time.monotonic()
    command += ["--batch", str(batch), "--wait", str(PATIENCE_S), "--passage-cache", given.passage_cache]
    command += ["--passage-cache-folder", given.passages or memory.with_name("passages")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            assert process.stderr is not None
            said = next((line for line in process.stderr if " at http://" in line), None)
            assert said is not None, "the server did not start"
            yield Server(process, said.split()[-1], time.monotonic() - began_s)
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0, "the server did not stop in order"
        finally:
            process.kill()


def read_once(server: Server, plan: Path) -> None:
    """Let the server read every passage that will be needed, of both versions: what is measured is not its start."""
    import httpx

    content = json.loads(plan.read_text("utf-8"))
    bodies = [
        {"question": question, **content["options"], "beams": 1, "max_tokens": 1, "as_of": content[version]}
        for version in ("first", "second")
        for question in content["questions"]
    ]
    with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as client, ThreadPoolExecutor(16) as pool:
        for number, answered in enumerate(pool.map(lambda body: client.post("/v1/answer", json=body), bodies), 1):
            answered.raise_for_status()
            end = "\r" if number < len(bodies) else "\n"
            print(f"passages of question {number}/{len(bodies)} are read", end=end, file=sys.stderr)


def load(server: Server, plan: Path, *, clients: int, seconds: float, in_turn: bool = False) -> dict[str, float]:
    """Let the clients ask for so long; what became of it. in_turn: no two of them wait for the same answer."""
    plan.write_text(json.dumps({**json.loads(plan.read_text("utf-8")), "in_turn": in_turn}), "utf-8")
    name = plan.with_name("load")
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "locust",
        "-f",
        CLIENTS,
        "--headless",
        "--host",
        server.url,
        "--csv",
        name,
    ]
    command += ["-u", str(clients), "-r", str(clients), "-t", f"{seconds:.0f}s", "--stop-timeout", str(PATIENCE_S)]
    command += ["--only-summary", "--exit-code-on-error", "0", "--loglevel", "ERROR"]
    began_s = time.monotonic()
    environment = {**os.environ, PLAN_VARIABLE: str(plan)}
    quiet = subprocess.DEVNULL
    subprocess.run(command, check=True, env=environment, stdout=quiet, stderr=quiet)  # noqa: S603
    wall_s = time.monotonic() - began_s
    with Path(f"{name}_stats.csv").open(encoding="utf-8") as file:
        total = next(row for row in csv.DictReader(file) if row["Name"] == "Aggregated")
    with Path(f"{name}_failures.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            print(f"failed: {row['Error']}, {row['Occurrences']} times", file=sys.stderr)
    return {
        "answers": int(total["Request Count"]),
        "failed": int(total["Failure Count"]),
        "answers_per_s": float(total["Requests/s"]) - float(total["Failures/s"]),
        # Without a single answer locust has no percentiles.
        "p50_s": float(total["50%"].replace("N/A", "nan")) / 1000,
        "p95_s": float(total["95%"].replace("N/A", "nan")) / 1000,
        "wall_s": wall_s,
    }


def long_load(server: Server, plan: Path, *, clients: int, seconds: float, swaps: int) -> dict[str, Any]:
    """The same for long, with exchanges at even distances, and the server's memory looked at."""
    versions = [json.loads(plan.read_text("utf-8"))[name] for name in ("first", "second")]
    stop, memory, exchanges = threading.Event(), [], []

    def watch() -> None:
        began_s = time.monotonic()
        while not stop.wait(SAMPLED_EVERY_S):
            memory.append((time.monotonic() - began_s, server.rss_bytes()))

    def exchange() -> None:
        for count in range(swaps):
            if stop.wait(seconds / (swaps + 1)):
                return
            began_s = time.monotonic()
            server.use(versions[count % 2])
            exchanges.append(time.monotonic() - began_s)

    threads = [threading.Thread(target=each) for each in (watch, exchange)]
    for thread in threads:
        thread.start()
    try:
        found: dict[str, Any] = dict(load(server, plan, clients=clients, seconds=seconds))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    thirds = [[rss for at_s, rss in memory if part <= 3 * at_s / found["wall_s"] < part + 1] for part in range(3)]
    return {
        **found,
        "swaps": len(exchanges),
        "swap_p50_s": statistics.median(exchanges) if exchanges else None,
        "rss_of_thirds_bytes": [statistics.median(each) for each in thirds],
        "rss": memory,
    }


def loads(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of the report that are loads, by name."""
    return {name: row for name, row in report.items() if isinstance(row, dict) and "answers_per_s" in row}


def shown(report: dict[str, Any]) -> str:
    """The figures as a table, and what is asked of them."""
    long = report["long"]
    rss = [each / MIB for each in long["rss_of_thirds_bytes"]]
    rows = loads(report)
    lines = [
        f"{report['config']['clients']} clients that never pause; ready after {report['ready_s']:.1f} s",
        "",
        "| | answers | failed | answers/s | p50 s | p95 s |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {row['answers']} | {row['failed']} | {row['answers_per_s']:.2f} | {row['p50_s']:.1f} "
            f"| {row['p95_s']:.1f} |"
            for name, row in rows.items()
        ),
        "",
        *(
            f"batched / one by one, {kind}: "
            f"{rows[f'{WAYS[1]}, {kind}']['answers_per_s'] / rows[f'{WAYS[0]}, {kind}']['answers_per_s']:.2f}"
            for kind in LOADS
        ),
        f"the memory exchanged {long['swaps']} times, median {long['swap_p50_s']:.2f} s",
        f"resident memory, median of each third of {long['wall_s'] / 60:.0f} minutes: "
        + ", ".join(f"{each:.0f}" for each in rss)
        + " MiB",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="questions, one JSON object a line")
    parser.add_argument("--prefix-field", metavar="NAME", help="put before each question: category, for clues")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--memory", default="demo")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--long-seconds", type=float, default=600)
    parser.add_argument("--passage-cache", default="4GB", help="of the server: what both versions' passages take")
    parser.add_argument("--passages", type=Path, help="folder for what was read of them, to keep it for another run")
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    config = {name: str(value) if isinstance(value, Path) else value for name, value in vars(given).items()}
    report: dict[str, Any] = {"config": config, "platform": platform.platform(), "cpus": os.cpu_count()}
    with tempfile.TemporaryDirectory() as scratch:
        memory, content = prepared(given, Path(scratch))
        plan = Path(scratch, "plan.json")
        plan.write_text(json.dumps(content), "utf-8")
        for name, batch in zip(WAYS, (1, given.batch), strict=True):
            with serving(given, memory, batch=batch) as server:
                print(f"{name}: ready after {server.ready_s:.1f} s", file=sys.stderr)
                report["ready_s"] = server.ready_s
                read_once(server, plan)
                for kind in LOADS:
                    part = report[f"{name}, {kind}"] = load(
                        server, plan, clients=given.clients, seconds=given.seconds, in_turn=kind == IN_TURN
                    )
                    print(f"{name}, {kind}: {part['answers_per_s']:.2f} answers/s", file=sys.stderr)
                if batch > 1:
                    report["long"] = long_load(
                        server, plan, clients=given.clients, seconds=given.long_seconds, swaps=given.swaps
                    )
    print(shown(report))
    if given.json is not None:
        given.json.write_text(json.dumps(report) + "\n", "utf-8")
    return 1 if any(row["failed"] for row in loads(report).values()) else 0


if __name__ == "__main__":
    sys.exit(main())
