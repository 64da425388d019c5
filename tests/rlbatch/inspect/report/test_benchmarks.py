"""A benchmark's tables show the numbers of its summary."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rlbatch.inspect.report.benchmarks import (
    Benchmark,
    benchmark_html,
    is_benchmark,
    read_benchmark,
)

EVIL = "<script>evil</script>"


def row(policy: str, task: str, seed: int, ratio: float) -> dict[str, Any]:
    return {
        "task": task,
        "policy": policy,
        "lr_coupling": "sqrt",
        "profile": "cpu",
        "objective": "target",
        "start_batch_size": 32,
        "seed": seed,
        "reached": True,
        "cost": ratio,
        "reference_cost": 1.0,
        "reference_batch_size": 32,
        "default_cost": 1.5,
        "start_cost": 1.5,
        "ratio": ratio,
        "steps": 10,
        "samples": 320,
        "final_val_loss": 0.1,
        "batch_size_min": 32,
        "batch_size_max": 32,
        "wall_seconds": 0.0,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        row(policy, task, seed, ratio + 0.01 * seed)
        for policy, ratio in ((EVIL, 0.9), ("goodput", 1.2))
        for task in ("a", "b")
        for seed in (0, 1, 2)
    ]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return tmp_path


def test_every_mean_stands_with_its_interval(folder: Path) -> None:
    benchmark = read_benchmark(folder)

    page = benchmark_html(benchmark)

    for one in [*benchmark.summary["policies"], *benchmark.summary["pairs"]]:
        mean = one["ratio"]
        assert f"{mean['value']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}]" in page
    assert page.count("<table>") == 4  # all, two tasks, pairs


def test_dots_lie_where_their_values_are(folder: Path) -> None:
    page = benchmark_html(read_benchmark(folder))
    first = page.split("</table>")[0]
    dots = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', first)]
    one = float(re.findall(r'<line x1="([\d.]+)"', first)[0])

    assert dots[0] < one < dots[1]  # 0.91 and 1.21


def test_names_are_escaped(folder: Path) -> None:
    assert EVIL not in benchmark_html(read_benchmark(folder))


def test_a_mean_without_an_interval() -> None:
    mean = {"value": 1.0, "low": None, "high": None}
    policy = {"policy": "p", "runs": 1, "ratio": mean, "reach_rate": 1.0, "to_default": mean}
    policy |= {"to_start": mean, "p10": 1.0, "median": 1.0, "p90": 1.0, "worst": 1.0}
    summary = {"runs": 1, "policies": [policy], "by_task": {"t": [policy]}, "pairs": []}

    assert "1.000" in benchmark_html(Benchmark("b", summary))


def test_what_is_a_benchmark(folder: Path, tmp_path: Path) -> None:
    assert is_benchmark(folder)
    assert not is_benchmark(tmp_path / "other")
