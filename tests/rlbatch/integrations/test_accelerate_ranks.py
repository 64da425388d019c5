"""Controlled loops on Accelerate with two processes: copies (DDP) and shards (FSDP2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("transformers")

from tests.rlbatch.integrations.accelerate_ranks import Job, loss_of, make_model
from tests.rlbatch.integrations.torchrun import launch
from tests.rlbatch.integrations.transformers_ranks import Rows, flat, rows_of

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

KINDS = ("ddp", "fsdp")
PARTS: dict[str, Any] = {"settings": {"micro_batch_size": 3}}
BITS: dict[str, Any] = {
    "dropout": 0.2,
    "bits": True,
    "settings": {"micro_batch_size": 5, "noise_rate": 2.0, "lr_coupling": "adascale"},
}
SAVES = (1, 4, 7, 8, 11)  # within chunks and between them, within epochs and at their ends
JOBS = [
    job
    for kind in KINDS
    for job in (
        Job(f"{kind}", kind, **PARTS),
        Job(f"{kind} accumulating", kind, accumulation=2),
        Job(f"{kind} weigh", kind, **PARTS, weigh=True),
        Job(f"{kind} fixed", kind, script=(), samples=80),
        Job(f"{kind} alone", kind, script=(), samples=80),
        Job(f"{kind} saved", kind, saves=SAVES, **BITS),
        *(Job(f"{kind} resumed {n}", kind, resume=(f"{kind} saved", n), **BITS) for n in SAVES),
    )
]
Seen = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder: Path = tmp_path_factory.mktemp("accelerate")
    return launch(JOBS, folder)


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_has_every_sample_once(seen: Seen, kind: str) -> None:
    for name in (kind, f"{kind} accumulating", f"{kind} weigh", f"{kind} saved"):
        assert all(rank["sharded"] == (kind == "fsdp") for rank in seen[name])
        rows = rows_of(seen[name])
        assert len({len(step) for step in rows}) > 3
        order = [row for step in rows for row in step]
        for epoch in range(3):
            assert sorted(order[75 * epoch : 75 * (epoch + 1)]) == list(range(75))


@pytest.mark.parametrize("kind", KINDS)
def test_a_fixed_size_is_accelerate_alone(seen: Seen, kind: str) -> None:
    """On 80 samples, which two processes share equally; those of a step are added up elsewise."""
    fixed, alone = seen[f"{kind} fixed"], seen[f"{kind} alone"]
    assert [sorted(rows) for rows in rows_of(fixed)] == [sorted(rows) for rows in rows_of(alone)]
    for one, other in zip(fixed, alone, strict=True):
        assert one["rates"] == other["rates"]
        assert len(one["weights"]) == 15
        torch.testing.assert_close(one["weights"], other["weights"], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["", " accumulating", " weigh"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_steps_gradient_is_that_of_all_its_samples(seen: Seen, kind: str, name: str) -> None:
    """By autograd over all of them in one process; weights that some parts have none of, too."""
    job = next(job for job in JOBS if job.name == kind + name)
    model, data = make_model(job), Rows(75)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    one, other = seen[job.name]
    rate = 0.05
    for rows, weights, same, after in zip(
        rows_of(seen[job.name]), one["weights"], other["weights"], one["rates"], strict=True
    ):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss_of(model, {"x": data.x[rows], "labels": data.y[rows]}, job.weigh)[0].backward()
        optimizer.step()
        torch.testing.assert_close(weights, flat(model), rtol=1e-9, atol=1e-12)
        assert torch.equal(weights, same)
        rate = after
    assert one["rates"][-1] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_processes_go_on_as_if_nothing_had_happened(seen: Seen, kind: str) -> None:
    """Accelerate saves one state of the controller; each process finds its own beside it.

    The policy decides by the exact bits of what it sees, with dropout in the model.
    """
    for steps in SAVES:
        whole, resumed = seen[f"{kind} saved"], seen[f"{kind} resumed {steps}"]
        for one, again in zip(whole, resumed, strict=True):
            assert len(again["batches"]) == len(one["batches"]) - steps > 0
            for what in ("batches", "rates"):
                assert again[what] == one[what][steps:]
            assert all(map(torch.equal, again["weights"], one["weights"][steps:]))
            assert again["decided"] == one["decided"]
    sizes = {len(rows) for rows in rows_of(seen[f"{kind} saved"])}
    assert len(sizes) > 3
