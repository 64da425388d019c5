"""What a roll-back restores in a Lightning fit, and states that are refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD
from torch.utils.data import BatchSampler, DataLoader

pytest.importorskip("lightning")

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from rlbatch.control.guard import GuardConfig
from rlbatch.errors import ConfigurationError
from rlbatch.integrations.lightning import BatchSizeCallback
from rlbatch.testing import ScriptedPolicy
from tests.rlbatch.integrations.lightning_runs import CONFIG, MARKS, Net, Rows, Run

pytestmark = MARKS

SETTINGS: dict[str, Any] = {**CONFIG, "guard": GuardConfig(), "lr_coupling": "none"}


class Spoilt(Net):
    """Its loss is no number in one step behind a change of the batch size."""

    def __init__(self, step: int) -> None:
        super().__init__(optimizer=lambda p: SGD(p, lr=0.05, momentum=0.5), dropout=0.0)
        self.step = step

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss * torch.nan if self.trainer.global_step == self.step else loss


class Looking(Callback):
    """Notes the averaged weights and the weights in front of each batch."""

    def __init__(self, average: EMAWeightAveraging) -> None:
        self.average = average
        self.seen: dict[int, tuple[Any, Any]] = {}

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        model: Any = self.average._average_model
        averaged = [p.detach().clone() for p in model.module.net.parameters()]
        weights = [p.detach().clone() for p in pl_module.net.parameters()]
        self.seen[trainer.global_step] = averaged, weights


def test_averages_of_weights_are_restored() -> None:
    """Steps 2 and 3 are the first chunk behind a change; step 3 has no finite loss."""
    average = EMAWeightAveraging(decay=0.5)
    looking, queue = Looking(average), torch.zeros(1)
    callback = BatchSizeCallback(ScriptedPolicy((1.0,)), **SETTINGS)
    callback.on_rollback(queue.clone, queue.copy_)

    class Filling(Callback):
        def on_train_batch_start(
            self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
        ) -> None:
            if trainer.global_step == 3:
                queue.fill_(7.0)
            elif trainer.global_step == 4:
                assert float(queue) == 0.0

    with pytest.warns(RuntimeWarning, match="was not finite.*after step 2 again"):
        run = Run(None, net=Spoilt(3), val=False, callbacks=(callback, average, looking, Filling()))
    assert callback.controller is not None
    assert callback.controller.components["rollbacks"] == 1
    before, weights = looking.seen[2]
    after, restored = looking.seen[4]
    assert all(map(torch.equal, weights, restored))
    # The callback averages once more behind the roll-back: with the restored weights.
    for average_before, weight, found in zip(before, weights, after, strict=True):
        assert torch.allclose(found, 0.5 * average_before + 0.5 * weight, rtol=1e-6)
    assert all(bool(torch.isfinite(p).all()) for p in run.net.net.parameters())  # the average


def test_what_cannot_be_restored_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="Expected on_rollback"):
        BatchSizeCallback().on_rollback(3)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("damage", ["policy", "missing", "weights"])
def test_a_state_that_is_refused_leaves_the_callback_as_it_was(tmp_path: Path, damage: str) -> None:
    """A fit anew with the same callback is the one that never saw it."""
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5, save_top_k=-1)
    run = Run(ScriptedPolicy((1.0, -1.0)), max_epochs=1, callbacks=(saving,))
    path = next(iter(sorted(tmp_path.glob("*.ckpt"))))
    checkpoint = torch.load(path, weights_only=False)
    (key,) = (key for key in checkpoint["callbacks"] if key.startswith("BatchSizeCallback"))
    state = copy.deepcopy(checkpoint["callbacks"][key])
    if damage == "policy":
        state["controller"]["control_loop"]["engine"] = {"policy": 3}
    elif damage == "missing":
        del state["due"]
    else:
        state["controller"]["control_loop"]["steps"] = "many"
    checkpoint["callbacks"][key] = state
    torch.save(checkpoint, path)

    def fit(callback: Any, **more: Any) -> Run:
        return Run(None, max_epochs=1, callbacks=(callback,), **more)

    callback = BatchSizeCallback(ScriptedPolicy((1.0, -1.0)), **CONFIG)
    with pytest.raises(ConfigurationError, match="state"):
        fit(callback, ckpt_path=path)
    again = fit(callback)
    assert again.net.parts == run.net.parts
    assert torch.equal(again.net.weights, run.net.weights)
    assert callback.controller is not None
    assert callback.controller.steps == run.controller.steps


def test_a_loader_of_no_number_of_samples_is_refused() -> None:
    class Batches(BatchSampler):
        def __init__(self) -> None:
            super().__init__(range(75), 8, False)
            self.batch_size: Any = "8"

        def __iter__(self) -> Any:
            yield from BatchSampler(range(75), 8, False)

        def __len__(self) -> int:
            return 10

    with pytest.raises(ConfigurationError, match="must be a whole number of samples"):
        Run("fixed", loader=DataLoader(Rows(), batch_sampler=Batches()))
