"""The supervisor of worker processes: signals passed on, crashed ones started again, nothing left running."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psycopg
import pytest

from pljobs.processes import Backoff, Supervisor
from waiting import DEADLINE, wait_until, wait_until_async

QUICK = Backoff(first=0.05, longest=0.2, healthy=60)

# Says in a folder what happens to it: each start, each signal.
CHILD = """
import os, signal, sys, time
from pathlib import Path
from pljobs.processes import follow_lifeline
folder, number, way = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
follow_lifeline()
seen = []
def on_signal(which, frame):
    seen.append(which)
    (folder / f"{number}.signal{len(seen)}").write_text(signal.Signals(which).name)
    if way != "stubborn" or len(seen) == 2:
        sys.exit(0)
for which in (signal.SIGTERM, signal.SIGINT):
    signal.signal(which, signal.SIG_IGN if way == "deaf" else on_signal)
starts = len(list(folder.glob(f"{number}.start*")))
(folder / f"{number}.start{starts + 1}").write_text(f"{os.getpid()} {os.getpgrp()} {os.isatty(0)}")
match way:
    case "done": sys.exit(0)
    case "usage": sys.exit(2)
    case "crash once" if number == "1" and not starts: os._exit(7)
    case "crash": os._exit(7)
    case "killed once" if not starts: os.kill(os.getpid(), signal.SIGKILL)
    case "crash once" | "killed once": sys.exit(0)
while True: time.sleep(0.01)
"""


@pytest.fixture
def command(tmp_path: Path) -> Callable[[str], Callable[[int], Sequence[str]]]:
    (tmp_path / "child.py").write_text(CHILD)
    return lambda way: lambda number: [
        sys.executable, str(tmp_path / "child.py"), str(tmp_path), str(number), way,
    ]  # fmt: skip


Command = Callable[[str], Callable[[int], Sequence[str]]]


def starts(folder: Path, number: int) -> int:
    # Not before it has been written: it is there first.
    return sum(1 for file in folder.glob(f"{number}.start*") if file.read_text())


def heard(folder: Path, number: int) -> str:
    """Return the name of the first signal that one heard, once it has written it."""
    file = folder / f"{number}.signal1"
    return file.read_text() if file.exists() else ""


async def test_all_that_end_well_end_it_with_0(command: Command, tmp_path: Path) -> None:
    assert await Supervisor(command("done"), 3, QUICK).run() == 0
    assert [starts(tmp_path, number) for number in (1, 2, 3)] == [1, 1, 1]


async def test_a_crashed_process_is_started_again_and_the_others_are_not(
    command: Command, tmp_path: Path
) -> None:
    assert await Supervisor(command("crash once"), 2, QUICK).run() == 0
    assert (starts(tmp_path, 1), starts(tmp_path, 2)) == (2, 1)


async def test_one_that_can_not_be_started_is_tried_again_and_the_others_go_on(
    command: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[int] = []

    def sometimes(number: int) -> Sequence[str]:
        tries.append(number)
        # Missing at first, and again when it is to replace one that crashed.
        return ["/nowhere/python"] if tries.count(1) != 2 and number == 1 else command("wait")(number)

    supervisor = Supervisor(sometimes, 2, QUICK)
    running = asyncio.create_task(supervisor.run())
    await wait_until_async(lambda: starts(tmp_path, 1) and starts(tmp_path, 2))
    os.kill(int((tmp_path / "1.start1").read_text().split()[0]), signal.SIGKILL)
    await wait_until_async(lambda: tries.count(1) > 3)
    assert tries.count(2) == 1
    assert supervisor._running.keys() == {2}
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 1
    assert "Worker process 1 could not be started ([Errno 2] No such file" in caplog.text


async def test_one_that_somebody_sent_away_has_another_in_its_place(command: Command, tmp_path: Path) -> None:
    supervisor = Supervisor(command("wait"), 2, QUICK, forever=True)
    running = asyncio.create_task(supervisor.run())
    await wait_until_async(lambda: starts(tmp_path, 1) and starts(tmp_path, 2))
    os.kill(int((tmp_path / "1.start1").read_text().split()[0]), signal.SIGTERM)
    await wait_until_async(lambda: starts(tmp_path, 1) == 2)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(running, DEADLINE) == 0
    assert (starts(tmp_path, 1), starts(tmp_path, 2)) == (2, 1)


async def test_a_killed_process_is_started_again(command: Command, tmp_path: Path) -> None:
    assert await Supervisor(command("killed once"), 1, QUICK).run() == 0
    assert starts(tmp_path, 1) == 2


async def test_a_wrong_command_line_is_not_tried_again(command: Command, tmp_path: Path) -> None:
    assert await Supervisor(command("usage"), 2, QUICK).run() == 2
    assert starts(tmp_path, 1) == 1


async def test_the_pause_before_the_next_start_grows_up_to_a_limit(
    command: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    running = asyncio.create_task(Supervisor(command("crash"), 1, QUICK).run())
    await wait_until_async(lambda: starts(tmp_path, 1) >= 6, what="six starts")
    os.kill(os.getpid(), signal.SIGTERM)
    # It crashes, unless the signal comes first.
    assert await running in {0, 7}
    pauses = [
        record.getMessage().rsplit(" in ", 1)[1] for record in caplog.records if "again in" in record.message
    ]
    assert pauses[:4] == ["0.05 s", "0.1 s", "0.2 s", "0.2 s"]


@pytest.fixture
def pidfds() -> Iterator[None]:
    """Have asyncio look for the exit codes of processes in its event loop, as it does from 3.12 on."""
    if sys.version_info >= (3, 12):
        yield
        return
    former = asyncio.get_child_watcher()
    asyncio.set_child_watcher(asyncio.PidfdChildWatcher())
    yield
    asyncio.set_child_watcher(former)


@pytest.mark.usefixtures("pidfds")
async def test_what_one_said_that_died_before_its_signal_came_is_told(command: Command) -> None:
    supervisor = Supervisor(command("crash"), 1, QUICK)
    running = asyncio.create_task(supervisor.run())
    await wait_until_async(lambda: supervisor._running)
    # The event loop stands still: it has not been told.
    os.waitid(os.P_PID, supervisor._running[1].pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222
    supervisor._on_signal(signal.SIGTERM)
    assert await asyncio.wait_for(running, DEADLINE) == 7


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_is_passed_on_once_to_each(
    command: Command, tmp_path: Path, number: signal.Signals
) -> None:
    running = asyncio.create_task(Supervisor(command("wait"), 2, QUICK).run())
    await wait_until_async(lambda: starts(tmp_path, 1) and starts(tmp_path, 2))
    os.kill(os.getpid(), number)
    assert await running == 0
    for child in (1, 2):
        assert (tmp_path / f"{child}.signal1").read_text() == number.name
        assert not (tmp_path / f"{child}.signal2").exists()


async def test_a_second_signal_is_passed_on_too(command: Command, tmp_path: Path) -> None:
    running = asyncio.create_task(Supervisor(command("stubborn"), 1, QUICK).run())
    await wait_until_async(lambda: starts(tmp_path, 1))
    os.kill(os.getpid(), signal.SIGINT)
    await wait_until_async((tmp_path / "1.signal1").exists)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0
    assert (tmp_path / "1.signal2").read_text() == "SIGTERM"


async def test_a_third_signal_ends_processes_that_hear_of_none(command: Command, tmp_path: Path) -> None:
    running = asyncio.create_task(Supervisor(command("deaf"), 2, QUICK).run())
    await wait_until_async(lambda: starts(tmp_path, 1) and starts(tmp_path, 2))
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(running, DEADLINE) == 128 + signal.SIGKILL


async def test_a_terminals_ctrl_c_does_not_reach_the_processes_themselves(
    command: Command, tmp_path: Path
) -> None:
    running = asyncio.create_task(Supervisor(command("wait"), 2, QUICK).run())
    await wait_until_async(lambda: starts(tmp_path, 1) and starts(tmp_path, 2))
    groups = {(tmp_path / f"{number}.start1").read_text().split()[1] for number in (1, 2)}
    assert str(os.getpgrp()) not in groups
    assert len(groups) == 2
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0


def test_processes_end_when_their_supervisor_is_killed(command: Command, tmp_path: Path) -> None:
    code = (
        "import asyncio, sys; from pljobs.processes import Supervisor;"
        "asyncio.run(Supervisor(lambda number: [*sys.argv[1:4], str(number), 'wait'], 2).run())"
    )
    argv = [sys.executable, "-c", code, sys.executable, str(tmp_path / "child.py"), str(tmp_path)]
    with subprocess.Popen(argv) as supervisor:
        wait_until(lambda: starts(tmp_path, 1) and starts(tmp_path, 2))
        supervisor.kill()
        wait_until(lambda: all(heard(tmp_path, number) == "SIGTERM" for number in (1, 2)))


def test_worker_processes_share_the_jobs_and_drain_on_a_signal(
    db_url: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(
        "import os, time\nfrom pljobs import App\napp = App('')\n"
        "@app.task(name='pid')\ndef pid():\n    time.sleep(0.05)\n    return os.getpid()\n"
    )
    conn.execute("SELECT pljobs.defer_job('pid') FROM generate_series(1, 40)")
    argv = [
        sys.executable,
        "-m",
        "pljobs",
        "worker",
        "--app",
        "shop:app",
        "--processes",
        "2",
        "--name",
        "w",
        "-c",
        "2",
    ]
    environment = {**os.environ, "PLJOBS_URL": db_url}
    with subprocess.Popen(argv, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as supervisor:
        try:
            wait_until(lambda: counted(conn, "succeeded") == 40)
            # One may have done all of them before the other has begun.
            wait_until(lambda: workers(conn, "w-1") == workers(conn, "w-2") == 1)
            names = conn.execute("SELECT DISTINCT name FROM pljobs.workers ORDER BY name").fetchall()
            assert names == [("w-1",), ("w-2",)]
            # A crashed one comes back under its name.
            row = conn.execute("SELECT pid FROM pljobs.workers WHERE name = 'w-1'").fetchone()
            assert row is not None
            os.kill(row[0], signal.SIGKILL)
            wait_until(lambda: workers(conn, "w-1") == 2)
        finally:
            supervisor.terminate()
        assert supervisor.wait(DEADLINE) == 0
    stopped = "SELECT count(*) FROM pljobs.workers WHERE state = 'stopped'"
    assert conn.execute(stopped).fetchone() == (2,)


def counted(conn: psycopg.Connection, status: str) -> int:
    row = conn.execute("SELECT count(*) FROM pljobs.jobs WHERE status = %s", [status]).fetchone()
    return row[0] if row else 0


def workers(conn: psycopg.Connection, name: str) -> int:
    row = conn.execute("SELECT count(*) FROM pljobs.workers WHERE name = %s", [name]).fetchone()
    return row[0] if row else 0
