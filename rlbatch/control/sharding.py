"""Models whose parameters `torch.distributed.fsdp.fully_shard` has divided among ranks (FSDP2)."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

from rlbatch.errors import ConfigurationError


def reshard(model: nn.Module) -> bool:
    """Let `model.parameters()` be the shards, which the optimizer has, and return if there are any.

    After a forward pass without a backward pass, as in a validation, they are whole copies.
    """
    for module in (found := _fsdp_modules(model)):
        module.reshard()
    return bool(found)


def require_steerable(model: nn.Module, world_size: int) -> torch.device:
    """Return where the shards are.

    Raises:
        ConfigurationError: They are not those of one mesh of all ranks, or not of all parameters.
    """
    device = torch.device("cpu")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            _require_shard(name, parameter, world_size)
            device = parameter.device
    return device


def _fsdp_modules(model: nn.Module) -> list[Any]:
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")  # imported if it was used
    if fsdp is None:
        return []
    return [module for module in model.modules() if isinstance(module, fsdp.FSDPModule)]


def _require_shard(name: str, parameter: Any, world_size: int) -> None:
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None:
        raise ConfigurationError(
            f"Expected all trained parameters in fully_shard, got {name} outside of it, whose "
            "gradient nobody averages. Call fully_shard on the whole model last."
        )
    if mesh.ndim != 1 or mesh.size() != world_size:
        raise ConfigurationError(
            f"Expected parameters sharded over a mesh of all {world_size} ranks, got {name} on one "
            f"of shape {tuple(mesh.shape)}. Hybrid and tensor-parallel sharding cannot be steered: "
            "call fully_shard without a mesh, or with one of a single dimension."
        )
    if not all(placement.is_shard() for placement in parameter.placements):
        raise ConfigurationError(
            f"Expected {name} to be divided among the ranks, got {parameter.placements}. Use "
            "fully_shard, or DistributedDataParallel for a copy on each rank."
        )
    if parameter.device.type != mesh.device_type:
        raise ConfigurationError(
            f"Expected the shard of {name} on the mesh's {mesh.device_type} devices, got one on "
            f"{parameter.device.type}. Offloading is not supported: leave out offload_policy."
        )
