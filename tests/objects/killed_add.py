"""Adds passages to a memory in an object store, one a commit; to be killed. Arguments: address, number of passages."""

import sys

from latentrag.memory import add
from latentrag.types import Passage
from tests.memory.conftest import FakePassageEncoder

address, number = sys.argv[1], int(sys.argv[2])
encoder = FakePassageEncoder()
passages = (Passage(f"p{i}", f"text {i}") for i in range(number))
sys.stdout.write("begun\n")
sys.stdout.flush()
done = add(address, passages, lambda: encoder, passages_per_commit=1)
sys.stdout.write(f"{done.added} {done.unchanged}\n")
