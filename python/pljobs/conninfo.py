"""Where to connect to: a conninfo that is refused where it is wrong; its host names, looked up in threads."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import Mapping
from functools import partial
from typing import Any, Self

import psycopg
from psycopg.conninfo import conninfo_to_dict, timeout_from_conninfo
from psycopg.rows import TupleRow

from pljobs import checks, exceptions
from pljobs.threads import in_a_thread

WHERE = {"host": "PGHOST", "hostaddr": "PGHOSTADDR", "port": "PGPORT", "connect_timeout": "PGCONNECT_TIMEOUT"}
"""The settings that say where to connect to, and libpq's variables for them."""
PLACE = {"host", "hostaddr", "port", "dbname", "service"}
"""The settings that say which database it is."""


def refuse_unfit(conninfo: str) -> None:
    """Raise `InvalidArgument` for what is no conninfo, without showing it: it may hold a password."""
    if not checks.is_storable(conninfo):
        raise exceptions.InvalidArgument("conninfo: it holds a NUL or a lone surrogate")
    if conninfo.startswith(("postgresql+", "postgres+")):
        raise exceptions.InvalidArgument("conninfo: write postgresql://..., without SQLAlchemy's +driver")
    try:
        conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError:
        # libpq's message repeats the text, and with it the password.
        raise exceptions.InvalidArgument(
            "conninfo: write postgresql://user@host/database, or key=value pairs"
        ) from None


class Connection(psycopg.AsyncConnection[TupleRow]):
    """An async connection whose hosts are looked up in threads of their own.

    psycopg looks them up in the event loop's executor, which may be full of threads that tasks have left
    there, for ever, and without a deadline.
    """

    @classmethod
    async def connect(cls, conninfo: str = "", **settings: object) -> Self:
        """Connect as psycopg does; each host has `connect_timeout` to be looked up, too."""
        every: dict[str, Any] = {**settings, **await addresses(conninfo, settings)}
        return await super().connect(conninfo, **every)


def lead_apart(one: tuple[str, Mapping[str, Any]], other: tuple[str, Mapping[str, Any]]) -> bool:
    """Say whether two addresses (conninfo and settings) name a server or a database, and not the same."""
    left, right = (
        conninfo_to_dict(conninfo, **{name: settings[name] for name in PLACE if name in settings})
        for conninfo, settings in (one, other)
    )
    return any(str(left[name]) != str(right[name]) for name in left.keys() & right.keys() & PLACE)


async def addresses(conninfo: str, settings: Mapping[str, object]) -> dict[str, str]:
    """Return `host`, `hostaddr` and `port` with an address for each host name; {} where there is no name.

    A name may have several addresses, each of which is to be tried; one that has none is left out. Raises
    `psycopg.OperationalError` if nothing is left.
    """
    given: dict[str, Any] = {name: settings[name] for name in WHERE if name in settings}
    where = conninfo_to_dict(conninfo, **given)
    hosts, known, ports = (_listed(where.get(name), WHERE[name]) for name in ("host", "hostaddr", "port"))
    if len(known) not in {0, len(hosts)} or len(ports) not in {0, 1, len(hosts)}:
        return {}  # psycopg says what is wrong
    known = known or [""] * len(hosts)
    ports = ports * len(hosts) if len(ports) == 1 else ports
    names = {host for host, address in zip(hosts, known, strict=True) if not address and _is_name(host)}
    if not names:
        return {}
    patience = timeout_from_conninfo(where)
    # All at once: one that nobody answers for holds up the others no longer than itself.
    answers = await asyncio.gather(*(_look_up(name, patience) for name in names))
    found = {name: answer for name, (answer, _) in zip(names, answers, strict=True)}
    listed: dict[str, list[str]] = {"host": [], "hostaddr": [], "port": []}
    for at, host in enumerate(hosts):
        for address in found.get(host, [""]) if not known[at] else [known[at]]:
            listed["host"].append(host)
            listed["hostaddr"].append(address)
            listed["port"] += ports[at : at + 1]
    if not listed["host"]:
        raise psycopg.OperationalError("\n".join(wrong for _, wrong in answers))
    return {name: ",".join(values) for name, values in listed.items() if values}


async def _look_up(host: str, patience: float) -> tuple[list[str], str]:
    """Return the addresses of a host, and, where there are none, why."""
    ask = partial(socket.getaddrinfo, host, None, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    try:
        async with asyncio.timeout(patience):
            answer = await in_a_thread(ask)
    except TimeoutError:
        return [], f"failed to resolve host {host!r}: no answer within {patience} s"
    except (OSError, UnicodeError, RuntimeError) as error:  # the last: no thread can be had
        return [], f"failed to resolve host {host!r}: {error}"
    return [str(address[0]) for *_, address in answer], ""


def _listed(value: object, variable: str) -> list[str]:
    text = str(value) if value is not None else os.environ.get(variable, "")
    return text.split(",") if text else []


def _is_name(host: str) -> bool:
    """Say whether it has to be looked up: it is no folder of a socket, and no address."""
    if not host or host.startswith("/"):
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False
