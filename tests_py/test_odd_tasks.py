"""Tasks, results and strategies that misbehave: each costs its own job, and nothing else."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from pljobs import App, BaseRetryStrategy, JobAborted, RetryDecision, arguments
from waiting import DEADLINE, wait_until_async
from workers import NOTIFIED, job, running, until

Conn = psycopg.AsyncConnection[Any]


class Lazy(dict[str, object]):
    """A result that is made as it is encoded, and stopped while it is."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(a=1)
        self._error = error

    def items(self) -> Any:
        raise self._error


@pytest.mark.parametrize("error", [JobAborted("enough"), SystemExit(1), asyncio.CancelledError()], ids=repr)
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_what_encoding_a_result_raises_costs_the_result(
    app: App, aconn: Conn, kind: str, error: BaseException
) -> None:
    if kind == "async":

        @app.task(name="lazy")
        async def lazy_async() -> object:
            return Lazy(error)

    else:

        @app.task(name="lazy")
        def lazy_sync() -> object:
            return Lazy(error)

    @app.task(name="fine")
    async def fine() -> int:
        return 1

    ids = [await app.configure_task(name).defer_async() for name in ("lazy", "fine")]
    async with running(app, **NOTIFIED, concurrency=2):
        for job_id in ids:
            assert (await until(aconn, job_id))["status"] == "succeeded"
        found = await job(aconn, ids[0])
        assert found["result"] is None
        assert found["message"] == f"result not stored: {type(error).__name__}"
        assert (await until(aconn, await app.configure_task("fine").defer_async()))["status"] == "succeeded"


def test_own_encoders_and_decoders_may_raise_anything() -> None:
    def leave(_: object) -> Any:
        raise SystemExit(1)

    assert arguments.encode_result([1], leave)[0] is None
    assert arguments.decode_arguments("{}", leave) == ({}, "the arguments can't be read: SystemExit")
    assert arguments.decode_result("[1]", leave) == "[1]"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), JobAborted("enough")], ids=repr)
def test_what_is_said_to_who_defers_is_not_taken_for_its_arguments_fault(error: BaseException) -> None:
    def stopped(_: object) -> Any:
        raise error

    with pytest.raises(type(error)):
        arguments.encode_arguments("t", {"a": 1}, stopped)
    with pytest.raises(type(error)):
        arguments.encode_arguments("t", {"a": Lazy(error)})


DECISIONS: dict[str, Callable[[], object]] = {
    "parentheses forgotten": lambda: RetryDecision,
    "a number": lambda: SimpleNamespace(retry_at=None, retry_in=5, queue=None, priority=None, lock=None),
    "True": lambda: True,
}


@pytest.mark.parametrize("name", DECISIONS)
async def test_a_strategy_that_decides_nonsense_retries_nothing(
    app: App, aconn: Conn, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(BaseRetryStrategy):
        def get_retry_decision(self, **_: Any) -> Any:
            return DECISIONS[name]()

    @app.task(name="fails", retry=Odd())
    async def fails() -> None:
        raise ValueError("no")

    job_id = await fails.defer_async()
    async with running(app, **NOTIFIED):
        found = await until(aconn, job_id)
    assert (found["status"], found["message"]) == ("failed", "ValueError: no")
    assert "The retry strategy of task fails raised" in caplog.text


TENANT = contextvars.ContextVar[str | None]("tenant", default=None)


async def test_what_a_sync_decorator_sets_in_the_context_is_there_in_the_coroutine(
    app: App, aconn: Conn
) -> None:
    async def tenant() -> str | None:
        return TENANT.get()

    @app.task(name="tenant")
    @functools.wraps(tenant, assigned=("__name__",))
    def with_tenant() -> Any:
        TENANT.set("acme")
        return tenant()

    job_id = await app.configure_task("tenant").defer_async()
    async with running(app, **NOTIFIED):
        assert (await until(aconn, job_id))["result"] == "acme"
    assert TENANT.get() is None


class Big:
    """Something to hold on to."""


HELD = contextvars.ContextVar[Big]("held")


async def test_an_idle_thread_holds_nothing_of_its_last_job(app: App, aconn: Conn) -> None:
    kept: list[weakref.ref[Big]] = []

    @app.task(name="holds")
    def holds() -> None:
        big = Big()
        kept.append(weakref.ref(big))
        HELD.set(big)

    async with running(app, **NOTIFIED):
        await until(aconn, await app.configure_task("holds").defer_async())

        def is_gone() -> bool:
            gc.collect()
            return kept[0]() is None

        await wait_until_async(is_gone, what="the context of the job is gone")


class Hostile(type):
    """Makes classes whose name can't be had."""

    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise ValueError("nameless")


async def test_an_exception_that_cant_even_be_named_fails_its_job(app: App, aconn: Conn) -> None:
    class NamelessError(Exception, metaclass=Hostile):
        pass

    @app.task(name="fails")
    async def fails() -> None:
        raise NamelessError

    async with running(app, **NOTIFIED):
        found = await until(aconn, await fails.defer_async())
    assert found["status"] == "failed"
    assert found["message"] == "an exception (it can't be looked at: ValueError)"


# Opening and closing


async def test_who_found_it_open_does_not_close_it(app: App, aconn: Conn, db_url: str) -> None:
    own = App(db_url)
    async with own.open_async():
        async with own.open_async():
            await own.check_connection_async()
        await own.check_connection_async()
    assert not own.connector.is_open_async


async def test_a_block_that_ends_leaves_a_worker_its_app(db_url: str) -> None:
    own = App(db_url)
    worker = asyncio.create_task(own.run_worker_async(install_signal_handlers=False, **NOTIFIED))
    await wait_until_async(lambda: own.connector.is_open_async)
    async with own.open_async():
        await own.check_connection_async()
    await own.check_connection_async()
    worker.cancel()
    async with asyncio.timeout(DEADLINE):
        await asyncio.wait([worker])
    assert not own.connector.is_open_async


def test_who_opens_anew_what_a_loop_has_left_behind_closes_it(db_url: str) -> None:
    own = App(db_url)

    async def leave_open() -> None:
        await own.open_async()

    async def use() -> None:
        async with own.open_async():
            await own.check_connection_async()

    asyncio.run(leave_open())
    assert own.connector.is_open_async
    asyncio.run(use())
    assert not own.connector.is_open_async


async def test_awaited_and_then_entered_it_is_closed(db_url: str) -> None:
    own = App(db_url)
    opening = own.open_async()
    await opening
    async with opening:
        await own.check_connection_async()
    assert not own.connector.is_open_async


async def test_a_cancelled_open_leaves_nothing(db_url: str) -> None:
    own = App(db_url)
    before = asyncio.all_tasks()
    for pause in range(0, 40, 4):
        opening = asyncio.ensure_future(own.connector.open_async())
        await asyncio.sleep(pause / 1000)
        opening.cancel()
        await asyncio.wait([opening])
        await own.close_async()
    await wait_until_async(lambda: asyncio.all_tasks() == before, what="its pool's tasks end")
