"""P1 and P2, their long part: payloads up to what PostgreSQL holds in a value, and thousands of names."""

from __future__ import annotations

import subprocess
import sys

import psycopg
import pytest

from chaos.rig import Rig
from chaos.rows import row
from names import check_many
from oracle import Violation
from pljobs import calls, exceptions
from pljobs.embedded import environment
from pljobs.jobs import Job

MIB = 1024 * 1024
SENT = """
    CREATE TEMP TABLE sent AS SELECT jsonb_build_array(jsonb_build_object(
        'job_id', %s::bigint, 'run_id', %s::bigint, 'outcome', 'failed',
        %s::text, repeat('x', %s::integer))) AS runs
"""
SIZES = (2 * MIB, 255 * MIB, 256 * MIB, 1023 * MIB)
# One worker, so that there is one of these at a time.
PROGRAM = """
import logging, sys
from pljobs import App, JobContext

app = App(sys.argv[1])

@app.task(name="returns")
def returns(size): return "x" * size

@app.task(name="raises")
def raises(size): raise ValueError("x" * size)

@app.task(name="tells", pass_context=True)
def tells(context, size): context.progress(0.5, "x" * size)

app.run_worker(wait=False)
"""


@row("P2", "names from hell", invariants="stored or refused, LISTEN = NOTIFY, I14", push=0, long=40)
def names(rig: Rig) -> None:
    rig.allow("PJ001", "PJ002")
    with rig.connect() as conn:
        rig.harms["names"] += check_many(conn, 100, rig.seed)
    rig.check()


@row("P1", "payloads of 2 MiB to 1 GiB", invariants="refused, cut or left out; I1, I4", push=0, long=1,
     own_server=True)  # fmt: skip
def large_payloads(rig: Rig) -> None:
    for size in SIZES:
        with pytest.raises(exceptions.InvalidJob, match=r"at most 1048576 \(1 MiB\)"):
            calls.encode_job(Job(task_name="t", task_kwargs={"a": "x" * size}))
        _in_sql(rig, size)
        for task in ("returns", "raises", "tells"):
            rig.rows("SELECT pljobs.defer_job(%s, jsonb_build_object('size', %s::integer))", task, size)
            rig.harms["payloads"] += 1
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, rig.url],
        env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, timeout=600,
    )  # fmt: skip
    if done.returncode != 0:
        raise Violation("died", f"the worker ended with {done.returncode}")
    for task, status, message, error, kept in rig.rows(
        "SELECT task, status, length(message), length(error), result IS NOT NULL FROM pljobs.jobs"
    ):
        assert status == ("failed" if task == "raises" else "succeeded"), (task, status)
        assert (message or 0) <= 1000, message
        assert (error or 0) <= 16_384, error
        assert not kept
    rig.ended = {"succeeded": 2 * len(SIZES), "failed": len(SIZES)}


def _in_sql(rig: Rig, size: int) -> None:
    """What other languages send: refused by us, or by the server where it is no value at all."""
    with rig.connect() as conn:
        worker = conn.execute("SELECT pljobs.register_worker_v1('w', 'h', 1, lease => '1 day')").fetchall()[
            0
        ][0]
        with pytest.raises(psycopg.Error) as refused:
            conn.execute(
                "SELECT pljobs.defer_job('t', jsonb_build_object('a', repeat('x', %s::integer)))", [size]
            )
        assert refused.value.sqlstate in {"PJ002", "54000"}, refused.value
        for field in ("result", "message", "error", "progress_message"):
            conn.execute("SELECT pljobs.defer_job('t')")
            fetch = "SELECT job_id, run_id FROM pljobs.fetch_jobs_v1(%s)"
            run = conn.execute(fetch, [worker]).fetchall()[0]
            conn.execute(
                "SELECT pljobs.cancel_job(%s, abort => true, reason => repeat('x', %s::integer))",
                [run[0], size],
            )
            try:
                conn.execute(SENT, [*run, field, size])
            except psycopg.Error as error:
                # No jsonb: nobody can send it.
                if error.sqlstate != "54000" or size < 255 * MIB:
                    raise
                continue
            found = conn.execute("SELECT f.status FROM sent, pljobs.finish_jobs_v1(runs) AS f").fetchall()
            assert found == [("failed",)], (field, found)
            conn.execute("DROP TABLE sent")
            rig.harms["payloads"] += 1
        conn.execute("DELETE FROM pljobs.job")
