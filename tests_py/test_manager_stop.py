"""The job manager stops jobs: by force after a grace, their SQL, whole trees; and says so in the log."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pljobs import App, Job, JobManager, Status, TreeAnswer, calls, calls_people, db, manager_many
from pljobs.answers import RunEnd
from pljobs.exceptions import ConnectorException, InvalidArgument, TreeCancelled
from waiting import wait_until

Ladder = tuple[float | None, float | None, float | None]


@pytest.fixture
def app(db_url: str) -> Iterator[App]:
    app = App(db_url)
    with app.open():
        yield app


@pytest.fixture
def manager(app: App) -> JobManager:
    return app.job_manager


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[], list[logging.LogRecord]]:
    """What the manager said since it was last asked."""
    caplog.set_level(logging.DEBUG, "pljobs")

    def said() -> list[logging.LogRecord]:
        records = [record for record in caplog.records if record.name == "pljobs.manager"]
        caplog.clear()
        return records

    return said


def a_todo_job(app: App, **options: Any) -> int:
    return app.configure_task("t", **options).defer(secret="hunter2")


def a_doing_job(app: App, conn: psycopg.Connection, **options: Any) -> Job:
    """A job that runs, of a worker that is a registration alone."""
    job_id = a_todo_job(app, priority=1000, **options)
    (job,) = db.run(conn, calls.fetch_jobs(db.run(conn, calls.register_worker("w", host="h", pid=1))))
    assert job.id == job_id
    return job


def ended(conn: psycopg.Connection, job: Job, outcome: Any) -> None:
    assert job.id is not None
    assert job.run_id is not None
    db.run(conn, calls.finish_jobs([RunEnd(job_id=job.id, run_id=job.run_id, outcome=outcome)]))


def ladder(conn: psycopg.Connection, job_id: int) -> Ladder:
    """When the job's open request has its SQL cancelled, terminates it, kills it: seconds after it came."""
    found = conn.execute(
        "SELECT extract(epoch FROM sql_at - requested_at), extract(epoch FROM term_at - requested_at),"
        " extract(epoch FROM kill_at - requested_at) FROM pljobs.requests"
        " WHERE job_id = %s AND resolution IS NULL",
        [job_id],
    ).fetchone()
    assert found is not None
    sql, term, kill = (None if number is None else float(number) for number in found)
    return sql, term, kill


def is_ladder(conn: psycopg.Connection, job_id: int, wanted: tuple[float, float, float]) -> bool:
    """Whether it is so for a request that was made stronger, which may have been a while after it came."""
    found = conn.execute(
        "SELECT extract(epoch FROM clock_timestamp() - requested_at) FROM pljobs.requests"
        " WHERE job_id = %s AND resolution IS NULL",
        [job_id],
    ).fetchone()
    assert found is not None
    steps = zip(ladder(conn, job_id), wanted, strict=True)
    return all(at is not None and first <= at <= first + float(found[0]) for at, first in steps)


def is_new_ladder(conn: psycopg.Connection, job_id: int, wanted: Ladder) -> bool:
    """Whether it is so for a request that began with it: it is worked out a moment before that is written."""
    steps = zip(ladder(conn, job_id), wanted, strict=True)
    return all(at == last if at is None or last is None else last - 4 < at <= last for at, last in steps)


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        ({}, (None, None, None)),
        ({"sql": True}, (0, None, None)),
        ({"grace": 60}, (30, 60, 65)),
        ({"grace": 60.0, "term_grace": timedelta(seconds=20)}, (30, 60, 80)),
        ({"grace": timedelta(minutes=1), "term_grace": 0, "sql": True}, (0, 60, 60)),
        ({"grace": 0}, (0, 0, 5)),
        ({"grace": {"hours": 1}, "term_grace": None}, (1800, 3600, 3605)),
    ],
)
def test_a_grace_says_when_the_levels_begin(
    app: App, manager: JobManager, conn: psycopg.Connection, options: dict[str, Any], seconds: Ladder
) -> None:
    one, many, tree = (a_doing_job(app, conn).id or 0 for _ in range(3))
    assert manager.cancel_job_by_id(one, abort=True, **options) is True
    assert len(manager.cancel_jobs(job_ids=[many], abort=True, dry_run=False, **options)) == 1
    assert len(manager.cancel_tree(tree, abort=True, **options)) == 1
    assert [is_new_ladder(conn, job_id, seconds) for job_id in (one, many, tree)] == [True] * 3, [
        ladder(conn, job_id) for job_id in (one, many, tree)
    ]


def test_a_request_only_becomes_stronger(app: App, manager: JobManager, conn: psycopg.Connection) -> None:
    job_id = a_doing_job(app, conn).id or 0
    asked = manager.cancel_job(job_id, abort=True)
    again = manager.cancel_job(job_id, abort=True, grace=60)
    assert (asked.outcome, again.outcome) == ("abort_requested", "abort_already_requested")
    assert asked.request_id == again.request_id
    manager.cancel_job(job_id, abort=True, grace=600)
    assert is_ladder(conn, job_id, (30, 60, 65))
    manager.cancel_job(job_id, abort=True, grace=0)
    assert is_ladder(conn, job_id, (0, 0, 5))


@pytest.mark.parametrize(
    "bad",
    [
        {"grace": -1},
        {"grace": timedelta(microseconds=-1)},
        {"grace": float("nan")},
        {"grace": float("inf")},
        {"grace": timedelta.max},
        {"grace": "10 s"},
        {"grace": True},
        {"grace": 10, "term_grace": -1},
        {"grace": 10, "term_grace": float("nan")},
        {"term_grace": 5},
        {"term_grace": 0},
        {"sql": "yes"},
    ],
)
def test_a_grace_that_makes_no_sense_is_refused_and_changes_nothing(
    app: App, manager: JobManager, bad: dict[str, Any]
) -> None:
    job_id = a_todo_job(app)
    asks: list[Callable[..., object]] = [
        lambda **how: manager.cancel_job_by_id(job_id, **how),
        lambda **how: manager.cancel_job(job_id, **how),
        lambda **how: manager.cancel_tree(job_id, **how),
        lambda **how: manager.cancel_jobs(job_ids=[job_id], dry_run=False, **how),
    ]
    for ask in asks:
        with pytest.raises(TypeError if "sql" in bad else InvalidArgument):
            ask(**bad)
    assert manager.get_job_status(job_id) is Status.TODO


def test_a_waiting_job_is_cancelled_whatever_the_grace(app: App, manager: JobManager) -> None:
    result = manager.cancel_job(a_todo_job(app), abort=True, grace=10, term_grace=5, sql=True)
    assert (result.outcome, result.sql_way) == ("cancelled", None)


def test_the_jobs_own_sql_is_cancelled_and_the_way_is_told(
    app: App, manager: JobManager, conn: psycopg.Connection, db_url: str
) -> None:
    job = a_doing_job(app, conn)
    assert job.id is not None
    asked = manager.cancel_job(job.id, abort=True, sql=True)
    assert (asked.outcome, asked.sql_way) == ("abort_requested", "none")
    with psycopg.connect(db_url, autocommit=True) as its, ThreadPoolExecutor(1) as thread:
        its.execute("SELECT pljobs.enter_sql_v1(%s, %s)", [job.run_id, its.info.backend_pid])
        statement = thread.submit(its.execute, "SELECT pg_sleep(600)")
        runs = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"
        wait_until(lambda: conn.execute(runs, [its.info.backend_pid]).fetchone())
        again = manager.cancel_job(job.id, abort=True, sql=True)
        assert (again.outcome, again.sql_way) == ("abort_already_requested", "server")
        with pytest.raises(psycopg.errors.QueryCanceled):
            statement.result(30)
    assert manager.cancel_job(job.id, abort=True).sql_way is None


@pytest.mark.parametrize(
    ("outcome", "stopped", "status"),
    [
        ("aborted", True, Status.ABORTED),
        ("killed", True, Status.ABORTED),
        ("abandoned", True, Status.ABORTED),
        ("interrupted", True, Status.ABORTED),
        ("succeeded", False, Status.SUCCEEDED),
        ("failed", False, Status.FAILED),
    ],
)
@pytest.mark.parametrize("was_late", [False, True])
def test_who_waits_is_told_whether_it_stopped(
    app: App, manager: JobManager, conn: psycopg.Connection, outcome: str, stopped: bool, status: Status,
    was_late: bool,
) -> None:  # fmt: skip
    job = a_doing_job(app, conn, timeout=3600)
    assert job.id is not None
    if was_late:
        # A person's wish takes a time limit's request over: however it ends, it is no timeout.
        conn.execute("UPDATE pljobs.job SET timeout_at = clock_timestamp() - interval '1 s'")
        conn.execute("SELECT pljobs.enforce_limits()")
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(manager.cancel_job_by_id, job.id, abort=True, grace=0, wait=30)
        asked = "SELECT 1 FROM pljobs.requests WHERE source = 'user'"
        wait_until(lambda: conn.execute(asked).fetchone())
        ended(conn, job, outcome)
        assert waiting.result(30) is stopped
    assert manager.get_job_status(job.id) is status


def a_tree(app: App, conn: psycopg.Connection) -> tuple[int, int, int, int]:
    """A job that runs, one that it deferred and that runs, that one's child, which waits; and a stranger."""
    root = a_doing_job(app, conn).id or 0
    child = a_doing_job(app, conn, parent=root).id or 0
    grandchild = a_todo_job(app, parent=child, queue="q")
    return root, child, grandchild, a_todo_job(app)


def test_a_tree_is_shown(app: App, manager: JobManager, conn: psycopg.Connection) -> None:
    root, child, grandchild, _ = a_tree(app, conn)
    shown = manager.cancel_tree(root, abort=True, dry_run=True)
    assert shown == [
        TreeAnswer(root, None, "default", "t", Status.DOING, "would_abort"),
        TreeAnswer(child, root, "default", "t", Status.DOING, "would_abort"),
        TreeAnswer(grandchild, child, "q", "t", Status.TODO, "would_cancel"),
    ]
    assert not any(shown)
    assert [answer.outcome for answer in manager.cancel_tree(root, delete_job=True, dry_run=True)] == [
        "running",
        "running",
        "would_delete",
    ]
    assert manager.get_job(grandchild).status is Status.TODO
    assert manager.get_job(root).abort_requested is False


def test_a_tree_is_stopped_and_closed(app: App, manager: JobManager, conn: psycopg.Connection) -> None:
    root, child, grandchild, stranger = a_tree(app, conn)
    done = manager.cancel_tree(root, abort=True, reason="wrong feed", actor="ann")
    assert [(answer.job_id, answer.outcome) for answer in done] == [
        (root, "abort_requested"),
        (child, "abort_requested"),
        (grandchild, "cancelled"),
    ]
    assert all(done)
    assert manager.get_job(grandchild).message == "wrong feed"
    assert manager.get_job_status(stranger) is Status.TODO
    for parent in (root, child, grandchild):
        with pytest.raises(TreeCancelled):
            a_todo_job(app, parent=parent)
    forced = manager.cancel_tree(root, force=True)
    assert [(answer.job_id, answer.outcome) for answer in forced] == [(root, "aborted"), (child, "aborted")]
    (again,) = manager.cancel_tree(root, abort=True)
    assert (again.outcome, bool(again)) == ("already_cancelled", False)


def test_a_trees_running_jobs_are_left_alone_without_abort(
    app: App, manager: JobManager, conn: psycopg.Connection
) -> None:
    root, child, grandchild, _ = a_tree(app, conn)
    done = manager.cancel_tree(root)
    assert [(answer.job_id, answer.outcome, bool(answer)) for answer in done] == [
        (root, "running", False),
        (child, "running", False),
        (grandchild, "cancelled", True),
    ]
    assert manager.get_job_status(a_todo_job(app, parent=root)) is Status.TODO


def test_an_unknown_tree_is_empty_and_an_odd_id_refused(manager: JobManager) -> None:
    assert manager.cancel_tree(12345, abort=True) == []
    odd: list[Any] = ["1", None, True]
    for root in odd:
        with pytest.raises(TypeError, match="root must be an int"):
            manager.cancel_tree(root)
    with pytest.raises(TypeError, match="dry_run"):
        manager.cancel_tree(1, dry_run="no")  # type: ignore[arg-type]


def test_in_a_transaction_of_the_callers_a_tree_comes_or_goes_with_it(
    app: App, manager: JobManager, db_url: str
) -> None:
    root = a_todo_job(app)
    with psycopg.connect(db_url) as connection:
        manager.cancel_tree(root, connection=connection)
        assert manager.get_job_status(root) is Status.TODO
        connection.rollback()
        manager.cancel_tree(root, delete_job=True, connection=connection)
    assert manager.list_jobs() == []


def test_children_are_listed_cancelled_and_retried_by_their_parent(
    app: App, manager: JobManager, conn: psycopg.Connection
) -> None:
    root, child, grandchild, _ = a_tree(app, conn)
    waiting = a_todo_job(app, parent=root)
    assert [job.id for job in manager.list_jobs(parent=root)] == [child, waiting]
    assert [job.parent_id for job in manager.list_jobs()] == [None, root, child, None, root]
    shown = manager.cancel_jobs(parent=root, abort=True)
    assert [(answer.job_id, answer.outcome) for answer in shown] == [
        (child, "would_abort"),
        (waiting, "would_cancel"),
    ]
    assert [answer.job_id for answer in manager.cancel_jobs(parent=root, status="todo", dry_run=False)] == [
        waiting
    ]
    (again,) = manager.retry_jobs(parent=root, dry_run=False)
    assert (again.job_id, again.outcome) == (waiting, "requeued")
    assert manager.get_job_status(grandchild) is Status.TODO
    for ask in (manager.cancel_jobs, manager.retry_jobs, manager.list_jobs):
        with pytest.raises(TypeError, match="parent"):
            ask(parent="1")  # type: ignore[arg-type]


async def test_the_async_twins_do_the_same(db_url: str, conn: psycopg.Connection) -> None:
    app = App(db_url)
    async with app.open_async():
        manager = app.job_manager
        root = await app.configure_task("t").defer_async()
        child = await app.configure_task("t", parent=root).defer_async()
        (shown, _) = await manager.cancel_tree_async(root, dry_run=True)
        assert shown.outcome == "would_cancel"
        (answer,) = await manager.cancel_jobs_async(parent=root, dry_run=False, grace=1)
        assert answer.job_id == child
        assert [job.id for job in await manager.list_jobs_async(parent=root)] == [child]
        result = await manager.cancel_job_async(root, abort=True, grace=10, term_grace=5, sql=True)
        assert result.outcome == "cancelled"
        assert await manager.cancel_job_by_id_async(root, abort=True, grace=10, wait=30) is True
        with pytest.raises(InvalidArgument):
            await manager.cancel_tree_async(root, term_grace=5)


def test_each_wish_is_one_line_in_the_log_with_ids_and_without_arguments(
    app: App, manager: JobManager, conn: psycopg.Connection, log: Callable[[], list[logging.LogRecord]]
) -> None:
    job = a_doing_job(app, conn)
    assert job.id is not None
    assert log() == []
    manager.cancel_job_by_id(job.id, abort=True, reason="wrong feed", actor="ann")
    (record,) = log()
    assert record.levelno == logging.INFO
    assert record.getMessage() == f"Cancel job {job.id} for ann: abort_requested; wrong feed"
    fields = vars(record)
    assert {name: fields[name] for name in ("job_id", "run_id", "worker_id", "outcome", "status_before")} == {
        "job_id": job.id,
        "run_id": job.run_id,
        "worker_id": job.worker_id,
        "outcome": "abort_requested",
        "status_before": "doing",
    }
    assert fields["request_id"] == manager.cancel_job(job.id, abort=True).request_id
    assert (fields["reason"], fields["actor"], fields["committed"]) == ("wrong feed", "ann", True)
    (record,) = log()
    assert record.getMessage() == f"Cancel job {job.id}: abort_already_requested; no reason given"
    manager.cancel_job(12345, reason="r" * 5000)
    (record,) = log()
    assert (vars(record)["outcome"], len(vars(record)["reason"])) == ("not_found", 1000)


def test_many_and_trees_are_one_line_with_counts(
    app: App,
    manager: JobManager,
    conn: psycopg.Connection,
    log: Callable[[], list[logging.LogRecord]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(manager_many, "BATCH", 2)
    root = a_doing_job(app, conn, queue="q").id or 0
    for _ in range(4):
        a_todo_job(app, queue="q", parent=root)
    manager.cancel_jobs(queue="q", args={"secret": "hunter2"})
    manager.cancel_tree(root, dry_run=True)
    assert log() == []
    manager.cancel_jobs(queue="q", parent=root, args={"secret": "hunter2"}, dry_run=False, max_jobs=3)
    (record,) = log()
    assert record.getMessage() == (
        f"Cancel all that match, queue 'q', parent_id {root}: 3 cancelled; no reason given"
    )
    assert "hunter2" not in str(vars(record))
    fields = vars(record)
    assert (fields["jobs"], fields["outcomes"], fields["queue"]) == (3, {"cancelled": 3}, "q")
    manager.cancel_tree(root, reason="wrong feed", actor="ann")
    (record,) = log()
    said = f"Cancel the tree of job {root} for ann: 1 running, 1 cancelled; wrong feed"
    assert record.getMessage() == said
    assert (vars(record)["root"], vars(record)["jobs"]) == (root, 2)
    manager.cancel_jobs(queue="nothing", dry_run=False)
    (record,) = log()
    assert record.getMessage() == "Cancel all that match, queue 'nothing': no job; no reason given"


def test_what_is_not_committed_yet_is_said_to_be_so(
    app: App, manager: JobManager, db_url: str, log: Callable[[], list[logging.LogRecord]]
) -> None:
    job_id = a_todo_job(app)
    log()
    with psycopg.connect(db_url) as connection:
        manager.cancel_job_by_id(job_id, connection=connection)
    (record,) = log()
    assert record.getMessage().endswith("(once the caller's transaction commits)")
    assert vars(record)["committed"] is False


async def test_the_async_twins_say_it_once_too(
    db_url: str, log: Callable[[], list[logging.LogRecord]]
) -> None:
    app = App(db_url)
    async with app.open_async():
        manager = app.job_manager
        job_id = await app.configure_task("t").defer_async()
        log()
        await manager.cancel_job_by_id_async(job_id)
        assert len(log()) == 1
        await manager.cancel_job_async(job_id)
        assert len(log()) == 1
        await manager.cancel_jobs_async(job_ids=[job_id], dry_run=False)
        assert len(log()) == 1
        await manager.cancel_tree_async(job_id)
        assert len(log()) == 1


def test_many_that_are_interrupted_say_what_is_done(
    app: App,
    manager: JobManager,
    log: Callable[[], list[logging.LogRecord]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(manager_many, "BATCH", 2)
    app.configure_task("t").batch_defer(*({} for _ in range(5)))
    log()
    execute, asked = app.connector.execute, []

    def interrupted(*args: Any, **kwargs: Any) -> object:
        asked.append(1)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return execute(*args, **kwargs)

    monkeypatch.setattr(app.connector, "execute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        manager.cancel_jobs(task="t", dry_run=False)
    (record,) = log()
    assert vars(record)["outcomes"] == {"cancelled": 2}

    def broken(*args: Any, **kwargs: Any) -> object:
        raise ConnectorException("gone")

    monkeypatch.setattr(app.connector, "execute", broken)
    with contextlib.suppress(ConnectorException):
        manager.cancel_jobs(task="t", dry_run=False)
    assert log() == []


def test_a_job_is_read_with_its_limits_and_how_far_it_is(
    app: App, manager: JobManager, conn: psycopg.Connection
) -> None:
    limits = {"timeout": timedelta(seconds=1.5), "grace": 0, "start_by": 3600, "on_cancelled": "clean_up"}
    root = a_todo_job(app)
    job = a_doing_job(app, conn, parent=root, **limits)
    assert job.id is not None
    conn.execute(
        "INSERT INTO pljobs.progress (job_id, run_id, at, fraction, message)"
        " VALUES (%s, %s, clock_timestamp(), 0.3, 'page 3')",
        [job.id, job.run_id],
    )
    # However the role has intervals written.
    conn.execute("SET intervalstyle = iso_8601")
    for read in (manager.get_job(job.id), *manager.list_jobs(parent=root)):
        assert (read.parent_id, read.on_cancelled) == (root, "clean_up")
        assert (read.timeout, read.grace) == (timedelta(seconds=1.5), timedelta(0))
        assert read.start_by is not None
        assert read.created_at is not None
        assert read.start_by - read.created_at == timedelta(hours=1)
        assert (read.progress, read.progress_message) == (0.3, "page 3")
    plain = manager.get_job(root)
    assert (plain.parent_id, plain.timeout, plain.grace, plain.start_by) == (None, None, None, None)
    assert (plain.on_cancelled, plain.progress, plain.progress_message) == (None, None, None)


def test_how_to_stop_is_checked_before_anything_is_asked() -> None:
    assert calls_people.stop_params({}) == {
        "abort": False,
        "delete_job": False,
        "force": False,
        "reason": None,
        "actor": None,
        "grace": None,
        "term_grace": None,
        "sql": False,
    }
