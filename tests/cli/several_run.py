"""Commands in a process of its own: a JSON list of their arguments on standard input, what came of each on output."""

import json
import sys
from dataclasses import asdict

from latentrag.cli import streams

if __name__ == "__main__":
    streams.prepare()
    from tests.cli.conftest import cli

    ran = [asdict(cli(*arguments)) for arguments in json.load(sys.stdin)]
    sys.stdout.write(json.dumps(ran))
