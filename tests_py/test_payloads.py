"""What JSON, text and PostgreSQL don't agree on: refused at the door and named, or stored as it was."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import psycopg
import pytest

from pljobs import App, JobContext, calls, calls_people, db, exceptions
from pljobs.answers import RunEnd
from pljobs.arguments import MAX_BYTES, MAX_DEPTH
from pljobs.jobs import Job
from workers import DEADLINE, job, until
from workers import running as running_worker

Conn = psycopg.AsyncConnection[Any]

# What is around a value as an argument: {"value": ...}.
AROUND = len('{"value": ""}')


def nested(levels: int) -> object:
    """Return lists in lists; in the arguments' own object they are one level deeper."""
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


EXACT: dict[str, object] = {
    "nothing": None,
    "true and one": [True, 1, False, 0],
    "empty": ["", [], {}, {"": {"": ""}}],
    "0.1": [0.1, 1 / 3, 1.0, -1.5, 1e-7],
    "the largest and smallest floats": [1.7976931348623157e308, -1.7976931348623157e308, 5e-324],
    "floats without a fraction": [1e15, 1e16, 1e22, 1e23, -1e23, 2.0**53, 2.0**1023],
    "floats in keys and text": {"1e+23": "1e+23", '"1e+23': '\\"1e+23, "'},
    "numbers past 2**53 and 2**63": [2**53 + 1, 2**63, -(2**64) - 1, 10**400],
    "4,299 digits": 10**4299 - 1,
    "backslashes and quotes": "\\u0000 \\\\ \" ' \\' $$ %s %(a)s {0} \\x00 \ufffe",
    "control characters": "".join(chr(n) for n in range(1, 160)),
    "not normalized": ["e\u0301", "\u00e9", "\u1e9b\u0323", "\u212b"],
    "outside of the first plane": "\U0001f431\U0010ffff\ud7ff\ue000\u202e\u2028",
    "keys that differ in case or accents": {"a": 1, "A": 2, "\u00e9": 3, "e\u0301": 4},
    "keys out of order": {"z": 1, "a": {"y": 1, "b": 2}},
    "1,000 keys": {str(n): n for n in range(1000)},
    "as deep as can be": nested(MAX_DEPTH - 1),
    "1 MiB": "x" * (MAX_BYTES - AROUND),
    "1 MiB of two bytes a character": "\u00e9" * ((MAX_BYTES - AROUND) // 2),
}


class OddFloat(float):
    def __repr__(self) -> str:
        return "NaN"


class OddStr(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "\0"


class HostileDict(dict[str, object]):
    def items(self) -> Any:
        raise RuntimeError("no items")


REFUSED: dict[str, tuple[object, str]] = {
    "NUL": ({"deep": ["a\0"]}, "hold a NUL or a lone surrogate at {}deep[0]"),
    "NUL in a key": ({"a": {"\0": 1}}, "have a key with a NUL or a lone surrogate at {}a"),
    "high surrogate": (["\ud83d"], "hold a NUL or a lone surrogate at {}[0]"),
    "low surrogate": (["\udc31"], "hold a NUL or a lone surrogate at {}[0]"),
    "surrogates in the wrong order": (["\udc31\ud83d"], "hold a NUL or a lone surrogate at {}[0]"),
    # Python never joins them; a JSON decoder would.
    "a pair of surrogates": (["\ud83d\udc31"], "hold a NUL or a lone surrogate at {}[0]"),
    "NaN": ([1, math.nan], "hold NaN or Infinity at {}[1]"),
    "infinity": ({"a": math.inf}, "hold NaN or Infinity at {}a"),
    "minus infinity": ({"a": -math.inf}, "hold NaN or Infinity at {}a"),
    "a number as a key": ({"a": {1: 2}}, "have a key that is a int, not a str, at {}a"),
    "None as a key": ({"a": {None: 2}}, "have a key that is a NoneType, not a str, at {}a"),
    "bytes": ({"a": b"x"}, "hold a bytes at {}a"),
    "a set": ({"a": {1}}, "hold a set at {}a"),
    "an object": ({"a": object()}, "hold a object at {}a"),
    "too many digits": ({"a": 10**5000}, "can't be written as JSON (ValueError)"),
    "one level too deep": (nested(MAX_DEPTH + 1), "are nested more than 200 levels deep"),
    "20,000 levels": (nested(20_000), "are nested more than 200 levels deep"),
    "1 MiB and a byte": ("x" * (MAX_BYTES + 1), "at most 1048576 (1 MiB) can be stored"),
    "floats that get long": ([1.7e308] * 4000, "at most 1048576 (1 MiB) can be stored"),
}


@pytest.fixture
def echoing(app: App) -> App:
    """The app, with a task that returns what it is given, and one that returns what it is told by name."""

    @app.task(name="echo")
    async def echo(value: object) -> object:
        return value

    @app.task(name="produce")
    async def produce(name: str) -> object:
        return REFUSED[name][0]

    return app


async def run_out(app: App) -> None:
    """Run a worker until no job is left."""
    async with asyncio.timeout(DEADLINE):
        await app.run_worker_async(wait=False, install_signal_handlers=False, concurrency=10)


def typed(value: object) -> str:
    """Return a value so that 1, 1.0 and True differ, and the order of keys doesn't matter."""
    return json.dumps(value, sort_keys=True)


async def test_what_json_can_hold_comes_to_the_task_and_back_as_it_was(echoing: App, aconn: Conn) -> None:
    given = {await echoing.configure_task("echo").defer_async(value=EXACT[name]): name for name in EXACT}
    await run_out(echoing)
    for job_id, name in given.items():
        found = await echoing.job_manager.get_job_async(job_id)
        assert (found.status, found.message) == ("succeeded", None), name
        assert typed(found.task_kwargs["value"]) == typed(EXACT[name]), f"{name}: as an argument"
        assert typed(found.result) == typed(EXACT[name]), f"{name}: as a result"


async def test_what_it_cant_hold_is_refused_as_an_argument_with_what_and_where(
    echoing: App, aconn: Conn
) -> None:
    echo = echoing.configure_task("echo")
    for name, (value, said) in REFUSED.items():
        path = said.format("value" if "{}[" in said else "value.")
        with pytest.raises(exceptions.InvalidJob) as caught:
            await echo.defer_async(value=value)
        assert path in str(caught.value), name
        assert str(caught.value).startswith("task 'echo': the arguments "), name
        assert len(str(caught.value)) < 300, name
    assert await _count(aconn) == 0


async def test_what_it_cant_hold_is_left_out_as_a_result_and_the_job_has_succeeded(
    echoing: App, aconn: Conn
) -> None:
    produce = echoing.configure_task("produce")
    given = {await produce.defer_async(name=name): name for name in REFUSED}
    await run_out(echoing)
    for job_id, name in given.items():
        found = await job(aconn, job_id)
        said = REFUSED[name][1].format("")
        assert (found["status"], found["result"]) == ("succeeded", None), name
        assert found["message"].startswith("result not stored: its contents "), name
        assert said in found["message"], name


@pytest.mark.parametrize("value", [HostileDict(a=1), [OddFloat(1.5)], {"a": OddStr("x")}, (1, 2)])
async def test_a_value_of_an_odd_class_is_stored_as_json_sees_it_or_refused(
    echoing: App, aconn: Conn, value: object
) -> None:
    try:
        job_id = await echoing.configure_task("echo").defer_async(value=value)
    except exceptions.InvalidJob:
        assert isinstance(value, HostileDict)
        return
    stored = (await echoing.job_manager.get_job_async(job_id)).task_kwargs["value"]
    assert stored == json.loads(json.dumps(value))


async def test_a_mebibyte_is_the_limit_to_the_byte_in_the_driver_and_in_the_database(
    app: App, aconn: Conn
) -> None:
    fits, too_long = "x" * (MAX_BYTES - AROUND), "x" * (MAX_BYTES - AROUND + 1)
    await aconn.execute("SELECT pljobs.defer_job('t', jsonb_build_object('value', %s::text))", [fits])
    with pytest.raises(psycopg.Error, match="args have 1048577 bytes") as refused:
        await aconn.execute("SELECT pljobs.defer_job('t', jsonb_build_object('value', %s::text))", [too_long])
    assert refused.value.sqlstate == "PJ002"
    with pytest.raises(exceptions.InvalidJob, match="have 1048577 bytes"):
        calls.encode_job(Job(task_name="t", task_kwargs={"value": too_long}))


# From psql or another driver


async def test_depth_that_python_cant_read_fails_its_own_job_only(app: App, aconn: Conn) -> None:
    ran = []

    @app.task(name="t")
    async def task(a: object) -> None:
        ran.append(a)

    ids = {}
    for depth in (10, 199, 200, 201, 1_000, 5_000, 20_000):
        encoded = '{"a": ' + "[" * depth + "]" * depth + "}"
        try:
            cursor = await aconn.execute("SELECT pljobs.defer_job('t', %s::jsonb)", [encoded])
        except psycopg.errors.StatementTooComplex:
            assert depth >= 5_000
            continue
        found = await cursor.fetchone()
        assert found is not None
        ids[depth] = found[0]
    assert set(ids) >= {10, 199, 200, 201, 1_000}
    await run_out(app)
    for depth, job_id in ids.items():
        # Not the row: psycopg can't read it either.
        cursor = await aconn.execute("SELECT status, message FROM pljobs.jobs WHERE id = %s", [job_id])
        status, message = await cursor.fetchone() or (None, None)
        if status == "failed":
            assert (depth >= 1_000, message) == (True, "the arguments can't be read: RecursionError")
        else:
            assert (depth <= 5_000, status) == (True, "succeeded")


async def test_of_a_key_given_twice_the_last_counts(app: App, aconn: Conn) -> None:
    cursor = await aconn.execute("""SELECT pljobs.defer_job('t', '{"a": 1, "a": 2}')""")
    found = await cursor.fetchone()
    assert found is not None
    assert (await app.job_manager.get_job_async(found[0])).task_kwargs == {"a": 2}


@pytest.mark.parametrize(
    "value", ['"\\u0000"', '"\\ud800"', "NaN", "Infinity", "-Infinity", '"\\udc00\\ud800"']
)
async def test_postgresql_itself_refuses_what_is_no_json_of_its_own(aconn: Conn, value: str) -> None:
    with pytest.raises(psycopg.errors.DataError):
        await aconn.execute(
            "SELECT pljobs.defer_jobs_v1(%s::jsonb)", [f'[{{"task": "t", "args": {{"a": {value}}}}}]']
        )
    assert await _count(aconn) == 0


# Text around jobs

HOSTILE = "\0\ud800\udc00\udfff\x1b[2J\u202e'; DROP TABLE pljobs.job; -- %s {} \\ \r\n" + "x" * 50_000


async def test_hostile_text_in_a_tasks_progress_log_and_error_ends_it_all_the_same(
    app: App, aconn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest's own log handler can't print all of this, and makes that a failure of the test.
    monkeypatch.setattr("_pytest.logging.LogCaptureHandler.handleError", lambda *_: None)
    import logging

    @app.task(name=f"hostile {HOSTILE[4:200]}", pass_context=True)
    def hostile(context: JobContext, kind: str) -> None:
        logging.getLogger("t").error(HOSTILE, extra={"hostile": HOSTILE})
        context.progress(0.5, HOSTILE)
        error = ValueError(HOSTILE)
        error.add_note(HOSTILE)
        if kind == "cause":
            raise error from KeyError(HOSTILE)
        if kind == "group":
            raise ExceptionGroup(HOSTILE, [error] * 300)
        if kind == "deep":
            for _ in range(500):
                error, error.__cause__ = ValueError(HOSTILE), error
            raise error
        exec(compile(f"raise ValueError({HOSTILE[:9]!a})", f"{HOSTILE[4:90]}.py", "exec"))

    kinds = ["cause", "group", "deep", "source"]
    ids = [await hostile.defer_async(kind=kind) for kind in kinds]
    await run_out(app)
    for job_id, kind in zip(ids, kinds, strict=True):
        found = await job(aconn, job_id)
        assert found["status"] == "failed", kind
        assert len(found["message"]) <= 1000, kind
        assert len(found["error"]) <= 16_384, kind
        assert "\ufffd" in found["message"], kind
        assert found["progress"] == 0.5, kind


async def test_hostile_reasons_and_actors_are_refused_or_told_as_they_are(app: App, aconn: Conn) -> None:
    @app.task(name="waits", pass_context=True)
    async def waits(context: JobContext) -> None:
        await asyncio.get_running_loop().create_future()

    said = HOSTILE[4:200]
    for bad in (HOSTILE, "\ud800"):
        with pytest.raises(exceptions.InvalidArgument, match="reason holds a NUL or a lone surrogate"):
            calls_people.cancel_job(1, reason=bad)
        with pytest.raises(exceptions.InvalidArgument, match="actor holds a NUL or a lone surrogate"):
            calls_people.cancel_job(1, actor=bad)
    async with running_worker(app):
        job_id = await waits.defer_async()
        await until(aconn, job_id, "doing")
        await app.job_manager.cancel_job_by_id_async(
            job_id, abort=True, reason=said + "x" * 10_000_000, actor=said
        )
        await until(aconn, job_id, "aborted")
    found = await (
        await aconn.execute("SELECT reason, actor FROM pljobs.requests WHERE job_id = %s", [job_id])
    ).fetchone()
    assert found is not None
    assert found[0] == (said + "x" * 1000)[:1000]
    assert found[1] == said


def test_a_retry_into_names_that_cant_be_stays_where_it_was(conn: psycopg.Connection) -> None:
    for bad in ("", "x" * 256, "a\0", "\ud800"):
        (job_id,) = db.run(conn, calls.defer_jobs([Job(task_name="t")]))
        worker = db.run(conn, calls.register_worker("w", host="h", pid=1))
        (run,) = db.run(conn, calls.fetch_jobs(worker))
        end = RunEnd(
            job_id=job_id, run_id=run.run_id or 0, outcome="failed", message=HOSTILE, error=HOSTILE,
            retry_in=calls.LONGEST_WAIT, retry_queue=bad, retry_lock=bad,
        )  # fmt: skip
        assert [answer.status for answer in db.run(conn, calls.finish_jobs([end]))] == ["todo"]


async def _count(aconn: Conn) -> int:
    found = await (await aconn.execute("SELECT count(*) FROM pljobs.job")).fetchone()
    assert found is not None
    return int(found[0])


async def test_an_error_that_is_nested_deeper_than_can_be_recursed_or_cant_be_looked_at_ends_its_job(
    app: App, aconn: Conn
) -> None:
    class OddError(Exception):
        @property
        def __cause__(self) -> BaseException | None:  # type: ignore[override]
            raise RuntimeError("no cause")

    @app.task(name="nested")
    async def nested(kind: str) -> None:
        errors = {
            "leaf": ValueError("leaf"),
            "sql": psycopg.errors.QueryCanceled("a"),
            "odd": OddError("odd"),
        }
        error: Exception = errors[kind]
        for _ in range(0 if kind == "odd" else 3000):
            error = ExceptionGroup("one", [error])
        raise error

    kinds = ["leaf", "sql", "odd"]
    ids = [await nested.defer_async(kind=kind) for kind in kinds]
    await run_out(app)
    found = [await job(aconn, job_id) for job_id in ids]
    assert [each["status"] for each in found] == ["failed"] * 3
    assert found[0]["message"].startswith("ExceptionGroup: one")
    assert found[2]["message"].startswith("OddError")
