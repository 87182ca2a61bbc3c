"""All times are the database's: an application and its worker whose clock is a day off change none."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import psycopg

from clocks import skewed
from pljobs.embedded import environment
from workers import DEADLINE

PROGRAM = """
import sys, time
from pljobs import App, RetryStrategy

app = App(sys.argv[1])

@app.task(name="fails", retry=RetryStrategy(wait=3600))
def fails(): raise ValueError

@app.task(name="late")
def late(): ...

@app.periodic(cron="* * * * *")
@app.task(name="tick")
def tick(timestamp): ...

with app.open():
    late.configure(schedule_in={"seconds": 3600}, start_by={"seconds": 60}, timeout=60).defer()
    late.configure(start_by={"seconds": 3600}).defer()
    fails.defer()
app.run_worker(wait=False)
print(time.time())
"""


def test_no_time_comes_from_the_clock_of_an_application(db_url: str, conn: psycopg.Connection[Any]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, db_url],
        env=environment() | skewed("+1d"), capture_output=True, text=True, check=False, timeout=6 * DEADLINE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert abs(float(done.stdout.split()[-1]) - time.time()) > 80_000, "its clock was right"
    found = conn.execute("""
        SELECT task, status, round(extract(epoch FROM scheduled_at - created_at) / 60)::integer,
               round(extract(epoch FROM start_by - created_at) / 60)::integer
          FROM pljobs.jobs WHERE task <> 'tick' ORDER BY id
    """).fetchall()
    assert found == [("late", "todo", 60, 61), ("late", "succeeded", None, 60), ("fails", "todo", 60, None)]
    (off,) = conn.execute("""
        SELECT max(abs(extract(epoch FROM t - clock_timestamp()))) FROM (
            SELECT unnest(ARRAY[created_at, started_at, finished_at]) FROM pljobs.jobs
            UNION ALL SELECT unnest(ARRAY[started_at, heartbeat_at]) FROM pljobs.workers) AS x(t)
    """).fetchall()[0]
    assert off < 60
    ticks = conn.execute(
        "SELECT extract(epoch FROM now()) - (args -> 'timestamp')::bigint"
        " FROM pljobs.jobs WHERE task = 'tick'"
    ).fetchall()
    assert ticks
    assert all(0 <= age <= 180 for (age,) in ticks)
