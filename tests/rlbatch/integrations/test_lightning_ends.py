"""A Lightning fit that goes on from a checkpoint of any hook calls the hooks that were left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")

from lightning.pytorch import Callback
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from tests.rlbatch.integrations.lightning_runs import MARKS, Net, Run
from tests.rlbatch.integrations.steered import ByBits

pytestmark = [
    *MARKS,
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.slow,
]

SAMPLES = 27
HOOKS = (
    *("on_train_epoch_start", "on_train_batch_end", "on_validation_start", "on_validation_end"),
    *("on_validation_batch_end", "on_train_epoch_end"),
)


class Notes(Callback):
    """Notes each hook, and saves in it.

    Attributes:
        seen: Name, epoch, steps, number of the batch and learning rate.
        saved: Checkpoint, the hook's name and its place in `seen`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen, self.saved = folder, list[Any](), list[tuple[Path, str, int]]()

    def note(self, name: str, trainer: Any, *at: Any) -> None:
        if trainer.sanity_checking:
            return
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.seen.append((name, trainer.current_epoch, trainer.global_step, at[2:], rate))
        path = self.folder / f"{len(self.saved)}.ckpt"
        trainer.save_checkpoint(path)
        self.saved.append((path, name, len(self.seen)))


def _hook(name: str) -> Any:
    def hook(self: Notes, trainer: Any, module: Any, *at: Any) -> None:
        self.note(name, trainer, *at)

    return hook


for _name in HOOKS:
    setattr(Notes, _name, _hook(_name))


def by_epoch(optimizer: Any, module: Any) -> dict[str, Any]:
    return {"scheduler": StepLR(optimizer, 1, 0.5), "interval": "epoch"}


OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "validating often": {"val_check_interval": 2, "schedule": by_epoch},
    "validating seldom": {"check_val_every_n_epoch": 2},
    "no validation data": {"val": False},
    "max_steps": {"max_steps": 5},
}


def make(folder: Path, name: str, checkpoint: Path | None = None) -> tuple[Run, Notes]:
    folder.mkdir(exist_ok=True)
    notes, options = Notes(folder), dict(OPTIONS[name])
    net = Net(options.pop("schedule", None))
    settings = {"log_dir": folder.parent / "log", "max_batch_size": 12}
    more = {"samples": SAMPLES, "callbacks": (notes,), "ckpt_path": checkpoint}
    run = Run(ByBits(), net=net, settings=settings, **more, **options)
    return run, notes


@pytest.mark.parametrize("name", OPTIONS)
def test_the_hooks_that_were_left_are_called(tmp_path: Path, name: str) -> None:
    whole, notes = make(tmp_path / "whole", name)
    decided = (tmp_path / "log" / "decisions.jsonl").read_text()
    for number, (path, hook, behind) in enumerate(notes.saved):
        if number % 3 and hook in ("on_train_batch_end", "on_validation_batch_end"):
            continue
        again, found = make(tmp_path / "again", name, path)
        left = notes.seen[behind - (hook == "on_train_epoch_start") :]
        if hook in ("on_validation_start", "on_validation_batch_end"):  # it is made anew
            made = [seen[0] for seen in notes.seen[:behind]]
            left = notes.seen[behind - 1 - made[::-1].index("on_validation_start") :]
        assert found.seen == left, (number, hook)
        assert torch.equal(again.net.weights, whole.net.weights), (number, hook)
        assert again.trainer.current_epoch == whole.trainer.current_epoch
        assert (tmp_path / "log" / "decisions.jsonl").read_text() == decided, (number, hook)


@pytest.mark.parametrize("hook", HOOKS)
def test_checkpoints_of_resumed_runs_are_as_good(tmp_path: Path, hook: str) -> None:
    whole, notes = make(tmp_path / "0", "as it is")
    steps, times = -1, 0
    while True:
        later = [
            (p, n) for p, name, n in notes.saved if name == hook and notes.seen[n - 1][2] > steps
        ]
        if not later:
            break
        steps, times = notes.seen[later[0][1] - 1][2], times + 1
        again, notes = make(tmp_path / str(times), "as it is", later[0][0])
        assert again.net.parts == whole.net.parts[len(whole.net.parts) - len(again.net.parts) :]
        assert torch.equal(again.net.weights, whole.net.weights)
        assert again.trainer.current_epoch == whole.trainer.current_epoch
    assert times >= 3


def test_a_schedule_by_metrics_steps_in_a_resumed_epoch(tmp_path: Path) -> None:
    def plateau(optimizer: Any, module: Any) -> dict[str, Any]:
        schedule = ReduceLROnPlateau(optimizer, patience=0, threshold=1.0)
        return {"scheduler": schedule, "monitor": "val_loss"}

    OPTIONS["plateau"] = {"schedule": plateau}
    whole, notes = make(tmp_path / "whole", "plateau")
    behind = [path for path, hook, _ in notes.saved if hook == "on_train_batch_end"]
    assert whole.rate < 1e-4
    for path in behind:
        again, _ = make(tmp_path / "again", "plateau", path)
        assert again.rate == whole.rate
        assert torch.equal(again.net.weights, whole.net.weights)
