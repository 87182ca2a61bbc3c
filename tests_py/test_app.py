"""The app: opening and closing, tasks by name, connectors replaced, workers started."""

from __future__ import annotations

import asyncio
import sys
import types
from collections.abc import Coroutine
from typing import Any

import pytest

from conftest import Databases
from pljobs import App, JobManager, PsycopgConnector, Status, SyncPsycopgConnector
from pljobs.exceptions import (
    AppNotOpen,
    DatabaseUnavailable,
    InvalidArgument,
    LoadFromPathError,
    TaskNotFound,
)
from waiting import wait_until_async
from workers import DEADLINE, NOTIFIED, running


def noop() -> None: ...


@pytest.mark.parametrize("connector", [PsycopgConnector, SyncPsycopgConnector])
def test_a_connector_or_its_conninfo_makes_an_app(db_url: str, connector: type[PsycopgConnector]) -> None:
    for app in (App(connector=connector(db_url)), App(connector=connector(conninfo=db_url)), App(db_url)):
        with app.open() as opened:
            assert opened is app
            assert app.check_connection() is True
        with pytest.raises(AppNotOpen):
            app.check_connection()


def test_open_and_close_may_be_called_twice(db_url: str) -> None:
    app = App(db_url)
    app.close()
    app.open()
    app.open()
    assert app.check_connection() is True
    app.close()
    app.close()
    assert not app.connector.is_open


async def test_open_async_is_awaited_or_entered(db_url: str) -> None:
    app = App(db_url)
    assert await app.open_async() is app
    assert await app.check_connection_async() is True
    await app.close_async()
    with pytest.raises(AppNotOpen):
        await app.check_connection_async()
    async with app.open_async() as opened:
        assert opened is app
        assert await app.check_connection_async() is True
    assert not app.connector.is_open


def test_check_connection_tells_a_database_without_the_schema(empty_db_url: str) -> None:
    with App(empty_db_url).open() as app:
        assert app.check_connection() is False


async def test_opening_tells_at_once_where_nobody_answers(tmp_path: Any) -> None:
    app = App(f"postgresql:///nowhere?host={tmp_path}")
    with pytest.raises(DatabaseUnavailable, match="No such file or directory"):
        app.open()
    with pytest.raises(DatabaseUnavailable, match="No such file or directory"):
        await app.open_async()
    assert not app.connector.is_open
    with pytest.raises(AppNotOpen):
        app.check_connection()


def test_a_task_is_configured_by_its_name_with_its_own_defaults(db_url: str) -> None:
    app = App(db_url)
    app.task(name="known", queue="q", aliases=["alias"])(noop)
    with app.open():
        jobs = [
            app.job_manager.get_job(app.configure_task(name).defer(a=1))
            for name in ("known", "alias", "unknown")
        ]
    assert [(job.task_name, job.queue) for job in jobs] == [
        ("known", "q"),
        ("known", "q"),
        ("unknown", "default"),
    ]
    deferrer = app.configure_task(name="unknown", queue="q2", priority=3, lock="l", task_kwargs={"a": 1})
    assert (deferrer.job.queue, deferrer.job.priority, deferrer.job.lock) == ("q2", 3, "l")
    with pytest.raises(TaskNotFound, match="'unknown'"):
        app.configure_task("unknown", allow_unknown=False)


def test_import_paths_are_imported_when_a_name_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    app = App("", import_paths=["made_up_tasks"])
    with pytest.raises(LoadFromPathError, match="made_up_tasks, of import_paths"):
        app.configure_task("late", allow_unknown=False)
    monkeypatch.setitem(sys.modules, "made_up_tasks", types.ModuleType("made_up_tasks"))
    app.task(name="late")(noop)
    assert app.configure_task("late", allow_unknown=False).job.task_name == "late"


def test_an_app_is_loaded_from_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("made_up")
    module.app, module.other = App(""), 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "made_up", module)
    assert App.from_path("made_up.app") is App.from_path("made_up:app")
    for bad in ("made_up.other", "made_up.nothing", "nowhere_at_all.app", "app", ""):
        with pytest.raises(LoadFromPathError):
            App.from_path(bad)


def test_a_replaced_connector_is_used_until_the_end(db_url: str) -> None:
    app = App("postgresql:///nowhere")
    task = app.task(noop)
    with app.replace_connector(PsycopgConnector(db_url)) as same, same.open():
        assert same is app
        assert task.defer() > 0
    assert not app.connector.is_open


def test_another_app_shares_the_tasks(db_url: str) -> None:
    app = App("postgresql:///nowhere", import_paths=["sys"])
    app.task(name="t")(noop)
    with app.with_connector(PsycopgConnector(db_url)).open() as other:
        assert other.tasks == app.tasks
        assert other.import_paths == app.import_paths
        assert isinstance(other.job_manager, JobManager)


class FakeWorker:
    """Stands where the worker would, to see what it is given."""

    def __init__(self, app: App, **options: object) -> None:
        self.app = app
        self.options = options
        made.append(self)

    async def run(self) -> None:
        assert await self.app.check_connection_async() is True


made: list[FakeWorker] = []


@pytest.fixture
def _fake_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    made.clear()
    module = types.ModuleType("pljobs.worker")
    module.Worker = FakeWorker  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pljobs.worker", module)


@pytest.mark.usefixtures("_fake_worker")
def test_a_worker_gets_the_apps_defaults_and_an_open_app(db_url: str) -> None:
    app = App(db_url, worker_defaults={"concurrency": 3, "name": "default"})
    app.run_worker(name="mine", wait=False)
    assert made[0].options == {"concurrency": 3, "name": "mine", "wait": False}
    assert not app.connector.is_open


@pytest.mark.usefixtures("_fake_worker")
async def test_a_worker_leaves_an_open_app_open(db_url: str) -> None:
    app = App(db_url)
    async with app.open_async():
        await app.run_worker_async()
        assert app.connector.is_open
    with app.open():
        await app.run_worker_async()
        assert app.check_connection() is True


async def test_a_worker_with_a_loop_of_its_own_within_another_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"await app\.run_worker_async"):
        App("").run_worker(wait=False)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_one_process_serves_several_databases_that_know_nothing_of_each_other(
    databases: Databases, template: str
) -> None:
    heard: list[str] = []
    with databases.made("shard_1", template) as one_url, databases.made("shard_2", template) as two_url:
        apps = {"one": App(one_url), "two": App(two_url)}
        for name, app in apps.items():

            @app.task(name="wait", lock="the same lane")
            async def wait(name: str = name) -> None:
                heard.append(f"{name} runs")
                try:
                    await asyncio.get_running_loop().create_future()
                finally:
                    heard.append(f"{name} stops")

        one, two = apps.values()
        async with one.open_async(), two.open_async(), running(one, **NOTIFIED), running(two, **NOTIFIED):
            ids = [await app.configure_task("wait").defer_async() for app in (one, two)]
            assert ids == [1, 1]
            await wait_until_async(lambda: len(heard) == 2, what="both run, in one lane of each")
            await one.job_manager.cancel_job_by_id_async(1, abort=True)
            assert await one.job_manager.wait_for_job_async(1, timeout=DEADLINE) == Status.ABORTED
            assert await two.job_manager.get_job_status_async(1) == Status.DOING
            assert heard[2:] == ["one stops"]


async def test_a_job_is_no_parent_of_what_it_defers_into_another_database(
    databases: Databases, template: str
) -> None:
    with databases.made("shard_1", template) as one_url, databases.made("shard_2", template) as two_url:
        one, two, again = App(one_url), App(two_url), App(one_url)

        @one.task(name="defers")
        async def defers() -> None:
            for app in (two, again):
                await app.configure_task("child").defer_async()

        async with one.open_async(), two.open_async(), again.open_async(), running(one, **NOTIFIED):
            parent = await defers.defer_async()
            assert await one.job_manager.wait_for_job_async(parent, timeout=DEADLINE) == Status.SUCCEEDED
            found = [
                [job.parent_id for job in await app.job_manager.list_jobs_async(task="child")]
                for app in (one, two)
            ]
    assert found == [[parent], [None]]


def test_a_worker_that_its_event_loop_has_dropped_awaits_nothing(db_url: str) -> None:
    async def main() -> Coroutine[object, object, None]:
        working = App(db_url).run_worker_async(install_signal_handlers=False)
        working.send(None)  # as a task's first step
        return working

    loop = asyncio.new_event_loop()
    try:
        working = loop.run_until_complete(main())
        working.close()
    finally:
        loop.close()


def test_aliases_are_a_list_and_not_letters() -> None:
    with pytest.raises(InvalidArgument, match="aliases must be a list"):

        @App("").task(name="t", aliases="abc")
        def task() -> None: ...
