from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlbatch.agents.search.energy import NvmlMeter, find_meter

CPU = torch.device("cpu")


def zone(folder: Path, name: str, microjoules: int) -> Path:
    path = folder / name
    path.mkdir()
    (path / "energy_uj").write_text(f"{microjoules}\n")
    (path / "max_energy_range_uj").write_text("1000000\n")
    return path


def test_the_packages_are_added_and_their_parts_are_not(tmp_path: Path) -> None:
    first, second = zone(tmp_path, "intel-rapl:0", 0), zone(tmp_path, "intel-rapl:1", 100)
    part = zone(tmp_path, "intel-rapl:0:0", 0)
    meter = find_meter(CPU, tmp_path)
    assert meter is not None
    before = meter.joules()
    (first / "energy_uj").write_text("300000\n")
    (second / "energy_uj").write_text("200100\n")
    (part / "energy_uj").write_text("777777\n")

    assert meter.joules() - before == pytest.approx(0.5)


def test_a_counter_that_runs_over_goes_on(tmp_path: Path) -> None:
    one = zone(tmp_path, "intel-rapl:0", 900_000)
    meter = find_meter(CPU, tmp_path)
    assert meter is not None
    before = meter.joules()
    (one / "energy_uj").write_text("100000\n")

    assert meter.joules() - before == pytest.approx(0.2)


def test_hardware_that_tells_nothing(tmp_path: Path) -> None:
    assert find_meter(CPU, tmp_path) is None
    broken = tmp_path / "intel-rapl:0"
    broken.mkdir()
    assert find_meter(CPU, tmp_path) is None


def test_a_gpus_counter_is_in_millijoules() -> None:
    class Library:
        def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
            assert handle == "gpu"
            return 2500

    assert NvmlMeter(Library(), "gpu").joules() == 2.5
