"""What processes tell each other, in threads that share a store."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from latentrag.errors import InputError, LatentRagError, OtherProcessError
from latentrag.training.processes import Messages, Processes, Store


def several(does: Callable[[Processes], Any], *, count: int = 3, store: Store | None = None) -> Sequence[Any]:
    """What each process makes of it, by rank; in place of that what it raises."""
    store = HashStore() if store is None else store

    def run(rank: int) -> Any:
        processes = Processes(rank, count, messages=Messages(store, rank, count))
        try:
            with processes.together():
                return does(processes)
        except LatentRagError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def test_all_get_what_each_has() -> None:
    def does(processes: Processes) -> list[Any]:
        return [processes.gather([turn, processes.rank, 0.1 + 0.2, "é"]) for turn in range(3)]

    expected = [[[turn, rank, 0.1 + 0.2, "é"] for rank in range(3)] for turn in range(3)]
    assert several(does) == [expected] * 3


def test_one_process_needs_no_messages() -> None:
    alone = Processes()
    assert alone.gather("a") == ["a"]
    assert alone.from_main(lambda: 3) == 3
    alone.wait()


def test_messages_that_all_have_read_are_gone() -> None:
    store = HashStore()
    several(lambda processes: [processes.gather(turn) for turn in range(50)], store=store)
    assert store.num_keys() <= 3 * 3


def test_a_second_run_begins_anew() -> None:
    """Also after one that failed."""
    store = HashStore()

    def fails(processes: Processes) -> None:
        processes.gather("old")
        raise InputError("no")

    several(fails, store=store)
    assert several(lambda processes: processes.gather("new"), store=store) == [["new"] * 3] * 3


def test_the_main_process_works_and_the_others_wait() -> None:
    worked: list[int] = []

    def work(rank: int) -> int:
        time.sleep(0.3)
        worked.append(rank)
        return 7

    assert several(lambda processes: processes.from_main(lambda: work(processes.rank))) == [7] * 3
    assert worked == [0]


@pytest.mark.parametrize("failing", [0, 2])
def test_one_that_fails_ends_all(failing: int) -> None:
    def does(processes: Processes) -> None:
        if processes.rank == failing:
            time.sleep(0.1)
            raise InputError("k=0")
        processes.wait()

    started = time.monotonic()
    found = several(does)
    assert time.monotonic() - started < 10
    assert [type(each) for each in found] == [InputError if rank == failing else OtherProcessError for rank in range(3)]


def test_of_all_that_fail_one_says_why() -> None:
    def does(_: Processes) -> None:
        raise InputError("k=0")

    kinds = [type(each) for each in several(does)]
    assert kinds.count(InputError) == 1
    assert kinds.count(OtherProcessError) == 2


def test_ctrl_c_stays_what_it_is() -> None:
    store, both = HashStore(), threading.Barrier(2)

    def interrupted(rank: int) -> None:
        processes = Processes(rank, 2, messages=Messages(store, rank, 2))
        both.wait()
        with pytest.raises(KeyboardInterrupt), processes.together():
            raise KeyboardInterrupt

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(interrupted, range(2)))


def test_a_collective_that_breaks_is_explained(monkeypatch) -> None:
    def broken(_: torch.Tensor) -> None:
        raise RuntimeError("Connection closed by peer\nsomewhere")

    monkeypatch.setattr(torch.distributed, "all_reduce", broken)
    gone = several(lambda processes: processes.agree(True), count=2)
    assert sorted(type(each).__name__ for each in gone) == ["OtherProcessError", "TrainingError"]
    said = next(str(each) for each in gone if type(each) is not OtherProcessError)
    assert said == (
        "another process of this run is gone or does not answer (Connection closed by peer); continue with --resume"
    )
