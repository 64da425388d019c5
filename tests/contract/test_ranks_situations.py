"""The situations of `situations.py` on two ranks, under DistributedDataParallel and FSDP2."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.rank_pair import Pair, check
from tests.contract.rank_programs import PROGRAMS
from tests.contract.situations import SITUATIONS, Host, Situation

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    ranks = Pair(tmp_path_factory.mktemp("ranks"))
    yield ranks
    ranks.close()


def name_of(situation: Situation) -> str:
    return situation.__name__


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("situation", [*SITUATIONS, *PROGRAMS], ids=name_of)
def test_two_ranks(pair: Pair, situation: Situation, kind: str) -> None:
    if situation.__name__ == "a_dataset_that_grows":
        pytest.skip("a DistributedSampler counts its dataset once")
    check(pair.run(situation, kind))


def one_that_refuses_alone(host: Host) -> None:
    """As a loop does that catches an error of rlbatch on one rank."""
    if host.gather(0) and getattr(host, "rank", 0) == 0:
        host.gather(1)


def test_a_rank_that_waits_alone_is_found_out(pair: Pair) -> None:
    found = pair.run(one_that_refuses_alone, "ddp", timeout=3.0)
    assert any(outcome.hung for outcome in found)
    with pytest.raises(AssertionError, match="HUNG"):
        check(found)


ALONE = """
import torch, rlbatch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

torch.distributed.init_process_group("gloo")
model = DistributedDataParallel(torch.nn.Linear(3, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
controller = rlbatch.BatchController(model, optimizer, batch_size=8, policy="fixed")
data = TensorDataset(torch.randn(64, 3))
loader = controller.loader(DataLoader(data, 4, sampler=DistributedSampler(data)))
for step, (x,) in enumerate(loader):
    wrong = torch.distributed.get_rank() == 1 and step == 3
    controller.backward(model(x).square().mean(), weight=-1.0 if wrong else 1.0)
    controller.step()
"""


def test_what_one_rank_refuses_ends_all_of_them(tmp_path: Path) -> None:
    """They do not wait for it until the group's timeout, half an hour."""
    program = tmp_path / "alone.py"
    program.write_text(ALONE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", str(program)]
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": path}
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 1
    assert "DeliveryError: Expected a weight of 0 or more, got -1" in done.stderr
