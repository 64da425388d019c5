"""Fits under a controller with two processes, as DistributedDataParallel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")

from tests.contract.programs import Rows, error, gradient_of_all, network
from tests.contract.test_divided_losses import masked_mean, plain_mean, tokens_that_count
from tests.rlbatch.integrations.lightning_ranks import Job
from tests.rlbatch.integrations.torchrun import launch

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

PARTS: dict[str, Any] = {"micro_batch_size": 3}
BITS = Job("bits", bits=True, settings={**PARTS, "max_batch_size": 24}, save_at=(3, 8, 13))
JOBS = [
    Job("parts", settings=PARTS),
    Job("accumulating", accumulation=2),
    Job("tokens", settings=PARTS, tokens=True),
    Job("alone", script=None, samples=80),
    Job("fixed", script=(), samples=80),
    BITS,
]
RESUMED = [replace(BITS, name=f"bits {at}", save_at=(), resume=f"bits/{at}.ckpt") for at in (3, 8)]
Seen = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return launch([*JOBS, *RESUMED], tmp_path_factory.mktemp("lightning"))


@pytest.mark.parametrize("name", ["parts", "accumulating", "tokens"])
def test_a_steps_gradient_is_that_of_all_its_samples(seen: Seen, name: str) -> None:
    """Compared along the way that the weights take, by autograd in one process."""
    model, data = network(), Rows()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    one, other = seen[name]
    loss = masked_mean if name == "tokens" else plain_mean
    assert len({len(step) for step in one["steps"]}) > 3
    for rows, found, rate in zip(one["steps"], one["gradients"], one["rates"], strict=True):
        batch = data.batch(rows)
        if name != "tokens" or int(tokens_that_count(batch)):
            assert error(found, gradient_of_all(model, loss, batch)) < 1e-9
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        begin = 0
        for parameter in model.parameters():
            end = begin + parameter.numel()
            parameter.grad = found[begin:end].reshape(parameter.shape).clone()
            begin = end
        optimizer.step()
    assert torch.equal(one["weights"], other["weights"])
    order = [row for step in one["steps"] for row in step]
    for epoch in range(3):
        assert sorted(order[75 * epoch : 75 * (epoch + 1)]) == list(range(75))


def test_fixed_is_lightning_alone(seen: Seen) -> None:
    """On 80 samples, which two processes share equally."""
    for alone, fixed in zip(seen["alone"], seen["fixed"], strict=True):
        assert [sorted(step) for step in alone["steps"]] == [sorted(s) for s in fixed["steps"]]
        assert fixed["rates"] == alone["rates"]
        assert fixed["global_step"] == alone["global_step"] == 30
        assert error(fixed["weights"], alone["weights"]) < 1e-12


@pytest.mark.parametrize("at", [3, 8])
def test_processes_go_on_as_if_nothing_had_happened(seen: Seen, at: int) -> None:
    """Within a chunk, whose losses each process has of its own; one file holds the run."""
    for one, again in zip(seen["bits"], seen[f"bits {at}"], strict=True):
        assert again["steps"] == one["steps"][at:]
        assert again["rates"] == one["rates"][at:]
        assert torch.equal(again["weights"], one["weights"])
