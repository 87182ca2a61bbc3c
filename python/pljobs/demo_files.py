"""Find the text files that the demo works on."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pljobs.checks import is_storable

HEAD = 8192
DEFAULT_LIMIT = 5000


@dataclass(slots=True)
class Found:
    """The text files under a folder, and what was left out."""

    folder: Path
    files: list[str] = field(default_factory=list)
    binary: int = 0
    odd_names: int = 0
    closed_folders: int = 0
    more: bool = False

    def left_out(self) -> str:
        """Say what was left out, as a sentence's end; empty if nothing was."""
        parts = [
            (self.binary, "binary"),
            (self.odd_names, "with names that are not UTF-8"),
            (self.closed_folders, "folders that can't be read"),
        ]
        said = [f"{count} {what}" for count, what in parts if count]
        if self.more:
            said.append("the rest, which is taken when you name the folder")
        return f" (left out: {', '.join(said)})" if said else ""


def default_folder() -> Path:
    """Return the project's own tree where this is a checkout of it, else the current folder."""
    tree = Path(__file__).resolve().parents[2]
    return tree if (tree / "sql" / "install.sql").exists() else Path.cwd()


def find(folder: Path, *, limit: int | None = None) -> Found:
    """Find text files, folder by folder.

    A text has no NUL in its first 8 kB. A file that can't be read counts as one: its job says what is wrong.
    Links are not followed; pipes, sockets and devices are no files.
    """
    found = Found(folder.absolute())
    for path in _regular_files(found):
        if not is_storable(path):
            found.odd_names += 1
        elif not _is_text(path):
            found.binary += 1
        elif limit is not None and len(found.files) >= limit:
            found.more = True
            break
        else:
            found.files.append(path)
    return found


def _regular_files(found: Found) -> Iterator[str]:
    def closed(_: OSError) -> None:
        found.closed_folders += 1

    for folder, folders, names in os.walk(found.folder, onerror=closed):
        # Those with a dot last: where there is a limit, it leaves out caches before sources.
        folders.sort(key=lambda name: (name.startswith("."), name))
        for name in sorted(names):
            path = os.path.join(folder, name)  # noqa: PTH118 - Path would take ten times as long
            try:
                mode = os.lstat(path).st_mode
            except OSError:  # gone, or in a folder that may be listed and not entered
                continue
            if stat.S_ISREG(mode):
                yield path


def _is_text(path: str) -> bool:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            head = file.read(HEAD)
    except OSError:
        return True
    return b"\0" not in head
