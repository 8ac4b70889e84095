"""How an experiment's command ends: one line for what a user can mend, and exit code 2."""

import sys
from collections.abc import Callable

import latentrag


def run(main: Callable[[], int]) -> None:
    """Run it and exit with its code."""
    try:
        sys.exit(main())
    except latentrag.LatentRagError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(130)
