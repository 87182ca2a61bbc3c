"""Every benchmark still runs: a little of each, whose figures mean nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import harness
import peers
import tables
import targets

# On a machine that is busy with other tests, too.
pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

ROOT = Path(__file__).parent.parent


def _run() -> ModuleType:
    """Import benchmarks/run.py from where it is: the chaos rig has a module of the same name."""
    spec = importlib.util.spec_from_file_location("bench_run", ROOT / "benchmarks" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


run = _run()
NAMES = [name for name in run.BENCHES if name != "upgrade"]  # test_upgrade.py does the same, and more


def test_a_backend_that_ends_while_processor_time_is_read_is_counted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[str] = []
    postmaster = str(os.getpid())

    def stat(pid: str) -> list[str]:
        if pid != postmaster:
            return []  # it is reaped before its turn has come
        used = [4, 3, 20 if ended else 0, 0]
        ended.append(pid)
        return ["S", "1", *["0"] * 9, *map(str, used)]

    monkeypatch.setattr(harness, "_stat", stat)
    read = harness.server_cpu(SimpleNamespace(pid=os.getpid()))  # type: ignore[arg-type]
    assert read * os.sysconf("SC_CLK_TCK") == pytest.approx(27)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what `run.py --quick` keeps."""
    folder = tmp_path_factory.mktemp("bench")
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "run.py"),
        "--quick",
        "--no-peers",
        "--into",
        str(folder),
    ]
    done = subprocess.run([*command, *NAMES], capture_output=True, text=True, timeout=850, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "targets" in done.stdout
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_keeps_figures_with_their_runs(found: Path, name: str) -> None:
    kept = json.loads((found / f"{name}.json").read_text())
    assert kept["bench"] == name
    assert {"cores", "PostgreSQL", "fsync", "commit"} <= kept["machine"].keys()
    assert kept["figures"]
    for figure in kept["figures"]:
        assert figure["what"]
        assert figure["unit"]
        assert all(runs and all(value >= 0 for value in runs) for runs in figure["sides"].values()), figure


def test_each_target_that_needs_no_peer_finds_its_figure(found: Path) -> None:
    figures = [figure for f in tables.load(found) for figure in f.figures]
    labels = {peer.label for peer in peers.PEERS}
    missing = [what for what, _, _, met in targets.table(figures) if met == "not measured"]
    assert missing == [target.what for target in targets.TARGETS if target.side in labels]


def test_the_tables_go_between_the_markers_of_the_readme(found: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text((ROOT / "benchmarks" / "README.md").read_text())
    tables.main(["--found", str(found), "--readme", str(readme)])
    text = readme.read_text()
    assert all(f"\n## {name}\n" in text for name in NAMES)
    around = re.compile(r"(?<=<!-- tables -->).*(?=<!-- end of tables -->)", re.DOTALL)
    assert around.sub("", text) == around.sub("", (ROOT / "benchmarks" / "README.md").read_text())


def test_the_charts_are_drawn(found: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    import charts

    charts.main(["--found", str(found), "--into", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {"snapshot.svg", "backlog.svg", "latency.svg"}
