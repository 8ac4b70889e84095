"""Started in one process or by a launcher in several: trains the tiny models of test_loop and prints the losses."""

import json
import sys
from pathlib import Path

from latentrag.training.options import TrainingOptions
from latentrag.training.processes import Processes
from tests.training.test_loop import EXAMPLES, losses_of, trainer


def main() -> None:
    parts, run, options = Path(sys.argv[1]), Path(sys.argv[2]), TrainingOptions(**json.loads(sys.argv[3]))
    processes = Processes.start(device="cpu")
    trainer(parts, run, options=options, processes=processes, dev=EXAMPLES).run(resume="resume" in sys.argv[4:])
    if processes.is_main:
        print(processes.count, losses_of(run))  # noqa: T201


if __name__ == "__main__":
    main()
