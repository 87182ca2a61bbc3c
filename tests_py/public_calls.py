"""A call of each public function, made from the catalogue: all names qualified, all values parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import psycopg


@dataclass(frozen=True)
class PublicCall:
    """One function or procedure, with its input parameters and their types."""

    name: str
    is_procedure: bool
    types: Mapping[str, str]
    required: int
    """So many of the first parameters have no default."""

    def statement(self, *given: str) -> str:
        """Return the call with these parameters, each `%(name)s`, and those that have no default."""
        wanted = [name for at, name in enumerate(self.types) if at < self.required or name in given]
        arguments = ", ".join(f"{name} => %({name})s::{self.types[name]}" for name in wanted)
        verb = "CALL" if self.is_procedure else "SELECT * FROM"
        return f"{verb} pljobs.{self.name}({arguments})"

    def of_type(self, *types: str) -> list[str]:
        return [name for name, of in self.types.items() if of in types]


@dataclass
class Values:
    """What to pass for each parameter, by its name."""

    job: int
    worker: int
    run: int = 0
    more: dict[str, object] = field(default_factory=dict)

    def __getitem__(self, name: str) -> object:
        known: dict[str, object] = {
            "job_id": self.job, "root": self.job, "job_ids": [self.job], "request_ids": [1],
            "worker_id": self.worker, "run_id": self.run, "run_ids": [self.run], "client_pid": 1,
            "jobs": '[{"task": "t"}]', "job": '{"task": "t"}', "runs": "[]", "observed": "[]",
            "older_than": "1 year", "name": "n", "host": "h", "pid": 1, "contract": 2, "periodic_id": "p",
            "tick": "2040-01-01 00:00+00", "task": "t", "args": "{}", "queue": "q", "queues": ["q"],
            "role": "nobody", "verb": "defer", "timeout": "0 s", "dry_run": False, "actor": "a",
            "reason": "r", "grace": "1 s", "term_grace": "1 s", "lock": "l", "queueing_lock": None,
            "status": None, "statuses": ["failed"], "on_cancelled": "t", "driver": "d", "tasks": ["t"],
            "abort": True, "force": False, "delete_job": False, "sql": False, "lease": "1 min",
            "scheduled_at": "2040-01-01 00:00+00", "start_by": "2041-01-01 00:00+00", "priority": 1,
            "parent_id": None, "after_id": None, "max_jobs": 10, "max_rows": 10, "max_crashes": 3,
            "notify": True, "wait": True, "concurrency": 1, "loop_lag": "1 s", "batch": 10,
            "idempotency_key": "k", "result": "1", "message": "m", "archive": True, "since": None,
            "fairness_key": "f", "max_running": 10**6, "rate": 10**6, "period": "1 s", "burst": 10**6,
            "each_key": False,
        }  # fmt: skip
        return self.more[name] if name in self.more else known[name]


def public_calls(conn: psycopg.Connection) -> list[PublicCall]:
    """Return all that any group may call."""
    found = conn.execute(
        "SELECT p.proname, p.prokind = 'p', coalesce(p.proargnames[1:p.pronargs], '{}'),"
        " ARRAY(SELECT format('%I.%I', n.nspname, t.typname) FROM unnest(p.proargtypes::oid[])"
        "   WITH ORDINALITY AS a(type, place) JOIN pg_type AS t ON t.oid = a.type"
        "   JOIN pg_namespace AS n ON n.oid = t.typnamespace ORDER BY a.place),"
        " p.pronargs - p.pronargdefaults"
        " FROM pg_proc AS p WHERE p.pronamespace = 'pljobs'::regnamespace AND p.proname !~ '^_'"
        " ORDER BY p.proname"
    ).fetchall()
    return [
        PublicCall(name, is_procedure, dict(zip(names, types, strict=True)), required)
        for name, is_procedure, names, types, required in found
    ]
