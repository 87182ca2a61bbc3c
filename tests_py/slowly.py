"""What a busy machine does, on purpose: PLJOBS_TEST_DELAYS=0.5 puts up to so many seconds around each call.

Before a call is sent, and between its answer and what is done with it: a test that can't bear it takes for
granted what it should wait for, a job that is 'doing' for one whose body has begun, for instance.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from typing import Any, TypeVar

import psycopg

from pljobs import db
from pljobs.answers import Call

T = TypeVar("T")
_run, _run_async = db.run, db.run_async
# Some tests put another one in its place.
_sleep = time.sleep


def if_asked() -> None:
    """Slow this process's calls down, where the environment says so."""
    longest = float(os.environ.get("PLJOBS_TEST_DELAYS", "0"))
    if not longest:
        return

    def pause() -> float:
        # Mostly short: leases are kept.
        return longest * random.random() ** 3

    def run(conn: psycopg.Connection[Any], call: Call[T]) -> T:
        _sleep(pause())
        try:
            return _run(conn, call)
        finally:
            _sleep(pause())

    async def run_async(conn: psycopg.AsyncConnection[Any], call: Call[T]) -> T:
        await asyncio.sleep(pause())
        answer = await _run_async(conn, call)
        await asyncio.sleep(pause())
        return answer

    db.run, db.run_async = run, run_async
