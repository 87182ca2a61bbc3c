"""Blueprints: names, aliases and namespaces of tasks."""

from __future__ import annotations

import pytest

from pljobs import App, Blueprint
from pljobs.exceptions import InvalidArgument, TaskAlreadyRegistered, UnboundTaskError
from pljobs.tasks import AnyTask


def declare(blueprint: Blueprint, name: str, *aliases: str) -> AnyTask:
    @blueprint.task(name=name, aliases=aliases)
    def task() -> None: ...

    return task


def test_the_tasks_of_a_blueprint_get_its_namespace() -> None:
    app, cats = App(""), Blueprint()
    feed = declare(cats, "feed", "give_food")
    app.add_tasks_from(cats, namespace="cats")
    assert app.tasks == {"cats:feed": feed, "cats:give_food": feed}
    assert (feed.name, feed.aliases) == ("cats:feed", ["cats:give_food"])
    assert feed.configure().job.task_name == "cats:feed"


def test_namespaces_nest_and_only_an_app_binds() -> None:
    app, animals, cats = App(""), Blueprint(), Blueprint()
    feed = declare(cats, "feed")
    animals.add_tasks_from(cats, namespace="cats")
    with pytest.raises(UnboundTaskError):
        feed.configure()
    app.add_tasks_from(animals, namespace="animals")
    assert feed.name == "animals:cats:feed"
    assert feed.configure().job.task_name == "animals:cats:feed"
    assert app.tasks == {"animals:cats:feed": feed}


def test_a_blueprint_may_be_added_to_one_app_after_the_other() -> None:
    cats = Blueprint()
    feed = declare(cats, "feed")
    first, second = App(""), App("")
    for app in (first, second):
        app.add_tasks_from(cats, namespace="cats")
        assert app.tasks == {"cats:feed": feed}
    assert feed.blueprint is second


def test_a_taken_name_or_alias_is_refused_and_nothing_is_added() -> None:
    app, cats = App(""), Blueprint()
    declare(app, "cats:two")
    declare(cats, "one")
    declare(cats, "two")
    with pytest.raises(TaskAlreadyRegistered, match="cats:two"):
        app.add_tasks_from(cats, namespace="cats")
    assert list(app.tasks) == ["cats:two"]
    with pytest.raises(TaskAlreadyRegistered):
        declare(cats, "one")
    with pytest.raises(TaskAlreadyRegistered):
        declare(cats, "three", "one")
    with pytest.raises(TaskAlreadyRegistered):
        declare(cats, "four", "four")
    assert list(cats.tasks) == ["one", "two"]


def test_a_namespace_that_makes_a_name_too_long_is_refused() -> None:
    app, cats = App(""), Blueprint()
    declare(cats, "x" * 250)
    with pytest.raises(InvalidArgument):
        app.add_tasks_from(cats, namespace="namespace")
    with pytest.raises(InvalidArgument):
        app.add_tasks_from(cats, namespace="")
    assert app.tasks == {}


def test_an_alias_is_added_later_and_follows_into_the_app() -> None:
    app, cats = App(""), Blueprint()
    feed = declare(cats, "feed")
    cats.add_task_alias(feed, "old")
    app.add_tasks_from(cats, namespace="cats")
    app.add_task_alias(feed, "older:name")
    assert set(app.tasks) == {"cats:feed", "cats:old", "older:name"}
    with pytest.raises(TaskAlreadyRegistered):
        app.add_task_alias(feed, "cats:old")


def test_periodic_tasks_come_along() -> None:
    app, cats = App(""), Blueprint()

    @cats.periodic(cron="0 * * * *", periodic_id="p")
    @cats.task(name="feed")
    def feed(timestamp: int) -> None: ...

    app.add_tasks_from(cats, namespace="cats")
    (periodic,) = app.periodic_registry
    assert periodic.task is feed
    assert periodic.task.name == "cats:feed"


def test_periodic_tasks_come_along_once_and_what_is_refused_changes_nothing() -> None:
    app, cats = App(""), Blueprint()

    @cats.periodic(cron="0 * * * *")
    @cats.task(name="feed", aliases=["old"])
    def feed(timestamp: int) -> None: ...

    app.add_tasks_from(cats, namespace="one")
    with pytest.raises(TaskAlreadyRegistered, match="task one:feed is periodic already"):
        app.add_tasks_from(cats, namespace="two")
    assert set(app.tasks) == {"one:feed", "one:old"}
    assert (feed.name, feed.aliases) == ("one:feed", ["one:old"])
    assert len(app.periodic_registry) == 1
