"""The command `pljobs`: the front door, which says what to install where something is missing."""

from __future__ import annotations

import errno
import importlib.util
import os
import sys

UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def main() -> None:
    """Run the command line; exits with the codes that `pljobs --help` lists."""
    if missing := [name for name in ("click", "rich") if importlib.util.find_spec(name) is None]:
        sys.exit(f"pljobs: the command line needs {' and '.join(missing)}: pip install 'pljobs[cli]'")
    try:
        import psycopg  # noqa: F401 - it looks for libpq when it is imported, and fails without
    except ImportError as error:
        reason = str(error).strip().splitlines()[0]
        sys.exit(f"pljobs: psycopg can't be loaded ({reason}): pip install 'psycopg[binary]'")
    from pljobs.cli_base import OWN_PROCESS
    from pljobs.cli_commands import cli

    # A terminal that can't show a character is no reason to end in a traceback.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        cli(prog_name="pljobs", obj=OWN_PROCESS)
    except OSError as error:
        if error.errno not in UNWRITABLE or error.filename is not None:
            raise
        # What is left in the buffer can't be written at exit, either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(f"pljobs: can't write the answer: {error.strerror}; what the command has done stays done")
