"""The SQL functions around a job's own SQL: its bracket, cancelling it, ending the job with it."""

from __future__ import annotations

from pljobs.answers import Call


def cancel_sql(run_id: int) -> Call[str]:
    """Cancel the statement that a run's own connection is running; answers the way, or why there was none."""
    return Call(
        "SELECT pljobs.cancel_sql_v1(run_id => %(run_id)s::bigint) AS way",
        {"run_id": run_id},
        lambda rows: str(rows[0]["way"]),
    )


def finish_job(job_id: int, run_id: int, *, result: str | None) -> Call[str]:
    """End a run as succeeded in this transaction; `result` is JSON text. A job's body sets no message."""
    return Call(
        "SELECT pljobs.finish_job_v1(job_id => %(job_id)s::bigint, run_id => %(run_id)s::bigint,"
        " result => %(result)s::jsonb, message => %(message)s::text) AS status",
        {"job_id": job_id, "run_id": run_id, "result": result, "message": None},
        lambda rows: str(rows[0]["status"]),
    )


def enter_sql(run_id: int, client_pid: int) -> Call[str]:
    """Make this connection's statements cancellable as a run's own; answers `entered`, `pooled` or `busy`."""
    return Call(
        "SELECT pljobs.enter_sql_v1(run_id => %(run_id)s::bigint, client_pid => %(client_pid)s::integer)"
        " AS way",
        {"run_id": run_id, "client_pid": client_pid},
        lambda rows: str(rows[0]["way"]),
    )


def leave_sql(run_id: int) -> Call[None]:
    """End what `enter_sql` began."""
    return Call(
        "SELECT pljobs.leave_sql_v1(run_id => %(run_id)s::bigint)", {"run_id": run_id}, lambda _: None
    )
