"""The servers that the tools run, with the schema: 18 from the wheel, Debian's 15, others from .majors/."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from majors import unpacked
from pljobs.embedded import THROW_AWAY, Server

REPO = Path(__file__).resolve().parent.parent
SQL = REPO / "sql"
TEMPLATE = "pljobs_template"
WHEEL = "18"
_PROFILER = "plpgsql,plpgsql_check"


def debian_version() -> str:
    """The major version that tools/bootstrap made sure of: 15 on Debian 12."""
    for version in ("15", "16", "17", "18"):
        extensions = Path(f"/usr/share/postgresql/{version}/extension")
        if all((extensions / name).exists() for name in ("pgtap.sql", "plpgsql_check.control")):
            return version
    sys.exit("no PostgreSQL of Debian's with pgtap and plpgsql_check: run tools/bootstrap")


def bin_dir(version: str) -> Path | None:
    """Where a major's binaries are, Debian's before those of .majors/; None: the wheel's."""
    if version == WHEEL:
        return None
    debian = Path(f"/usr/lib/postgresql/{version}/bin")
    return debian if (debian / "initdb").exists() else unpacked(version) / "bin"


def isolationtester() -> Path:
    """Debian's isolationtester; it serves every server, so that one expected output does."""
    return Path(f"/usr/lib/postgresql/{debian_version()}/lib/pgxs/src/test/isolation/isolationtester")


@contextmanager
def throw_away(version: str, *, profiled: bool = False) -> Iterator[Server]:
    """Start a server with the schema in the database TEMPLATE; `profiled` counts what PL/pgSQL executes."""
    settings = dict(THROW_AWAY)
    checked = version == debian_version()
    if checked:
        settings["shared_preload_libraries"] = _PROFILER
        # Each function in each database takes chunks of shared memory; each spec has a database of its own.
        settings["plpgsql_check.profiler_max_shared_chunks"] = "60000"
        settings["plpgsql_check.profiler"] = "on" if profiled else "off"
    with Server.start(bin_dir(version), settings=settings) as server:
        server.create_database(TEMPLATE)
        if checked:
            server.run_sql("CREATE EXTENSION plpgsql_check", TEMPLATE)
        install(server, TEMPLATE)
        yield server


def install(server: Server, dbname: str) -> None:
    """Install the schema as its users do, with psql."""
    server.run_sql(f"BEGIN;\n\\i '{SQL / 'install.sql'}'\nCOMMIT;", dbname)
    # As a DBA does, so that cancel_job(sql => true) reaches the statement at once.
    server.run_sql("GRANT pg_signal_backend, pg_read_all_stats TO pljobs_owner", dbname)


def install_pgtap(server: Server, dbname: str) -> None:
    """Load pgTAP's SQL: so it needs no files beside the server, which may not be Debian's."""
    script = Path(f"/usr/share/postgresql/{debian_version()}/extension/pgtap.sql")
    server.run_sql(f"SET client_min_messages = error;\n\\i '{script}'", dbname)


if __name__ == "__main__":
    print(debian_version())
