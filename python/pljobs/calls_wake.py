"""The SQL functions by which workers are woken, and know for how long they may sleep."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from pljobs.answers import Call, length


def notify_queues(queues: Sequence[str]) -> Call[None]:
    """Tell workers that there are jobs in these queues, deferred with `notify` False."""
    return Call(
        "SELECT pljobs.notify_queues_v1(queues => %(queues)s::text[])",
        {"queues": list(queues)},
        lambda _: None,
    )


def next_fetch(
    worker_id: int, *, queues: Sequence[str] | None = None, tasks: Sequence[str] | None = None
) -> Call[timedelta | None]:
    """Ask in how long a fetch may find what it doesn't find now; answers None if that is not known."""
    return Call(
        "SELECT extract(epoch FROM pljobs.next_fetch_v1(worker_id => %(worker_id)s::bigint,"
        " queues => %(queues)s::text[], tasks => %(tasks)s::text[])) AS seconds",
        {
            "worker_id": worker_id,
            "queues": None if queues is None else list(queues),
            "tasks": None if tasks is None else list(tasks),
        },
        lambda rows: length(rows[0]["seconds"]),
    )


def look_at_all() -> Call[None]:
    """Make this session's next fetch look at all there is, not only where it found something lately."""
    return Call("SELECT set_config('pljobs.fetch_hint', '', false)", {}, lambda _: None)
