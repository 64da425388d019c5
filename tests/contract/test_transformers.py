"""The programs of this folder in Hugging Face's Trainer: what is refused, warned about or exact."""

# The framework's own annotations do not fit its use.
# pyright: reportArgumentType=false, reportCallIssue=false, reportIncompatibleMethodOverride=false

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Sampler

pytest.importorskip("transformers")

from transformers import Trainer, TrainerCallback, TrainingArguments

import rlbatch
from rlbatch.control.settings import make_config
from rlbatch.errors import ConfigurationError, DeliveryError, RlbatchError
from rlbatch.integrations.transformers import ControlledTrainer, ControlledTrainerMixin
from rlbatch.testing import ScriptedPolicy

SAMPLES, BASE = 48, 8
CLASS_WEIGHTS = torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)


class Rows(Dataset[dict[str, Any]]):
    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(SAMPLES, 6, generator=generator, dtype=torch.float64)
        self.labels = torch.randint(0, 3, (SAMPLES,), generator=generator)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": self.x[index], "labels": self.labels[index], "index": index}


class Classifier(nn.Module):
    def __init__(self, loss: Callable[..., Any] = functional.cross_entropy) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        self.loss, self.seen = loss, []

    def forward(self, x: Any, index: Any, labels: Any = None) -> dict[str, Any]:
        self.seen.append(index.tolist())
        out = self.net(x)
        return (
            {"logits": out} if labels is None else {"loss": self.loss(out, labels), "logits": out}
        )


def weighted(out: Any, labels: Any) -> Any:
    return functional.cross_entropy(out, labels, weight=CLASS_WEIGHTS)


class Calls(TrainerCallback):
    """What a user's callback does between two parts, or elsewhere."""

    def __init__(self, **calls: Callable[..., Any]) -> None:
        self.calls = calls

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.call("between", **kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.call("behind", **kwargs)

    def call(self, where: str, model: Any = None, optimizer: Any = None, **_: Any) -> None:
        if where in self.calls:
            self.calls[where](model, optimizer)


def train(
    out: Path,
    model: Any = None,
    callback: TrainerCallback | None = None,
    optimizer: Any = None,
    *,
    kind: Any = ControlledTrainer,
    micro: int | None = 4,
    script: tuple[float, ...] = (),
    weight: Any = None,
    more: dict[str, Any] | None = None,
    **changes: Any,
) -> Any:
    settings: dict[str, Any] = {}
    if kind is not Trainer:
        told = {"micro_batch_size": micro, "cost": "samples", "guard": None, "lr_coupling": "none"}
        told = make_config(None, told)
        settings = {"policy": ScriptedPolicy(script) if script else "fixed", "config": told}
        settings |= {"weight": weight} | (more or {})
    model = Classifier() if model is None else model
    args: dict[str, Any] = {
        "output_dir": str(out),
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "per_device_train_batch_size": BASE,
        "num_train_epochs": 1,
        "learning_rate": 0.1,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "dataloader_pin_memory": False,
    }
    trainer = kind(
        model,
        TrainingArguments(**{**args, **changes}),
        train_dataset=Rows(),
        callbacks=[] if callback is None else [callback],
        optimizers=(optimizer, None),
        **settings,
    )
    trainer.train()
    return trainer


def flat(model: nn.Module) -> Any:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def refused(error: type[RlbatchError], words: str, out: Path, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(error, match=words):
        train(out, *args, **kwargs)


# -- losses that are no mean over samples --


def test_class_weights_where_the_batch_fits_are_the_trainers_own(tmp_path: Path) -> None:
    ours = train(tmp_path, Classifier(weighted), micro=None)
    alone = train(tmp_path, Classifier(weighted), kind=Trainer)
    assert torch.equal(flat(ours.model), flat(alone.model))


def test_class_weights_in_parts_are_warned_about(tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="its parts do not add up"):
        train(tmp_path, Classifier(weighted))


def test_a_sum_in_parts_is_warned_about(tmp_path: Path) -> None:
    def loss(out: Any, labels: Any) -> Any:
        return functional.cross_entropy(out, labels, reduction="sum")

    with pytest.warns(RuntimeWarning, match="is a sum over samples"):
        train(tmp_path, Classifier(loss))


def test_a_mean_over_samples_is_not(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        train(tmp_path, script=(1.0, 0.6, -1.0))


# -- calls between two parts --


def zero(model: Any, optimizer: Any) -> None:
    model.zero_grad()


def clip(model: Any, optimizer: Any) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)


ACCUMULATE = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}


def test_zero_grad_between_parts_is_refused(tmp_path: Path) -> None:
    callback = Calls(between=zero)
    refused(DeliveryError, r"\.grad vanished", tmp_path, callback=callback, **ACCUMULATE)


def test_clipping_between_parts_is_refused(tmp_path: Path) -> None:
    callback = Calls(between=clip)
    refused(DeliveryError, r"\.grad was changed", tmp_path, callback=callback, **ACCUMULATE)


# -- optimizers --


def test_a_step_beside_the_trainers(tmp_path: Path) -> None:
    callback = Calls(behind=lambda model, optimizer: optimizer.optimizer.step())
    refused(DeliveryError, "beside", tmp_path, callback=callback)


def test_a_second_optimizer_of_the_same_parameters(tmp_path: Path) -> None:
    model = Classifier()
    second = torch.optim.SGD(model.parameters(), lr=0.1)
    callback = Calls(behind=lambda *_: second.step())
    refused(ConfigurationError, "second optimizer", tmp_path, model, callback)


def test_a_second_optimizer_of_another_model(tmp_path: Path) -> None:
    second = torch.optim.SGD(Classifier().parameters(), lr=0.1)
    train(tmp_path, callback=Calls(behind=lambda *_: second.step()))
    callback = Calls(between=lambda *_: second.step())
    refused(DeliveryError, "between two parts", tmp_path, callback=callback, **ACCUMULATE)


def test_hooks_that_step_within_the_backward_pass(tmp_path: Path) -> None:
    model = Classifier()
    own = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: own[p].step())
    refused(ConfigurationError, "within the backward pass", tmp_path, model)


def test_hooks_that_step_by_hand_within_the_backward_pass(tmp_path: Path) -> None:
    model = Classifier()

    def by_hand(parameter: Any) -> None:
        with torch.no_grad():
            parameter -= 0.1 * parameter.grad

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(by_hand)
    refused(ConfigurationError, "within the backward pass", tmp_path, model)


def test_an_optimizer_of_another_model(tmp_path: Path) -> None:
    other = torch.optim.SGD(Classifier().parameters(), lr=0.1)
    refused(ConfigurationError, "holds no parameter", tmp_path, optimizer=other)


def test_lbfgs(tmp_path: Path) -> None:
    model = Classifier()
    optimizer = torch.optim.LBFGS(model.parameters())
    refused(ConfigurationError, "needs a closure", tmp_path, model, optimizer=optimizer)


def test_a_second_controller_of_the_same_model(tmp_path: Path) -> None:
    model = Classifier()

    def take_over(*_: Any) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        second = rlbatch.BatchController(model, optimizer, batch_size=8, policy="fixed")
        loader = second.loader(torch.utils.data.DataLoader(Rows(), 8))
        callback.kept = iter(loader)  # type: ignore[attr-defined]
        next(callback.kept)  # type: ignore[attr-defined]
        callback.calls = {}

    callback = Calls(behind=take_over)
    refused(ConfigurationError, "Another controller has begun", tmp_path, model, callback)


# -- data and settings --


def test_samplers_that_lay_groups_side_by_side(tmp_path: Path) -> None:
    class PerClass(Sampler[int]):
        def __init__(self, data: Any) -> None:
            self.data, self.m_per_class = data, 4

        def __len__(self) -> int:
            return SAMPLES

        def __iter__(self) -> Any:
            return iter(range(SAMPLES))

    class Grouped(ControlledTrainer):
        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return PerClass(self.train_dataset)

    refused(ConfigurationError, "side by side", tmp_path, kind=Grouped)


@pytest.mark.parametrize("target", [-1.0, float("nan"), "0.1"])
def test_targets_that_mean_nothing(target: Any) -> None:
    with pytest.raises(ConfigurationError, match="target_loss"):
        make_config(None, {"target_loss": target})


def test_a_damaged_state_is_refused_whole(tmp_path: Path) -> None:
    args = {"save_strategy": "steps", "save_steps": 2}
    train(tmp_path, **args)
    path = tmp_path / "checkpoint-2" / "rlbatch.pt"
    state = torch.load(path)
    del state["controller"]["control_loop"][next(iter(state["controller"]["control_loop"]))]
    torch.save(state, path)
    trainer = ControlledTrainer(
        Classifier(),
        TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True),
        train_dataset=Rows(),
        policy="fixed",
    )
    with pytest.raises(ConfigurationError, match="Nothing of it was taken"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    path.write_bytes(b"no state")
    with pytest.raises(ConfigurationError, match=r"rlbatch\.pt is damaged"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


# -- what a loss is a mean of, and batches that are left out --


def weight_of_classes(batch: Any) -> Any:
    return CLASS_WEIGHTS[batch["labels"]].sum()


@pytest.mark.filterwarnings("error:rlbatch")
def test_parts_weighted_by_what_their_loss_is_a_mean_of(tmp_path: Path) -> None:
    """The gradient of all of a step's samples, by autograd alone."""
    script = (1.0, 0.6, -1.0)
    model = Classifier(weighted)
    train(tmp_path, model, script=script, micro=3, weight=weight_of_classes)
    assert max(map(len, model.seen)) == 3
    whole = train(tmp_path, Classifier(weighted), script=script, micro=None).model
    assert sum(map(len, model.seen)) == sum(map(len, whole.seen)) == SAMPLES
    assert max(map(len, whole.seen)) > BASE
    alone, rows = Classifier(weighted), Rows()
    for indices in whole.seen:
        loss = weighted(alone.net(rows.x[indices]), rows.labels[indices])
        gradients = torch.autograd.grad(loss, list(alone.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(alone.parameters(), gradients, strict=True):
                parameter.sub_(gradient, alpha=0.1)
    torch.testing.assert_close(flat(model), flat(alone), rtol=0.0, atol=1e-14)


def test_parts_of_weight_0_add_nothing(tmp_path: Path) -> None:
    def only_first_class(out: Any, labels: Any) -> Any:
        kept = labels == 0  # no number where there is none
        return functional.cross_entropy(out[kept], labels[kept])

    def count(batch: Any) -> Any:
        return (batch["labels"] == 0).sum()

    runs = [
        train(tmp_path, Classifier(only_first_class), micro=micro, weight=count)
        for micro in (2, None)
    ]
    assert any(not (Rows().labels[part] == 0).any() for part in runs[0].model.seen)
    torch.testing.assert_close(flat(runs[0].model), flat(runs[1].model), rtol=0.0, atol=1e-14)


def test_a_weight_that_is_none_is_refused(tmp_path: Path) -> None:
    refused(DeliveryError, "weight of 0 or more, got -1", tmp_path, weight=lambda _: -1.0)


def test_a_loss_that_adds_up_already_needs_no_weight(tmp_path: Path) -> None:
    def summed(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        loss = functional.cross_entropy(outputs["logits"], labels, reduction="sum")
        return loss / num_items_in_batch

    loss = {"compute_loss_func": summed, "weight": lambda batch: len(batch["labels"])}
    refused(ConfigurationError, "divided by num_items_in_batch", tmp_path, more=loss)


@pytest.mark.parametrize("micro", [None, 3])
def test_a_batch_that_is_left_out(tmp_path: Path, micro: int | None) -> None:
    """Adam's averages would move the weights without a gradient, too."""
    bad = 5

    class Skips(ControlledTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss: Any = super().compute_loss(model, inputs, *args, **kwargs)
            if bool((inputs["index"] == bad).any()):
                self.skip()
                return loss * float("nan")
            return loss

    model = Classifier()
    args: dict[str, Any] = {"optim": "adamw_torch", "max_grad_norm": 1.0}
    trainer = train(tmp_path, model, kind=Skips, micro=micro, num_train_epochs=2, **args)
    assert trainer.state.global_step == 2 * SAMPLES // BASE

    steps = torch.tensor([i for part in model.seen for i in part]).reshape(-1, BASE).tolist()
    alone, rows = Classifier(), Rows()
    optimizer = torch.optim.AdamW(alone.parameters(), lr=0.1, weight_decay=0.0)
    for indices in steps:
        if bad in indices:
            continue
        optimizer.zero_grad()
        functional.cross_entropy(alone.net(rows.x[indices]), rows.labels[indices]).backward()
        nn.utils.clip_grad_norm_(alone.parameters(), 1.0)
        optimizer.step()
    torch.testing.assert_close(flat(model), flat(alone), rtol=0.0, atol=1e-12)


def test_skipping_without_a_batch_is_refused(tmp_path: Path) -> None:
    trainer = train(tmp_path)
    with pytest.raises(DeliveryError, match="none under way"):
        trainer.skip()


# -- what goes by steps of a count of its own --


def test_a_rate_that_a_callback_sets_is_warned_about(tmp_path: Path) -> None:
    def decay(model: Any, optimizer: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] *= 0.9

    with pytest.warns(RuntimeWarning, match="something else than the schedule"):
        train(tmp_path, callback=Calls(behind=decay), script=(1.0,))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        train(tmp_path, callback=Calls(behind=decay))  # a fixed size: the plain run
        train(tmp_path, script=(1.0,), lr_scheduler_type="cosine", warmup_steps=2)


def test_a_weight_decay_by_steps_and_hooks_that_clip_parts_are_warned_about(tmp_path: Path) -> None:
    def decay(model: Any, optimizer: Any) -> None:
        for group in optimizer.param_groups:
            group["weight_decay"] += 1e-4

    with pytest.warns(RuntimeWarning, match="than the schedule sets the weight decay"):
        train(tmp_path, callback=Calls(behind=decay), script=(1.0,))
    model = Classifier()
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: gradient.clamp(-1e-3, 1e-3))
    with pytest.warns(RuntimeWarning, match="a hook on a parameter changes its gradient"):
        train(tmp_path, model, **ACCUMULATE)


def test_a_loader_of_another_size_than_the_arguments_say_is_refused(tmp_path: Path) -> None:
    class Own(Trainer):
        def get_train_dataloader(self) -> Any:
            return DataLoader(cast("Any", self.train_dataset), 2 * BASE)

    class Controlled(ControlledTrainerMixin, Own): ...

    refused(ConfigurationError, f"makes batches of {2 * BASE}", tmp_path, kind=Controlled)


def test_an_average_that_is_updated_between_parts_is_refused(tmp_path: Path) -> None:
    model = Classifier()
    average = torch.optim.swa_utils.AveragedModel(model)
    update = lambda *_: average.update_parameters(model)  # noqa: E731
    train(tmp_path, model, callback=Calls(behind=update), **ACCUMULATE)
    assert int(average.n_averaged) == SAMPLES // BASE
    callback = Calls(between=update)
    refused(DeliveryError, "AveragedModel", tmp_path, model, callback=callback, **ACCUMULATE)


# -- what the plain loop has --


def controlled(**told: Any) -> dict[str, Any]:
    """Return what `train` takes for other settings than its own."""
    return {"more": {"config": make_config(None, {"cost": "samples", "guard": None, **told})}}


def test_a_loss_that_cannot_be_divided_stays_within_what_fits(tmp_path: Path) -> None:
    """Each step is that of a plain loop over the same batches, of 16 at most."""

    def dice(out: Any, labels: Any) -> Any:
        found, true = out.softmax(1), functional.one_hot(labels, 3)
        return 1.0 - 2.0 * (found * true).sum() / (found + true).sum()

    told = {"micro_batch_size": 16, "divisible": False, "lr_coupling": "none"}
    trained, plain, data = Classifier(dice), Classifier(dice), Rows()
    train(tmp_path, trained, script=(2.0,), **controlled(**told))
    assert max(map(len, trained.seen)) == 16
    assert len(trained.seen) < SAMPLES // BASE
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for rows in trained.seen:
        plain.net.zero_grad()
        dice(plain.net(data.x[rows]), data.labels[rows]).backward()
        optimizer.step()
    assert torch.equal(flat(trained), flat(plain))


def test_a_sum_that_grows_is_warned_about(tmp_path: Path) -> None:
    model = Classifier(lambda out, labels: functional.cross_entropy(out, labels, reduction="sum"))
    with pytest.warns(RuntimeWarning, match="the loss is a sum over samples"):
        train(tmp_path, model, micro=None, script=(1.0,), learning_rate=0.0)


def test_an_optimizer_of_two_passes(tmp_path: Path) -> None:
    class Sharp(torch.optim.SGD):
        def first_step(self) -> None: ...

    model = Classifier()
    optimizer = Sharp(model.parameters(), lr=0.1)
    refused(ConfigurationError, "first_step", tmp_path, model, optimizer=optimizer)


def test_batch_normalisation_in_smaller_parts_than_the_trainers(tmp_path: Path) -> None:
    def normalised() -> Classifier:
        model = Classifier()
        model.net.insert(1, nn.BatchNorm1d(8).double())
        return model

    with pytest.warns(RuntimeWarning, match="batch normalisation then goes over 4 samples"):
        train(tmp_path, normalised(), micro=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        train(tmp_path, normalised(), micro=None, **ACCUMULATE)
        train(tmp_path, normalised(), micro=BASE, script=(1.0,))


def test_a_whole_batch_of_weight_0_adds_nothing(tmp_path: Path) -> None:
    """Compared with a plain loop that leaves such batches out."""

    def only_first_class(out: Any, labels: Any) -> Any:
        kept = labels == 0
        return functional.cross_entropy(out[kept], labels[kept])

    def count(batch: Any) -> Any:
        return (batch["labels"] == 0).sum()

    model = Classifier(only_first_class)
    train(tmp_path, model, micro=None, weight=count, per_device_train_batch_size=2)
    plain, rows, without = Classifier(), Rows(), 0
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for indices in model.seen:
        labels = rows.labels[indices]
        if not bool((labels == 0).any()):
            without += 1
            continue
        only_first_class(plain.net(rows.x[indices]), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert without > 1
    torch.testing.assert_close(flat(model), flat(plain), rtol=0.0, atol=1e-14)
