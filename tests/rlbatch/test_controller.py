"""The controller against plain loops, and what it promises about delivery, logs and resuming."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, StepLR
from torch.utils.data import DataLoader, Dataset

import rlbatch
from rlbatch.agents.rules.fixed import Fixed
from rlbatch.control.build import WITHOUT_PLAN
from rlbatch.control.config import ControllerConfig
from rlbatch.control.guard import GuardConfig
from rlbatch.controller import BatchController
from rlbatch.data.sample_schedule import SampleSchedule
from rlbatch.envs.objectives import Cadence
from rlbatch.errors import ConfigurationError, DeliveryError
from rlbatch.log.episode_log import read_episode
from rlbatch.policy.base import Decision
from rlbatch.policy.learned import LearnedPolicy
from rlbatch.policy.registry import FOR_EPOCHS, resolve_policy
from rlbatch.signals.record import Signals
from rlbatch.testing import ScriptedPolicy, random_policy
from tests.helpers import perceptron as network
from tests.rlbatch.integrations.steered import known_plan

SAMPLES = 75
BASE = 8


class Rows(Dataset[tuple[int, Tensor, Tensor]]):
    """Numbered rows: a batch tells which samples it holds."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(SAMPLES, 6, generator=generator)
        self.y = self.x.sum(1, keepdim=True).sin()

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[int, Tensor, Tensor]:
        return index, self.x[index], self.y[index]


def adamw(model: nn.Module) -> Optimizer:
    return AdamW(model.parameters(), lr=3e-3)


def sgd(model: nn.Module) -> Optimizer:
    return SGD(model.parameters(), lr=0.02, momentum=0.9)


Make = Callable[[nn.Module], Optimizer]
Schedule = Callable[[Optimizer], LRScheduler]


class Run:
    """A small training with a controller; `train` may be called again to go on."""

    def __init__(self, policy: Any, make: Make = adamw, workers: int = 0, **settings: Any) -> None:
        torch.manual_seed(5)
        self.model = network()
        self.optimizer = make(self.model)
        settings = {"first_chunk_steps": 4, **settings}  # as all chunks of these short runs
        self.controller = BatchController(
            self.model, self.optimizer, batch_size=BASE, policy=policy, **settings
        )
        data = DataLoader(Rows(), batch_size=BASE, shuffle=True, num_workers=workers)
        self.loader = self.controller.loader(data)
        self.losses: list[float] = []
        self.batches: list[list[int]] = [[]]
        self.parts: list[list[int]] = [[]]

    def train(self, epochs: int, *, stop_after: int | None = None, **step: Any) -> Run:
        for _ in range(epochs):
            for index, x, y in self.loader:
                loss = nn.functional.mse_loss(self.model(x), y)
                self.controller.backward(loss)
                self.losses.append(float(loss.detach()))
                self.batches[-1] += index.tolist()
                self.parts[-1].append(len(index))
                if self.controller.step(**step):
                    self.batches.append([])
                    self.parts.append([])
                if stop_after is not None and len(self.batches) > stop_after:
                    return self
        return self

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches if batch]

    @property
    def weights(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])


def plain(
    make: Make, epochs: int, schedule: Schedule | None, per_step: bool, clip: float | None
) -> tuple[list[float], Tensor]:
    torch.manual_seed(5)
    model = network()
    optimizer = make(model)
    scheduler = None if schedule is None else schedule(optimizer)
    losses: list[float] = []
    for _ in range(epochs):
        for _, x, y in DataLoader(Rows(), batch_size=BASE, shuffle=True):
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            if scheduler is not None and per_step:
                scheduler.step()
        if scheduler is not None and not per_step:
            scheduler.step()
    return losses, torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("make", [adamw, sgd])
@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize(
    "schedule", [None, lambda o: StepLR(o, 2, 0.5), lambda o: CosineAnnealingLR(o, 6)]
)
def test_the_fixed_policy_is_the_plain_loop_bit_for_bit(
    make: Make, clip: float | None, schedule: Schedule | None
) -> None:
    losses, weights = plain(make, 6, schedule, per_step=False, clip=clip)
    run = Run("fixed", make)
    scheduler = None if schedule is None else schedule(run.optimizer)
    for _ in range(6):
        run.train(1, clip_norm=clip)
        if scheduler is not None:
            scheduler.step()
    assert run.losses == losses
    assert torch.equal(run.weights, weights)


def test_shadow_mode_measures_and_changes_no_size(tmp_path: Path) -> None:
    settings = {"first_chunk_steps": 2, "min_chunk_steps": 2, "log_dir": tmp_path / "log"}
    run = Run("goodput", shadow=True, **settings).train(6)
    run.controller.close()
    assert set(run.sizes) == {8, 3}
    assert all(len(parts) <= 1 for parts in run.parts)
    signals = [r.signals for r in read_episode(tmp_path / "log").records if r.signals is not None]
    assert any(math.isfinite(float(s["noise_trace"])) for s in signals)  # type: ignore[arg-type]


def test_what_is_delivered_is_what_was_decided(tmp_path: Path) -> None:
    policy = ScriptedPolicy((1.0, 1.0, -2.0, 0.5, 1.0, -1.0))
    run = Run(policy, log_dir=tmp_path / "log").train(12)
    run.controller.close()
    expected: list[int] = []
    records = read_episode(tmp_path / "log").records
    assert [record.event for record in records[-1:]] == ["end"]
    size = BASE
    changes = {r.effective_step: r.batch_size for r in records if r.event == "decision"}
    for step, delivered in enumerate(run.sizes):
        size = changes.get(step, size)
        expected.append(size)
        # the last batch of an epoch holds what is left
        assert delivered == size or sum(run.sizes[: step + 1]) % SAMPLES == 0
    assert len(set(expected)) >= 4
    flat = [index for batch in run.batches for index in batch]
    for epoch in range(12):
        assert sorted(flat[epoch * SAMPLES : (epoch + 1) * SAMPLES]) == list(range(SAMPLES))


def test_a_change_is_delivered_where_the_log_says_with_prefetching_workers(tmp_path: Path) -> None:
    policy = ScriptedPolicy((1.0, 1.0, -2.0, 0.5, 1.0, -1.0) * 3)
    run = Run(policy, workers=2, log_dir=tmp_path / "log").train(12)
    run.controller.close()
    records = read_episode(tmp_path / "log").records
    changes = {r.effective_step: r.batch_size for r in records if r.event == "decision"}
    late = [r for r in records if r.event == "decision" and (r.effective_step or 0) > r.step]
    assert late
    size = BASE
    for step, delivered in enumerate(run.sizes):
        size = changes.get(step, size)
        assert delivered == size or sum(run.sizes[: step + 1]) % SAMPLES == 0
    assert len(set(run.sizes)) > 5


def test_accumulated_batches_have_the_gradient_of_the_whole() -> None:
    run = Run(ScriptedPolicy((2.0,)), sgd, micro_batch_size=5, lr_coupling="linear")
    run.model.eval()
    gradients: list[Tensor] = []
    original = run.optimizer.step

    def spy(*args: Any, **kwargs: Any) -> Any:
        gradients.append(torch.cat([p.grad.reshape(-1) for p in run.model.parameters()]))  # pyright: ignore[reportOptionalMemberAccess]
        return original(*args, **kwargs)

    run.optimizer.step = spy
    rows, start = Rows(), [p.detach().clone() for p in run.model.parameters()]
    run.optimizer.param_groups[0]["lr"] = 0.0
    run.train(2)
    assert [5, 5, 5, 5, 4, 4, 4] in run.parts
    assert max(max(parts) for parts in run.parts if parts) == 5
    for batch, gradient in zip(run.batches, gradients, strict=False):
        model = run.model
        assert all(torch.equal(a, b) for a, b in zip(start, model.parameters(), strict=True))
        loss = nn.functional.mse_loss(model(rows.x[batch]), rows.y[batch])
        expected = torch.autograd.grad(loss, list(model.parameters()))
        torch.testing.assert_close(gradient, torch.cat([g.reshape(-1) for g in expected]))
    assert 32 in run.sizes


def test_the_learning_rate_follows_and_schedulers_do_not_see_it() -> None:
    run = Run(ScriptedPolicy((2.0,)), sgd, lr_coupling="sqrt")
    rates: list[float] = []
    original = run.optimizer.step

    def spy(*args: Any, **kwargs: Any) -> Any:
        rates.append(run.optimizer.param_groups[0]["lr"])
        return original(*args, **kwargs)

    run.optimizer.step = spy
    run.train(2)
    assert rates[:4] == [0.02] * 4
    assert rates[4:] == [pytest.approx(0.04)] * (len(rates) - 4)
    assert run.optimizer.param_groups[0]["lr"] == 0.02


def test_a_schedule_by_steps_goes_by_samples() -> None:
    run = Run(ScriptedPolicy((1.0, 1.0)), sgd)
    scheduler = CosineAnnealingLR(run.optimizer, 100)
    schedule = SampleSchedule(scheduler, BASE)
    samples = 0
    for _ in range(4):
        for _, x, y in run.loader:
            run.controller.backward(nn.functional.mse_loss(run.model(x), y))
            done = run.controller.step()
            samples += done
            schedule.step(done)
    assert samples == 4 * SAMPLES
    assert scheduler.last_epoch == 4 * 10  # the plain loop's last step of an epoch has a rest


def exploding_run(spike_at: int, policy: Any, **settings: Any) -> tuple[Run, list[Tensor]]:
    """Multiplies the loss from the batch `spike_at` on, until the size is back at the base."""
    run = Run(policy, sgd, **settings)
    snapshots: list[Tensor] = []
    for _ in range(12):
        for _, x, y in run.loader:
            snapshots.append(run.weights.clone())
            loss = nn.functional.mse_loss(run.model(x), y)
            steps = run.controller.components["steps"]
            if steps >= spike_at and run.controller.batch_size > BASE:
                loss = loss * math.nan
            run.controller.backward(loss)
            run.controller.step()
    return run, snapshots


def test_damage_after_a_change_is_rolled_back(tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match=r"was not finite.*from 8 to 16. These steps"):
        run, weights = exploding_run(8, ScriptedPolicy((0.0, 1.0)), log_dir=tmp_path / "log")
    run.controller.close()
    assert run.controller.components["rollbacks"] == 1
    assert torch.isfinite(run.weights).all()
    # the chunk of 4 steps from step 8 on was undone
    assert torch.equal(weights[12], weights[8])
    records = read_episode(tmp_path / "log").records
    undone = [record for record in records if record.event == "rollback"]
    assert len(undone) == 1
    assert (undone[0].step, undone[0].batch_size_before, undone[0].batch_size) == (12, BASE, BASE)
    assert undone[0].signals["batch_size"] == 2 * BASE
    assert undone[0].signals["rolled_back"] == 1.0


def test_damage_that_returns_switches_the_controller_off(tmp_path: Path) -> None:
    policy = ScriptedPolicy((1.0,) * 50)
    with (
        pytest.warns(RuntimeWarning, match="steps are undone"),
        pytest.warns(UserWarning, match="does not recover"),
    ):
        run, _ = exploding_run(
            4, policy, log_dir=tmp_path / "log", guard=GuardConfig(max_consecutive=3)
        )
    run.controller.close()
    assert not run.controller.components["enabled"]
    assert run.controller.batch_size == BASE
    assert run.controller.components["rollbacks"] == 3
    records = read_episode(tmp_path / "log").records
    assert [record.event for record in records if record.event == "off"] == ["off"]
    assert torch.isfinite(run.weights).all()


def test_without_a_change_nothing_is_rolled_back() -> None:
    torch.manual_seed(0)
    run = Run("fixed")
    for index, (_, x, y) in enumerate(run.loader):
        loss = nn.functional.mse_loss(run.model(x), y)
        run.controller.backward(loss * (1e6 if index > 4 else 1.0))
        run.controller.step()
    assert run.controller.components["rollbacks"] == 0


class _Failing:
    needs_gradient_noise = False

    def initial_state(self, shape: tuple[int, ...] = ()) -> Any:
        return ()

    def decide(self, observation: Any, signals: Signals, state: Any) -> tuple[Decision, Any]:
        raise ZeroDivisionError("in the policy")


def test_an_error_in_a_policy_does_not_end_the_training(tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="in the policy"):
        run = Run(_Failing(), log_dir=tmp_path / "log").train(2)
    run.controller.close()
    assert not run.controller.components["enabled"]
    assert set(run.sizes) == {8, 3}
    with pytest.raises(ZeroDivisionError):
        Run(_Failing(), on_error="raise").train(2)


def test_a_full_disk_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(ScriptedPolicy((1.0, 1.0)), log_dir=tmp_path / "log")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rlbatch.log.episode_log.write_all", full)
    with pytest.warns(RuntimeWarning, match="No space left"):
        run.train(2)
    assert not run.controller.components["enabled"]


def test_a_function_turns_the_controller_off(tmp_path: Path) -> None:
    asked: list[bool] = []

    def off() -> bool:
        asked.append(True)
        return len(asked) > 2

    policy = ScriptedPolicy((1.0, 1.0, 1.0))
    run = Run(policy, cost="samples", guard=None, off_when=off, log_dir=tmp_path).train(8)
    run.controller.close()
    assert max(run.sizes) == 4 * BASE
    assert set(run.sizes[-20:]) <= {BASE, SAMPLES % BASE}
    assert len(asked) == 3
    (note,) = (line for line in read_episode(tmp_path).records if line.event == "off")
    assert note.reasons == ("off_when said so",)
    assert note.effective_step is not None
    assert run.sizes[: note.effective_step] != run.sizes[-note.effective_step :]


def test_disable_returns_to_the_users_batch_size() -> None:
    run = Run(ScriptedPolicy((2.0,))).train(1)
    assert run.controller.batch_size == 32
    run.controller.disable("enough")
    run.batches, run.parts = [[]], [[]]
    run.train(2)
    assert set(run.sizes) == {8, 3}
    assert run.controller.components["learning_rate_factor"] == 1.0


@pytest.mark.parametrize("make", [adamw, sgd])
@pytest.mark.parametrize("stop_after", [1, 6, 10, 17, 30])
def test_resuming_continues_bit_for_bit(tmp_path: Path, make: Make, stop_after: int) -> None:
    policy = ScriptedPolicy((1.0, -1.0, 1.5, 0.0, -0.5) * 4)
    settings: dict[str, Any] = {
        "cost": "samples",
        "noise_rate": float("inf"),
        "lr_coupling": "adascale",
    }

    whole = Run(policy, make, log_dir=tmp_path / "whole", **settings).train(8)
    whole.controller.close()

    first = Run(policy, make, log_dir=tmp_path / "parts", **settings)
    first.train(8, stop_after=stop_after)
    saved = io.BytesIO()
    state = {
        "model": first.model.state_dict(),
        "optimizer": first.optimizer.state_dict(),
        "controller": first.controller.state_dict(),
    }
    torch.save(state, saved)
    first.train(1)  # lost
    first.controller.close()

    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    second = Run(policy, make, log_dir=tmp_path / "parts", **settings)
    second.model.load_state_dict(state["model"])
    second.optimizer.load_state_dict(state["optimizer"])
    second.controller.load_state_dict(state["controller"])
    epochs_done = second.controller.components["epoch"]
    second.train(8 - epochs_done)
    second.controller.close()

    kept = len(first.batches[:stop_after])
    assert whole.batches[kept : kept + 5] == second.batches[:5]
    assert whole.batches[kept:] == second.batches
    assert torch.equal(whole.weights, second.weights)
    logs = [read_episode(tmp_path / name).records for name in ("whole", "parts")]
    assert [r.to_json() for r in logs[0]] == [r.to_json() for r in logs[1]]


def test_states_that_do_not_fit_are_refused() -> None:
    state = Run("fixed").train(1).controller.state_dict()
    with pytest.raises(ConfigurationError, match="version 2 was expected"):
        Run("fixed").controller.load_state_dict({**state, "version": 9})
    with pytest.raises(ConfigurationError, match="batch size 16"):
        Run("fixed").controller.load_state_dict({**state, "base_batch_size": 16})


def test_a_loop_left_within_an_epoch_starts_the_next_one_cleanly() -> None:
    run = Run(ScriptedPolicy((2.0,)), micro_batch_size=4)
    for index, (_, x, y) in enumerate(run.loader):
        run.controller.backward(nn.functional.mse_loss(run.model(x), y))
        run.controller.step()
        if index == 10:
            break
    assert any(p.grad is not None for p in run.model.parameters())  # within a batch
    seen: list[int] = []
    for index, x, y in run.loader:
        seen += index.tolist()
        run.controller.backward(nn.functional.mse_loss(run.model(x), y))
        run.controller.step()
    assert sorted(seen) == list(range(SAMPLES))


def test_forgotten_calls_are_errors() -> None:
    run = Run("fixed")
    loss = torch.zeros((), requires_grad=True)
    with pytest.raises(DeliveryError, match="belongs to one batch"):
        run.controller.backward(loss)
    with pytest.raises(DeliveryError, match="needs a backward"):
        run.controller.step()
    batches = iter(run.loader)
    next(batches)
    with pytest.raises(DeliveryError, match=r"no backward\(loss\) and step\(\)"):
        next(batches)
    batches = iter(run.loader)
    next(batches)
    run.controller.backward(loss * 1.0)
    with pytest.raises(DeliveryError, match="once for each"):
        run.controller.backward(loss * 1.0)
    with pytest.raises(DeliveryError, match=r"no step\(\)"):
        next(batches)


def test_settings_that_contradict_are_refused() -> None:
    model = network()
    optimizer = sgd(model)

    def make(**settings: Any) -> BatchController:
        return BatchController(model, optimizer, batch_size=BASE, policy="fixed", **settings)

    for settings, message in (
        ({"lr_coupling": "cubic"}, "none, sqrt"),
        ({"min_chunk_steps": 0}, "min_chunk_steps"),
        ({"cost": "euros"}, "seconds or samples"),
        ({"micro_batch_size": 0}, "micro_batch_size"),
        ({"noise_rate": -1.0}, "noise_rate"),
        ({"config": ControllerConfig(), "cost": "samples"}, "either config"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            make(**settings)
    with pytest.raises(ConfigurationError, match="no loader yet"):
        _ = make().components
    with pytest.raises(ConfigurationError, match="has 4"):
        make().loader(DataLoader(Rows(), batch_size=4))
    with pytest.raises(ConfigurationError, match="Move the limits"):
        make(max_batch_size=4, min_batch_size=1).loader(DataLoader(Rows(), batch_size=BASE))
    controller = make()
    controller.loader(DataLoader(Rows(), batch_size=BASE))
    with pytest.raises(ConfigurationError, match="one loader"):
        controller.loader(DataLoader(Rows(), batch_size=BASE))


def test_the_learned_policy_decides_where_there_is_something_to_reach() -> None:
    model = network()

    def make(**settings: Any) -> BatchController:
        controller = BatchController(model, adamw(model), batch_size=BASE, **settings)
        controller.loader(DataLoader(Rows(), batch_size=BASE))
        return controller

    assert isinstance(make(target_loss=0.1).policy, LearnedPolicy)
    assert isinstance(make(budget=1e6).policy, LearnedPolicy)
    plain = make()
    assert plain.policy == resolve_policy(WITHOUT_PLAN)
    assert plain.components["policy"] == WITHOUT_PLAN
    assert plain.config.bounds(BASE, SAMPLES)[0] == BASE
    assert make(policy="goodput").policy == resolve_policy("goodput")


def test_who_tells_the_epochs_gets_the_policy_for_them() -> None:
    model = network()

    def policy(**settings: Any) -> str:
        controller = BatchController(model, adamw(model), batch_size=BASE, **settings)
        controller.loader(DataLoader(Rows(), batch_size=BASE))
        return str(controller.components["policy"])

    assert policy(epochs=3) == FOR_EPOCHS
    assert policy(epochs=3, policy="epochs") == "epochs"
    assert policy(epochs=3, target_loss=0.1) == "default"
    assert policy(epochs=3, cost="samples") == WITHOUT_PLAN  # of which a plan leaves none to save
    assert policy(epochs=3, policy="fixed") == "fixed"
    with pytest.raises(ConfigurationError, match=r"epochs must be a positive.*got 0"):
        ControllerConfig(epochs=0)


def test_a_plan_is_so_many_epochs_of_the_data(tmp_path: Path) -> None:
    cases: dict[str, tuple[dict[str, Any], float | str]] = {
        "plan": ({"epochs": 2.5}, 2.5 * SAMPLES),
        "target": ({"epochs": 2.5, "target_loss": 0.1}, "NaN"),
        "none": ({}, "NaN"),
    }
    for name, (settings, planned) in cases.items():
        Run("default", log_dir=tmp_path / name, **settings).train(1).controller.close()
        assert known_plan(tmp_path / name)[1] == planned


def test_beside_a_target_the_plan_is_the_schedules(tmp_path: Path) -> None:
    def scheduled(model: nn.Module) -> Optimizer:
        optimizer = adamw(model)
        CosineAnnealingLR(optimizer, T_max=100)
        return optimizer

    settings = {"log_dir": tmp_path / "run", "epochs": 2.5, "target_loss": 0.1}
    Run("default", scheduled, **settings).train(1).controller.close()
    assert known_plan(tmp_path / "run")[1] == 2.5 * SAMPLES


def test_the_cadence_is_that_of_training() -> None:
    config, cadence = ControllerConfig(), Cadence()
    assert [config.cadence.chunk_steps(n) for n in range(0, 5000, 7)] == [
        cadence.chunk_steps(n) for n in range(0, 5000, 7)
    ]


def test_mixed_precision_scales_and_clips_like_the_plain_loop() -> None:
    def train(controlled: bool) -> Tensor:
        torch.manual_seed(5)
        model = network()
        optimizer = sgd(model)
        scaler = torch.amp.GradScaler("cpu", init_scale=512.0, growth_interval=3)
        data: Any = DataLoader(Rows(), batch_size=BASE, shuffle=True)
        controller = None
        if controlled:
            controller = BatchController(
                model, optimizer, batch_size=BASE, policy="fixed", scaler=scaler
            )
            data = controller.loader(data)
        for _ in range(3):
            for _, x, y in data:
                loss = nn.functional.mse_loss(model(x), y)
                if controller is not None:
                    controller.backward(loss)
                    if controller.batch_complete:
                        controller.unscale_()
                        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                    controller.step()
                    continue
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
        return torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    assert torch.equal(train(True), train(False))


def test_validation_losses_reach_the_next_decision(tmp_path: Path) -> None:
    run = Run(ScriptedPolicy(()), log_dir=tmp_path / "log", target_loss=0.1)
    for loss in (0.5, 0.25):
        run.controller.report_validation(loss)
        run.train(1)
    run.controller.close()
    records = [r for r in read_episode(tmp_path / "log").records if r.event == "decision"]
    told = [r.signals["val_loss"] for r in records]
    assert [value for value in told if not math.isnan(float(value))] == [0.5, 0.25]  # pyright: ignore[reportArgumentType]


def test_the_public_name() -> None:
    assert rlbatch.BatchController is BatchController
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Fixed().needs_gradient_noise is False


def test_the_log_says_which_actions_the_probabilities_are_of(tmp_path: Path) -> None:
    learned = random_policy(np.random.default_rng(0), action_grid=(-1.5, 0, 0.5, 2))
    run = Run(learned, log_dir=tmp_path / "log").train(6)
    run.controller.close()

    episode = read_episode(tmp_path / "log")
    assert episode.run["action_grid"] == [-1.5, 0.0, 0.5, 2.0]
    decided = [record for record in episode.records if record.event == "decision"]
    assert decided
    for record in decided:
        assert record.probabilities is not None
        likeliest = max(range(4), key=record.probabilities.__getitem__)
        assert record.requested_log2_change == episode.run["action_grid"][likeliest]
