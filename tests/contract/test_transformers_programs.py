"""Programs of the plain loop in Hugging Face's Trainer, against the Trainer alone."""

# The framework's own annotations do not fit its use.
# pyright: reportArgumentType=false, reportIncompatibleMethodOverride=false

from __future__ import annotations

import io
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ChainedScheduler, ConstantLR, ExponentialLR

pytest.importorskip("transformers")

from transformers import Trainer, TrainerCallback, TrainingArguments

from rlbatch.control.guard import GuardConfig
from rlbatch.control.settings import make_config
from rlbatch.errors import ConfigurationError, DeliveryError
from rlbatch.integrations.transformers import ControlledTrainer
from rlbatch.testing import ScriptedPolicy
from tests.contract.test_rising_loss import ramp, switched_on
from tests.contract.test_transformers import BASE, Classifier, Rows, flat

SIZES = ScriptedPolicy((1.0, -0.5, 0.7, 0.0))
CHUNKS = {f"{name}_chunk_steps": 1 for name in ("first", "min", "max")}


class Measuring(ScriptedPolicy):
    """Asks for the gradient noise."""

    needs_gradient_noise = True


def train(
    out: Path,
    policy: Any,
    model: Any = None,
    epochs: int = 2,
    *,
    schedule: Any = None,
    data: Any = None,
    callback: Any = None,
    rate: float = 0.1,
    hook: Any = None,
    **settings: Any,
) -> Any:
    """Train; without a policy by the Trainer alone."""
    model = Classifier() if model is None else model
    args = TrainingArguments(
        output_dir=str(out), use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no",
        per_device_train_batch_size=BASE, num_train_epochs=epochs, max_grad_norm=0.0,
        dataloader_pin_memory=False,
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    scheduler = ConstantLR(optimizer, 1.0) if schedule is None else schedule(optimizer)
    given: dict[str, Any] = {}
    if policy is not None:
        told = {"cost": "samples", "guard": None, "lr_coupling": "none"} | settings
        given = {"policy": policy, "config": make_config(None, told)}
    trainer = (Trainer if policy is None else ControlledTrainer)(
        model,
        args,
        train_dataset=Rows() if data is None else data,
        optimizers=(optimizer, scheduler),
        callbacks=[] if callback is None else [callback],
        **given,
    )
    if hook is not None:
        hook(trainer)
    trainer.train()
    return trainer


class Copied(Classifier):
    """Writes itself to a file within its steps."""

    def forward(self, x: Any, index: Any, labels: Any = None) -> dict[str, Any]:
        out, file = super().forward(x, index, labels), io.BytesIO()
        torch.save(self.net, file)
        assert b"rlbatch" not in file.getvalue()
        return out


def test_a_measured_run_is_the_plain_one(tmp_path: Path) -> None:
    plain, ours = Copied(), Copied()
    train(tmp_path, None, plain)
    trainer = train(tmp_path, Measuring((0.0,) * 50), ours)
    assert torch.equal(flat(plain), flat(ours))
    assert trainer.controller._loop.progress.noise_seen


def test_a_model_converted_in_the_run_is_copied_as_it_is(tmp_path: Path) -> None:
    class Converted(Classifier):
        def forward(self, x: Any, index: Any, labels: Any = None) -> dict[str, Any]:
            return super().forward(x.to(self.net[0].weight.dtype), index, labels)

    class Converts(TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            kwargs["model"].float()

    trainer = train(
        tmp_path,
        ScriptedPolicy((1.0, -1.0) * 20),
        Converted(),
        callback=Converts(),
        guard=GuardConfig(),
        **CHUNKS,
    )
    copied = trainer.controller._parts.weights.state_dict()["tensors"]
    kinds = {tensor.dtype for kind, _, _, tensor in copied if kind == "parameter"}
    assert kinds == {torch.float32}


@pytest.mark.parametrize("policy", ["fixed", SIZES])
def test_a_chain_of_schedules_ends_where_the_plain_one_does(policy: Any, tmp_path: Path) -> None:
    def chained(optimizer: Any) -> Any:
        parts = [ConstantLR(optimizer, 0.1, 4), ExponentialLR(optimizer, 0.9)]
        return ChainedScheduler(parts, optimizer)

    rates = [
        train(tmp_path, one, schedule=chained).optimizer.param_groups[0]["lr"]
        for one in (None, policy)
    ]
    assert rates[1] == pytest.approx(rates[0], rel=1e-12)


@pytest.mark.parametrize("settings", [{}, {"micro_batch_size": 4}])
def test_a_term_times_0_changes_nothing(settings: dict[str, Any], tmp_path: Path) -> None:
    class Term(Classifier):
        def __init__(self, factor: float | None) -> None:
            super().__init__()
            self.unused, self.factor = nn.Parameter(torch.ones(3)), factor

        def forward(self, x: Any, index: Any, labels: Any = None) -> dict[str, Any]:
            out = super().forward(x, index, labels)
            if self.factor is not None:
                out["loss"] = out["loss"] + self.factor * self.unused.sum()
            return out

    models = [Term(None), Term(0.0)]
    for model in models:
        train(tmp_path, SIZES, model, **settings)
    assert torch.equal(flat(models[0]), flat(models[1]))


def test_a_dataset_that_grows_between_epochs(tmp_path: Path) -> None:
    class Grown(Rows):
        size = 41

        def __len__(self) -> int:
            return self.size

    class Grows(TrainerCallback):
        def __init__(self, data: Any) -> None:
            self.data = data

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.data.size = 48

    seen = []
    for policy in (None, "fixed", SIZES):
        data, model = Grown(), Classifier()
        train(tmp_path, policy, model, data=data, callback=Grows(data))
        seen.append(model.seen)
    assert seen[1] == seen[0]
    assert sorted(chain.from_iterable(seen[2])) == sorted(chain.from_iterable(seen[0]))


@pytest.mark.parametrize("term", [ramp, switched_on])
@pytest.mark.filterwarnings("error:rlbatch")
def test_a_term_that_is_phased_in_is_not_rolled_back(term: Any, tmp_path: Path) -> None:
    class Phased(Classifier):
        def forward(self, x: Any, index: Any, labels: Any = None) -> dict[str, Any]:
            out = super().forward(x, index, labels)
            out["loss"] = out["loss"] + term(len(self.seen))
            return out

    trainer = train(
        tmp_path, ScriptedPolicy((0.3, -0.3) * 90), Phased(), epochs=40, guard=GuardConfig()
    )
    assert trainer.controller.components["rollbacks"] == 0
    assert trainer.controller.components["enabled"]


def test_a_roll_back_restores_what_was_named(tmp_path: Path) -> None:
    """A queue of codes, as contrastive training keeps one: here, a count of passes."""
    queue = [0]

    class Counting(Classifier):
        def forward(self, x: Any, index: Any, labels: Any = None) -> dict[str, Any]:
            queue[0] += 1
            return super().forward(x, index, labels)

    class Spoils(TrainerCallback):
        trainer: Any = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            restore = partial(queue.__setitem__, 0)
            self.trainer.controller.on_rollback(lambda: queue[0], restore)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 31:  # within a chunk: a copy at its start is of before
                with torch.no_grad():
                    kwargs["model"].net[2].weight.mul_(1e4)

    spoils = Spoils()
    chunks = dict.fromkeys(CHUNKS, 2)
    with pytest.warns(RuntimeWarning, match="undone"):
        trainer = train(
            tmp_path, ScriptedPolicy((1.0, -1.0) * 90), Counting(), epochs=16, callback=spoils,
            guard=GuardConfig(), hook=partial(setattr, spoils, "trainer"), **chunks,
        )  # fmt: skip
    assert trainer.controller.components["rollbacks"] > 0
    assert queue[0] < len(trainer.model.seen)


def test_a_graph_that_the_trainer_keeps_changes_nothing(tmp_path: Path) -> None:
    def retain(trainer: Any) -> None:
        usual = trainer.accelerator.backward
        trainer.accelerator.backward = lambda loss, **told: usual(loss, retain_graph=True, **told)

    plain, ours = Classifier(), Classifier()
    train(tmp_path, None, plain, hook=retain)
    trainer = train(tmp_path, Measuring((0.0,) * 50), ours, hook=retain)
    assert torch.equal(flat(plain), flat(ours))
    assert trainer.controller._loop.progress.noise_seen


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"weight": True}, "weight must be a function of a batch, or None; got True"),
        ({"config": {}}, "config must be of the class ControllerConfig; got dict"),
        ({"controller": True}, "config must be of the class ControllerConfig; got True"),
    ],
)
def test_arguments_of_another_kind(tmp_path: Path, told: Any, words: str) -> None:
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    with pytest.raises(ConfigurationError, match=words):
        ControlledTrainer(Classifier(), args, train_dataset=Rows(), **told)


def test_a_weight_that_is_no_number_is_said(tmp_path: Path) -> None:
    args = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True,
        per_device_train_batch_size=BASE, dataloader_pin_memory=False, save_strategy="no",
    )  # fmt: skip
    trainer = ControlledTrainer(
        Classifier(), args, train_dataset=Rows(), policy="fixed", weight=lambda batch: None
    )
    with pytest.raises(
        DeliveryError, match="Expected one number as the weight of a part, got None"
    ):
        trainer.train()
