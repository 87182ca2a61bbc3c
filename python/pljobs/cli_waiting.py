"""Wait until what was asked of a job is over, through lost connections, and say how it ended."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from datetime import datetime, timedelta

import click

from pljobs import calls_cli, db
from pljobs.cli_base import CONNECT_TIMEOUT, Connection, Exit, Failure, connected, duration
from pljobs.cli_output import Json, asked_by, cell, from_json, one_line, say, when
from pljobs.connector import PsycopgConnector
from pljobs.exceptions import DatabaseUnavailable

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 0.5
FOR_EVER = "for ever"


@dataclasses.dataclass(frozen=True, slots=True)
class Patience:
    """Say how long to wait, and until when, in seconds of time.monotonic(); None: for ever."""

    length: timedelta | None
    end: float | None

    def left(self) -> float:
        """Return for how many seconds more; as good as for ever where it has no end."""
        return CONNECT_TIMEOUT if self.end is None else self.end - time.monotonic()


def patience(text: str) -> Patience:
    """Read how long to wait, from now on."""
    if text == FOR_EVER:
        return Patience(None, None)
    length = duration(text)
    return Patience(length, time.monotonic() + length.total_seconds())


def wait_for_end(conn: Connection, job_id: int, request_id: int, wait: Patience) -> dict[str, Json]:
    """Wait until a request is resolved, and return it; raises `Failure` when the time is over.

    Its own request, not the job's status: after somebody's retry the job may be running again.
    """
    source = click.get_current_context().ensure_object(PsycopgConnector)
    pause = FIRST_PAUSE
    lost = ""
    with contextlib.ExitStack() as stack:
        while True:
            request: dict[str, Json] = {}
            try:
                if conn.broken:
                    timeout = int(min(max(wait.left(), 2), CONNECT_TIMEOUT))
                    conn = stack.enter_context(connected(source, connect_timeout=timeout))
                rows = db.run(conn, calls_cli.await_request(request_id))
                if not rows:
                    said = (
                        f"its request {request_id} can't be seen any more: it was pruned, or the job deleted"
                    )
                    raise Failure(f"job {job_id}: {said}, and another role had asked first", Exit.NOT_FOUND)
                request, lost = from_json(rows[0]), ""
            except DatabaseUnavailable as error:
                if not lost:
                    say(f"the connection was lost, another is tried; the request {request_id} stays")
                lost = one_line(str(error))
            if request and request["resolved_at"] is not None:
                return request
            left = wait.left()
            if left <= 0:
                raise Failure(
                    unseen(job_id, request_id, lost) if lost else _still_runs(job_id, request, wait),
                    Exit.TIMED_OUT,
                )
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, LONGEST_PAUSE)


def unseen(job_id: int, request_id: int, error: str) -> str:
    """Say that a request was made, and why it can't be said how it ended."""
    return (
        f"the request {request_id} was made, and stays; could not see how it ended: `pljobs show {job_id}`"
        f" ({error})"
    )


def _still_runs(job_id: int, request: dict[str, Json], wait: Patience) -> str:
    heard = {"swallowed": ", and swallowed its abort", "handling": ", and is handling its abort"}
    doing = heard.get(str(request["handling"]), "")
    unheard = "" if request["delivered_at"] else ", and its worker hasn't heard of it"
    stays = "the request stays: `pljobs stuck` says what can be done"
    return f"job {job_id} still runs after {wait.length}{doing}{unheard}; {stays}"


def ended_line(job_id: int, request: dict[str, Json]) -> str:
    """Say how a job ended that was asked to, who asked, and how long it took."""
    status = cell(request["status"]) or "deleted"
    how = {
        "finished_first": " (it finished before it stopped)",
        "failed_first": " (it failed before it stopped)",
        "worker_lost": " (its worker was lost: its code may still run there)",
        "forced": " (by force: its code may still run)",
        "killed": " (killed)",
        "abandoned": " (given up: its code may still run)",
        "rescinded": " (somebody took the request back)",
    }.get(str(request["resolution"]), "")
    took = _between(request["requested_at"], request["resolved_at"])
    asked, ended = when(request["requested_at"], fine=True), when(request["resolved_at"], fine=True)
    return f"job {job_id}: {status}{how}; asked by {asked_by(request)} at {asked}, ended at {ended}{took}"


def _between(first: Json, last: Json) -> str:
    if not isinstance(first, str) or not isinstance(last, str):
        return ""
    seconds = (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds()
    return f", after {seconds * 1000:.0f} ms" if seconds < 10 else f", after {seconds:.0f} s"
