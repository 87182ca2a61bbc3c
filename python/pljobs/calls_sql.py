"""The SQL functions around a job's own SQL: its bracket, and cancelling what runs inside of it."""

from __future__ import annotations

from pljobs.answers import Call


def cancel_sql(run_id: int) -> Call[str]:
    """Cancel the statement that a run's own connection is running; answers the way, or why there was none."""
    return Call(
        "SELECT pljobs.cancel_sql_v1(run_id => %(run_id)s::bigint) AS way",
        {"run_id": run_id},
        lambda rows: str(rows[0]["way"]),
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
