"""Count which PL/pgSQL statements ran, over all databases of a test run, by plpgsql_check's profiler."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field

from pljobs.embedded import Server

_COUNTS = """
SELECT coalesce(json_agg(json_build_object(
           'function', f.name, 'statement', s.stmtid, 'line', s.lineno, 'what', s.stmtname,
           'ran', s.exec_stmts + s.exec_stmts_err)), '[]')
  FROM (SELECT p.oid, p.oid::regprocedure::text AS name
          FROM pg_proc AS p JOIN pg_language AS l ON l.oid = p.prolang
         WHERE p.pronamespace = 'pljobs'::regnamespace AND l.lanname = 'plpgsql') AS f,
       LATERAL plpgsql_profiler_function_statements_tb(f.oid) AS s
"""
_SOURCES = """
SELECT json_object_agg(p.oid::regprocedure::text, p.prosrc)
  FROM pg_proc AS p JOIN pg_language AS l ON l.oid = p.prolang
 WHERE p.pronamespace = 'pljobs'::regnamespace AND l.lanname = 'plpgsql'
"""


@dataclass(slots=True)
class Coverage:
    """Counts by function and statement, summed over databases that are copies of one template."""

    ran: dict[str, dict[tuple[int, int, str], int]] = field(default_factory=lambda: defaultdict(dict))
    sources: dict[str, str] = field(default_factory=dict)

    def collect(self, server: Server, dbname: str) -> None:
        """Add the counts of a database, before it is dropped."""
        self.sources.update(json.loads(server.run_sql(_SOURCES, dbname)))
        for row in json.loads(server.run_sql(_COUNTS, dbname)):
            statements = self.ran[row["function"]]
            key = (row["statement"], row["line"], row["what"])
            statements[key] = statements.get(key, 0) + row["ran"]

    def report(self) -> bool:
        """Print each function with statements that never ran, and the total; tell whether everything ran."""
        total = covered = 0
        for function, source in sorted(self.sources.items()):
            statements = self.ran.get(function, {})
            missed = sorted(line for (_, line, _), count in statements.items() if count == 0)
            # A function that nobody called has no profile at all.
            total += len(statements) or 1
            covered += len(statements) - len(missed)
            if not statements or missed:
                print(f"  {function}: {len(statements) - len(missed)} of {len(statements)} statements ran")
            for line in dict.fromkeys(missed if any(statements.values()) else []):
                print(f"    {line:4d}  {source.splitlines()[line - 1].strip()}")
        share = 100 * covered / total if total else 0.0
        functions = len(self.sources)
        print(f"PL/pgSQL statement coverage: {covered} of {total} in {functions} functions, {share:.1f} %")
        return covered == total > 0
