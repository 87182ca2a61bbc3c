"""The job manager on many jobs at once: cancel and retry by filter, in batches; requests taken back."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pljobs import App, JobAnswer, JobManager, RescindResult, Status, calls, db, manager_many
from pljobs.exceptions import InvalidArgument
from waiting import DEADLINE, wait_until


@pytest.fixture
def app(db_url: str) -> Iterator[App]:
    app = App(db_url)
    app.task(name="t")(lambda: None)
    with app.open():
        yield app


@pytest.fixture
def manager(app: App) -> JobManager:
    return app.job_manager


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager_many, "BATCH", 3)


def a_run(app: App, conn: psycopg.Connection) -> int:
    """A job that runs; returns its id."""
    job_id = app.configure_task("t", queue="running").defer()
    worker_id = db.run(conn, calls.register_worker("w", host="h", pid=1))
    (job,) = db.run(conn, calls.fetch_jobs(worker_id, queues=["running"]))
    assert job.id == job_id
    return job_id


def outcomes(answers: list[JobAnswer]) -> list[tuple[int, str]]:
    return [(answer.job_id, answer.outcome) for answer in answers]


def test_by_default_it_is_only_shown(app: App, manager: JobManager, conn: psycopg.Connection) -> None:
    waiting = app.configure_task("t", queue="mail").defer(to="ann")
    running = a_run(app, conn)
    shown = manager.cancel_jobs(task="t", abort=True)
    assert shown == [
        JobAnswer(waiting, "mail", "t", Status.TODO, "would_cancel"),
        JobAnswer(running, "running", "t", Status.DOING, "would_abort"),
    ]
    assert not any(shown)
    assert manager.get_job_status(waiting) is Status.TODO
    assert manager.get_job(running).abort_requested is False


def test_it_is_done_and_who_and_why_are_kept(app: App, manager: JobManager, conn: psycopg.Connection) -> None:
    waiting = app.configure_task("t").defer()
    running = a_run(app, conn)
    done = manager.cancel_jobs(task="t", reason="bad release", actor="ann", dry_run=False)
    assert outcomes(done) == [(waiting, "cancelled"), (running, "running")]
    assert [bool(answer) for answer in done] == [True, False]
    assert manager.get_job(waiting).message == "bad release"
    assert outcomes(manager.cancel_jobs(task="t", force=True, dry_run=False)) == [(running, "aborted")]
    assert manager.cancel_jobs(task="t", abort=True, dry_run=False) == []
    assert any("ann" in (entry.who or "") for entry in manager.get_job_history(waiting))


def test_every_filter_narrows(app: App, manager: JobManager, conn: psycopg.Connection) -> None:
    app.configure_task("t", queue="q", lock="l").defer(to="ann", n=1)
    app.configure_task("other", queue="q").defer(to="bob")
    app.configure_task("t").defer(to="ann", n=2)
    conn.execute("UPDATE pljobs.job SET created_at = created_at - interval '1 hour' WHERE id = 2")

    def ids(**filters: Any) -> list[int]:
        return [answer.job_id for answer in manager.cancel_jobs(**filters)]

    assert ids(queue="q") == [1, 2]
    assert ids(task="t") == [1, 3]
    assert ids(lock="l") == [1]
    assert ids(args={"to": "ann"}) == [1, 3]
    assert ids(args={"to": "ann", "n": 2}) == [3]
    assert ids(job_ids=(n for n in (3, 1, 99))) == [1, 3]
    assert ids(job_ids=[]) == []
    for half_an_hour in (timedelta(minutes=30), {"minutes": 30}, 1800):
        assert ids(older_than=half_an_hour) == [2]
    assert ids(queue="q", task="t") == [1]
    assert ids(queue="q", status="doing") == []
    assert ids(queue="q", status=Status.TODO, max_jobs=1) == [1]


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ({}, InvalidArgument),
        ({"status": "todo"}, InvalidArgument),
        ({"args": {}}, InvalidArgument),
        ({"older_than": 0}, InvalidArgument),
        ({"queue": "q", "status": "failed"}, InvalidArgument),
        ({"queue": "q", "status": "nonsense"}, InvalidArgument),
        ({"queue": "q", "older_than": -1}, InvalidArgument),
        ({"queue": "q", "older_than": "soon"}, InvalidArgument),
        ({"queue": "q", "older_than": timedelta.max}, InvalidArgument),
        ({"queue": "q", "max_jobs": 0}, InvalidArgument),
        ({"queue": "q", "max_jobs": 2**31}, InvalidArgument),
        ({"queue": "q", "max_jobs": "9"}, TypeError),
        ({"queue": ""}, InvalidArgument),
        ({"lock": "a\0"}, InvalidArgument),
        ({"args": [1]}, InvalidArgument),
        ({"args": {"a": {1}}}, InvalidArgument),
        ({"job_ids": ["1"]}, TypeError),
        ({"job_ids": [True]}, TypeError),
        ({"job_ids": [2**64]}, InvalidArgument),
        ({"queue": "q", "abort": "no"}, TypeError),
        ({"queue": "q", "dry_run": "no"}, TypeError),
        ({"queue": "q", "reason": 3}, TypeError),
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(
    app: App, manager: JobManager, bad: dict[str, Any], error: type[Exception]
) -> None:
    job_id = app.configure_task("t", queue="q").defer()
    with pytest.raises(error):
        manager.cancel_jobs(**({"dry_run": False} | bad))
    assert manager.get_job_status(job_id) is Status.TODO


def test_arguments_that_are_looked_for_are_not_shown_in_errors(manager: JobManager) -> None:
    with pytest.raises(InvalidArgument) as caught:
        manager.cancel_jobs(args={"password": ["hunter2", object()]})
    assert "hunter2" not in str(caught.value)
    assert "password[1]" in str(caught.value)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("jobs", [2, 3, 4, 6])
def test_batches_take_all_and_each_is_committed(
    app: App, manager: JobManager, conn: psycopg.Connection, jobs: int
) -> None:
    ids = app.configure_task("t").batch_defer(*({"n": n} for n in range(jobs)))
    assert [answer.job_id for answer in manager.cancel_jobs(task="t")] == ids
    assert [answer.job_id for answer in manager.cancel_jobs(task="t", max_jobs=5)] == ids[:5]
    assert [answer.job_id for answer in manager.cancel_jobs(task="t", dry_run=False)] == ids
    (transactions,) = conn.execute("SELECT count(DISTINCT xmin::text) FROM pljobs.job").fetchone() or ()
    assert transactions == -(-jobs // 3)


@pytest.mark.usefixtures("small_batches")
async def test_the_async_twins_do_the_same(db_url: str) -> None:
    app = App(db_url)
    async with app.open_async():
        ids = await app.configure_task("t").batch_defer_async(*({"n": n} for n in range(7)))
        manager = app.job_manager
        done = await manager.cancel_jobs_async(queue="default", dry_run=False)
        assert outcomes(done) == [(job_id, "cancelled") for job_id in ids]
        shown = await manager.retry_jobs_async(queue="default")
        assert outcomes(shown) == [(job_id, "would_requeue") for job_id in ids]
        done = await manager.retry_jobs_async(queue="default", max_jobs=4, dry_run=False)
        assert outcomes(done) == [(job_id, "requeued") for job_id in ids[:4]]
        with pytest.raises(InvalidArgument):
            await manager.retry_jobs_async()


@pytest.mark.usefixtures("small_batches")
def test_in_a_transaction_of_the_callers_all_batches_come_or_go_with_it(
    app: App, manager: JobManager, db_url: str
) -> None:
    ids = app.configure_task("t").batch_defer(*({"n": n} for n in range(7)))
    with psycopg.connect(db_url) as connection:
        done = manager.cancel_jobs(task="t", dry_run=False, connection=connection)
        assert len(done) == 7
        assert manager.get_job_status(ids[0]) is Status.TODO
        connection.rollback()
        assert manager.get_job_status(ids[0]) is Status.TODO
        manager.cancel_jobs(task="t", dry_run=False, delete_job=True, connection=connection)
    assert manager.list_jobs() == []


def test_retry_takes_what_failed_or_was_stopped(
    app: App, manager: JobManager, conn: psycopg.Connection
) -> None:
    cancelled, waiting, forced = (
        app.configure_task("t").defer(),
        app.configure_task("t").defer(),
        a_run(app, conn),
    )
    manager.cancel_job_by_id(cancelled)
    manager.cancel_job_by_id(forced, force=True)
    assert outcomes(manager.retry_jobs(task="t")) == [(cancelled, "would_requeue"), (forced, "would_requeue")]
    assert outcomes(manager.retry_jobs(task="t", status="aborted", reason="fixed", dry_run=False)) == [
        (forced, "requeued")
    ]
    job = manager.get_job(forced)
    assert (job.status, job.abort_requested) == (Status.TODO, False)
    assert manager.get_job_status(waiting) is Status.TODO
    assert manager.get_job_status(cancelled) is Status.CANCELLED
    with pytest.raises(InvalidArgument):
        manager.retry_jobs(task="t", status="succeeded")


def test_what_changed_until_it_was_locked_is_left_alone_and_said(
    app: App, manager: JobManager, conn: psycopg.Connection, db_url: str
) -> None:
    job_id = app.configure_task("t").defer()
    waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with psycopg.connect(db_url) as other, ThreadPoolExecutor(1) as thread:
        other.execute("SELECT pljobs.cancel_job(%s, delete_job => true)", [job_id])
        asked = thread.submit(manager.cancel_jobs, task="t", dry_run=False)
        wait_until(lambda: conn.execute(waits).fetchone())
        other.commit()
        answers = asked.result(DEADLINE)
    assert answers == [JobAnswer(job_id, None, None, None, "not_found")]
    assert not answers[0]


def test_a_request_is_taken_back_until_the_worker_has_heard_of_it(
    app: App, manager: JobManager, conn: psycopg.Connection
) -> None:
    job_id = a_run(app, conn)
    assert manager.rescind_request(job_id) == RescindResult("no_request")
    request_id = manager.cancel_job(job_id, abort=True).request_id
    assert manager.rescind_request(job_id, reason="mistake", actor="bob") == RescindResult(
        "rescinded", request_id
    )
    assert manager.get_job(job_id).abort_requested is False
    assert manager.rescind_request_by_id(job_id) is False
    manager.cancel_job(job_id, abort=True)
    conn.execute("SELECT pljobs.heartbeat_v1(1)")
    assert manager.rescind_request(job_id).outcome == "already_delivered"
    assert manager.rescind_request(0) == RescindResult("not_found")
    manager.cancel_job_by_id(job_id, force=True)
    assert manager.rescind_request_by_id(job_id) is False
    with pytest.raises(TypeError):
        manager.rescind_request_by_id("1")  # type: ignore[arg-type]


def test_the_procedure_for_psql_takes_all_in_batches(app: App, conn: psycopg.Connection) -> None:
    app.configure_task("t").batch_defer(*({"n": n} for n in range(10)))
    assert conn.execute("CALL pljobs.cancel_jobs_in_batches(task => 't', batch => 4)").fetchone() == (10,)
    (transactions,) = conn.execute("SELECT count(DISTINCT xmin::text) FROM pljobs.job").fetchone() or ()
    assert transactions == 3
    assert conn.execute("CALL pljobs.wait_for_job(1)").fetchone() == ("cancelled",)
    for bad in ("", "task => 't', batch => 0", "task => 't', batch => NULL"):
        with pytest.raises(psycopg.DatabaseError) as caught:
            conn.execute(f"CALL pljobs.cancel_jobs_in_batches({bad})".encode())
        assert caught.value.sqlstate == "PJ004"


def test_people_are_told_of_the_jobs_that_run_on(app: App, conn: psycopg.Connection) -> None:
    a_run(app, conn)
    for _ in range(4):
        app.configure_task("t").defer()
    told: list[str | None] = []
    conn.add_notice_handler(lambda diagnostic: told.append(diagnostic.message_primary))
    conn.execute("SELECT pljobs.cancel_jobs(task => 't')")
    conn.execute("SELECT pljobs.cancel_jobs(task => 't', max_jobs => 2, dry_run => false)")
    conn.execute("CALL pljobs.cancel_jobs_in_batches(task => 't', batch => 2)")
    conn.execute("CALL pljobs.cancel_jobs_in_batches(task => 't', abort => true)")
    assert told == [
        "1 jobs run, and are left alone; to stop them: abort => true",
        "5 jobs match, and nothing was changed; to do it: dry_run => false",
        "1 jobs run, and are left alone; to stop them: abort => true",
        "there may be more than these 2 (max_jobs): CALL cancel_jobs_in_batches takes all",
        "1 jobs run, and were left alone; to stop them: abort => true",
    ]
