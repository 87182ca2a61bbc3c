"""Wrong clocks, by libfaketime: a server's, which can jump while it runs, or any process's."""

from __future__ import annotations

import os
import unittest.mock
from pathlib import Path

from pljobs.embedded import Server


def skewed(offset: str) -> dict[str, str]:
    """Return what to add to a process's environment for its clock to be wrong by so much: "+1d", "-1d"."""
    # What waits by the monotonic clock would hang if that was faked, too.
    return {
        "LD_PRELOAD": _library("libfaketimeMT.so.1"),
        "FAKETIME": offset,
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


class ServerClock:
    """A server's clock, for all its processes at once. Made for a server once, which it restarts."""

    def __init__(self, server: Server) -> None:
        self._file = server.base / "clock"
        self.offset = 0
        if self._file.exists():
            self.offset = int(self._file.read_text().split()[0])
        else:
            self._write("+0")
            fake = {
                "LD_PRELOAD": _library("libfaketime.so.1"),
                "FAKETIME_TIMESTAMP_FILE": str(self._file),
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
            with unittest.mock.patch.dict(os.environ, fake):
                server.restart()

    def jump(self, seconds: int) -> None:
        """Let it jump, and then go at the right pace."""
        self.offset += seconds
        self._write(f"{self.offset:+d}")

    def drift(self, pace: float) -> None:
        """Let it go at another pace: 1.01 gains 36 seconds an hour."""
        self._write(f"{self.offset:+d} x{pace}")

    def _write(self, text: str) -> None:
        # At once: whoever reads half of it, or nothing, has the right time.
        new = self._file.with_name("clock.new")
        new.write_text(f"{text}\n")
        new.chmod(0o644)
        new.replace(self._file)


def _library(name: str) -> str:
    found = [
        str(path)
        for folder in ("/usr/lib", "/usr/lib64")
        for path in Path(folder).glob(f"**/faketime/{name}")
    ]
    assert found, "libfaketime is not here: tools/bootstrap installs it"
    return found[0]
