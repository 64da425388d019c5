"""A Lightning fit that goes on from a checkpoint is the one that was never interrupted."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from rlbatch.control.guard import GuardConfig
from rlbatch.log.episode_log import read_episode
from rlbatch.testing import ScriptedPolicy
from tests.rlbatch.integrations.lightning_runs import (
    MARKS,
    Net,
    Run,
    cosine,
)
from tests.rlbatch.integrations.steered import ByBits

pytestmark = MARKS

SCRIPT = ScriptedPolicy((1.0, 0.5, -1.5, 2.0, -1.0, 1.0))


def every(steps: int, folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, "{step}", every_n_train_steps=steps, save_top_k=-1)


def saved(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.ckpt"), key=lambda path: int(path.stem.rpartition("=")[2]))


def assert_goes_on(again: Run, whole: Run, steps: int) -> None:
    """The rest of a run, from behind so many steps, is the same in every respect."""
    rest = [number for number, part in enumerate(whole.net.parts) if part[1] >= steps]
    assert again.net.parts == [whole.net.parts[number] for number in rest]
    assert again.net.losses == [whole.net.losses[number] for number in rest]
    assert torch.equal(again.net.weights, whole.net.weights)
    assert again.rate == whole.rate
    assert again.trainer.global_step == whole.trainer.global_step
    assert again.trainer.current_epoch == whole.trainer.current_epoch
    assert again.controller.steps == whole.controller.steps
    assert again.controller.samples_seen == whole.controller.samples_seen
    seen = sum(len(part[2]) for part in whole.net.parts if part[1] < steps)
    # A checkpoint of a validation's end does not repeat it; one from before it makes it up.
    made = [place - seen for place in whole.net.validated_at]
    assert [p for p in again.net.validated_at if p > 0] == [p for p in made if p > 0]


OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "accumulating": {"accumulation": 2},
    "in parts": {"settings": {"micro_batch_size": 5}},
    "measuring": {"settings": {"noise_rate": 4.0}},
    "coupled": {"settings": {"lr_coupling": "sqrt"}},
    "validating often": {"val_check_interval": 0.3},
    "validating across epochs": {"val_check_interval": 7, "check_val_every_n_epoch": None},
    "steps": {"max_steps": 31},
    "limited": {"limit_train_batches": 6},
    "bf16": {"precision": "bf16-mixed"},
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("name", OPTIONS)
def test_a_resumed_fit_decides_and_sees_the_same(tmp_path: Path, name: str) -> None:
    def run(*callbacks: Any, **kwargs: Any) -> Run:
        options = {"max_epochs": 4, **OPTIONS[name]}
        if "max_steps" in options:
            options["max_epochs"] = None
        options["settings"] = {**options.get("settings", {}), "log_dir": tmp_path / "log"}
        return Run(SCRIPT, net=Net(cosine), callbacks=callbacks, **options, **kwargs)

    def decisions() -> list[tuple[str, int, int | None]]:
        lines = read_episode(tmp_path / "log").records
        return [(line.event, line.batch_size, line.effective_step) for line in lines]

    whole = run(every(1, tmp_path / "whole"))
    decided = decisions()
    checkpoints = saved(tmp_path / "whole")
    assert len(checkpoints) == whole.trainer.global_step
    assert len(set(whole.net.sizes)) > 3
    for number, checkpoint in enumerate(checkpoints[:-1], start=1):
        if number % 5 == 1 or number in range(6, 11):
            again = run(ckpt_path=checkpoint)
            assert_goes_on(again, whole, number)
            assert decisions() == decided


class EveryBatch(Callback):
    """Saves behind each micro-batch, also within a step: Lightning checkpoints may be anywhere."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.saved = folder, list[Path]()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        path = self.folder / f"{len(self.saved)}.ckpt"
        trainer.save_checkpoint(path)
        self.saved.append(path)


BITS: dict[str, dict[str, Any]] = {
    "in parts": {"settings": {"micro_batch_size": 5}},
    "accumulating": {"accumulation": 2},
    "validating often": {"val_check_interval": 0.3, "settings": {"micro_batch_size": 11}},
    "coupled": {"settings": {"lr_coupling": "adascale", "noise_rate": 2.0, "guard": GuardConfig()}},
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("name", BITS)
def test_runs_resumed_anywhere_decide_by_the_same_bits(tmp_path: Path, name: str) -> None:
    def run(*callbacks: Any, **kwargs: Any) -> Run:
        options = {"max_epochs": 3, **BITS[name]}
        more = {"log_dir": tmp_path / "log", "max_batch_size": 40}
        options["settings"] = {**options.get("settings", {}), **more}
        return Run(ByBits(), net=Net(cosine), callbacks=callbacks, **options, **kwargs)

    def decisions() -> list[Any]:
        return [line.to_json() for line in read_episode(tmp_path / "log").records]

    saving = EveryBatch(tmp_path)
    whole, decided = run(saving), decisions()
    assert len(set(whole.net.sizes)) > 3
    draw = random.Random(name)
    places = draw.sample(range(len(saving.saved) - 1), 12)
    for place in places:
        again = run(ckpt_path=saving.saved[place])
        assert decisions() == decided, place
        assert torch.equal(again.net.weights, whole.net.weights), place
        assert again.net.losses == whole.net.losses[-len(again.net.losses) :], place


class EpochStarts(Callback):
    """Notes which epochs have begun."""

    def __init__(self) -> None:
        self.epochs = list[int]()

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.epochs.append(trainer.current_epoch)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("name", BITS)
def test_a_fit_goes_on_from_the_last_batch_of_one_epoch_after_the_other(
    tmp_path: Path, name: str
) -> None:
    def run(folder: str, begun: EpochStarts, **kwargs: Any) -> tuple[Run, list[Path]]:
        (tmp_path / folder).mkdir()
        saving, options = EveryBatch(tmp_path / folder), {"max_epochs": 4, **BITS[name]}
        more = {"log_dir": tmp_path / "log", "max_batch_size": 40}
        options["settings"] = {**options.get("settings", {}), **more}
        callbacks = begun, saving
        made = Run(ByBits(), net=Net(cosine), callbacks=callbacks, **options, **kwargs)
        return made, saving.saved

    whole, saved = run("whole", EpochStarts())
    for epoch in range(1, 4):  # each from the run before it, which has been resumed, too
        last = sum(part[0] < epoch for part in whole.net.parts) - 1 - len(whole.net.parts)
        begun = EpochStarts()
        again, saved = run(f"from {epoch}", begun, ckpt_path=saved[last])
        assert again.net.parts == whole.net.parts[last + 1 :]
        assert again.net.losses == whole.net.losses[last + 1 :]
        assert torch.equal(again.net.weights, whole.net.weights)
        assert begun.epochs == list(range(epoch, 4))
        assert again.trainer.current_epoch == whole.trainer.current_epoch
