"""A sync and an async method made of one that says what to ask the database."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from pljobs.answers import Call

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


def twins(
    ask: Callable[Concatenate[A, P], Question[T]],
) -> tuple[Callable[Concatenate[A, P], T], Callable[Concatenate[A, P], Awaitable[T]]]:
    """Return a sync and an async method, named as `ask` without its underscore, and so with `_async`."""

    @functools.wraps(ask)
    def method(self: A, /, *args: P.args, **kwargs: P.kwargs) -> T:
        question = ask(self, *args, **kwargs)
        return self.connector.execute(question.call, connection=question.connection)

    @functools.wraps(ask)
    async def method_async(self: A, /, *args: P.args, **kwargs: P.kwargs) -> T:
        question = ask(self, *args, **kwargs)
        return await self.connector.execute_async(question.call, connection=question.connection)

    name = ask.__name__.removeprefix("_")
    owner = ask.__qualname__.rpartition(".")[0]
    signature = inspect.signature(ask)
    answer = str(signature.return_annotation).removeprefix("Question[").removesuffix("]")
    made: list[tuple[Any, str]] = [(method, name), (method_async, f"{name}_async")]
    for twin, twin_name in made:
        twin.__name__ = twin_name
        twin.__qualname__ = f"{owner}.{twin_name}"
        twin.__signature__ = signature.replace(return_annotation=answer)
    return method, method_async
