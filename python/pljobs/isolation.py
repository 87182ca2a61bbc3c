"""The processes of isolated jobs, seen from the worker: the nursery that forks them."""

from __future__ import annotations

import asyncio
import functools
import json
import multiprocessing.process
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pljobs.careful import careful_logger
from pljobs.frames import Garbled, Line
from pljobs.nursery import Nursery

if TYPE_CHECKING:
    from pljobs.app import App
    from pljobs.isolated_run import IsolatedRun

logger = careful_logger(__name__)

# Seconds for the nursery to end: it waits for what it has killed.
NURSERY_PATIENCE = 15.0
LOOK_EVERY = 0.005
NURSERY = "import sys; sys.path.insert(0, {!r}); from pljobs.nursery import main; main({})"


class Processes:
    """Start, signal and see ended the processes of isolated jobs, by way of a nursery.

    All in the event loop's thread. A nursery that dies takes its jobs along; the next job gets a new one.
    `additional_context`: the worker's; of it, a process gets what can be pickled.
    """

    def __init__(self, app: App, additional_context: Mapping[str, object]) -> None:
        self._app = app
        self._context = additional_context
        self._places: dict[int, tuple[str, str] | None] = {}
        self._nursery: _Nursery | None = None
        self._former: list[_Nursery] = []

    def start(self) -> None:
        """Start the nursery if the app has isolated tasks: it imports now what the worker has imported."""
        if any(task.isolation for task in self._app.tasks.values()):
            try:
                self._alive()
            except OSError as error:
                logger.warning("Can't start the nursery, the process that starts isolated jobs: %s", error)

    def begin(self, run: IsolatedRun, line: socket.socket) -> Callable[[str], None]:
        """Start a process for a run, with its end of a line, closed here; return what signals its group."""
        try:
            nursery = self._alive()
        except BaseException:
            line.close()
            raise
        nursery.begin(run, line)
        return lambda how: nursery.send([how, run.run_id])

    @functools.cached_property
    def pickled_context(self) -> dict[str, bytes]:
        """Return the additional context, each value pickled."""
        pickled = {}
        for name, value in self._context.items():
            try:
                pickled[name] = pickle.dumps(value)
            except Exception as error:  # noqa: BLE001 - a value's own code
                logger.warning("additional_context[%r] is not there for isolated jobs: %s", name, error)
        return pickled

    def place_of(self, app: App) -> tuple[str, str] | None:
        """Return the module and the name under which an app is found, if it is."""
        if id(app) not in self._places:
            self._places[id(app)] = next(
                (
                    (module, name)
                    # The script last: it may have the app from elsewhere, and not bear being imported.
                    for module, loaded in sorted(sys.modules.items(), key=lambda each: each[0] == "__main__")
                    for name, value in list(getattr(loaded, "__dict__", {}).items())
                    if value is app
                ),
                None,
            )
        return self._places[id(app)]

    async def close(self) -> None:
        """End the nursery, and with it whatever still runs."""
        if self._nursery is not None:
            self._nursery.close()
        for nursery in self._former:
            await nursery.ended()

    def _alive(self) -> _Nursery:
        if self._nursery is None:
            self._former = [former for former in self._former if former.still_there()]
            isolated = [task for task in self._app.tasks.values() if task.isolation]
            apps = {id(app): app for app in [self._app, *(task.blueprint.bound_to() for task in isolated)]}
            places = [place for app in apps.values() if (place := self.place_of(app)) is not None]
            modules = [*(module for module, _ in places), *(task.func.__module__ for task in isolated)]
            self._nursery = _Nursery([*dict.fromkeys([*modules, *self._app.import_paths])], self._left)
        return self._nursery

    def _left(self, nursery: _Nursery) -> None:
        self._nursery = None
        self._former.append(nursery)


class _Nursery:
    """Hold one nursery process and the line to it."""

    def __init__(self, modules: list[str], on_end: Callable[[_Nursery], None]) -> None:
        if Nursery.is_here:
            raise RuntimeError(
                "a worker was started while its own script was imported for isolated jobs: start it under"
                " `if __name__ == '__main__':`"
            )
        self._on_end = on_end
        self._runs: dict[int, IsolatedRun] = {}
        self._why = "the nursery, the process that starts isolated jobs, died"
        self._is_closing = self._is_unfit = False
        # First, for a process that can't be told what to import would be left alone.
        load = json.dumps(["load", _preparation(with_main="__main__" in modules), modules]).encode()
        ours, theirs = socket.socketpair()
        code = NURSERY.format(str(Path(__file__).parent.parent), theirs.fileno())
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001
        try:
            self._process = subprocess.Popen(  # noqa: S603
                # -P: what lies in the current directory must not be taken for a module that the worker has.
                [sys.executable, *flags, "-P", "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._line = Line(ours, on_payload=self._heard, on_end=self._hung_up)
        self._line.send(load)

    def begin(self, run: IsolatedRun, line: socket.socket) -> None:
        """Have a process forked for this run."""
        self._runs[run.run_id] = run
        self._line.send(json.dumps(["start", run.run_id]).encode(), passing=line)

    def send(self, message: list[object]) -> None:
        """Tell the nursery something."""
        self._line.send(json.dumps(message).encode())

    def still_there(self) -> bool:
        """Say whether the process has not ended yet; leaves no zombie of one that has."""
        return self._process.poll() is None

    def close(self) -> None:
        """End it, by the end of its line; it kills what still runs."""
        self._is_closing = True
        self._hung_up(None)

    async def ended(self) -> None:
        """Wait until the process has ended; kill it if it takes too long."""
        loop = asyncio.get_running_loop()
        kill_at = loop.time() + NURSERY_PATIENCE
        while self.still_there():
            if loop.time() > kill_at:
                self._process.kill()
            await asyncio.sleep(LOOK_EVERY)

    def _heard(self, payload: bytes) -> None:
        match json.loads(payload):
            case ["ended", int(run_id), int(status)]:
                if (run := self._runs.pop(run_id, None)) is not None:
                    run.process_ended(status)
            case ["forked", int(run_id), int()]:
                if (run := self._runs.get(run_id)) is not None:
                    run.process_started()
            case ["unforked", int(run_id), str(why)]:
                if (run := self._runs.pop(run_id, None)) is not None:
                    run.lack("process", why)
            case ["unfit", str(why)]:
                self._is_unfit = True
                self._why = f"the application can't be imported for isolated jobs: {why}"
                logger.error("Isolated jobs can't be run: %s", self._why)
            case ["warn", str(text)]:
                logger.warning("Isolated jobs: %s", text)
            case _:
                return  # `ready`: of interest to tests

    def _hung_up(self, _garbled: Garbled | None) -> None:
        self._line.close()
        if not self._is_closing:
            logger.error("Isolated jobs: %s", self._why.split("\n", 1)[0])
            self._process.kill()  # it is dead, or of no use
        runs, self._runs = self._runs, {}
        self._on_end(self)
        for run in runs.values():
            run.died(self._why, is_unfit=self._is_unfit)


def _preparation(*, with_main: bool) -> dict[str, object]:
    """Return what makes the nursery import as this process does, for `multiprocessing.spawn.prepare`.

    Its own `get_preparation_data` would settle the start method for the whole application. `with_main`: run
    this process's script there, as `__mp_main__`.
    """
    try:
        here = str(Path.cwd())
    except OSError:  # a deployment has deleted it
        here = ""
    entries: list[object] = [*sys.path]
    prepared: dict[str, object] = {
        # Strings only: imports, too, ignore whatever else is there.
        "sys_path": [path or here for path in entries if isinstance(path, str)],
        "sys_argv": [str(argument) for argument in sys.argv],
        "orig_dir": multiprocessing.process.ORIGINAL_DIR,  # type: ignore[attr-defined]
    }
    # The directory itself is inherited.
    main = sys.modules["__main__"]
    if with_main and (name := getattr(main.__spec__, "name", None)) is not None:
        prepared["init_main_from_name"] = name
    elif with_main and (path := getattr(main, "__file__", None)) is not None:
        prepared["init_main_from_path"] = str(Path(multiprocessing.process.ORIGINAL_DIR or here, path))  # type: ignore[attr-defined]
    return prepared
