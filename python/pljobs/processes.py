"""Run N worker processes: pass signals on, start a crashed one again, end when all have ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from pljobs.careful import careful_logger

logger = careful_logger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
USAGE = 2
LIFELINE = "PLJOBS_LIFELINE"


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds before a crashed process is started again: doubled each time, until one ran for `healthy`."""

    first: float = 1.0
    longest: float = 60.0
    healthy: float = 60.0


@dataclass(slots=True)
class Supervisor:
    """Run `processes` processes, each by the command that `command(number)` returns, numbers starting at 1.

    One that ends with 0 is done. One that ends otherwise is started again after a while, unless it ended with
    2: a command line that is wrong stays wrong. SIGINT and SIGTERM are passed on: the first lets workers
    end their jobs, the second aborts these; a third kills the processes. A process whose lifeline ends
    (`follow_lifeline`) knows that its supervisor is gone, however that died.
    """

    command: Callable[[int], Sequence[str]]
    processes: int
    backoff: Backoff = field(default_factory=Backoff)
    # Whether one that ends well was sent away by somebody, and another is to take its place.
    forever: bool = False
    _running: dict[int, asyncio.subprocess.Process] = field(default_factory=dict, init=False)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _lifeline: int = field(default=-1, init=False)
    _signals_seen: int = field(default=0, init=False)

    async def run(self) -> int:
        """Run until every process has ended; return 0, or the exit code of one that failed in the end."""
        with self._signals(), self._pipe():
            codes = await asyncio.gather(*(self._keep(number) for number in range(1, self.processes + 1)))
        return next((code if code > 0 else 128 - code for code in codes if code), 0)

    async def _keep(self, number: int) -> int:
        """Run one process, again and again where it crashes; return how it ended in the end."""
        pause = self.backoff.first
        while True:
            started = time.monotonic()
            code, how = await self._once(number)
            lived = time.monotonic() - started
            extra = {"process_number": number, "exit_code": code}
            if (code == 0 and not self.forever) or self._stopping.is_set():
                logger.info("Worker process %s %s", number, how, extra=extra)
                # One that the first signal met while it started had no job, and no handler yet.
                return 0 if code in {-signal.SIGTERM, -signal.SIGINT} and self._signals_seen == 1 else code
            if code == USAGE:
                logger.error("Worker process %s %s, and is not started again", number, how, extra=extra)
                return code
            if lived >= self.backoff.healthy:
                pause = self.backoff.first
            logger.error(
                "Worker process %s %s after %.1f s: starting it again in %g s",
                number,
                how,
                lived,
                pause,
                extra=extra,
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
                return code
            pause = min(pause * 2, self.backoff.longest)

    async def _once(self, number: int) -> tuple[int, str]:
        """Run one process until it ends; return its exit code, and how it ended."""
        try:
            process = await asyncio.create_subprocess_exec(
                *self.command(number),
                stdin=asyncio.subprocess.DEVNULL,
                env={**os.environ, LIFELINE: str(self._lifeline)},
                pass_fds=[self._lifeline],
                # A group of its own: Ctrl-C in a terminal reaches the supervisor alone, which passes it on
                # once.
                process_group=0,
            )
        except (OSError, RuntimeError) as error:
            # No memory, no process or thread to be had, a deployment under way: the others need not suffer.
            return 1, f"could not be started ({error})"
        self._running[number] = process
        logger.info(
            "Worker process %s started, pid %s", number, process.pid, extra={"process_number": number}
        )
        try:
            if self._stopping.is_set():
                _send(process, signal.SIGTERM)
            code = await process.wait()
        finally:
            del self._running[number]
        return code, f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"

    def _on_signal(self, number: signal.Signals) -> None:
        self._stopping.set()
        self._signals_seen += 1
        if self._signals_seen > 2:
            # Stuck in C code, a process runs no handler, and has not come to leave this to the system.
            number = signal.SIGKILL
        logger.warning("Sending %s to %s worker processes", number.name, len(self._running))
        for process in self._running.values():
            _send(process, number)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    @contextlib.contextmanager
    def _pipe(self) -> Iterator[None]:
        """Hold the writing end of a pipe that the processes read: it ends when this process does."""
        self._lifeline, held = os.pipe()
        try:
            yield
        finally:
            os.close(self._lifeline)
            os.close(held)


def _send(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    # Not by its own method: that looks whether the process lives, and one that has just died tells its exit
    # code to that look alone. asyncio would say 255.
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def follow_lifeline() -> None:
    """Stop as on SIGTERM once the supervisor is gone, if this process has one."""
    named = os.environ.pop(LIFELINE, "")
    if not named.isdigit():
        return
    descriptor = int(named)
    os.set_inheritable(descriptor, False)

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(descriptor, 1024):
                pass
        logger.warning("The supervisor is gone: stopping")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="pljobs lifeline", daemon=True).start()
