"""A sync and an async method made of one that says what to ask the database, once or in turns."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from pljobs.answers import Call
from pljobs.watching import Key, Seen

if TYPE_CHECKING:
    from pljobs.connector import PsycopgConnector

P = ParamSpec("P")
T = TypeVar("T")


class Asker(Protocol):
    """Be something that has a connector."""

    connector: PsycopgConnector


A = TypeVar("A", bound=Asker)


@dataclasses.dataclass(frozen=True, slots=True)
class Question(Generic[T]):
    """Hold what to ask the database, and in whose transaction (None: one of its own)."""

    call: Call[T]
    connection: object = None

    def ask(self, connector: PsycopgConnector) -> T:
        """Ask, and return the answer."""
        return connector.execute(self.call, connection=self.connection)

    async def ask_async(self, connector: PsycopgConnector) -> T:
        """Ask, and return the answer."""
        return await connector.execute_async(self.call, connection=self.connection)


@dataclasses.dataclass(frozen=True, slots=True)
class Wait:
    """Hold what to wait for, and how many seconds at most (None: for ever)."""

    key: Key
    timeout: float | None

    def ask(self, connector: PsycopgConnector) -> Seen:
        """Wait, and return what was seen."""
        return connector.watches.wait(self.key, self.timeout)

    async def ask_async(self, connector: PsycopgConnector) -> Seen:
        """Wait, and return what was seen."""
        return await connector.watches.wait_async(self.key, self.timeout)


Talk = Generator[Question[Any] | Wait, Any, T]
"""Yields what to ask, is sent the answers, and returns what they come to."""


def twins(
    ask: Callable[Concatenate[A, P], Question[T]],
) -> tuple[Callable[Concatenate[A, P], T], Callable[Concatenate[A, P], Coroutine[Any, Any, T]]]:
    """Return a sync and an async method, named as `ask` without its underscore, and so with `_async`."""

    @functools.wraps(ask)
    def method(self: A, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return ask(self, *args, **kwargs).ask(self.connector)

    @functools.wraps(ask)
    async def method_async(self: A, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await ask(self, *args, **kwargs).ask_async(self.connector)

    return _named(ask, method, method_async)


def talking_twins(
    talk: Callable[Concatenate[A, P], Talk[T]],
) -> tuple[Callable[Concatenate[A, P], T], Callable[Concatenate[A, P], Coroutine[Any, Any, T]]]:
    """Do what `twins` does, for a method that asks more than once; closed at once where asking fails."""

    @functools.wraps(talk)
    def method(self: A, /, *args: P.args, **kwargs: P.kwargs) -> T:
        answer: Any = None
        with contextlib.closing(talk(self, *args, **kwargs)) as turns:
            while True:
                try:
                    step = turns.send(answer)
                except StopIteration as end:
                    return end.value  # type: ignore[no-any-return]
                answer = step.ask(self.connector)

    @functools.wraps(talk)
    async def method_async(self: A, /, *args: P.args, **kwargs: P.kwargs) -> T:
        answer: Any = None
        with contextlib.closing(talk(self, *args, **kwargs)) as turns:
            while True:
                try:
                    step = turns.send(answer)
                except StopIteration as end:
                    return end.value  # type: ignore[no-any-return]
                answer = await step.ask_async(self.connector)

    return _named(talk, method, method_async)


M = TypeVar("M")
N = TypeVar("N")


def _named(ask: Callable[..., object], method: M, method_async: N) -> tuple[M, N]:
    name = ask.__name__.removeprefix("_")
    owner = ask.__qualname__.rpartition(".")[0]
    signature = inspect.signature(ask)
    answer = str(signature.return_annotation).partition("[")[2].removesuffix("]")
    made: list[tuple[Any, str]] = [(method, name), (method_async, f"{name}_async")]
    for twin, twin_name in made:
        twin.__name__ = twin_name
        twin.__qualname__ = f"{owner}.{twin_name}"
        twin.__signature__ = signature.replace(return_annotation=answer)
    return method, method_async
