"""Worker processes under the supervisor of `pljobs worker --processes`, which here starts them again sooner.

`python supervised_workers.py URL OPTIONS NUMBER`, with worker_process.py's options.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

from pljobs.processes import Backoff, Supervisor

WORKER = Path(__file__).parent / "worker_process.py"

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stdout)
    command = [sys.executable, str(WORKER), *sys.argv[1:3]]
    backoff = Backoff(first=0.1, longest=0.5, healthy=1.0)
    sys.exit(asyncio.run(Supervisor(lambda _: command, int(sys.argv[3]), backoff).run()))
