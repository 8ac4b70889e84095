"""Started in one process or by a launcher in several: trains the tiny models of test_loop and prints the losses.

Arguments: the folders of the parts and of the run, options as JSON, then of what shall happen: "resume"; "twice", which
stops after five steps and goes on; "limit=S", the seconds that a collective may take; "slow=S", how much longer a
refresh takes; "fails" and "dies", what becomes of the last process in the third step.
"""

import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from latentrag.encoder import load_passage_encoder, load_query_encoder
from latentrag.errors import InputError
from latentrag.generator import load_generator
from latentrag.memory import Memory
from latentrag.retriever import RefreshingRetriever
from latentrag.training.log import Progress, TrainingLog
from latentrag.training.loop import Trainer
from latentrag.training.options import TrainingOptions
from latentrag.training.processes import Processes
from tests.training.test_loop import EXAMPLES, losses_of, trainer


class Slow(RefreshingRetriever):
    """Takes its time to refresh."""

    pause_s = 0.0

    def refresh(self) -> int:
        time.sleep(self.pause_s)
        return super().refresh()


def refreshing_trainer(parts: Path, run: Path, *, options: TrainingOptions, pause_s: float = 0, **more) -> Trainer:
    """Both encoders learn; the memory beside the run is re-encoded."""
    memory = Memory.open(run.with_suffix(".lance"), version=2)
    retriever = Slow(load_query_encoder(parts / "encoder"), load_passage_encoder(parts / "encoder"), memory)
    retriever.pause_s = pause_s
    generator: Any = load_generator(parts / "llama")
    return Trainer(retriever, generator, EXAMPLES, options=options, folder=run, refresher=retriever, **more)


def main() -> None:
    parts, run, options = Path(sys.argv[1]), Path(sys.argv[2]), TrainingOptions(**json.loads(sys.argv[3]))
    how = {name: value for name, _, value in (word.partition("=") for word in sys.argv[4:])}
    if "limit" in how:
        from accelerate import PartialState

        PartialState(cpu=True, timeout=timedelta(seconds=float(how["limit"])))
    processes = Processes.start(device="cpu")

    def made() -> Trainer:
        if not options.refresh_every:
            return trainer(parts, run, options=options, processes=processes, dev=EXAMPLES)
        pause_s = float(how.get("slow", 0))
        return refreshing_trainer(parts, run, options=options, processes=processes, dev=EXAMPLES, pause_s=pause_s)

    with processes.together():
        first = made()
        if ("fails" in how or "dies" in how) and processes.rank == processes.count - 1:
            end_in_the_third_step(first, dies="dies" in how)
        first.run(resume="resume" in how, until=5 if "twice" in how else None)
        if "twice" in how:
            made().run(resume=True)
    if processes.is_main:
        print(processes.count, losses_of(run))  # noqa: T201


def end_in_the_third_step(run: Trainer, *, dies: bool) -> None:
    does = run._step

    def ending(step: int, log: TrainingLog, progress: Progress) -> float:
        if step == 2:
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)
            raise InputError("the third step is too much")
        return does(step, log, progress)

    run._step = ending  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
