"""Isolated jobs, each in a process of its own: what comes back, what stops them, and that only they die."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import isolated_tasks as tasks
from isolated_runs import Runs, ask, children, is_gone, runs, said, until_gone
from pljobs import App, PsycopgConnector
from pljobs.answers import Verdict
from pljobs.embedded import environment
from pljobs.frames import MAX_FRAME
from pljobs.isolation import Processes
from pljobs.jobs import AbortReason
from pljobs.run import LAST_WORDS
from waiting import wait_until_async
from workers import DEADLINE, HASTY, HERE, LASTING, NOTIFIED, job, request, running, until

Conn = psycopg.AsyncConnection[Any]


@pytest.fixture
async def isolated(db_url: str) -> AsyncIterator[App]:
    """The app of the isolated tasks, on the test's database."""
    with tasks.app.replace_connector(PsycopgConnector(db_url)) as app:
        async with app.open_async():
            yield app


@pytest.fixture
async def alone() -> AsyncIterator[Runs]:
    """Runs without a worker."""
    async with runs() as made:
        yield made


def nursery_of(processes: Processes) -> int:
    """The id of the nursery's process."""
    assert processes._nursery is not None
    return processes._nursery._process.pid


# What comes back


async def test_a_result_comes_back_from_a_process_and_a_group_of_its_own(isolated: App, aconn: Conn) -> None:
    first, second = await tasks.add.defer_async(a=1, b=2), await tasks.add.defer_async(a=3, b=4)
    async with running(isolated, **NOTIFIED):
        results = [(await until(aconn, each, "succeeded"))["result"] for each in (first, second)]
    assert [result["sum"] for result in results] == [3, 7]
    assert len({os.getpid(), *(result["pid"] for result in results)}) == 3
    assert all(result["group"] == result["pid"] and result["main"] for result in results)


async def test_a_task_sees_its_context(isolated: App, aconn: Conn) -> None:
    job_id = await tasks.tells_its_context.defer_async(name="ann")
    more = {"value": [1, {"a": 2}], "unpicklable": lambda: None}
    async with running(isolated, **NOTIFIED, name="w", additional_context=more) as worker:
        found = await until(aconn, job_id, "succeeded")
    assert found["result"] == {
        "id": job_id, "name": "ann", "queue": "q", "worker": "w", "worker_id": worker.worker_id,
        "more": ["value"], "value": [1, {"a": 2}], "asked": False,
        "task": tasks.tells_its_context.name, "stdin": "",
    }  # fmt: skip


async def test_an_error_comes_back_with_the_task_in_its_traceback_and_what_the_strategy_says(
    isolated: App, aconn: Conn, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = await tasks.fails.defer_async()
    async with running(isolated, **NOTIFIED):
        found = await wait_until_async(lambda: _with(aconn, job_id, "error"), DEADLINE)
    assert found["status"] == "todo"
    assert found["message"] == "ValueError: as told"
    assert "in fails" in found["error"]
    assert "isolated.py" not in found["error"]
    assert (found["queue"], found["scheduled_at"].year) == ("ValueError", 2100)
    assert "in fails" in caplog.text


async def _with(conn: Conn, job_id: int, column: str) -> dict[str, Any] | None:
    found = await job(conn, job_id)
    return found if found[column] is not None else None


async def test_logs_come_back_by_the_workers_levels_with_the_ids(
    isolated: App, aconn: Conn, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    job_id = await tasks.logs.defer_async(text="a word")
    async with running(isolated, **NOTIFIED):
        await until(aconn, job_id, "succeeded")
    heard, traced = [each for each in caplog.records if each.name == "isolated_tasks.logger"]
    assert heard.getMessage() == "heard a word"
    assert vars(heard)["mine"] == {"a": 1}
    assert vars(heard)["odd"].startswith("<object")
    assert (vars(heard)["job_id"], vars(heard)["task_name"]) == (job_id, tasks.logs.name)
    assert heard.process != os.getpid()
    assert "invalid literal" in (traced.exc_text or "")


async def test_progress_comes_back_while_the_task_runs_and_with_its_end(alone: Runs, tmp_path: Path) -> None:
    go = tmp_path / "go"
    run = alone.start(tasks.progresses, go=str(go))
    seen = await wait_until_async(run.context.reported_progress.take, DEADLINE)
    assert seen == (0.25, "a quarter")
    go.touch()
    assert (await alone.end(run)).progress == (1, "all")


async def test_a_job_deferred_inside_knows_its_parent(isolated: App, aconn: Conn) -> None:
    sync_id, async_id = [await tasks.defers.defer_async(how=how) for how in ("sync", "async")]
    async with running(isolated, **NOTIFIED):
        made = [(await until(aconn, each, "succeeded"))["result"] for each in (sync_id, async_id)]
        for each in made:
            await until(aconn, each, "succeeded")
    for parent, child in zip((sync_id, async_id), made, strict=True):
        cursor = await aconn.execute("SELECT j.parent_id FROM pljobs.job AS j WHERE j.id = %s", [child])
        assert await cursor.fetchone() == (parent,)


@pytest.mark.parametrize("what", ["object", "set", "huge"])
async def test_a_result_that_cant_be_stored_is_left_out_and_said(alone: Runs, what: str) -> None:
    end = await alone.end(alone.start(tasks.returns, what=what))
    assert (end.outcome, end.result) == ("succeeded", None)
    assert (end.message or "").startswith("result not stored")


async def test_a_big_result_comes_back_whole(alone: Runs) -> None:
    assert (await alone.end(alone.start(tasks.returns, what="big"))).result == "x" * 1_000_000


async def test_a_big_argument_gets_there(alone: Runs) -> None:
    end = await alone.end(alone.start(tasks.length, text="x" * 5_000_000))
    assert end.result == 5_000_000


async def test_a_task_that_comes_back_twice_ends_once(alone: Runs) -> None:
    assert (await alone.end(alone.start(tasks.forks))).result == "parent"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
async def test_a_task_may_use_multiprocessing(alone: Runs, tmp_path: Path, method: str) -> None:
    run = alone.start(tasks.uses_processes, method=method, started=str(tmp_path / "started"))
    end = await alone.end(run)
    assert (end.result, end.message) == ([1, 4, 9], None)


async def test_what_is_too_large_for_a_process_fails_its_job_and_is_named(isolated: App, aconn: Conn) -> None:
    job_id = await tasks.noop.defer_async()
    more = {"key": "small", "model": bytes(MAX_FRAME)}
    async with running(isolated, **NOTIFIED, additional_context=more):
        found = await until(aconn, job_id)
    assert found["status"] == "failed"
    assert "additional_context['model'] is 64.0 MiB" in found["message"]


class MakesALogger:
    """Make another logger, as a thread may at any moment, when somebody looks what this is."""

    def __getattribute__(self, name: str) -> object:
        logging.getLogger(f"one more than {len(logging.root.manager.loggerDict)}")
        return super().__getattribute__(name)


async def test_a_job_starts_while_threads_make_loggers(alone: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    loggers = {"odd": MakesALogger(), **logging.root.manager.loggerDict}
    with monkeypatch.context() as patched:
        patched.setattr(logging.root.manager, "loggerDict", loggers)
        run = alone.start(tasks.noop)
    assert (await alone.end(run)).outcome == "succeeded"


# Stopping it


async def test_an_abort_reaches_the_task_with_reason_and_request(alone: Runs, tmp_path: Path) -> None:
    started, note = tmp_path / "started", tmp_path / "note"
    run = alone.start(tasks.until_asked, started=str(started), note=str(note))
    await said(started)
    ask(run)
    end = await alone.end(run)
    assert await said(note) == "user_request no longer wanted"
    assert (end.outcome, end.message) == ("aborted", "stopped: user_request")


async def test_an_abort_through_sql_ends_the_job_aborted(isolated: App, aconn: Conn, tmp_path: Path) -> None:
    started, note = tmp_path / "started", tmp_path / "note"
    job_id = await tasks.until_asked.defer_async(started=str(started), note=str(note))
    async with running(isolated, **NOTIFIED):
        await said(started)
        await aconn.execute("SELECT pljobs.cancel_job(%s, abort => true, reason => 'why')", [job_id])
        assert (await until(aconn, job_id))["status"] == "aborted"
    assert await said(note) == "user_request why"


async def test_iter_stops_by_an_abort(alone: Runs, tmp_path: Path) -> None:
    run = alone.start(tasks.iterates, started=str(tmp_path / "started"))
    await said(tmp_path / "started")
    ask(run)
    end = await alone.end(run)
    assert end.outcome == "aborted"
    assert re.fullmatch(r"stopped after \d+ items", end.message or "")


async def test_an_abort_before_the_nursery_is_ready_is_not_lost(alone: Runs, tmp_path: Path) -> None:
    run = alone.start(tasks.until_asked, started=str(tmp_path / "started"))
    ask(run)
    assert (await alone.end(run)).outcome == "aborted"


@pytest.fixture
def go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file that the nursery waits for when it imports."""
    monkeypatch.setenv("TEST_NURSERY", "slow")
    monkeypatch.setenv("TEST_NURSERY_GO", str(tmp_path / "go"))
    return tmp_path / "go"


@pytest.mark.parametrize(
    ("reason", "outcome"), [(AbortReason.USER_REQUEST, "aborted"), (AbortReason.SHUTDOWN, "unstarted")]
)
@pytest.mark.parametrize("level", [1, 3, 4])
async def test_stopped_before_it_has_a_process_it_never_runs(
    go: Path, tmp_path: Path, level: int, reason: AbortReason, outcome: str
) -> None:
    async with runs() as made:
        run = made.start(tasks.ignores, started=str(tmp_path / "started"))
        ask(run, level, reason)
        assert run.ended
        assert (await made.end(run)).outcome == outcome
        tasks.touch(str(go))
        assert (await made.end(made.start(tasks.noop))).outcome == "succeeded"
    assert not (tmp_path / "started").exists()


async def test_stopped_when_its_process_is_just_there_it_never_runs(go: Path, tmp_path: Path) -> None:
    async with runs() as made:
        run = made.start(tasks.ignores, started=str(tmp_path / "started"))
        run.context.abort_flag.set(AbortReason.USER_REQUEST, None)  # by the control thread
        tasks.touch(str(go))
        assert (await made.end(run)).outcome == "aborted"
        assert (await made.end(made.start(tasks.noop))).outcome == "succeeded"
    assert not (tmp_path / "started").exists()


@pytest.mark.usefixtures("go")
async def test_a_nursery_that_dies_gives_back_what_has_no_process_yet(tmp_path: Path) -> None:
    async with runs() as made:
        run = made.start(tasks.ignores, started=str(tmp_path / "started"))
        os.kill(nursery_of(made.processes), signal.SIGKILL)
        assert (await made.end(run)).outcome == "unstarted"
        assert "the nursery" in (run.lacked or "")
    assert not (tmp_path / "started").exists()


async def test_level_3_raises_in_the_task_that_looks_at_nothing(alone: Runs, tmp_path: Path) -> None:
    started = tmp_path / "started"
    run = alone.start(tasks.ignores, started=str(started))
    await said(started)
    ask(run, level=2)
    assert not run.ended
    ask(run, level=3)
    end = await alone.end(run)
    assert end.outcome == "aborted"
    assert (tmp_path / "started.finally").exists()
    assert not (tmp_path / "started.caught").exists()


async def test_level_3_at_once_stops_a_process_that_has_hardly_started(alone: Runs, tmp_path: Path) -> None:
    for _ in range(20):
        run = alone.start(tasks.ignores, started=str(tmp_path / "started"))
        ask(run, level=3)
        assert (await alone.end(run)).outcome in {"aborted", "killed"}


async def test_a_sigterm_that_is_not_the_workers_stops_nothing(alone: Runs, tmp_path: Path) -> None:
    started = tmp_path / "started"
    run = alone.start(tasks.foreign_sigterm, started=str(started))
    assert (await alone.end(run)).result == "went on"
    os.kill(nursery_of(alone.processes), signal.SIGTERM)
    assert (await alone.end(alone.start(tasks.noop))).outcome == "succeeded"


@pytest.mark.parametrize("daemon", [False, True])
async def test_level_4_kills_the_task_and_what_it_started(alone: Runs, tmp_path: Path, daemon: bool) -> None:
    started = tmp_path / "started"
    run = alone.start(tasks.resists, started=str(started), daemon=daemon)
    pid, grandchild = map(int, (await said(started)).split())
    ask(run, level=3)
    ask(run, level=4)
    end = await alone.end(run)
    assert end.outcome == "killed"
    assert end.retry_at is None
    assert "SIGKILL" in (end.message or "")
    await until_gone(pid, grandchild)


async def test_a_task_that_has_left_its_group_is_killed_and_nobody_else(alone: Runs, tmp_path: Path) -> None:
    run = alone.start(tasks.leaves_its_group, started=str(tmp_path / "gone"))
    other = alone.start(tasks.until_asked, started=str(tmp_path / "other"))
    pid = int(await said(tmp_path / "gone"))
    await said(tmp_path / "other")
    ask(run, 4)
    assert (await alone.end(run)).outcome == "killed"
    assert is_gone(pid)
    assert not other.ended
    ask(other)
    assert (await alone.end(other)).outcome == "aborted"


async def test_killed_for_its_timeout_the_strategy_is_asked(alone: Runs, tmp_path: Path) -> None:
    run = alone.start(tasks.resists, started=str(tmp_path / "started"))
    await said(tmp_path / "started")
    ask(run, level=4, reason=AbortReason.DEADLINE)
    end = await alone.end(run)
    assert (end.outcome, end.retry_queue) == ("killed", "JobTimeout")


async def test_killing_one_job_leaves_the_other_alone(alone: Runs, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("one", "two")]
    one, two = (alone.start(tasks.resists, started=str(file)) for file in files)
    pids = [[int(pid) for pid in (await said(file)).split()] for file in files]
    ask(one, level=4)
    assert (await alone.end(one)).outcome == "killed"
    await until_gone(*pids[0])
    assert not two.ended
    assert not any(is_gone(pid) for pid in pids[1])
    ask(two, level=4)
    assert (await alone.end(two)).outcome == "killed"


async def test_a_void_run_is_stopped_by_force_in_the_end(
    alone: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pljobs.isolated_run.VOID_GRACE", 0.1)
    gentle = alone.start(tasks.ignores, started=str(tmp_path / "gentle"))
    hard = alone.start(tasks.resists, started=str(tmp_path / "hard"))
    for name in ("gentle", "hard"):
        await said(tmp_path / name)
    # The gentle one is not to be killed before its finally has run, however busy the machine is.
    for run, death_takes in ((gentle, DEADLINE), (hard, 2.0)):
        monkeypatch.setattr("pljobs.isolated_run.DEATH_TAKES", death_takes)
        lost = Verdict(run_id=run.run_id, job_id=run.job_id, verdict="lost")
        run.abort(AbortReason.RUN_LOST, lost)
        run.abort(AbortReason.RUN_LOST, lost)
        await alone.end(run)
    assert (tmp_path / "gentle.finally").exists()


async def test_a_process_that_cant_be_killed_is_abandoned(
    alone: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pljobs.isolated_run.DEATH_TAKES", 0.1)
    run = alone.start(tasks.resists, started=str(tmp_path / "started"))
    pids = [int(pid) for pid in (await said(tmp_path / "started")).split()]
    os.kill(nursery_of(alone.processes), signal.SIGSTOP)  # a kill that nobody carries out
    ask(run, level=4)
    try:
        assert (await alone.end(run)).outcome == "abandoned"
    finally:
        os.kill(nursery_of(alone.processes), signal.SIGCONT)
    await until_gone(*pids)


# Dying


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("segv", "killed by SIGSEGV"),
        ("kill", "killed by SIGKILL (out of memory?)"),
        ("exit", "exited with status 3 without a result"),
        ("fds", "exited with status 71 without a result (it had closed its line to the worker)"),
        ("fds and reuse", "exited with status 71 without a result (it had closed its line to the worker)"),
    ],
)
async def test_a_process_that_dies_fails_its_job_alone_and_the_strategy_is_asked(
    alone: Runs, tmp_path: Path, how: str, message: str
) -> None:
    other = alone.start(tasks.until_asked, started=str(tmp_path / "started"))
    await said(tmp_path / "started")
    end = await alone.end(alone.start(tasks.dies, how=how))
    assert (end.outcome, end.message) == ("failed", f"ProcessDied: {message}")
    assert end.retry_queue == "ProcessDied"
    assert not other.ended
    ask(other)
    assert (await alone.end(other)).outcome == "aborted"


async def test_what_is_logged_does_no_harm_however_deep(alone: Runs) -> None:
    assert (await alone.end(alone.start(tasks.logs_something_deep))).result == "done"


async def test_garbage_on_the_line_ends_the_process(alone: Runs) -> None:
    end = await alone.end(alone.start(tasks.dies, how="garbage"))
    assert end.outcome == "failed"
    assert "no message" in (end.message or "")
    assert (await alone.end(alone.start(tasks.noop))).outcome == "succeeded"


async def test_a_memory_limit_fails_the_job_alone(alone: Runs) -> None:
    end = await alone.end(alone.start(tasks.memory, limit=100_000_000))
    assert (end.outcome, (end.message or "").split(":")[0]) == ("failed", "MemoryError")
    assert (await alone.end(alone.start(tasks.noop))).outcome == "succeeded"


async def test_sys_exit_fails_the_job_and_is_not_retried(alone: Runs) -> None:
    end = await alone.end(alone.start(tasks.fails_without_retry))
    assert (end.outcome, end.retry_at) == ("failed", None)
    assert "SystemExit: 3" in (end.message or "")


@pytest.mark.parametrize("daemon", [False, True])
async def test_what_a_task_leaves_behind_ends_with_it(alone: Runs, tmp_path: Path, daemon: bool) -> None:
    run = alone.start(tasks.leaves_behind, started=str(tmp_path / "started"), daemon=daemon)
    assert (await alone.end(run)).outcome == "succeeded"
    await until_gone(int(await said(tmp_path / "started")))


async def test_a_nursery_that_dies_takes_its_jobs_along_and_the_next_job_gets_another(
    alone: Runs, tmp_path: Path
) -> None:
    run = alone.start(tasks.ignores, started=str(tmp_path / "started"))
    pid = int(await said(tmp_path / "started"))
    os.kill(nursery_of(alone.processes), signal.SIGKILL)
    end = await alone.end(run)
    assert end.outcome == "failed"
    assert "the nursery" in (end.message or "")
    await until_gone(pid)
    assert (await alone.end(alone.start(tasks.noop))).outcome == "succeeded"


async def test_a_fork_that_fails_gives_the_job_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_NURSERY", "no fork")
    async with runs() as made:
        run = made.start(tasks.noop)
        assert (await made.end(run)).outcome == "unstarted"
        assert "BlockingIOError" in (run.lacked or "")


async def test_a_nursery_that_can_not_be_started_gives_the_job_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async with runs() as made:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "executable", "/nowhere/python")
            run = made.start(tasks.noop)
            assert (await made.end(run)).outcome == "unstarted"
            assert "/nowhere/python" in (run.lacked or "")
        assert (await made.end(made.start(tasks.noop))).outcome == "succeeded"


async def test_a_nursery_starts_where_the_directory_is_gone_and_sys_path_odd(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "old release").mkdir()
    monkeypatch.chdir(tmp_path / "old release")
    (tmp_path / "old release").rmdir()
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path])
    monkeypatch.setattr(sys, "argv", [*sys.argv, tmp_path])
    async with runs() as made:
        assert (await made.end(made.start(tasks.noop))).outcome == "succeeded"


async def test_a_nursery_imports_nothing_that_only_lies_in_its_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "queue.py").write_text("raise ImportError('not the one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path or str(HERE) for path in sys.path])
    async with runs() as made:
        assert (await made.end(made.start(tasks.noop))).outcome == "succeeded"


async def test_an_application_that_the_nursery_cant_import_is_said(
    alone: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.app, "import_paths", ["there_is_no_such_module"])
    end = await alone.end(alone.start(tasks.noop))
    assert end.outcome == "failed"
    assert "No module named 'there_is_no_such_module'" in (end.message or "")
    monkeypatch.setattr(tasks.app, "import_paths", [])
    assert (await alone.end(alone.start(tasks.noop))).outcome == "succeeded"


async def test_a_nursery_closes_what_it_had(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONDEVMODE", "1")
    async with runs() as made:
        assert (await made.end(made.start(tasks.noop))).outcome == "succeeded"
    assert "ResourceWarning" not in capfd.readouterr().err


async def test_nothing_leaks_over_200_jobs(alone: Runs) -> None:
    await alone.end(alone.start(tasks.noop))
    nursery = nursery_of(alone.processes)

    def descriptors() -> list[int]:
        return [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in (os.getpid(), nursery)]

    before = descriptors()
    for _ in range(40):
        started = [alone.start(tasks.noop) for _ in range(5)]
        for run in started:
            assert (await alone.end(run)).outcome == "succeeded"
    # Fewer, where the first job's were not closed yet.
    assert all(now <= then for now, then in zip(descriptors(), before, strict=True))
    assert children(nursery) == []


# The worker


async def test_a_shutdown_asks_and_the_job_runs_again(isolated: App, aconn: Conn, tmp_path: Path) -> None:
    job_id = await tasks.until_asked.defer_async(started=str(tmp_path / "started"))
    async with running(isolated, **NOTIFIED, shutdown_graceful_timeout=0.01) as worker:
        pid = int(await said(tmp_path / "started"))
        worker.stop()
        assert (await until(aconn, job_id, "todo"))["attempts"] == 0
    assert is_gone(pid)


@pytest.mark.slow  # it is killed after DEATH_TAKES: with less, a kill that is late would taint the worker
async def test_a_forced_job_is_stopped(
    isolated: App, aconn: Conn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pljobs.isolated_run.VOID_GRACE", 0.1)
    job_id = await tasks.resists.defer_async(started=str(tmp_path / "started"))
    async with running(isolated, **NOTIFIED) as worker:
        pids = [int(pid) for pid in (await said(tmp_path / "started")).split()]
        await aconn.execute("SELECT pljobs.cancel_job(%s, force => true)", [job_id])
        await until(aconn, job_id, "aborted")
        await until_gone(*pids)
        await wait_until_async(lambda: not worker._runs, DEADLINE)


async def test_a_worker_leaves_no_nursery(isolated: App, aconn: Conn) -> None:
    job_id = await tasks.noop.defer_async()
    async with running(isolated, **NOTIFIED) as worker:
        nursery = nursery_of(worker._starter._processes)
        await until(aconn, job_id, "succeeded")
    assert is_gone(nursery)


async def test_the_whole_ladder_from_sql_to_the_end(isolated: App, aconn: Conn, tmp_path: Path) -> None:
    job_id = await tasks.resists.defer_async(started=str(tmp_path / "started"))
    async with running(isolated, **NOTIFIED):
        pids = [int(pid) for pid in (await said(tmp_path / "started")).split()]
        await aconn.execute(
            "SELECT pljobs.cancel_job(%s, abort => true, grace => '0', term_grace => '0.1 s')", [job_id]
        )
        found = await until(aconn, job_id)
    assert (found["status"], (await request(aconn, job_id))["resolution"]) == ("aborted", "killed")
    assert all(is_gone(pid) for pid in pids)


async def test_a_job_that_can_be_killed_is_while_another_blocks_the_event_loop(
    isolated: App, aconn: Conn, tmp_path: Path
) -> None:
    job_id = await tasks.resists.defer_async(started=str(tmp_path / "started"))
    async with running(isolated, **LASTING):
        await said(tmp_path / "started")
        await aconn.execute(
            "SELECT pljobs.cancel_job(%s, abort => true, grace => '0', term_grace => '0.3 s')", [job_id]
        )
        time.sleep(2.5 * LAST_WORDS)  # noqa: ASYNC251 - it is what is tested
        assert (await until(aconn, job_id))["status"] == "aborted"
        assert (await request(aconn, job_id))["resolution"] == "killed"
        assert (await until(aconn, await tasks.noop.defer_async()))["status"] == "succeeded"


@pytest.mark.parametrize("bracket", [True, False])
async def test_a_task_in_sql_is_stopped_by_its_sqls_end_or_by_the_signal(
    isolated: App, aconn: Conn, tmp_path: Path, bracket: bool
) -> None:
    job_id = await tasks.sleeps_in_sql.defer_async(started=str(tmp_path / "started"), bracket=bracket)
    grace = "1 hour" if bracket else "0"
    async with running(isolated, **NOTIFIED):
        await said(tmp_path / "started")
        await aconn.execute(
            "SELECT pljobs.cancel_job(%s, abort => true, grace => %s, term_grace => '1 hour', sql => %s)",
            [job_id, grace, bracket],
        )
        assert (await until(aconn, job_id))["status"] == "aborted"


async def test_a_flood_of_logs_arrives_whole_though_the_loop_is_blocked(
    alone: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run = alone.start(tasks.floods, lines=20_000)
    await wait_until_async(lambda: caplog.records, DEADLINE)
    time.sleep(0.3)  # noqa: ASYNC251 - it is what is tested
    await alone.end(run)
    lines = [each.getMessage() for each in caplog.records if each.name == "isolated_tasks.logger"]
    assert lines == [f"line {number}" for number in range(20_000)]


SCRIPT = """
    import logging, sys
    sys.path.insert(0, {here!r})
    from pljobs import App
    import isolated_tasks

    app = App({url!r})

    @app.task(isolation="process", name="ignores")
    def ignores(started):
        isolated_tasks.ignores(started)

    @app.task(isolation="process")
    def plain():
        return __name__

    {guard}
        logging.basicConfig(level="INFO", stream=sys.stdout)
        app.run_worker(**{options!r})
"""


def script(tmp_path: Path, url: str, guard: str, **options: object) -> subprocess.Popen[bytes]:
    """A worker of a script whose tasks are in it."""
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(SCRIPT).format(here=str(HERE), url=url, guard=guard, options=options))
    with (tmp_path / "log").open("wb") as log:
        return subprocess.Popen([sys.executable, str(path)], env=environment(), stdout=log, stderr=log)


async def test_a_killed_workers_jobs_die_with_it(db_url: str, aconn: Conn, tmp_path: Path) -> None:
    started = tmp_path / "started"
    worker = script(tmp_path, db_url, "if __name__ == '__main__':", **HASTY)
    try:
        await aconn.execute(
            "SELECT pljobs.defer_job('ignores', jsonb_build_object('started', %s::text))", [str(started)]
        )
        pid = int(await said(started))
        (nursery,) = children(worker.pid)
    finally:
        worker.kill()
        worker.wait()
    await until_gone(pid, nursery)


async def test_a_scripts_own_tasks_can_be_isolated(db_url: str, aconn: Conn, tmp_path: Path) -> None:
    cursor = await aconn.execute("SELECT pljobs.defer_job('__main__.plain')")
    (job_id,) = await cursor.fetchone() or (0,)
    worker = script(tmp_path, db_url, "if __name__ == '__main__':", wait=False)
    await asyncio.to_thread(worker.wait, DEADLINE)
    assert (await job(aconn, job_id))["result"] == "__mp_main__", (tmp_path / "log").read_text()


async def test_a_script_without_a_guard_is_told(db_url: str, aconn: Conn, tmp_path: Path) -> None:
    cursor = await aconn.execute("SELECT pljobs.defer_job('__main__.plain')")
    (job_id,) = await cursor.fetchone() or (0,)
    worker = script(tmp_path, db_url, "if True:", wait=False)
    await asyncio.to_thread(worker.wait, DEADLINE)
    found = await job(aconn, job_id)
    assert found["status"] == "failed"
    assert "if __name__ == '__main__':" in found["error"]


async def test_a_script_that_only_runs_the_worker_needs_no_guard(
    db_url: str, aconn: Conn, tmp_path: Path
) -> None:
    cursor = await aconn.execute("SELECT pljobs.defer_job(%s)", [tasks.noop.name])
    (job_id,) = await cursor.fetchone() or (0,)
    path = tmp_path / "bare.py"
    path.write_text(
        f"import sys; sys.path.insert(0, {str(HERE)!r}); import pljobs; from isolated_tasks import app\n"
        f"app.connector = pljobs.PsycopgConnector({db_url!r}); app.run_worker(wait=False)"
    )
    await asyncio.to_thread(subprocess.run, [sys.executable, str(path)], env=environment(), check=True)
    assert (await job(aconn, job_id))["status"] == "succeeded"
