"""What the file of a recurrent policy holds beside its network, see `rlbatch.policy.file`."""

from __future__ import annotations

from typing import Any

from rlbatch.policy.container import Tensors
from rlbatch.policy.file_checks import RECURRENT_VERSION
from rlbatch.policy.recurrent import MemoryLayer, RecurrentPolicy


def memory_entries(policy: RecurrentPolicy) -> dict[str, Any]:
    """Return the metadata of a policy's memory; what it has not, is as of a policy without."""
    units = [layer.units for layer in policy.memory]
    return {
        "format_version": RECURRENT_VERSION,
        "memory_sizes": [policy.memory[0].inputs.shape[1], *units],
        **{"masked": False, "sample": False},
    }


def memory_tensors(policy: RecurrentPolicy) -> Tensors:
    """Return the weights of a policy's memory by their names in the file."""
    return {
        f"memory.{index}.{part}": getattr(layer, part)
        for index, layer in enumerate(policy.memory)
        for part in MemoryLayer._fields
    }


def memory_layers(sizes: list[int], tensors: Tensors) -> list[MemoryLayer]:
    """Return the layers of a memory.

    Args:
        sizes: Units of its layers, the inputs of the first one before them.
        tensors: The file's.
    """
    return [
        MemoryLayer(*(tensors[f"memory.{index}.{part}"] for part in MemoryLayer._fields))
        for index in range(len(sizes) - 1)
    ]
