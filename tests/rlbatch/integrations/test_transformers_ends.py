"""A Trainer that goes on from any step evaluates, ends its epochs and decides as the whole run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from transformers import TrainerCallback, TrainingArguments, set_seed

from rlbatch.control.settings import make_config
from rlbatch.integrations.transformers import ControlledTrainer
from tests.rlbatch.integrations.steered import TWO_STEP_CHUNKS, ByBits
from tests.rlbatch.integrations.transformers_ranks import Regression, Rows

pytestmark = pytest.mark.slow


class Notes(TrainerCallback):
    """Notes what happens, and saves behind each step."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append((state.global_step, state.epoch, kwargs["model"].seen[-1]))
        control.should_save = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append((state.global_step, kwargs["metrics"]["eval_loss"]))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append((state.global_step, "epoch"))


def run(folder: Path, log: Path, settings: dict[str, Any], checkpoint: Any = None) -> Any:
    torch.manual_seed(7)
    set_seed(7)
    notes, model = Notes(), Regression(0.2)
    args = TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to=[], disable_tqdm=True,
        per_device_train_batch_size=8, num_train_epochs=3, learning_rate=0.01,
        eval_strategy="epoch", save_strategy="no", dataloader_pin_memory=False,
        logging_strategy="no", **settings,
    )  # fmt: skip
    config = {**TWO_STEP_CHUNKS, "max_batch_size": 12, "log_dir": log}
    trainer = ControlledTrainer(
        model, args, train_dataset=Rows(27), eval_dataset=Rows(9), callbacks=[notes],
        policy=ByBits(), config=make_config(None, config),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=checkpoint)
    weights = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return notes.seen, weights, (log / "decisions.jsonl").read_text()


@pytest.mark.parametrize("name", ["plateau", "max_steps"])
def test_each_step_can_be_gone_on_from(tmp_path: Path, name: str) -> None:
    # A plateau's schedule leaves no trace of the rate that the run began with.
    kind = {"patience": 0, "threshold": 0.9}
    plateau = {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": kind}
    settings = plateau if name == "plateau" else {"max_steps": 9}
    log = tmp_path / "log"
    seen, weights, decided = run(tmp_path / "whole", log, settings)
    saved = list((tmp_path / "whole").glob("checkpoint-*"))
    assert len(saved) == len([what for what in seen if len(what) == 3])
    for checkpoint in saved:
        step = int(checkpoint.name.rpartition("-")[2])
        behind = next(i for i, what in enumerate(seen) if what[0] == step) + 1
        again = tmp_path / "again"
        shutil.rmtree(again, ignore_errors=True)
        found = run(again, log, settings, str(checkpoint))
        assert found[0] == seen[behind:], step
        assert torch.equal(found[1], weights), step
        assert found[2] == decided, step
