"""How often somebody who only notifies can make a worker look: anybody can notify."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PAUSE = 0.05
"""Seconds from a look in vain that a notification asked for to the next one."""


class Pace:
    """Call `look` when asked to: at once, but after a look in vain not before `PAUSE` is over."""

    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look
        self._asked = False
        self._quiet_until = 0.0
        self._later: asyncio.TimerHandle | None = None

    def ask(self) -> None:
        """Look, now or soon; any number of calls until then are one look."""
        loop = asyncio.get_running_loop()
        if self._later is None:
            self._later = loop.call_at(max(self._quiet_until, loop.time()), self._now)

    def looks(self) -> None:
        """Say that a look begins, which may be in vain."""
        self._quiet_until = asyncio.get_running_loop().time() + PAUSE if self._asked else 0.0
        self._asked = False

    def found(self) -> None:
        """Say that the look was not in vain."""
        self._quiet_until = 0.0
        if self._later is not None:
            self._later.cancel()
            self._now()

    def _now(self) -> None:
        self._later = None
        self._asked = True
        self._look()
