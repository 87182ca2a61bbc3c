"""The demo's tasks: hash a file and count its words; do it over and over, async and sync, until aborted."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import hashlib
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypedDict

from pljobs.app import App
from pljobs.exceptions import JobAborted
from pljobs.job_context import JobContext

CHUNK = 1024 * 1024
# Between two files of a loop that has no end: the other jobs of the demo want the processor, too.
BREATH = 0.005

# Where the database is comes from `pljobs worker --url`, and from the demo itself.
app = App("")


class Contents(TypedDict):
    """What a job knows of a file in the end; its `result`."""

    sha256: str
    words: int
    bytes: int


def digest(path: str, keep_on: Callable[[], None] = lambda: None) -> Contents:
    """Read a file; `keep_on` is called for every chunk, and raises to stop."""
    sha256 = hashlib.sha256()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    words = size = 0
    in_word = False
    for chunk in itertools.chain(_chunks(path), (b"",)):
        keep_on()
        sha256.update(chunk)
        size += len(chunk)
        text = decoder.decode(chunk, final=not chunk)
        if text:
            # A word that a chunk's end cuts in two is one.
            words += len(text.split()) - (in_word and not text[0].isspace())
            in_word = not text[-1].isspace()
    return Contents(sha256=sha256.hexdigest(), words=words, bytes=size)


@app.task(name="hash_file", pass_context=True)
def hash_file(context: JobContext, path: str) -> Contents:
    """Hash one file and count its words."""

    def keep_on() -> None:
        if context.should_abort():
            raise JobAborted

    return digest(path, keep_on)


@app.task(name="hash_again_async")
async def hash_again_async(paths: list[str]) -> None:
    """Hash files over and over. An abort raises CancelledError at one of the awaits."""
    for path in itertools.cycle(paths):
        with contextlib.suppress(OSError):
            await asyncio.to_thread(digest, path)
        await asyncio.sleep(BREATH)


@app.task(name="hash_again_sync", pass_context=True)
def hash_again_sync(context: JobContext, paths: list[str]) -> None:
    """Hash files over and over, asking in between whether to stop."""
    for count, path in enumerate(itertools.cycle(paths), 1):
        with contextlib.suppress(OSError):
            digest(path)
        if context.should_abort():
            raise JobAborted(f"stopped after {count} files")
        time.sleep(BREATH)


@app.task(name="hash_stubbornly", isolation="process")
def hash_stubbornly(paths: list[str]) -> None:
    """Hash files over and over, and let nothing stop it; but it has a process of its own."""
    for path in itertools.cycle(paths):
        with contextlib.suppress(OSError, JobAborted):
            digest(path)
            time.sleep(BREATH)


@app.task(name="long_query", pass_context=True)
def long_query(context: JobContext) -> None:
    """Wait for the database, for longer than anybody would."""
    with context.connection() as conn:
        conn.execute("SELECT pg_sleep(1000000)")


@app.task(name="nightly_report")
def nightly_report(paths: list[str]) -> int:
    """Count the words of many files; the demo schedules it, and cancels or deletes it before it runs."""
    return sum(digest(path)["words"] for path in paths)


def _chunks(path: str) -> Iterator[bytes]:
    with Path(path).open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
