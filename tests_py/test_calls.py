"""Every call says what the database has: the function's name and version, its parameters and their types."""

from __future__ import annotations

import inspect
import json
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from types import ModuleType
from typing import Any

import psycopg
import pytest

from pljobs import (
    arguments,
    calls,
    calls_flow,
    calls_many,
    calls_people,
    calls_prune,
    calls_read,
    calls_sql,
    calls_wake,
    checks,
    db,
)
from pljobs.answers import Call, FinishAnswer, Observation, RunEnd
from pljobs.calls_read import JobFilter
from pljobs.exceptions import InvalidArgument, InvalidJob, JobNotFound, RunLost, WorkerNotRegistered
from pljobs.jobs import Job, Status

TICK = datetime(2030, 1, 1, tzinfo=UTC)
JOB = Job(task_name="t", task_kwargs={"a": 1})
CHOSEN = JobFilter(
    id=1, queue="q", task="t", status="todo", lock="l", queueing_lock="ql", worker_id=1, parent_id=1
)
PAGE = calls_many.Page(dry_run=True, max_jobs=1, after_id=0)
WANTED = calls_many.Selection(
    job_ids=[1], queue="q", task="t", lock="l", args={"a": 1}, older_than=1, parent=1
)

SAMPLES: dict[str, Call[object]] = {
    "defer_jobs": calls.defer_jobs([JOB]),
    "defer_encoded": calls.defer_encoded([calls.encode_job(JOB)]),
    "defer_encoded, version 2": calls.defer_encoded([calls.encode_job(JOB)], version=2),
    "defer_encoded, version 3": calls.defer_encoded([calls.encode_job(JOB)], version=3),
    "throttle_queue": calls_flow.throttle_queue("q", calls_flow.Limits(rate=1, period=1)),
    "throttle_task": calls_flow.throttle_task("t", calls_flow.Limits(max_running=1)),
    "list_throttles": calls_flow.list_throttles(),
    "defer_periodic_job": calls.defer_periodic_job("", tick=TICK, job=JOB),
    "get_contract": calls_read.get_contract(),
    "register_worker": calls.register_worker("w", host="h", pid=1),
    "unregister_worker": calls.unregister_worker(1),
    "fetch_jobs": calls.fetch_jobs(1),
    "finish_jobs": calls.finish_jobs([RunEnd(job_id=1, run_id=1, outcome="succeeded")]),
    "heartbeat": calls.heartbeat(1, run_ids=[1], observed=[Observation(job_id=1, run_id=1)]),
    "enforce_limits": calls.enforce_limits(),
    "finish_job": calls_sql.finish_job(1, 1, result=None),
    "enter_sql": calls_sql.enter_sql(1, 1),
    "leave_sql": calls_sql.leave_sql(1),
    "cancel_sql": calls_sql.cancel_sql(1),
    "rescue_jobs": calls.rescue_jobs(),
    "wake_lanes": calls.wake_lanes(),
    "prune_jobs": calls_prune.prune_jobs(timedelta(days=1)),
    "prune_history": calls_prune.prune_history(timedelta(days=1)),
    "cancel_job": calls_people.cancel_job(1, abort=True, grace=10, term_grace=5, sql=True),
    "delete_job": calls_people.delete_job(1),
    "retry_job": calls_people.retry_job(1),
    "cancel_tree": calls_people.cancel_tree(1, dry_run=True, grace=10, term_grace=5, sql=True),
    "pause_queue": calls_people.pause_queue("q"),
    "resume_queue": calls_people.resume_queue("q"),
    "cancel_jobs": calls_many.cancel_jobs(WANTED.params(calls_many.CANCELLABLE), PAGE, abort=True),
    "retry_jobs": calls_many.retry_jobs(WANTED.params({Status.TODO}), PAGE),
    "rescind_request": calls_many.rescind_request(1),
    "get_words": calls_many.get_words([1], [1]),
    "get_job": calls_read.get_job(1),
    "get_job_status": calls_read.get_job_status(1),
    "require_writes": calls_read.require_writes(),
    "get_job_history": calls_read.get_job_history(1),
    "list_jobs": calls_read.list_jobs(CHOSEN, limit=1),
    "list_queues": calls_read.list_queues(CHOSEN),
    "list_tasks": calls_read.list_tasks(CHOSEN),
    "list_locks": calls_read.list_locks(CHOSEN),
    "get_stalled_jobs": calls_read.get_stalled_jobs(CHOSEN, nb_seconds=1),
    "get_stalled_workers": calls_read.get_stalled_workers(),
    "has_schema": calls_read.has_schema(),
    "begin": calls_read.begin(),
    "next_fetch": calls_wake.next_fetch(1, queues=["q"]),
    "look_at_all": calls_wake.look_at_all(),
    "notify_queues": calls_wake.notify_queues(["q"]),
    "server_time": calls_read.server_time(),
}

FUNCTION_CALL = re.compile(r"pljobs\.(\w+)\(([^()]*(?:%\(\w+\)s[^()]*)*)\)")
PARAMETER = re.compile(r"(\w+) => %\((\w+)\)s::([a-z]+(?:\[\])?)")


def made_by(module: ModuleType) -> set[str]:
    """The functions of a module that return a call."""
    return {
        name
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__
        and str(inspect.signature(function).return_annotation).startswith("Call[")
        and not name.startswith("_")
    }


def test_every_call_has_a_sample_here() -> None:
    modules = (
        calls, calls_flow, calls_many, calls_people, calls_prune, calls_read, calls_sql, calls_wake,
    )  # fmt: skip
    # Those of calls_cli and calls_health are about views, and run by the command line's own tests.
    assert set().union(*map(made_by, modules)) == {name.partition(",")[0] for name in SAMPLES}


@pytest.mark.parametrize(("job", "version"), [(JOB, 1), (JOB.evolve(fairness_key="k"), 3)])
def test_a_job_is_deferred_by_the_first_version_that_knows_it(job: Job, version: int) -> None:
    assert f"defer_jobs_v{version}(" in calls.defer_jobs([JOB, job]).statement


@pytest.mark.parametrize("name", SAMPLES)
def test_a_call_passes_exactly_the_parameters_that_it_names(name: str) -> None:
    call = SAMPLES[name]
    assert set(re.findall(r"%\((\w+)\)s", call.statement)) == set(call.params)
    assert "%s" not in call.statement


def test_calls_of_functions_match_the_database(conn: psycopg.Connection) -> None:
    known = {
        row[0]: (dict(zip(row[1], row[2], strict=True)))
        for row in conn.execute(
            """
            SELECT p.proname,
                   coalesce(p.proargnames[:p.pronargs], '{}'),
                   ARRAY(SELECT format_type(t.oid, NULL)
                           FROM unnest(p.proargtypes) WITH ORDINALITY AS a(oid, place)
                           JOIN pg_type AS t ON t.oid = a.oid ORDER BY a.place)
              FROM pg_proc AS p WHERE p.pronamespace = 'pljobs'::regnamespace
            """
        )
    }
    types = {"timestamptz": "timestamp with time zone"}
    called = set()
    for name, call in SAMPLES.items():
        for function, given in FUNCTION_CALL.findall(call.statement):
            called.add(function)
            parameters = {param: types.get(kind, kind) for param, _, kind in PARAMETER.findall(given)}
            assert all(param == value for param, value, _ in PARAMETER.findall(given)), name
            assert function in known, f"{name}: no function pljobs.{function}"
            assert parameters == known[function], name
    # The newest version of each: old ones are for old drivers.
    versions = (re.fullmatch(r"(\w+)_v(\d)", name) for name in known)
    newest = {match[1]: match[0] for match in sorted(filter(None, versions), key=lambda match: match[0])}
    assert set(newest.values()) <= called


@pytest.mark.parametrize("name", [name for name in SAMPLES if name not in {"get_job", "get_job_status"}])
def test_every_call_runs_and_its_answer_can_be_read(name: str, conn: psycopg.Connection) -> None:
    if name in {"fetch_jobs", "heartbeat"}:
        with pytest.raises(WorkerNotRegistered) as caught:
            db.run(conn, SAMPLES[name])
        assert caught.value.sqlstate == "PJ003"
    elif name == "finish_job":
        with pytest.raises(RunLost):
            db.run(conn, SAMPLES[name])
    else:
        db.run(conn, SAMPLES[name])


@pytest.mark.parametrize("name", ["get_job", "get_job_status"])
def test_reading_an_unknown_job_says_so(name: str, conn: psycopg.Connection) -> None:
    with pytest.raises(JobNotFound, match="no job has the id 1"):
        db.run(conn, SAMPLES[name])


async def test_the_async_runner_does_the_same(aconn: psycopg.AsyncConnection) -> None:
    ids = await db.run_async(aconn, calls.defer_jobs([JOB, JOB]))
    assert len(ids) == 2
    assert await db.run_async(aconn, calls_read.get_job_status(ids[0])) is Status.TODO


def a_worker(conn: psycopg.Connection) -> int:
    return db.run(conn, calls.register_worker("w", host="h", pid=1, queues=["default"], concurrency=4))


def test_a_worker_registers_fetches_beats_and_finishes(conn: psycopg.Connection) -> None:
    job_id, waiting = db.run(conn, calls.defer_jobs([JOB, JOB.evolve(priority=-1)]))
    worker_id = a_worker(conn)
    (job,) = db.run(conn, calls.fetch_jobs(worker_id))
    assert (job.id, job.status, job.task_name, job.task_kwargs) == (job_id, Status.DOING, "t", {"a": 1})
    assert (job.attempts, job.worker_id, job.args_error) == (0, worker_id, None)
    assert job.run_id is not None
    assert job.started_at is not None

    verdicts = db.run(conn, calls.heartbeat(worker_id, run_ids=[job.run_id], loop_lag=timedelta(seconds=0.1)))
    assert [(v.run_id, v.verdict) for v in verdicts] == [(job.run_id, "ok")]
    cancelled = db.run(conn, calls_people.cancel_job(job_id, abort=True, reason="why", actor="who"))
    assert cancelled.outcome == "abort_requested"
    assert (cancelled.status_before, cancelled.run_id) == (Status.DOING, job.run_id)
    seen = Observation(job_id=job_id, run_id=job.run_id, handling="handling")
    (verdict,) = db.run(conn, calls.heartbeat(worker_id, run_ids=[job.run_id], observed=[seen]))
    assert (verdict.verdict, verdict.reason, verdict.actor) == ("abort", "why", "who")

    end = RunEnd(job_id=job_id, run_id=job.run_id, outcome="aborted", message="stopped")
    assert db.run(conn, calls.finish_jobs([end])) == [FinishAnswer(job_id, job.run_id, "aborted")]
    assert db.run(conn, calls_people.cancel_job(waiting)).outcome == "cancelled"
    assert db.run(conn, calls.unregister_worker(worker_id)) == "unregistered"
    events = [entry.event for entry in db.run(conn, calls_read.get_job_history(job_id))]
    assert events[0] == "deferred"
    assert "abort requested" in events


def finished(conn: psycopg.Connection, **end: object) -> Job:
    (job_id,) = db.run(conn, calls.defer_jobs([JOB]))
    (job,) = db.run(conn, calls.fetch_jobs(a_worker(conn)))
    assert job.run_id is not None
    run_end = RunEnd(job_id=job_id, run_id=job.run_id, **end)  # type: ignore[arg-type]
    db.run(conn, calls.finish_jobs([run_end]))
    return db.run(conn, calls_read.get_job(job_id))


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"x": "a\0b"}, "hold a NUL or a lone surrogate at x"),
        (["\ud800"], r"hold a NUL or a lone surrogate at \[0\]"),
        (float("nan"), "hold NaN or Infinity"),
        (object(), "hold a object"),
        ("x" * (1024 * 1024 + 1), "1 MiB"),
        ({1: 2}, "have a key that is a int, not a str"),
    ],
)
def test_a_result_that_is_no_json_is_left_out_and_the_message_says_so(
    result: object, said: str, conn: psycopg.Connection
) -> None:
    job = finished(conn, outcome="succeeded", result=result, message="done")
    assert job.status is Status.SUCCEEDED
    assert job.result is None
    assert job.message is not None
    assert re.search(rf"^done; result not stored: its contents .*{said}", job.message)


def test_a_result_is_stored(conn: psycopg.Connection) -> None:
    assert finished(conn, outcome="succeeded", result={"n": [1, "é", None]}).result == {"n": [1, "é", None]}


def test_text_that_postgresql_cant_hold_never_keeps_a_job_from_finishing(conn: psycopg.Connection) -> None:
    job = finished(
        conn, outcome="failed", message="m\0\ud800" + "x" * 5000, error="e\0\udfff" + "y" * 50_000 + "end"
    )
    assert job.status is Status.FAILED
    assert job.message is not None
    assert job.error is not None
    assert job.message.startswith("m\ufffd\ufffd")
    assert len(job.message) == arguments.MAX_MESSAGE
    assert len(job.error) == arguments.MAX_ERROR
    assert job.error.endswith("end")


def test_a_retry_that_the_database_would_refuse_is_tamed(conn: psycopg.Connection) -> None:
    job = finished(
        conn,
        outcome="failed",
        retry_at=datetime(1, 1, 1, tzinfo=UTC),
        retry_queue="q\0",
        retry_lock="",
        retry_priority=2**40,
    )
    assert job.status is Status.TODO
    assert (job.queue, job.lock, job.priority, job.attempts) == ("default", None, 0, 1)


def test_relative_times_are_sent_as_they_are_for_the_database_to_add() -> None:
    encoded = json.loads(calls.encode_job(JOB.evolve(scheduled_in=timedelta(hours=1, microseconds=1))))
    assert encoded["scheduled_in"] == "1 hours 0.000001 seconds"
    assert "scheduled_at" not in encoded
    call = calls.finish_jobs([RunEnd(job_id=1, run_id=1, outcome="failed", retry_in=timedelta(minutes=5))])
    (sent,) = json.loads(str(call.params["runs"]))
    assert sent["retry_in"] == "0 hours 300.000000 seconds"
    assert "retry_at" not in sent


@pytest.mark.parametrize("style", ["postgres", "postgres_verbose", "sql_standard", "iso_8601"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    "length",
    [
        timedelta(0),
        timedelta(microseconds=1),
        timedelta(seconds=0.5),
        timedelta(minutes=59, seconds=59, microseconds=999999),
        timedelta(hours=1, microseconds=1),
        timedelta(days=100 * 365, microseconds=1),
        timedelta(days=200_000 * 365),
    ],
)
def test_the_database_reads_an_interval_to_the_microsecond(
    conn: psycopg.Connection, style: str, sign: int, length: timedelta
) -> None:
    conn.execute(f"SET intervalstyle = {style}".encode())
    row = conn.execute(
        "SELECT extract(epoch FROM v) * 1000000, extract(day FROM v) FROM CAST(%s AS interval) AS v",
        [checks.as_interval(sign * length)],
    ).fetchone()
    assert row == (sign * length // timedelta(microseconds=1), 0)


@pytest.mark.parametrize(
    ("wait", "waiting_for"),
    [
        (timedelta(0), None),
        (timedelta(hours=-1), None),
        (timedelta.min, None),
        (timedelta(hours=1), "schedule"),
        (timedelta.max, "schedule"),
    ],
)
def test_a_wait_before_a_retry_counts_by_the_database_and_is_never_refused(
    conn: psycopg.Connection, wait: timedelta, waiting_for: str | None
) -> None:
    job = finished(conn, outcome="failed", retry_in=wait)
    assert (job.status, job.waiting_for) == (Status.TODO, waiting_for)


def test_arguments_that_python_cant_read_come_as_args_error(conn: psycopg.Connection) -> None:
    conn.execute("SELECT pljobs.defer_job('huge', jsonb_build_object('n', repeat('9', 6000)::numeric))")
    conn.execute("SELECT pljobs.defer_job('fine', '{\"n\": 1}')")
    huge, fine = db.run(conn, calls.fetch_jobs(a_worker(conn), max_jobs=2))
    assert huge.task_kwargs == {}
    assert huge.args_error == "the arguments can't be read: ValueError"
    assert (fine.task_kwargs, fine.args_error) == ({"n": 1}, None)
    assert [job.task_name for job in db.run(conn, calls_read.list_jobs(JobFilter()))] == ["huge", "fine"]


def test_own_loads_are_used_and_may_fail() -> None:
    assert arguments.decode_arguments('{"a": 1}', lambda text: {"read": text}) == ({"read": '{"a": 1}'}, None)
    assert arguments.decode_arguments("{}", lambda _: [])[1] == (
        "the arguments can't be read: json_loads made a list of them"
    )
    assert arguments.decode_arguments("{}", lambda _: 1 / 0)[1] == (
        "the arguments can't be read: ZeroDivisionError"
    )
    assert arguments.decode_result("[1]", lambda _: 1 / 0) == "[1]"


SECRET = "hunter2"


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"a": {"b": [1, {SECRET}]}}, "hold a set at a.b[1]"),
        ({"a": float("inf"), "b": SECRET}, "hold NaN or Infinity at a"),
        ({"a": SECRET + "\0"}, "hold a NUL or a lone surrogate at a"),
        ({"a": [SECRET + "\ud800"]}, "hold a NUL or a lone surrogate at a[0]"),
        ({"a": {1: SECRET}}, "have a key that is a int, not a str, at a"),
        ({"a\0": SECRET}, "have a key with a NUL or a lone surrogate at the top"),
        ({"a": SECRET * 200_000}, "have 1400009 bytes as JSON; at most 1048576 (1 MiB) can be stored"),
        ({"a": 10**5000}, "can't be written as JSON (ValueError)"),
        ([SECRET], "are a list, not a mapping"),
    ],
)
def test_arguments_that_cant_be_stored_are_refused_and_not_shown(kwargs: Any, said: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        calls.encode_job(JOB.evolve(task_name="my\ntask", task_kwargs=kwargs))
    message = str(caught.value)
    assert message.startswith(r"task 'my\ntask': the arguments ")
    assert said in message
    assert SECRET not in message
    assert caught.value.__cause__ is None


def test_arguments_nested_too_deep_or_holding_themselves_are_refused() -> None:
    loop: dict[str, object] = {}
    loop["again"] = loop
    with pytest.raises(InvalidJob, match="nested more than 200 levels deep"):
        calls.encode_job(JOB.evolve(task_kwargs=loop))


def test_a_mebibyte_of_arguments_is_accepted_whatever_the_script(conn: psycopg.Connection) -> None:
    for text in ("x" * (1024 * 1024 - 9), "é" * ((1024 * 1024 - 9) // 2)):
        (job_id,) = db.run(conn, calls.defer_jobs([JOB.evolve(task_kwargs={"a": text})]))
        assert db.run(conn, calls_read.get_job(job_id)).task_kwargs == {"a": text}
    with pytest.raises(InvalidJob):
        calls.encode_job(JOB.evolve(task_kwargs={"a": "x" * (1024 * 1024)}))


@pytest.mark.parametrize(
    ("dumps", "said"),
    [
        (lambda _: 1 / 0, r"can't be written as JSON by json_dumps \(ZeroDivisionError\)"),
        (lambda _: "nonsense", "are no JSON once json_dumps is done with them"),
        (lambda _: '{"a": NaN}', "hold NaN or Infinity"),
        (lambda _: '"text"', "are not a JSON object once json_dumps is done with them"),
        (lambda _: '{"a": "\\u0000"}', "hold a NUL or a lone surrogate at a"),
        (lambda _: b"\xff", "are no JSON once json_dumps is done with them"),
        (lambda _: '{"a": 1e400}', "hold a number that is larger than any float"),
        (lambda _: '{"a": 1e-16384}', "more than 16383 decimals"),
        (lambda _: '{"a": 0e-999999999}', "more than 16383 decimals"),
    ],
)
def test_what_own_dumps_make_is_checked_too(dumps: Any, said: str) -> None:
    with pytest.raises(InvalidJob, match=said):
        calls.encode_job(JOB, dumps)


def test_own_dumps_may_return_bytes_and_know_more_types(conn: psycopg.Connection) -> None:
    def dumps(value: object) -> bytes:
        return json.dumps(value, default=str, ensure_ascii=False).encode()

    job = JOB.evolve(task_kwargs={"at": TICK, "name": "é"})
    (job_id,) = db.run(conn, calls.defer_jobs([job], dumps=dumps))
    stored = db.run(conn, calls_read.get_job(job_id)).task_kwargs
    assert stored == {"at": str(TICK), "name": "é"}


@pytest.mark.parametrize(
    "number",
    ["0.12345678901234567890123", "-12345678901234567890.5", "1." + "0" * 16_382 + "1", "0.10"],
)
def test_numbers_that_own_dumps_write_keep_their_digits(conn: psycopg.Connection, number: str) -> None:
    text = f'{{"a": {{"b": [{number}, 1, 1.5e3, 0e99999, true, null, "é"]}}}}'
    (job_id,) = db.run(conn, calls.defer_jobs([JOB], dumps=lambda _: text))
    loads = partial(json.loads, parse_float=Decimal)
    stored = db.run(conn, calls_read.get_job(job_id, loads=loads)).task_kwargs
    expected = [Decimal(number), 1, Decimal(1500), 0, True, None, "é"]
    assert stored == {"a": {"b": expected}}
    assert number in json.dumps(stored, default=str)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task_name": ""}, "the name of the task must have 1 to 255 characters, not 0"),
        ({"queue": "x" * 256}, "queue must have 1 to 255 characters, not 256"),
        ({"lock": "a\0"}, "lock holds a NUL or a lone surrogate"),
        ({"queueing_lock": "\ud800"}, "queueing_lock holds a NUL or a lone surrogate"),
        ({"queue": 3}, "queue must be text, not int"),
        ({"priority": 2**31}, "priority must fit into 32 bits"),
        ({"priority": True}, "priority must be an int, not bool"),
        ({"priority": 1.5}, "priority must be an int, not float"),
        ({"scheduled_at": datetime(2030, 1, 1)}, "schedule_at must be timezone-aware"),  # noqa: DTZ001
        ({"scheduled_at": "soon"}, "schedule_at must be a datetime, not str"),
    ],
)
def test_a_job_that_cant_be_is_refused_at_the_door(change: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidJob, match=said):
        calls.encode_job(JOB.evolve(**change))


def test_names_of_255_odd_characters_are_accepted(conn: psycopg.Connection) -> None:
    odd = "'\"; DROP TABLE x; --\n\t\\é\U0001f431%s%(a)s{}$$"
    odd += "\U0001f431" * (255 - len(odd))
    job = JOB.evolve(task_name=odd, queue=odd, lock=odd, queueing_lock=odd)
    (job_id,) = db.run(conn, calls.defer_jobs([job]))
    stored = db.run(conn, calls_read.get_job(job_id))
    assert (stored.task_name, stored.queue, stored.lock, stored.queueing_lock) == (odd, odd, odd, odd)
    chosen = JobFilter(queue=odd, task=odd, lock=odd, queueing_lock=odd)
    assert [job.id for job in db.run(conn, calls_read.list_jobs(chosen))] == [job_id]


@pytest.mark.parametrize("bad", ["33", None, 3.0, True])
def test_an_id_is_an_int(bad: Any) -> None:
    for ask in (calls_people.cancel_job, calls_people.delete_job, calls_people.retry_job, calls_read.get_job):
        with pytest.raises(TypeError, match="job_id must be an int, not"):
            ask(bad)


def test_an_id_out_of_range_is_refused_and_a_negative_one_unknown(
    conn: psycopg.Connection,
) -> None:
    with pytest.raises(InvalidArgument):
        calls_people.cancel_job(2**63)
    assert db.run(conn, calls_people.cancel_job(-1)).outcome == "not_found"


def test_an_unknown_status_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="no such status: 'done'; there are todo, doing"):
        calls_read.list_jobs(JobFilter(status="done"))
