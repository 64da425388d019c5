"""Loops as people show them in public threads: as plain, or it is said why not."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import lr_scheduler as schedules
from torch.utils.data import DataLoader, IterableDataset

import rlbatch
from rlbatch.errors import ConfigurationError, DeliveryError
from rlbatch.testing import ScriptedPolicy
from tests.contract.test_strange_loops import BASE, Run, entropy, network, rows, state

CHANGES = ScriptedPolicy((1.0, 1.0, 1.0))
Settings = dict[str, Any]


# -- loaders --


@pytest.mark.parametrize("longer", [False, True])
def test_two_loaders_side_by_side_draw_as_in_the_plain_loop(longer: bool) -> None:
    """Labelled and unlabelled data, of which either may come first."""
    ends: list[Tensor] = []
    for policy in (None, "fixed"):
        run = Run(policy=policy)
        others = DataLoader(rows(), 5 if longer else 10, shuffle=True)
        for _ in range(3):
            for other, batch in zip(others, run.loader, strict=False):
                loss = entropy(run.model, batch) + run.model(other[0]).square().mean()
                if policy is None:
                    run.optimizer.zero_grad()
                    loss.backward()
                    run.optimizer.step()
                else:
                    run.controller.backward(loss)
                    run.controller.step()
        ends.append(state(run.model))
    assert torch.equal(*ends)


def test_a_look_at_the_first_batch_and_epochs_left_early_are_as_plain() -> None:
    ends: list[Tensor] = []
    for policy in (None, "fixed"):
        run = Run(policy=policy)
        run.model(next(iter(run.loader))[0])
        for _ in range(2):
            run.loader, whole = itertools.islice(run.loader, 3), run.loader
            run.train(epochs=1)
            run.loader = whole
        run.train(epochs=1)
        ends.append(state(run.model))
    assert torch.equal(*ends)


def test_what_a_changing_size_leaves_without_a_value_says_so() -> None:
    loader = Run(policy="fixed").loader
    assert loader.num_workers == 0
    assert not hasattr(loader, "batch_size")
    assert loader  # although it has no length
    with pytest.raises(TypeError, match=r"loader\.sampler\.position"):
        len(loader)
    with pytest.raises(AttributeError, match=r"len\(x\); or controller\.batch_size"):
        _ = loader.batch_size
    with pytest.raises(AttributeError, match="max_batch_size"):
        loader.batch_size = 16


class Prefetcher:
    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (rows, "got TensorDataset. Give the DataLoader of the training data"),
        (lambda: [(1, 2)], "got list"),
        (lambda: None, "got NoneType"),
        (lambda: Prefetcher(DataLoader(rows(), BASE)), "Give the DataLoader within it"),
    ],
)
def test_what_is_no_loader_is_refused(given: Callable[[], Any], words: str) -> None:
    model = network()
    controller = rlbatch.BatchController(
        model, torch.optim.SGD(model.parameters(), lr=0.1), batch_size=BASE
    )
    with pytest.raises(ConfigurationError, match=words):
        controller.loader(given())


def test_calls_out_of_turn_say_what_to_do_instead() -> None:
    run = Run(policy="fixed")
    run.loader = itertools.cycle(run.loader)
    with pytest.raises(DeliveryError, match=r"itertools\.cycle.*Begin the loader anew"):
        run.train()
    run = Run(policy="fixed")
    run.controller.step = lambda: 0  # as a loop that steps with each fourth batch
    with pytest.raises(DeliveryError, match="those of one as micro_batch_size"):
        run.train()
    run = Run(policy="fixed")
    with pytest.raises(DeliveryError, match="got float"):
        run.train(lambda model, batch: entropy(model, batch).item())
    with pytest.raises(ConfigurationError, match="close\\(\\) this controller"):
        run.controller.loader(DataLoader(rows(), BASE))
    for loss in (None, (0.5, 0.9), torch.ones(2)):
        with pytest.raises(ConfigurationError, match="validation loss as one number"):
            run.controller.report_validation(loss)


@pytest.mark.parametrize("policy", [None, ScriptedPolicy, lambda _: 0.0])
def test_what_is_no_policy_and_no_model_is_refused(policy: Any) -> None:
    model: Any = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigurationError, match="a policy file or a policy, got"):
        rlbatch.BatchController(model, optimizer, batch_size=BASE, policy=policy)
    with pytest.raises(ConfigurationError, match=r"torch\.nn\.Module, got method"):
        rlbatch.BatchController(model.forward, optimizer, batch_size=BASE)


class Stream(IterableDataset[Any]):
    def __init__(self, told: int) -> None:
        self.told = told

    def __len__(self) -> int:
        return self.told

    def __iter__(self) -> Iterator[Any]:
        return iter(rows())


def test_a_stream_whose_length_counts_batches_is_warned_about() -> None:
    run = Run(policy="fixed")
    for told, expected in ((len(rows()) // BASE + 1, 1), (len(rows()) - 9, 0)):
        model = network()
        controller = rlbatch.BatchController(
            model, torch.optim.SGD(model.parameters(), lr=0.1), batch_size=BASE, policy="fixed"
        )
        run.model, run.controller = model, controller
        run.loader = controller.loader(DataLoader(Stream(told), BASE))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            run.train(epochs=2)
        assert len([w for w in said if "not its batches" in str(w.message)]) == expected


# -- what is trained changes within the run --


def unfreeze(run: Run) -> None:
    for parameter in run.model.parameters():
        parameter.requires_grad_(True)


def add(run: Any) -> None:
    unfreeze(run)
    run.extra = torch.nn.Parameter(torch.zeros(3))
    run.optimizer.add_param_group({"params": [run.extra], "lr": 0.01})


@pytest.mark.filterwarnings("ignore:rlbatch. the loss was not finite:RuntimeWarning")
@pytest.mark.parametrize("change", [unfreeze, add])
def test_what_begins_to_be_trained_within_a_chunk_is_rolled_back_with_it(
    change: Callable[[Run], None],
) -> None:
    chunks: Settings = {f"{name}_chunk_steps": 6 for name in ("first", "min", "max")}
    run: Any = Run(policy=ScriptedPolicy((0.5, -0.5) * 20), **chunks)
    run.extra = torch.zeros(3)
    for parameter in run.model[0].parameters():
        parameter.requires_grad_(False)
    before, steps = [Tensor()], [0]

    def loss(model: Any, batch: Any) -> Tensor:
        value = functional.cross_entropy(model(batch[0]) + run.extra, batch[1])
        return value * math.nan if steps[0] == 10 else value

    def body(*_: int) -> None:
        steps[0] += 1
        if steps[0] == 8:  # the second chunk began behind step 6
            before[0] = state(run.model[0])
            change(run)
        if steps[0] == 12:
            assert run.controller.components["rollbacks"] == 1
            assert torch.equal(state(run.model[0]), before[0])
            assert not run.extra.any()

    run.train(loss, body)
    assert state(run.model).isfinite().all()


# -- what counts steps --


def set_by_step(name: str, value: Callable[[int], Any]) -> None:
    run, steps = Run(policy=CHANGES), itertools.count()

    def body(*_: int) -> None:
        run.optimizer.param_groups[0][name] = value(next(steps))

    run.train(body=body)


@pytest.mark.parametrize("name", ["weight_decay", "momentum"])
def test_other_settings_that_are_moved_by_steps_are_warned_about(name: str) -> None:
    with pytest.warns(RuntimeWarning, match=f"the setting {name} of the optimizer is stepped"):
        set_by_step(name, lambda step: 0.001 * (step + 1))


def test_a_second_schedule_left_by_steps_is_warned_about() -> None:
    run = Run(policy=CHANGES)
    taken = run.controller.schedule(schedules.LinearLR(run.optimizer, 0.1, total_iters=5))
    cosine = schedules.CosineAnnealingLR(run.optimizer, 100)

    def body(*_: int) -> None:
        taken.step()
        cosine.step()

    with pytest.warns(RuntimeWarning, match="CosineAnnealingLR .T_max=100. is stepped"):
        run.train(body=body)


@pytest.mark.filterwarnings("error")
def test_schedules_within_one_that_was_taken_are_not() -> None:
    run = Run(policy=CHANGES)
    optimizer = run.optimizer
    parts = [schedules.LinearLR(optimizer, 0.1, total_iters=5), schedules.StepLR(optimizer, 9)]
    taken = run.controller.schedule(schedules.ChainedScheduler(parts))
    run.train(body=lambda *_: taken.step())


@pytest.mark.filterwarnings("error")
def test_what_goes_by_plain_steps_and_groups_that_are_added_are_not() -> None:
    run = Run(policy=CHANGES)

    def body(*_: int) -> None:
        run.optimizer.param_groups[0]["lr"] = 0.05 / (1 + run.controller.plain_steps)

    run.train(body=body)
    run, steps = Run(policy=CHANGES), itertools.count()
    extra = torch.nn.Parameter(torch.zeros(1))

    def grow(*_: int) -> None:
        if next(steps) == 2:
            run.optimizer.add_param_group({"params": [extra], "lr": 0.001})

    run.train(body=grow)


@pytest.mark.parametrize("given", [None, schedules.StepLR])
def test_what_is_no_schedule_is_refused(given: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"has step\(\), got"):
        Run(policy="fixed").controller.schedule(given)


# -- hooks on gradients --


def clamp(gradient: Tensor) -> Tensor:
    return gradient.clamp(-1e-2, 1e-2)


def clamp_sum(parameter: Tensor) -> None:
    parameter.grad.clamp_(-1e-2, 1e-2)  # pyright: ignore[reportOptionalMemberAccess]


def mask(gradient: Tensor) -> Tensor:
    return gradient * (torch.arange(gradient.numel()).view_as(gradient) % 2)


def mask_sum(parameter: Tensor) -> None:
    parameter.grad.copy_(mask(parameter.grad))  # pyright: ignore


def with_hooks(hook: Any, of_sum: bool) -> Run:
    run = Run(policy=ScriptedPolicy((2.0,)), micro_batch_size=BASE)
    for parameter in run.model.parameters():
        if of_sum:
            parameter.register_post_accumulate_grad_hook(hook)
        else:
            parameter.register_hook(hook)
    return run


@pytest.mark.parametrize(("hook", "of_sum"), [(clamp, False), (clamp_sum, True)])
def test_a_hook_that_clips_each_part_is_warned_about(hook: Any, of_sum: bool) -> None:
    with pytest.warns(RuntimeWarning, match=r"a hook on a parameter.*batch_complete"):
        with_hooks(hook, of_sum).train()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("hook", "of_sum"), [(mask, False), (mask_sum, True)])
def test_a_hook_that_masks_is_not_and_stays_the_only_one(hook: Any, of_sum: bool) -> None:
    run = with_hooks(hook, of_sum)
    run.train()
    name = "_post_accumulate_grad_hooks" if of_sum else "_backward_hooks"
    assert all(list(getattr(p, name).values()) == [hook] for p in run.model.parameters())


# -- resumed with another limit --


def test_a_run_goes_on_with_a_limit_that_it_began_without() -> None:
    run = Run(policy="fixed").train(epochs=1)
    saved = run.controller.state_dict()
    smaller = Run(policy="fixed", micro_batch_size=3)
    smaller.controller.load_state_dict(saved)
    smaller.train(epochs=1)
    assert smaller.controller.samples_seen == 2 * len(rows())
