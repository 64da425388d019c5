"""Which sharded models can be steered, and what is said of the others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import distribute_module

from rlbatch.control.memory import HostGauge
from rlbatch.control.memory_guard import MemoryGuard
from rlbatch.control.ranks import Ranks
from rlbatch.control.sharding import require_steerable, reshard
from rlbatch.errors import ConfigurationError, MemoryUsedUpError


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of this process alone."""
    monkeypatch.setitem(os.environ, "GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))


def test_parameters_are_shards_again_after_a_pass_without_a_backward_pass() -> None:
    model = network()
    fully_shard(model)
    with torch.no_grad():
        model(torch.zeros(3, 4))
    assert not hasattr(next(model.parameters()), "device_mesh")
    assert reshard(model)
    assert hasattr(next(model.parameters()), "device_mesh")
    assert require_steerable(model, 1) == torch.device("cpu")
    assert not reshard(network())


def test_a_parameter_outside_of_fully_shard_is_refused() -> None:
    model = network()
    fully_shard(model[0])
    with pytest.raises(
        ConfigurationError, match=r"got 1.weight outside .*fully_shard on the whole"
    ):
        require_steerable(model, 1)
    for parameter in model[1].parameters():
        parameter.requires_grad_(False)  # nobody needs the gradient of a frozen one
    require_steerable(model, 1)


def test_a_mesh_that_is_not_of_all_ranks_in_a_row_is_refused() -> None:
    grid = network()
    fully_shard(grid, mesh=init_device_mesh("cpu", (1, 1), mesh_dim_names=("copy", "shard")))
    with pytest.raises(ConfigurationError, match=r"shape \(1, 1\).*without a mesh"):
        require_steerable(grid, 1)
    few = network()
    fully_shard(few)
    with pytest.raises(ConfigurationError, match=r"all 4 ranks.*shape \(1,\)"):
        require_steerable(few, 4)


def test_a_parameter_that_every_rank_has_whole_is_refused() -> None:
    model = distribute_module(network(), init_device_mesh("cpu", (1,)))
    with pytest.raises(ConfigurationError, match=r"0.weight to be divided.*Replicate"):
        require_steerable(model, 1)


def test_shards_that_are_kept_off_their_device_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    fully_shard(model, offload_policy=CPUOffloadPolicy(pin_memory=False))
    # Offloaded shards lie on the CPU while the mesh is of GPUs, which a test need not have.
    monkeypatch.setattr(DeviceMesh, "device_type", "cuda")
    with pytest.raises(ConfigurationError, match=r"cuda devices, got one on cpu.*offload_policy"):
        require_steerable(model, 1)


@pytest.mark.parametrize("inner", [False, True])
def test_the_older_wrapper_is_refused(inner: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(UserWarning, match="world size is 1"):
        wrapped = FullyShardedDataParallel(network(), device_id=torch.device("cpu"))
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    model = nn.Sequential(wrapped) if inner else wrapped
    with pytest.raises(ConfigurationError, match=r"fully_shard.*FullyShardedDataParallel cannot"):
        Ranks.of(model)


def test_a_pass_of_a_sharded_model_that_fails_is_the_end() -> None:
    ranks = Ranks(1, 2, sharded=True)
    guard = MemoryGuard(HostGauge(10**6), 8, adapts=True, ranks=ranks)
    match = r"8 samples.*rank 1.*memory_limit.*micro_batch_size=4"
    with pytest.raises(MemoryUsedUpError, match=match), guard.watch(8):
        raise torch.OutOfMemoryError("CUDA out of memory, says the test")
    with pytest.raises(RuntimeError, match="something else"), guard.watch(8):
        raise RuntimeError("something else")
