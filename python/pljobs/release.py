"""What this release calls itself towards a database."""

from __future__ import annotations

import importlib.metadata

CONTRACT = 3
"""Which SQL functions this driver's worker calls, as a number: see docs/sql-contract.md, Versions."""


def driver() -> str:
    """Return name and version, as `pljobs.workers` shows them."""
    return f"pljobs-python {version()}"


def version() -> str:
    """Return the version of the installed package, or `unknown` where it runs from a bare folder."""
    try:
        return importlib.metadata.version("pljobs")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
