"""0.1.0 becomes this release in place, while workers of both are at work."""

# ruff: noqa: F401, F811 - fixtures are imported, and are parameters of the same names

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

import oracle
from old_release import (
    SQL,
    OldRelease,
    catalogue,
    login,
    migrator,
    old_db_url,
    old_release,
    old_scene_url,
    old_template,
    psql_file,
    run_pljobs,
    upgrade,
)
from pljobs.embedded import Server
from upgrade_load import Probe, Producer, Repeated, Stopper, until
from waiting import wait_until
from workers import Process, process

DEADLINE = 60.0
BUSY = {
    "concurrency": 8,
    "fetch_job_polling_interval": 0.2,
    "update_heartbeat_interval": 0.2,
    "stalled_worker_timeout": 30.0,
}
ENOUGH = 120
ENDS = "SELECT count(*) FROM public.event WHERE is_now NOT IN ('todo', 'doing')"
RUNNING = "SELECT count(*) FROM pljobs.job WHERE status IN ('todo', 'doing')"
SUCCEEDED = """
SELECT count(*) FROM pljobs.job AS j JOIN pljobs.worker AS w ON w.id = j.worker_id
 WHERE j.status = 'succeeded' AND w.name = %s
"""
ABORTED_SINCE = """
SELECT count(*) FROM pljobs.job AS j JOIN pljobs.worker AS w ON w.id = j.worker_id
  JOIN pljobs.request AS r ON r.job_id = j.id
 WHERE j.status = 'aborted' AND w.name LIKE 'old%%' AND r.requested_at > %s
"""
# What a worker says of a task that fails the first time, of one that is aborted, and of a call that gave up
# waiting for the tables, which it makes again: a busy machine holds them for longer than its lock_timeout.
# Nor does such a machine let a worker's loop run whenever it could.
# "quick": what waited when it was to be cancelled may have begun by then.
EXPECTED = re.compile(
    r"(WARNING|ERROR):pljobs.jobs:Job work\[\d+\] failed: RuntimeError: as told"  # an older release: ERROR
    r"|WARNING:pljobs.jobs:Job work\[\d+\] is now todo"
    r"|WARNING:pljobs.jobs:Job (?:forever|quick)\[\d+\] is now aborted"
    r"|WARNING:pljobs.signals:Received SIGTERM"
    r"|(WARNING|ERROR):pljobs.(control|worker|maintenance|finisher):.*:"
    r" canceling statement due to lock timeout$"
    r"|WARNING:pljobs.lag:The event loop of worker \d+ has been blocked"
)


@pytest.fixture
def watching(old_db_url: str) -> Iterator[psycopg.Connection]:
    """A superuser's connection, and both witnesses, which everybody may write to."""
    with psycopg.connect(login(old_db_url, "postgres"), autocommit=True) as conn:
        oracle.install(conn)
        conn.execute("GRANT ALL ON public.side, public.event TO PUBLIC")
        yield conn


def number(conn: psycopg.Connection, query: str, *params: object) -> int:
    row = conn.execute(query.encode(), params or None).fetchone()
    assert row is not None
    return int(row[0])


def complaints(worker: Process) -> list[str]:
    """The lines of a worker's log that speak of trouble."""
    lines = worker.log.read_text(errors="replace").splitlines()
    return [line for line in lines if re.match("WARNING|ERROR|CRITICAL", line) and not EXPECTED.match(line)]


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("way", ["psql", "pljobs migrate"])
def test_every_job_runs_exactly_once_through_an_upgrade(
    way: str,
    server: Server,
    old_release: OldRelease,
    old_db_url: str,
    watching: psycopg.Connection,
    tmp_path: Path,
) -> None:
    superuser, worker_url, producer_url = (
        login(old_db_url, role) for role in ("postgres", "upgrade_worker", "upgrade_producer")
    )
    with ExitStack() as stack:
        workers = [
            stack.enter_context(old_release.worker(worker_url, tmp_path, f"old{n}", **BUSY))
            for n in (1, 2, 3)
        ]
        looks = stack.enter_context(psycopg.connect(superuser, autocommit=True))
        producer, stopper = Producer(producer_url), Stopper(producer_url, looks)
        probe = Probe(worker_url)
        threads: list[Repeated] = [producer, stopper, probe]
        for thread in threads:
            stack.enter_context(thread)
        until(lambda: number(watching, ENDS) >= ENOUGH, threads, DEADLINE, "the old workers work")

        began, before = time.monotonic(), number(watching, ENDS)
        upgrading = migrator(server, old_db_url, way)
        said, _ = upgrading.communicate(timeout=DEADLINE)
        assert upgrading.returncode == 0, said
        ended, during = time.monotonic(), number(watching, ENDS) - before
        (since,) = watching.execute("SELECT clock_timestamp()").fetchone() or (None,)

        # Those of the old contract go on, and honour aborts; then one of the new one takes over.
        wanted = number(watching, ENDS) + ENOUGH
        until(lambda: number(watching, ENDS) >= wanted, threads, DEADLINE, "the old workers go on")
        until(lambda: number(watching, ABORTED_SINCE, since) >= 3, threads, DEADLINE, "they honour aborts")
        workers.append(stack.enter_context(process(worker_url, tmp_path, "new", **BUSY)))
        until(lambda: number(watching, SUCCEEDED, "new") >= 20, threads, DEADLINE, "the new one works")
        contracts = watching.execute(
            "SELECT name, contract FROM pljobs.workers WHERE state = 'alive' ORDER BY name"
        ).fetchall()
        for worker in workers[:3]:
            worker.signal(signal.SIGTERM)
        assert [worker.wait(DEADLINE) for worker in workers[:3]] == [0, 0, 0]
        producer.stop()
        until(lambda: number(watching, RUNNING) == 0, threads, DEADLINE, "all jobs end")
        for thread in threads:
            thread.stop()
        workers[3].signal(signal.SIGTERM)
        assert workers[3].wait(DEADLINE) == 0

    counts = oracle.check(watching, stopper.answers)
    after = sum(counts.values()) - before - during
    print(f"\n{way}: {before} jobs ended before, {during} during, {after} after the upgrade: {counts}")
    print(f"it took {1000 * (ended - began):.0f} ms")
    longest = probe.longest(until=began), probe.longest(began, ended)
    print("longest fetch before: {:.0f} ms, during: {:.0f} ms".format(*(1000 * took for took in longest)))
    assert set(counts) <= {"succeeded", "aborted", "cancelled"}
    assert sum(counts.values()) == producer.deferred
    assert not watching.execute(
        "SELECT job_id FROM public.side WHERE what = 'end' GROUP BY job_id HAVING count(*) > 1"
    ).fetchall()
    # A fetch whose answer came too late is given back: no harm, on a machine that stalls.
    kinds = "SELECT DISTINCT kind FROM pljobs.job_event WHERE kind <> 'given_back'"
    assert watching.execute(kinds).fetchall() == [("retried",)]
    assert [line for worker in workers for line in complaints(worker)] == []
    assert [worker.said("ended well") for worker in workers] == [True] * 4
    assert contracts == [("new", 3), ("old1", 1), ("old2", 1), ("old3", 1), ("probe", 1)]
    assert {name for _, name, _, _ in watching.execute("SELECT * FROM pljobs.check_install()")} == {
        "job.note_event", "job.note_end",
    }  # fmt: skip


# Calls that are under way when the schema is to change: they wait for a row, and hold what the upgrade needs.
# It gives way to others again and again, and is done once they are. What each answers; the scene's 5 runs.
UNDER_WAY = {
    "SELECT pljobs.cancel_job(5, abort => true)": "abort_requested",
    "SELECT status FROM pljobs.finish_jobs_v1("
    """'[{"job_id": 5, "run_id": 5, "outcome": "succeeded"}]', wait => true)""": "succeeded",
    "SELECT pljobs.retry_job(2)": "requeued",
}


@pytest.mark.parametrize("call", UNDER_WAY)
def test_an_upgrade_waits_for_a_call_that_is_under_way(call: str, server: Server, old_scene_url: str) -> None:
    answers: list[object] = []

    def run() -> None:
        try:
            with psycopg.connect(old_scene_url, autocommit=True) as conn:
                answers.append((conn.execute(call.encode()).fetchone() or ("nothing",))[0])
        except BaseException as error:
            answers.append(error)

    with psycopg.connect(login(old_scene_url, "postgres")) as holder:
        holder.execute("SELECT FROM pljobs.job FOR UPDATE")
        caller = threading.Thread(target=run)
        caller.start()
        waiting = "SELECT FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted"
        wait_until(lambda: holder.execute(waiting).fetchall(), what="the call waits for the row")
        refused = psql_file(server, old_scene_url, SQL / "install.sql")
        assert "was held by others for too long" in refused.stderr
        holder.rollback()
        caller.join()
    assert answers == [UNDER_WAY[call]]
    upgrade(server, old_scene_url)


def test_an_upgraded_schema_is_the_one_that_is_installed_anew(
    server: Server, old_scene_url: str, old_template: str
) -> None:
    upgrade(server, old_scene_url)
    server.run_sql("CREATE DATABASE new_copy OWNER upgrade_owner")
    new_url = login(server.url("new_copy"), "upgrade_owner")
    try:
        upgrade(server, new_url)
        with psycopg.connect(old_scene_url) as upgraded, psycopg.connect(new_url) as installed:
            assert catalogue(upgraded) == catalogue(installed)
            for conn in (upgraded, installed):
                assert conn.execute("SELECT * FROM pljobs.check_install()").fetchall() == []
    finally:
        server.drop_database("new_copy")
