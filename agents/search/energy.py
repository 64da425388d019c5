"""Energy counters of the hardware: NVML's for a GPU, RAPL's for a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter(Protocol):
    """Counts joules."""

    name: str

    def joules(self) -> float:
        """Return the joules since some moment in the past; only differences mean anything."""
        ...


class RaplMeter:
    """The packages' counters of Intel's and AMD's CPUs, as Linux shows them.

    They run over; what was counted before is carried on as long as they are read in time, which is
    some minutes at full load.
    """

    name = "RAPL"

    def __init__(self, zones: Sequence[Path]) -> None:
        """Read the counters of some zones, such as /sys/class/powercap/intel-rapl:0."""
        self._zones = list(zones)
        self._range = [_number(zone / "max_energy_range_uj") for zone in self._zones]
        self._last = self._read()
        self._total = 0.0

    def joules(self) -> float:
        """As `EnergyMeter.joules`."""
        now = self._read()
        for new, old, whole in zip(now, self._last, self._range, strict=True):
            self._total += new - old if new >= old else new - old + whole
        self._last = now
        return self._total * 1e-6

    def _read(self) -> list[float]:
        return [_number(zone / "energy_uj") for zone in self._zones]


class NvmlMeter:
    """The energy counter of an NVIDIA GPU of the Volta generation or later."""

    name = "NVML"

    def __init__(self, library: object, handle: object) -> None:
        """Read a device's counter.

        Args:
            library: The module `pynvml`, initialised.
            handle: Its handle of the device.
        """
        self._library, self._handle = library, handle

    def joules(self) -> float:
        """As `EnergyMeter.joules`; the counter is in millijoules."""
        read = self._library.nvmlDeviceGetTotalEnergyConsumption  # type: ignore[attr-defined]
        return float(read(self._handle)) * 1e-3


def find_meter(device: torch.device, powercap: Path = POWERCAP) -> EnergyMeter | None:
    """Return the meter of a device; None where the hardware, or the permission, says nothing."""
    return _nvml_meter(device) if device.type == "cuda" else _rapl_meter(powercap)


def _rapl_meter(powercap: Path) -> RaplMeter | None:
    zones = [zone for zone in sorted(powercap.glob("*-rapl:*")) if zone.name.count(":") == 1]
    try:
        return RaplMeter(zones) if zones else None
    except (OSError, ValueError):  # since 2020 only root may read them
        return None


def _nvml_meter(device: torch.device) -> NvmlMeter | None:
    try:
        import pynvml  # type: ignore[import-not-found]
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        identity = str(torch.cuda.get_device_properties(device).uuid)
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{identity}")
        meter = NvmlMeter(pynvml, handle)
        meter.joules()
    except (pynvml.NVMLError, AttributeError):  # an older card, driver or PyTorch
        return None
    return meter


def _number(path: Path) -> float:
    return float(path.read_text())
