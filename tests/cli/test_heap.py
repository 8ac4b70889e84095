"""The collector waits while something is loaded; the heap keeps what is freed, where that can be asked for."""

import gc
import os
import subprocess
import sys

import pytest

from latentrag.cli.heap import uncollected

PROGRAM = """
import resource, sys
from latentrag.cli.heap import keep_memory
kept = keep_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use():
    block = bytearray(64 << 20)
    for place in range(0, len(block), 4096):
        block[place] = 1
use()
before = faults()
for _ in range(4):
    use()
print(kept, faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
@pytest.mark.parametrize("own", [{}, {"MALLOC_ARENA_MAX": "4"}])
def test_memory_is_kept_unless_the_user_has_a_say(own) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, check=True, text=True, env={**environment, **own}
    )
    kept, faults = done.stdout.split()
    pages = 4 * (64 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert kept == str(not own)
    if not own:  # otherwise it depends on the size of the system's pages
        assert int(faults) < pages // 100


@pytest.mark.parametrize("was_on", [True, False])
def test_the_collector_waits_and_goes_on(was_on) -> None:
    (gc.enable if was_on else gc.disable)()
    try:
        with pytest.raises(InterruptedError) as seen, uncollected():
            raise InterruptedError(gc.isenabled())
        assert seen.value.args == (False,)
        assert gc.isenabled() == was_on
    finally:
        gc.enable()
