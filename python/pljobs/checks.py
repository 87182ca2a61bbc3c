"""The checks at the door: names, numbers and times that the database would refuse."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from pljobs import exceptions

T = TypeVar("T")

MAX_NAME = 255
MAX_INT32 = 2**31 - 1
MAX_INT64 = 2**63 - 1

# From now, that is still a time which everybody can read.
LONGEST_INTERVAL = timedelta(days=365 * 7000)
Interval = timedelta | float | Mapping[str, float]
"""A length of time: a timedelta, a number of seconds, or timedelta's keywords as a mapping ({"hours": 2})."""


def is_storable(text: str) -> bool:
    """Say whether PostgreSQL can hold this text: no NUL, no lone surrogate."""
    if "\0" in text:
        return False
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def name(
    what: str, value: object, *, error: type[exceptions.PljobsException] = exceptions.InvalidArgument
) -> str:
    """Return the name of a queue, task or lock, or raise `error`: 1 to 255 characters without NUL."""
    if not isinstance(value, str):
        raise error(f"{what} must be text, not {type(value).__name__}")
    if not 1 <= len(value) <= MAX_NAME:
        raise error(f"{what} must have 1 to {MAX_NAME} characters, not {len(value)}")
    if not is_storable(value):
        raise error(f"{what} holds a NUL or a lone surrogate, which PostgreSQL can't store: {value!a}")
    return value


def optional_name(
    what: str, value: str | None, *, error: type[exceptions.PljobsException] = exceptions.InvalidArgument
) -> str | None:
    """Check a name that may be left out."""
    return None if value is None else name(what, value, error=error)


def text(what: str, value: str | None) -> str | None:
    """Check free text given by a person (a reason, an actor): anything that PostgreSQL can store."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{what} must be text, not {type(value).__name__}")
    if value is not None and not is_storable(value):
        raise exceptions.InvalidArgument(
            f"{what} holds a NUL or a lone surrogate, which PostgreSQL can't store"
        )
    return value


def identifier(what: str, value: object) -> int:
    """Return an id as an int; raise TypeError for text, None and booleans."""
    if isinstance(value, bool):
        raise TypeError(f"{what} must be an int, not bool")
    try:
        found = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        hint = f": pass int({what})" if isinstance(value, str) else ""
        raise TypeError(f"{what} must be an int, not {type(value).__name__}{hint}") from None
    if abs(found) > MAX_INT64:
        raise exceptions.InvalidArgument(f"{what} is out of the range of ids")
    return found


def optional_identifier(what: str, value: object) -> int | None:
    """Return an id that may be left out."""
    return None if value is None else identifier(what, value)


def flag(what: str, value: object) -> bool:
    """Return a flag as a bool, None meaning False; raise TypeError for anything else."""
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"{what} must be True or False, not {type(value).__name__}")
    return value is True


def priority(value: int, *, error: type[exceptions.PljobsException] = exceptions.InvalidArgument) -> int:
    """Return a priority, or raise `error`: an int of 32 bits, not a bool."""
    if isinstance(value, bool):
        raise error("priority must be an int, not bool")
    try:
        found = operator.index(value)
    except TypeError:
        raise error(f"priority must be an int, not {type(value).__name__}") from None
    if abs(found) > MAX_INT32:
        raise error(f"priority must fit into 32 bits, as -{MAX_INT32} to {MAX_INT32}")
    return found


def aware(
    what: str, value: datetime, *, error: type[exceptions.PljobsException] = exceptions.InvalidArgument
) -> datetime:
    """Return a time in UTC, or raise `error`: naive times are refused, for nobody knows what they mean."""
    if not isinstance(value, datetime):
        raise error(f"{what} must be a datetime, not {type(value).__name__}")
    if value.utcoffset() is None:
        raise error(f"{what} must be timezone-aware, as datetime.now(timezone.utc) is")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise error(f"{what} must be in the years 1 to 9999") from None


def interval(
    what: str, value: Interval, *, error: type[exceptions.PljobsException] = exceptions.InvalidArgument
) -> timedelta:
    """Return a length of time as a timedelta, or raise `error`."""
    if isinstance(value, bool):
        raise error(f"{what} must be a length of time, not {value}")
    try:
        if isinstance(value, timedelta):
            length = value
        elif isinstance(value, Mapping):
            length = timedelta(**value)
        else:
            length = timedelta(seconds=value)
    except (TypeError, ValueError):
        raise error(
            f'{what} must be a mapping such as {{"seconds": 30}}, a timedelta, or a number of seconds'
        ) from None
    except OverflowError:
        raise error(f"{what} is too long") from None
    if abs(length) > LONGEST_INTERVAL:
        raise error(f"{what} is too long: it ends after the year 9999")
    return length


def optional_interval(
    what: str,
    value: Interval | None,
    *,
    error: type[exceptions.PljobsException] = exceptions.InvalidArgument,
) -> timedelta | None:
    """Return a length of time that may be left out, or raise `error` if it is negative."""
    if value is None:
        return None
    length = interval(what, value, error=error)
    if length < timedelta(0):
        raise error(f"{what} must not be negative")
    return length


def positive_interval(
    what: str,
    value: Interval | None,
    *,
    error: type[exceptions.PljobsException] = exceptions.InvalidArgument,
) -> timedelta | None:
    """Return a length of time that may be left out, or raise `error` if it is nothing or less."""
    length = optional_interval(what, value, error=error)
    if length == timedelta(0):
        raise error(f"{what} must be more than 0")
    return length


def as_interval(length: timedelta) -> str:
    """Return a length of time as PostgreSQL reads an interval, to the microsecond."""
    # Each number within 32 bits, or 14 refuses it; each with its sign, which sql_standard would hand to the
    # next; no days, which may have 23 hours.
    sign = "-" if length < timedelta(0) else ""
    hours, rest = divmod(abs(length), timedelta(hours=1))
    return f"{sign}{hours} hours {sign}{rest.seconds}.{rest.microseconds:06d} seconds"


def positive(**values: float) -> None:
    """Check that each of these is a number of more than 0."""
    for what, value in values.items():
        if number(what, value) <= 0:
            raise exceptions.InvalidArgument(f"{what} must be more than 0, not {value}")


def number(what: str, value: object) -> float:
    """Return a number as a float; raise `InvalidArgument` for anything else, NaN and booleans too."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or math.isnan(value):
        raise exceptions.InvalidArgument(f"{what} must be a number, not {value!r}")
    return float(value)


def seconds(what: str, value: float | None) -> float | None:
    """Return a number of seconds, of 0 or more, that may be left out, or raise `InvalidArgument`."""
    found = None if value is None else number(what, value)
    if found is not None and found < 0:
        raise exceptions.InvalidArgument(f"{what} must not be negative")
    return found


def count(what: str, value: object) -> int:
    """Return how many of something, 1 or more, or raise `InvalidArgument`."""
    try:
        found = 0 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        found = 0
    if found < 1:
        raise exceptions.InvalidArgument(f"{what} must be an int of 1 or more, not {value!r}")
    return found


def one_of(what: str, value: T, known: tuple[T, ...]) -> T:
    """Return a value that is one of those known, or raise `InvalidArgument`."""
    if value not in known:
        raise exceptions.InvalidArgument(f"{what} must be {' or '.join(map(repr, known))}, not {value!r}")
    return value


def names(what: str, values: Iterable[str]) -> list[str]:
    """Return some names; raise `InvalidArgument` for a text, which is no list of them, and for odd ones."""
    if isinstance(values, str):
        raise exceptions.InvalidArgument(f"{what} must be a list of names, not the text {values!a}")
    return [name(f"each of {what}", value) for value in values]


def lease(seconds: float, *, heartbeat: float) -> None:
    """Check that a worker's lease outlasts a late heartbeat."""
    positive(update_heartbeat_interval=heartbeat, stalled_worker_timeout=seconds)
    if seconds < max(1.0, 2 * heartbeat):
        raise exceptions.InvalidArgument(
            f"stalled_worker_timeout ({seconds} s) must be at least 1 s and twice"
            f" update_heartbeat_interval ({heartbeat} s), lest a late heartbeat lose jobs"
        )
