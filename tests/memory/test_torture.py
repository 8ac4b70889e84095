"""A short run of the torture; `make torture` is the long one."""

from tests.memory.torture import runs


def test_writers_that_are_killed_lose_and_double_nothing(tmp_path):
    assert len(list(runs(tmp_path, num_runs=6, seed=1))) == 6
