"""The job manager: what an application asks about jobs and queues."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from pljobs import App, CancelResult, Job, JobManager, Status, calls, db
from pljobs.answers import RunEnd
from pljobs.exceptions import AlreadyEnqueued, AppNotOpen, InvalidArgument, JobNotFound


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
def worker_id(conn: psycopg.Connection) -> int:
    return db.run(conn, calls.register_worker("w", host="h", pid=1))


def a_todo_job(app: App, **options: Any) -> int:
    return app.configure_task("t", **options).defer(a=1)


def a_doing_job(app: App, conn: psycopg.Connection, worker_id: int, **options: Any) -> Job:
    job_id = a_todo_job(app, priority=1000, **options)
    (job,) = db.run(conn, calls.fetch_jobs(worker_id))
    assert job.id == job_id
    return job


def a_finished_job(app: App, conn: psycopg.Connection, worker_id: int, outcome: Any = "succeeded") -> int:
    job = a_doing_job(app, conn, worker_id)
    assert job.id is not None
    assert job.run_id is not None
    db.run(conn, calls.finish_jobs([RunEnd(job_id=job.id, run_id=job.run_id, outcome=outcome)]))
    return job.id


def test_every_method_has_an_async_twin_with_the_same_parameters_and_docstring() -> None:
    members = inspect.getmembers(JobManager, callable)
    methods = {name: method for name, method in members if not name.startswith("_")}
    plain = {name for name in methods if not name.endswith("_async")}
    assert {f"{name}_async" for name in plain} == set(methods) - plain
    for name in plain:
        twin = methods[f"{name}_async"]
        assert inspect.signature(methods[name]) == inspect.signature(twin)
        assert (twin.__name__, twin.__qualname__) == (
            f"{name}_async",
            f"{methods[name].__qualname__}_async",
        )
        assert methods[name].__doc__
        assert twin.__doc__
        assert not re.search("Question|Talk", str(inspect.signature(twin)))
    assert str(inspect.signature(methods["cancel_job_by_id"])).endswith("-> 'bool'")


def test_a_waiting_job_is_cancelled(app: App, manager: JobManager) -> None:
    job_id = a_todo_job(app)
    assert manager.cancel_job_by_id(job_id) is True
    assert manager.get_job_status(job_id) is Status.CANCELLED
    assert manager.cancel_job_by_id(job_id) is False


def test_a_cancelled_job_is_deleted_on_request_also_later(app: App, manager: JobManager) -> None:
    at_once, later = a_todo_job(app), a_todo_job(app)
    assert manager.cancel_job_by_id(at_once, delete_job=True) is True
    assert manager.cancel_job_by_id(later) is True
    assert manager.cancel_job_by_id(later, delete_job=True) is True
    for job_id in (at_once, later):
        with pytest.raises(JobNotFound):
            manager.get_job(job_id)


def test_a_running_job_is_left_alone_asked_to_abort_or_ended_by_force(
    app: App, manager: JobManager, conn: psycopg.Connection, worker_id: int
) -> None:
    job = a_doing_job(app, conn, worker_id)
    assert job.id is not None
    assert manager.cancel_job_by_id(job.id) is False
    assert manager.get_job(job.id).abort_requested is False
    assert manager.cancel_job_by_id(job.id, abort=True) is True
    assert manager.get_job(job.id).abort_requested is True
    assert manager.cancel_job_by_id(job.id, True) is True
    assert manager.get_job_status(job.id) is Status.DOING
    assert manager.cancel_job_by_id(job.id, force=True) is True
    assert manager.get_job_status(job.id) is Status.ABORTED


def test_the_sibling_tells_all_about_a_cancel(
    app: App, manager: JobManager, conn: psycopg.Connection, worker_id: int
) -> None:
    job = a_doing_job(app, conn, worker_id)
    assert job.id is not None
    result = manager.cancel_job(job.id, abort=True, reason="because", actor="somebody")
    assert result == CancelResult(
        outcome="abort_requested",
        status_before=Status.DOING,
        status_after=Status.DOING,
        request_id=result.request_id,
        worker_id=worker_id,
        run_id=job.run_id,
    )
    assert bool(result) is True
    assert manager.cancel_job(job.id + 1) == CancelResult(outcome="not_found")
    (asked,) = [entry for entry in manager.get_job_history(job.id) if entry.event == "abort requested"]
    assert asked.detail == "because"
    assert asked.who is not None
    assert asked.who.endswith("for somebody")


@pytest.mark.parametrize("job_id", [0, -1, 12345])
def test_an_unknown_id_changes_nothing(manager: JobManager, job_id: int) -> None:
    assert manager.cancel_job_by_id(job_id, abort=True, delete_job=True, force=True) is False
    assert manager.delete_job_by_id(job_id) is False
    assert manager.retry_job_by_id(job_id) is False
    assert manager.get_job_history(job_id) == []
    with pytest.raises(JobNotFound):
        manager.get_job_status(job_id)


@pytest.mark.parametrize("bad", ["33", None, 3.5, True])
async def test_an_id_that_is_no_int_is_a_type_error(app: App, bad: Any) -> None:
    manager = app.job_manager
    for method in (
        manager.cancel_job_by_id,
        manager.cancel_job,
        manager.delete_job_by_id,
        manager.retry_job_by_id,
        manager.get_job_status,
        manager.get_job,
    ):
        with pytest.raises(TypeError, match="job_id must be an int, not"):
            method(bad)
    with pytest.raises(TypeError, match="job_id must be an int, not"):
        await manager.cancel_job_by_id_async(bad)


def test_flags_are_flags_and_texts_texts(app: App, manager: JobManager) -> None:
    job_id = a_todo_job(app)
    refused: list[dict[str, Any]] = [
        {"abort": "no"}, {"delete_job": 1}, {"force": []}, {"reason": 3}, {"actor": b"me"},
    ]  # fmt: skip
    for bad in refused:
        with pytest.raises(TypeError):
            manager.cancel_job_by_id(job_id, **bad)
    with pytest.raises(InvalidArgument):
        manager.cancel_job_by_id(job_id, reason="a\0")
    assert manager.get_job_status(job_id) is Status.TODO


def test_a_finished_job_is_deleted_a_running_or_waiting_one_not(
    app: App, manager: JobManager, conn: psycopg.Connection, worker_id: int
) -> None:
    done = a_finished_job(app, conn, worker_id)
    running = a_doing_job(app, conn, worker_id)
    waiting = a_todo_job(app)
    assert running.id is not None
    assert manager.delete_job_by_id(done) is True
    assert manager.delete_job(running.id).outcome == "running"
    assert manager.delete_job(waiting).outcome == "todo"
    assert [job.id for job in manager.list_jobs()] == [running.id, waiting]


def test_a_failed_job_is_put_back_with_what_is_to_change(
    app: App, manager: JobManager, conn: psycopg.Connection, worker_id: int
) -> None:
    job_id = a_finished_job(app, conn, worker_id, outcome="failed")
    at = datetime(2030, 1, 1, tzinfo=UTC)
    assert manager.retry_job_by_id(job_id, at, 5, "q2", "l2", reason="again") is True
    job = manager.get_job(job_id)
    assert (job.status, job.scheduled_at, job.priority, job.queue, job.lock) == (
        Status.TODO,
        at,
        5,
        "q2",
        "l2",
    )
    assert manager.retry_job(job).outcome == "todo"
    assert manager.retry_job(a_finished_job(app, conn, worker_id)).outcome == "succeeded"
    with pytest.raises(TypeError):
        manager.retry_job(Job(task_name="never deferred"))
    with pytest.raises(InvalidArgument):
        manager.retry_job_by_id(job_id, datetime(2030, 1, 1))  # noqa: DTZ001


def test_a_job_made_by_hand_is_deferred(manager: JobManager) -> None:
    job = manager.defer_job(Job(task_name="made", task_kwargs={"a": 1}, queueing_lock="ql"))
    assert job.id is not None
    assert job.status is Status.TODO
    assert manager.get_job(job.id).task_kwargs == {"a": 1}
    with pytest.raises(AlreadyEnqueued):
        manager.defer_job(job)
    child = manager.defer_job(Job(task_name="made", parent_id=job.id))
    assert manager.get_job(child.id or 0).parent_id == job.id


def test_jobs_are_listed_by_all_that_is_given(
    app: App, manager: JobManager, conn: psycopg.Connection, worker_id: int
) -> None:
    running = a_doing_job(app, conn, worker_id, queue="q", lock="l").id
    waiting = a_todo_job(app, queue="q", lock="l", queueing_lock="ql")
    other = a_todo_job(app)

    def ids(**filters: Any) -> list[int | None]:
        return [job.id for job in manager.list_jobs(**filters)]

    assert ids() == [running, waiting, other]
    assert ids(limit=2) == [running, waiting]
    assert ids(id=other) == [other]
    assert ids(queue="q") == [running, waiting]
    assert ids(task="t", status="todo") == [waiting, other]
    assert ids(status=Status.DOING) == ids(worker_id=worker_id) == [running]
    assert ids(lock="l", queueing_lock="ql") == [waiting]
    assert ids(queue="nothing") == []
    for bad in ({"status": "done"}, {"queue": "a\0"}):
        with pytest.raises(InvalidArgument):
            ids(**bad)


def test_queues_tasks_and_locks_are_counted(
    app: App, manager: JobManager, conn: psycopg.Connection, worker_id: int
) -> None:
    a_doing_job(app, conn, worker_id, queue="q", lock="l")
    a_todo_job(app, queue="q", lock="l")
    a_todo_job(app)
    assert manager.pause_queue("empty", reason="because") is True

    default, empty, q = manager.list_queues()
    assert (default["name"], default["jobs_count"], default["todo"], default["paused"]) == (
        "default",
        1,
        1,
        False,
    )
    assert (empty["name"], empty["jobs_count"], empty["paused"]) == ("empty", 0, True)
    assert empty["pause_reason"] == "because"
    assert (q["name"], q["jobs_count"], q["todo"], q["doing"], q["succeeded"]) == ("q", 2, 1, 1, 0)
    assert [found["name"] for found in manager.list_queues(status="doing")] == ["q"]
    assert [found["name"] for found in manager.list_queues(queue="empty")] == ["empty"]

    counts = {"succeeded": 0, "failed": 0, "cancelled": 0, "aborted": 0}
    assert manager.list_tasks() == [{"name": "t", "jobs_count": 3, "todo": 2, "doing": 1, **counts}]
    assert manager.list_locks() == [{"name": "l", "jobs_count": 2, "todo": 1, "doing": 1, **counts}]
    assert manager.list_tasks(queue="q", lock="l", status="todo")[0]["jobs_count"] == 1


def test_a_paused_queue_is_not_fetched_from_until_it_is_resumed(
    app: App, manager: JobManager, conn: psycopg.Connection, worker_id: int
) -> None:
    a_todo_job(app, queue="q")
    assert (manager.pause_queue("q"), manager.pause_queue("q")) == (True, False)
    assert db.run(conn, calls.fetch_jobs(worker_id)) == []
    assert (manager.resume_queue("q"), manager.resume_queue("q")) == (True, False)
    assert len(db.run(conn, calls.fetch_jobs(worker_id))) == 1
    with pytest.raises(InvalidArgument):
        manager.pause_queue("")


def test_old_jobs_are_deleted_by_status(
    app: App, manager: JobManager, conn: psycopg.Connection, worker_id: int
) -> None:
    for outcome in ("succeeded", "failed"):
        a_finished_job(app, conn, worker_id, outcome)
    manager.cancel_job_by_id(a_todo_job(app))
    assert manager.delete_old_jobs(nb_hours=1) == 0
    conn.execute("UPDATE pljobs.job SET finished_at = finished_at - interval '2 hours'")
    assert manager.delete_old_jobs(nb_hours=1, queue="another") == 0
    assert manager.delete_old_jobs(nb_hours=1) == 1
    assert {job.status for job in manager.list_jobs()} == {Status.FAILED, Status.CANCELLED}
    assert manager.delete_old_jobs(1, include_failed=True, include_cancelled=True, include_aborted=True) == 2
    for bad in (-1, "x", None):
        with pytest.raises(InvalidArgument):
            manager.delete_old_jobs(bad)  # type: ignore[arg-type]


def test_jobs_of_a_lost_worker_are_stalled_and_rescued(
    app: App, manager: JobManager, conn: psycopg.Connection, worker_id: int
) -> None:
    job = a_doing_job(app, conn, worker_id, queue="q")
    assert job.id is not None
    assert manager.get_stalled_jobs() == []
    assert manager.get_stalled_workers() == []
    assert [found.id for found in manager.get_stalled_jobs(nb_seconds=0, queue="q", task_name="t")] == [
        job.id
    ]
    assert manager.get_stalled_jobs(nb_seconds=3600) == []
    conn.execute("UPDATE pljobs.worker SET expires_at = clock_timestamp() - interval '1 s'")
    assert [found.id for found in manager.get_stalled_jobs(queue="q")] == [job.id]
    assert [worker.id for worker in manager.get_stalled_workers()] == [worker_id]
    assert [(found.job_id, found.outcome) for found in manager.rescue_jobs()] == [(job.id, "todo")]
    assert manager.get_job(job.id).crashes == 1


def test_attempts_count_the_runs_that_ended(
    app: App, manager: JobManager, conn: psycopg.Connection, worker_id: int
) -> None:
    job = a_doing_job(app, conn, worker_id)
    assert job.id is not None
    assert job.attempts == manager.get_job(job.id).attempts == 0
    failed = a_finished_job(app, conn, worker_id, "failed")
    assert manager.get_job(failed).attempts == 1


async def test_the_async_twins_do_the_same(db_url: str) -> None:
    app = App(db_url)
    async with app.open_async():
        manager = app.job_manager
        job_id = (await manager.defer_job_async(Job(task_name="t"))).id
        assert job_id is not None
        assert await manager.get_job_status_async(job_id) is Status.TODO
        assert await manager.cancel_job_by_id_async(job_id) is True
        assert (await manager.cancel_job_async(job_id)).outcome == "already_cancelled"
        assert (await manager.retry_job_async(job_id)).outcome == "requeued"
        assert (await manager.delete_job_async(job_id)).outcome == "todo"
        assert (await manager.get_job_async(job_id)).id == job_id
        assert [job.id for job in await manager.list_jobs_async(status="todo")] == [job_id]
        assert len(await manager.get_job_history_async(job_id)) == 3
        assert [queue["name"] for queue in await manager.list_queues_async()] == ["default"]
        assert [task["name"] for task in await manager.list_tasks_async()] == ["t"]
        assert await manager.list_locks_async() == []
        assert await manager.pause_queue_async("q") is True
        assert await manager.resume_queue_async("q") is True
        assert await manager.get_stalled_jobs_async() == []
        assert await manager.rescue_jobs_async() == []
        assert await manager.delete_old_jobs_async(nb_hours=1) == 0


def test_a_manager_needs_an_open_app() -> None:
    with pytest.raises(AppNotOpen):
        App("").job_manager.cancel_job_by_id(1)
