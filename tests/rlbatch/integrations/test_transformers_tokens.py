"""What the controlled Trainer makes of losses that are means over tokens, in one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from tests.rlbatch.integrations.transformers_ranks import (
    Job,
    make_data,
    replayed,
    rows_of,
    run,
    tokens,
)


@pytest.mark.parametrize("loss", ["model", "mean"])
@pytest.mark.parametrize("script", [(), (1.0, 0.6, -2.0, 1.5)])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_steps_gradient_is_that_of_all_its_tokens(
    tmp_path: Path, loss: str, script: tuple[float, ...], accumulation: int
) -> None:
    """In parts of 3, or of 2 as the arguments say; some have no token that counts."""
    job = Job(
        "tokens",
        "tokens",
        script,
        50,
        args={
            "num_train_epochs": 1,
            "per_device_train_batch_size": 8 // accumulation,
            "gradient_accumulation_steps": accumulation,
        },
        settings={"micro_batch_size": 3 if accumulation == 1 else None},
        loss=loss,
    )
    seen = run(job, tmp_path)
    labels = make_data(job).labels[:, 1:].ne(-100).sum(1)
    parts = [part for step in seen["batches"] for part in step]
    assert max(map(len, parts)) <= 3
    assert any(int(labels[part].sum()) == 0 for part in parts)
    # The model computes its own loss in single precision.
    atol = 1e-8 if loss == "model" else 1e-12
    torch.testing.assert_close(
        seen["weights"], replayed(job, rows_of([seen]), tokens), rtol=0.0, atol=atol
    )
