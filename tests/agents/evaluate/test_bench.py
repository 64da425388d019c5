from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlbatch.agents.evaluate.bench import run_bench
from rlbatch.agents.evaluate.rows import cell_key
from rlbatch.agents.evaluate.settings import BenchSettings
from rlbatch.errors import ConfigurationError, EpisodeLogError
from rlbatch.log.episode_log import read_episode
from rlbatch.policy.file import save_policy
from rlbatch.testing import random_policy

CHEAP = f"{Path(__file__).with_name('cheap_task.py')}:make"
FIELDS = (
    "task policy lr_coupling profile objective start_batch_size seed reached cost reference_cost "
    "reference_batch_size default_cost ratio steps samples final_val_loss batch_size_min "
    "batch_size_max wall_seconds"
)


def settings(cheap: str, **changes: Any) -> BenchSettings:
    arguments: dict[str, Any] = {
        "tasks": (cheap,),
        "policies": ("fixed", "plateau:patience=2"),
        "profiles": ("cpu", "samples"),
        "starts": (1.0, 4.0),
        "seeds": 2,
    }
    return BenchSettings(**{**arguments, **changes})


@dataclass(frozen=True)
class Finished:
    """A benchmark of `settings(cheap)` that was run to its end."""

    folder: Path
    rows: list[dict[str, Any]]
    reports: list[tuple[int, int]]

    def copy(self, to: Path) -> Path:
        """Return a folder that a test may change."""
        return Path(shutil.copytree(self.folder, to))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder, reports = tmp_path_factory.mktemp("finished") / "out", list[tuple[int, int]]()
    rows = run_bench(settings(CHEAP), folder, on_progress=lambda *at: reports.append(at))
    return Finished(folder, rows, reports)


def test_every_cell_is_run_once_and_written_with_the_agreed_fields(finished: Finished) -> None:
    rows, reports = finished.rows, finished.reports
    assert len({cell_key(row) for row in rows}) == len(rows) == 2 * 2 * 2 * 2
    lines = (finished.folder / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert " ".join(rows[0]).startswith(FIELDS)
    assert reports[0] == (0, 16)
    assert reports[-1] == (16, 16)


def test_staying_costs_what_the_fixed_run_costs(cheap: str, tmp_path: Path) -> None:
    rows = run_bench(settings(cheap, policies=("fixed",)), tmp_path)

    for row in rows:
        assert row["batch_size_min"] == row["batch_size_max"] == row["start_batch_size"]
        if row["reached"]:
            assert row["cost"] == pytest.approx(row["start_cost"])
            assert row["ratio"] == pytest.approx(row["cost"] / row["reference_cost"])
        if row["start_batch_size"] == 8:
            assert row["start_cost"] == row["default_cost"]
        assert row["ratio"] >= 1 - 1e-9  # a fixed run on the grid is never better than the best
    best = [row for row in rows if row["start_batch_size"] == row["reference_batch_size"]]
    assert best
    assert all(row["ratio"] == pytest.approx(1.0) for row in best)


def test_the_same_command_writes_the_same_file(
    cheap: str, tmp_path: Path, finished: Finished
) -> None:
    run_bench(settings(cheap), tmp_path / "second")

    folders = (finished.folder, tmp_path / "second")
    first, second = ((folder / "results.jsonl").read_bytes() for folder in folders)
    assert first == second
    assert first


def test_a_finished_benchmark_is_not_run_again(
    cheap: str, tmp_path: Path, finished: Finished
) -> None:
    out = finished.copy(tmp_path / "out")
    timings = (out / "timings.jsonl").read_bytes()

    assert run_bench(settings(cheap), out) == finished.rows
    assert (out / "timings.jsonl").read_bytes() == timings


def test_a_torn_last_result_is_run_again_and_the_others_are_not(
    cheap: str, tmp_path: Path, finished: Finished
) -> None:
    out = finished.copy(tmp_path / "out")
    path, timings = out / "results.jsonl", out / "timings.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[:-40])
    before = timings.read_text().count("\n")

    assert run_bench(settings(cheap), out) == finished.rows
    assert path.read_bytes() == content
    assert timings.read_text().count("\n") == before + 1


def test_other_settings_are_refused_and_nothing_is_touched(cheap: str, tmp_path: Path) -> None:
    run_bench(settings(cheap, seeds=1), tmp_path)
    content = (tmp_path / "results.jsonl").read_bytes()

    with pytest.raises(ConfigurationError, match=r"other settings \(different: seeds\)"):
        run_bench(settings(cheap, seeds=2), tmp_path)
    assert (tmp_path / "results.jsonl").read_bytes() == content


def test_policies_may_be_added_and_nothing_is_run_again(
    cheap: str, tmp_path: Path, finished: Finished
) -> None:
    grown, timings = tmp_path / "grown", tmp_path / "grown" / "timings.jsonl"
    run_bench(settings(cheap, policies=("fixed",)), grown)
    before = timings.read_text()

    assert run_bench(settings(cheap), grown) == finished.rows
    results = [folder / "results.jsonl" for folder in (grown, finished.folder)]
    assert results[0].read_bytes() == results[1].read_bytes()
    assert timings.read_text().startswith(before)
    added = timings.read_text().removeprefix(before).splitlines()
    assert len(added) == 8
    with pytest.raises(ConfigurationError, match=r"different: policies"):
        run_bench(settings(cheap, policies=("fixed",)), grown)


def test_a_policy_file_that_has_changed_is_not_a_policy_more(cheap: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    save_policy(file, random_policy(np.random.default_rng(0), hidden=(4,)))
    run_bench(settings(cheap, policies=(str(file),), seeds=1), tmp_path / "out")
    save_policy(file, random_policy(np.random.default_rng(1), hidden=(4,)))

    with pytest.raises(ConfigurationError, match=r"different: policies, files"):
        run_bench(settings(cheap, policies=(str(file), "fixed"), seeds=1), tmp_path / "out")


@pytest.mark.parametrize("home", [True, False])
def test_a_module_of_the_task_that_has_changed_makes_another_benchmark(
    home: bool, cheap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, helper = tmp_path / "jobs", tmp_path / "jobs" / f"helper_{home}.py"
    jobs.mkdir()
    (jobs / "job.py").write_text(f"from helper_{home} import make")
    helper.write_text(Path(cheap.rpartition(":")[0]).read_text())
    monkeypatch.setenv("HOME", str(jobs))
    name = "~/job.py:make" if home else f"{jobs / 'job.py'}:make"
    kept = run_bench(settings(name, policies=("fixed",), seeds=1), tmp_path / "out")
    content = (tmp_path / "out" / "results.jsonl").read_bytes()
    compared = json.loads((tmp_path / "out" / "bench.json").read_text())["files"]
    assert set(compared) == {name, f"{name} imports {helper.name}"}
    assert run_bench(settings(name, policies=("fixed",), seeds=1), tmp_path / "out") == kept

    helper.write_text(helper.read_text().replace("lr=0.02", "lr=0.03"))

    with pytest.raises(ConfigurationError, match=rf"different: .*files: .*{helper.name}"):
        run_bench(settings(name, policies=("fixed", "goodput"), seeds=1), tmp_path / "out")
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == content


def test_a_folder_with_something_else_is_refused(cheap: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")

    with pytest.raises(ConfigurationError, match="not empty"):
        run_bench(settings(cheap), tmp_path)
    with pytest.raises(ConfigurationError, match="is a file"):
        run_bench(settings(cheap), tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_that_never_gets_there_counts_as_the_cap(cheap: str, tmp_path: Path) -> None:
    # Jumps to the largest size, whose learning rate without a coupling is far too small for it.
    rows = run_bench(
        settings(cheap, policies=("fixed:40",), couplings=("none",), profiles=("samples",)),
        tmp_path,
    )

    lost = [row for row in rows if not row["reached"]]
    assert lost
    assert all(row["ratio"] == 4.0 for row in lost)
    assert all(row["cost"] > 4.0 * row["reference_cost"] for row in lost)


def test_curves_are_shared_through_a_folder(cheap: str, tmp_path: Path) -> None:
    shared = tmp_path / "curves"
    run_bench(settings(cheap), tmp_path / "first", references=shared)
    before = {path.name: path.read_bytes() for path in shared.iterdir()}

    run_bench(settings(cheap, policies=("goodput",)), tmp_path / "second", references=shared)

    assert {path.name: path.read_bytes() for path in shared.iterdir()} == before
    assert not (tmp_path / "second" / "references").exists()


def test_a_budget_is_compared_with_the_size_that_had_the_loss_first(
    cheap: str, tmp_path: Path
) -> None:
    rows = run_bench(
        settings(cheap, objective="budget=0.05", policies=("fixed",), profiles=("cpu",)), tmp_path
    )

    assert len(rows) == 4
    for row in rows:
        assert row["reached"]
        assert row["cost"] == pytest.approx(0.05, abs=4e-3)  # to within a step
        # A fixed run has its own lowest loss at its end at the latest, so the best is no later.
        assert row["reference_cost"] <= row["cost"] + 1e-9
        assert row["ratio"] == pytest.approx(min(row["cost"] / row["reference_cost"], 4.0))


def test_the_wall_clock_measures(cheap: str, tmp_path: Path) -> None:
    (row,) = run_bench(
        settings(cheap, profiles=("wall",), policies=("fixed",), starts=(1.0,), seeds=1), tmp_path
    )

    assert row["wall_seconds"] > 0
    assert 0 < row["reference_cost"] <= row["default_cost"]


def test_logs_are_written_where_asked_for(cheap: str, tmp_path: Path) -> None:
    (row,) = run_bench(
        settings(cheap, profiles=("cpu",), policies=("fixed",), starts=(1.0,), seeds=1),
        tmp_path,
        logs=True,
    )

    (folder,) = (tmp_path / "runs").iterdir()
    assert read_episode(folder).records[-1].step == row["steps"]


def test_the_number_of_threads_is_put_back(cheap: str, tmp_path: Path) -> None:
    torch.set_num_threads(2)
    try:
        run_bench(settings(cheap, policies=("fixed",), seeds=1), tmp_path)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_no_jobs_are_refused(cheap: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="at least 1"):
        run_bench(settings(cheap), tmp_path, jobs=0)


@pytest.mark.slow
def test_processes_write_what_one_process_writes(
    cheap: str, tmp_path: Path, finished: Finished
) -> None:
    run_bench(settings(cheap), tmp_path / "two", jobs=2)

    folders = (finished.folder, tmp_path / "two")
    one, two = ((folder / "results.jsonl").read_bytes() for folder in folders)
    assert one == two


POLICIES = ("fixed", "goodput", "plateau")
MATRIX = ("--profile", "cpu", "samples", "--start", "1", "4", "--seeds", "3")


def command(cheap: str, out: Path, *more: str) -> list[str]:
    program = [sys.executable, "-m", "rlbatch", "bench"]
    return [*program, "--task", cheap, "--policy", *POLICIES, *MATRIX, "--out", str(out), *more]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def bench(cheap: str, out: Path) -> bytes:
    arguments = command(cheap, out)
    subprocess.run(arguments, check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    return (out / "results.jsonl").read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return bench(CHEAP, tmp_path_factory.mktemp("whole") / "out")


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_killed_benchmark_goes_on_where_it_was(
    cheap: str, tmp_path: Path, jobs: str, uninterrupted: bytes
) -> None:
    out, path = tmp_path / "killed", tmp_path / "killed" / "results.jsonl"
    process = subprocess.Popen(
        command(cheap, out, "--jobs", jobs),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT,
    )
    while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") >= 10):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # it had not come to its end by itself
    survivors = _settled(path)  # worker processes notice that nobody waits for them

    assert bench(cheap, out) == uninterrupted
    total = path.read_bytes().count(b"\n")
    assert 10 <= survivors < total == 3 * 12
    # Each finished run has one timing, so one that is repeated would show. A run that was being
    # finished by the moment of the kill may have its timing already, one in each process.
    timings = (out / "timings.jsonl").read_bytes().count(b"\n")
    assert total <= timings <= total + int(jobs)


def _settled(path: Path) -> int:
    """Return the number of results once nobody adds to them for a while."""
    before, since = -1, time.monotonic()
    while time.monotonic() - since < 2.0:
        count = path.read_bytes().count(b"\n")
        if count != before:
            before, since = count, time.monotonic()
        time.sleep(0.05)
    return before


def test_two_processes_cannot_write_to_one_folder(cheap: str, tmp_path: Path) -> None:
    run_bench(settings(cheap, seeds=1), tmp_path)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from rlbatch.files import lock_folder\n"
            f"lock_folder(Path({str(tmp_path)!r})); print('locked', flush=True); sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"locked\n"
    try:
        with pytest.raises(EpisodeLogError, match="Another process"):
            run_bench(settings(cheap, seeds=1), tmp_path)
    finally:
        holder.communicate()
