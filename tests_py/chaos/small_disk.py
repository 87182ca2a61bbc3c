"""A small file system of our own that holds a rig's database, to be filled."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from pathlib import Path

import psycopg
from psycopg import sql

from chaos.rig import Rig
from chaos.rows import Impossible

SIZE = "64m"


class SmallDisk:
    """A file system in memory, and a file that fills it."""

    def __init__(self, folder: Path) -> None:
        self._filler = folder / "filler"

    def fill(self) -> None:
        """Leave not a byte."""
        with contextlib.suppress(OSError), self._filler.open("wb", buffering=0) as filler:
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while filler.write(bytes(size)):
                        pass

    def free(self) -> None:
        """Give all of it back."""
        self._filler.unlink(missing_ok=True)


def small_disk(rig: Rig) -> SmallDisk:
    """Move the rig's database to a small disk, all but what bodies write; raise Impossible without one.

    At the end it takes the rig's server along, which must be the row's own.
    """
    owner = rig.server.data.stat()
    folder = Path(tempfile.mkdtemp(prefix="pljobs-small-"))
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=711", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        folder.rmdir()
        raise Impossible(f"no small disk without the right to mount one: {mounted.stderr.strip()}")
    rig.stack.callback(_remove, rig, folder)
    space = folder / "space"
    space.mkdir(mode=0o700)
    os.chown(space, owner.st_uid, owner.st_gid)
    with psycopg.connect(rig.server.url(), autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE TABLESPACE small LOCATION {}").format(sql.Literal(str(space))))
        conn.execute(sql.SQL("ALTER DATABASE {} SET TABLESPACE small").format(sql.Identifier(rig.dbname)))
    with rig.connect() as conn:
        conn.execute("ALTER TABLE public.side SET TABLESPACE pg_default")
    return SmallDisk(folder)


def _remove(rig: Rig, folder: Path) -> None:
    rig.server.stop()
    subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()
