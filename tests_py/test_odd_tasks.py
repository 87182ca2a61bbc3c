"""Tasks, results and strategies that misbehave: each costs its own job, and nothing else."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from pljobs import App, BaseRetryStrategy, JobAborted, RetryDecision, arguments
from pljobs.careful import careful_logger
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
        assert found["message"] == (
            f"result not stored: its contents can't be written as JSON ({type(error).__name__})"
        )
        assert (await until(aconn, await app.configure_task("fine").defer_async()))["status"] == "succeeded"


def test_own_encoders_and_decoders_may_raise_anything() -> None:
    def leave(_: object) -> Any:
        raise SystemExit(1)

    assert arguments.encode_result([1], leave)[0] is None
    assert arguments.decode_arguments("{}", leave) == ({}, "the arguments can't be read: SystemExit")
    assert arguments.decode_result("[1]", leave) == "[1]"


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


class NotedError(Exception):
    """Its notes end the process of whoever looks at them."""

    @property
    def __notes__(self) -> Any:  # type: ignore[override]
        raise SystemExit(9)


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[logging.LogRecord]]:
    """Handle records as an application's handler does that formats what it gets, at once."""
    records: list[logging.LogRecord] = []

    class Formats(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)
            self.format(record)

    handler = Formats()
    monkeypatch.setattr("_pytest.logging.LogCaptureHandler.emit", lambda *_: None)
    logging.getLogger("pljobs").addHandler(handler)
    yield records
    logging.getLogger("pljobs").removeHandler(handler)


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_what_logging_raises_is_no_reason_to_leave(
    app: App, aconn: Conn, printed: list[logging.LogRecord], kind: str
) -> None:
    if kind == "async":

        @app.task(name="fails")
        async def fails_async() -> None:
            raise NotedError("no")

    else:

        @app.task(name="fails")
        def fails_sync() -> None:
            raise NotedError("no")

    async with running(app, **NOTIFIED):
        found = await until(aconn, await app.configure_task("fails").defer_async())
        assert (found["status"], found["message"]) == ("failed", "NotedError: no")
        assert any("failed" in record.getMessage() for record in printed)
        found = await until(aconn, await app.configure_task("fails").defer_async())
        assert found["status"] == "failed"


def test_a_careful_logger_lets_through_what_is_no_affair_of_a_job(printed: list[logging.LogRecord]) -> None:
    class Interrupts(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise KeyboardInterrupt

    logger = logging.getLogger("pljobs.tests")
    logger.addFilter(filter_ := Interrupts())
    try:
        with pytest.raises(KeyboardInterrupt):
            careful_logger("pljobs.tests").error("no")
    finally:
        logger.removeFilter(filter_)


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
