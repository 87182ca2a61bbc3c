"""Let `python -m pljobs` do what `pljobs` does."""

from __future__ import annotations

from pljobs.cli import main

main()
