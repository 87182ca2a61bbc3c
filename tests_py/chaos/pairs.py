"""A primary and its standby, for rows in which one takes over from the other."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import psycopg
from psycopg.conninfo import make_conninfo

import oracle
from chaos.logs import LOG_LINE_PREFIX
from chaos.rig import Rig
from clusters import another_server, standby_of
from conftest import INSTALL
from pljobs.embedded import PORT, Server
from waiting import wait_until

DB = "chaos"
SETTINGS = {"max_connections": "100", "log_line_prefix": LOG_LINE_PREFIX, "log_connections": "on"}

_STREAMS = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
_IN_SYNC = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two servers, of which the second repeats what the first does."""

    primary: Server
    standby: Server

    @property
    def url(self) -> str:
        """The way to whichever of them takes writes."""
        hosts = f"{self.primary.base},{self.standby.base}"
        return make_conninfo(
            self.standby.url(DB), host=hosts, port=f"{PORT},{PORT}", target_session_attrs="read-write"
        )

    def cut(self) -> None:
        """Part them: the standby hears of nothing more."""
        self.standby.run_sql("ALTER SYSTEM SET primary_conninfo = ''")
        self.standby.run_sql("SELECT pg_reload_conf()")
        wait_until(lambda: self.primary.run_sql(_STREAMS) == "0", 20, "the standby is cut off")

    def fail_over(self) -> None:
        """Crash the primary, for good, and promote the standby."""
        self.primary.stop("immediate")
        promote(self.standby)


def promote(server: Server) -> None:
    """End its being a standby."""
    server.run_sql("SELECT pg_promote(wait => true)")


def demote(server: Server) -> None:
    """Make it a standby, as a failover's tool does with the former primary; nobody sends it anything."""
    (server.data / "standby.signal").touch()
    server.restart()


def a_pair(rig: Rig, *, synchronous: bool) -> Pair:
    """Start two servers with the schema and the witnesses; the rig's are theirs from now on."""
    primary = rig.stack.enter_context(another_server(rig.server, **SETTINGS))
    primary.create_database(DB)
    primary.run_sql(f"BEGIN;\n\\i '{INSTALL}'\nCOMMIT;", DB)
    with psycopg.connect(primary.url(DB), autocommit=True) as conn:
        oracle.install(conn)
    pair = Pair(primary, rig.stack.enter_context(standby_of(primary, **SETTINGS)))
    if synchronous:
        primary.run_sql("ALTER SYSTEM SET synchronous_standby_names = '*'")
        primary.run_sql("ALTER SYSTEM SET synchronous_commit = 'remote_apply'")
        primary.run_sql("SELECT pg_reload_conf()")
    waited_for = _IN_SYNC if synchronous else _STREAMS
    wait_until(lambda: primary.run_sql(waited_for) == "1", 20, "the standby follows")
    rig.move(pair.standby, pair.url)
    rig.allow("08006")  # said by the standby, of the primary that has gone
    return pair


def unknown(rig: Rig, job_ids: Collection[int]) -> list[int]:
    """Return those of these jobs that the database knows nothing of."""
    return [
        job_id
        for (job_id,) in rig.rows(
            "SELECT i.id FROM unnest(%s::bigint[]) AS i(id)"
            " WHERE i.id NOT IN (SELECT j.id FROM pljobs.jobs AS j)"
            "   AND i.id NOT IN (SELECT e.job_id FROM public.event AS e) ORDER BY 1",
            list(job_ids),
        )
    ]
