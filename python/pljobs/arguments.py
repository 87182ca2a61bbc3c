"""JSON as PostgreSQL can hold it: arguments checked at the door, results and error texts made to fit."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal

from pljobs import checks
from pljobs.exceptions import InvalidArgument, InvalidJob

MAX_BYTES = 1024 * 1024
AT_MOST = f"at most {MAX_BYTES} (1 MiB) can be stored"
MAX_DEPTH = 200
MAX_MESSAGE = 1_000
MAX_ERROR = 16_384
# What a numeric of PostgreSQL can have.
MAX_DECIMALS = 16_383

_EXPONENT = re.compile(r"\de[+-]\d")
_STRING_OR_EXPONENT = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|-?\d+(?:\.\d+)?e[+-]\d+')

JsonDumps = Callable[[object], str | bytes]
JsonLoads = Callable[[str], object]


def encode_arguments(task: str, arguments: Mapping[str, object], dumps: JsonDumps | None = None) -> str:
    """Return a job's arguments as JSON text; raise `InvalidJob` with what is wrong where, never a value."""
    if not isinstance(arguments, Mapping):
        raise _refusal(task, f"are a {type(arguments).__name__}, not a mapping of names to values")
    try:
        encoded = _encode(dict(arguments), dumps)
    except _Unfit as unfit:
        raise _refusal(task, str(unfit)) from unfit.__cause__
    if not encoded.startswith("{"):
        raise _refusal(task, "are not a JSON object once json_dumps is done with them")
    return encoded


def encode_filter(arguments: Mapping[str, object], dumps: JsonDumps | None = None) -> str:
    """Return arguments to look for as JSON text; raises `InvalidArgument`, which never shows a value."""
    if not isinstance(arguments, Mapping):
        raise InvalidArgument(f"args must be a mapping, not {type(arguments).__name__}")
    try:
        return _encode(dict(arguments), dumps)
    except _Unfit as unfit:
        raise InvalidArgument(f"args: they {unfit}") from None


def encode_result(result: object, dumps: JsonDumps | None = None) -> tuple[str | None, str | None]:
    """Return (the result as JSON text, None), or (None, why it can't be stored); never raises."""
    if result is None:
        return None, None
    try:
        return _encode(result, dumps), None
    except _Unfit as unfit:
        return None, f"result not stored: its contents {unfit}"
    except KeyboardInterrupt:
        raise
    except BaseException as exc:  # noqa: BLE001 - a result must never keep a job from finishing
        return None, f"result not stored: {type(exc).__name__}"


def decode_arguments(
    text: str | None, loads: JsonLoads | None = None
) -> tuple[dict[str, object], str | None]:
    """Return (the arguments, None), or ({}, why they can't be read); never raises. None: they are not shown.

    What came from psql may be more than Python reads (a number of 5,000 digits), and own decoders have bugs,
    or call `sys.exit`: one such job must not take down those fetched with it.
    """
    if text is None:
        return {}, "this role may not see the arguments"
    try:
        arguments = (loads or json.loads)(text)
    except KeyboardInterrupt:
        raise
    except BaseException as exc:  # noqa: BLE001
        return {}, f"the arguments can't be read: {type(exc).__name__}"
    if not isinstance(arguments, dict):
        return {}, f"the arguments can't be read: json_loads made a {type(arguments).__name__} of them"
    return arguments, None


def decode_result(text: str | None, loads: JsonLoads | None = None) -> object:
    """Return a stored result; the JSON text itself where it can't be read."""
    if text is None:
        return None
    try:
        return (loads or json.loads)(text)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001
        return text


def clip_text(text: str | None, limit: int) -> str | None:
    """Return text that PostgreSQL can store and that is not too long; what it can't hold becomes U+FFFD."""
    if text is None:
        return None
    if len(text) > limit:
        # The end of a traceback says what happened, its beginning where it came from.
        gap = " [...] "
        head = (limit - len(gap)) // 4
        text = text[:head] + gap + text[head + len(gap) - limit :]
    if checks.is_storable(text):
        return text
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class _Unfit(Exception):  # noqa: N818
    """Carry what is wrong with a value, without the value."""


def _encode(value: object, dumps: JsonDumps | None) -> str:
    encoded = _default_dumps(value) if dumps is None else _own_dumps(value, dumps)
    encoded = _without_exponents(encoded)
    if len(encoded) > 3 * MAX_BYTES:
        # Escapes make it at most three times as long; no copies are made of what is far too large.
        raise _Unfit(f"have at least {len(encoded) // 3} bytes as JSON; {AT_MOST}")
    if len(encoded) > MAX_BYTES:
        # As PostgreSQL will count it.
        decoded = json.dumps(json.loads(encoded), ensure_ascii=False)
        size = len(_without_exponents(decoded).encode("utf-8"))
        if size > MAX_BYTES:
            raise _Unfit(f"have {size} bytes as JSON; {AT_MOST}")
    return encoded


def _without_exponents(encoded: str) -> str:
    """Write the floats of JSON text in full: jsonb makes 10 followed by zeros of 1e+23, and Python an int."""
    if _EXPONENT.search(encoded) is None:
        return encoded
    return _STRING_OR_EXPONENT.sub(_in_full, encoded)


def _in_full(match: re.Match[str]) -> str:
    found = match[0]
    return found if found.startswith('"') else _digits(Decimal(found))


def _digits(number: Decimal) -> str:
    digits = format(number, "f")
    return digits if "." in digits else f"{digits}.0"


def _default_dumps(value: object) -> str:
    try:
        _check(value, "", 0)
        return json.dumps(value, allow_nan=False)
    except _Unfit:
        raise
    except Exception as exc:  # noqa: BLE001 - a subclass with odd methods, a number of 5,000 digits
        raise _Unfit(f"can't be written as JSON ({type(exc).__name__})") from None


def _own_dumps(value: object, dumps: JsonDumps) -> str:
    try:
        made = dumps(value)
    except Exception as exc:
        raise _Unfit(f"can't be written as JSON by json_dumps ({type(exc).__name__})") from exc
    try:
        encoded = made.decode("utf-8") if isinstance(made, bytes | bytearray | memoryview) else made
        again = json.loads(encoded, parse_constant=_refuse_constant, parse_float=_exactly)
    except _Unfit:
        raise
    except Exception as exc:  # noqa: BLE001
        raise _Unfit(f"are no JSON once json_dumps is done with them ({type(exc).__name__})") from None
    _check(again, "", 0)
    # ASCII goes through any client encoding, and duplicate keys are gone.
    return _written(again)


class _Exact(Decimal):
    """A number of JSON text with all its digits: who brings a `json_dumps` may write Decimals with it."""


def _exactly(number: str) -> _Exact:
    if not math.isfinite(float(number)):
        raise _Unfit("hold a number that is larger than any float")
    exact = _Exact(number)
    decimals = len(exact.as_tuple().digits) - 1 - exact.adjusted()
    if decimals > MAX_DECIMALS:
        raise _Unfit(f"hold a number with more than {MAX_DECIMALS} decimals, which PostgreSQL can't store")
    return exact or _Exact("0.0")  # not 0e999999999, in full


def _written(value: object) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(key)}: {_written(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    return _digits(value) if isinstance(value, _Exact) else json.dumps(value)


def _refuse_constant(_: str) -> object:
    raise _Unfit("hold NaN or Infinity, which JSON doesn't have")


def _check(value: object, path: str, depth: int) -> None:
    """Walk through a value; raise `_Unfit` at the first thing that JSON or PostgreSQL can't hold."""
    if value is None or value is True or value is False:
        return
    if isinstance(value, str):
        if not checks.is_storable(value):
            raise _Unfit(
                f"hold a NUL or a lone surrogate at {path or 'the top'}, which PostgreSQL can't store"
            )
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise _Unfit(f"hold NaN or Infinity at {path or 'the top'}, which JSON doesn't have")
    elif isinstance(value, int | _Exact):
        return
    elif depth >= MAX_DEPTH:
        raise _Unfit(f"are nested more than {MAX_DEPTH} levels deep (or hold themselves)")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise _Unfit(f"have a key that is {_a(key)}, not a str, at {path or 'the top'}")
            if not checks.is_storable(key):
                raise _Unfit(f"have a key with a NUL or a lone surrogate at {path or 'the top'}")
            _check(item, f"{path}.{key}" if path else key, depth + 1)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check(item, f"{path}[{index}]", depth + 1)
    else:
        raise _Unfit(f"hold {_a(value)} at {path or 'the top'}, which JSON doesn't have")


def _a(value: object) -> str:
    return f"a {type(value).__name__}"


def _refusal(task: str, what: str) -> InvalidJob:
    return InvalidJob(f"task {task!a}: the arguments {what}")
