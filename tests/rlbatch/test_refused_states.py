"""States that cannot be loaded: refused with one kind of error, and as if nobody had tried."""

from __future__ import annotations

import copy
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from rlbatch.control.saved_state import all_or_nothing, require_like
from rlbatch.controller import BatchController
from rlbatch.errors import ConfigurationError, RlbatchError
from rlbatch.log.episode_reader import read_episode
from rlbatch.testing import ScriptedPolicy
from tests.helpers import fuzzed

CHANGES = (1.0, -1.0, 1.0, 0.0, -1.0, 1.0) * 20


class Measuring(ScriptedPolicy):
    needs_gradient_noise = True


class Training:
    def __init__(self, log_dir: Path | None = None, **settings: Any) -> None:
        torch.manual_seed(5)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        x = torch.randn(90, 3, generator=torch.Generator().manual_seed(0))
        rows = TensorDataset(x, x.sum(1, keepdim=True))
        settings = {"policy": Measuring(CHANGES), **settings}
        self.controller = BatchController(
            self.model,
            self.optimizer,
            batch_size=8,
            cost="samples",
            lr_coupling="adascale",
            noise_rate=2.0,
            log_dir=log_dir,
            **settings,
        )
        self.generator = torch.Generator().manual_seed(1)
        sampler = RandomSampler(rows, generator=self.generator)
        self.loader = self.controller.loader(DataLoader(rows, 8, sampler=sampler))

    def train(self, steps: int) -> list[int]:
        sizes: list[int] = []
        while len(sizes) < steps:
            for x, y in self.loader:
                self.controller.backward(nn.functional.mse_loss(self.model(x), y))
                if self.controller.step():
                    sizes.append(self.controller.batch_size)
                if len(sizes) == steps:
                    break
        return sizes

    def everything(self) -> list[Any]:
        numpy_state: Any = np.random.get_state(legacy=False)
        return [
            self.controller.state_dict(),
            torch.get_rng_state(),
            random.getstate(),
            [numpy_state["state"]["pos"], *numpy_state["state"]["key"].tolist()],
            self.generator.get_state(),
        ]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and repr(one) == repr(other)  # NaN, too


def places_in(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        found.append((value, key))
        if isinstance(value[key], dict | list):
            places_in(value[key], found)
    return found


ODD: list[Any] = [
    *(None, True, False, -1, 0, 1, 10**30, 0.5, -1e308, float("nan"), float("inf"), "", "fixed"),
    *([], {}, [1, 2, 3], [[]], [None], {"a": 1}, torch.zeros(3), torch.zeros(2, dtype=torch.uint8)),
]


def mutated(state: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    state = copy.deepcopy(state)
    # Long lists of numbers are one place among others, not nearly all of them.
    places = places_in(state, [])
    named = [place for place in places if isinstance(place[0], dict)]
    node, key = rng.choice(named if rng.random() < 0.8 else places)
    how = rng.random()
    if how < 0.65:
        node[key] = rng.choice(ODD)
    elif how < 0.85:
        del node[key]
    elif isinstance(node, dict):
        node[f"{key}x"] = node[key]
    else:
        node.append(node[key])
    return state


@pytest.fixture(scope="module")
def saved() -> list[dict[str, Any]]:
    """States within a chunk after roll-back copies began, at an epoch's end, and at the start."""
    states: list[dict[str, Any]] = []
    for steps in (0, 1, 17, 40):
        training = Training()
        training.train(steps)
        states.append(training.controller.state_dict())
    assert any(state["control_loop"]["guard"]["copy"] is not None for state in states)
    assert any(state["control_loop"]["monitor"]["losses"] for state in states)
    return states


def check(state: dict[str, Any], expected: list[int]) -> bool:
    """Return whether a state was refused; then the run must be one that never heard of it."""
    training = Training()
    before = training.everything()
    try:
        training.controller.load_state_dict(state)
    except ConfigurationError:
        assert same(training.everything(), before)
        assert training.train(len(expected)) == expected
        return True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numbers that are possible and strange
            training.train(12)
    except RlbatchError:
        pass  # the data's order, say, which only the data can tell
    return False


def refusals(saved: list[dict[str, Any]], count: int) -> int:
    expected = Training().train(12)
    assert len(set(expected)) > 1
    refused = 0
    for seed in range(count):
        rng = random.Random(seed)
        refused += check(mutated(rng.choice(saved), rng), expected)
    return refused


def test_mutated_states_are_loaded_whole_or_not_at_all(saved: list[dict[str, Any]]) -> None:
    assert refusals(saved, 60) > 30


@pytest.mark.slow
def test_many_mutated_states_are_loaded_whole_or_not_at_all(saved: list[dict[str, Any]]) -> None:
    count = fuzzed(600)
    assert refusals(saved, count) > count / 2


def test_a_controller_goes_on_after_the_state_of_another_policy() -> None:
    other = Training(policy="plateau")
    other.train(20)
    undisturbed = Training()
    expected = undisturbed.train(40)
    training = Training()
    with pytest.raises(ConfigurationError, match="another policy"):
        training.controller.load_state_dict(other.controller.state_dict())

    assert training.train(40) == expected
    for one, two in zip(training.model.parameters(), undisturbed.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_state_that_is_loaded_before_the_loader_is_made_and_refused_is_forgotten() -> None:
    other = Training(policy="plateau")
    other.train(20)
    training = Training()
    fresh = BatchController(training.model, training.optimizer, batch_size=8, policy="fixed")
    fresh.load_state_dict(other.controller.state_dict())
    data = TensorDataset(torch.zeros(90, 3), torch.zeros(90, 1))
    with pytest.raises(ConfigurationError):
        fresh.loader(DataLoader(data, 8, shuffle=True))
    assert fresh.batch_size == 8
    assert fresh.steps == 0
    batches = list(zip(range(2), _steps(fresh, training.model), strict=False))
    assert len(batches) == 2


def _steps(controller: BatchController, model: nn.Module) -> Any:
    loader = controller._require_loader()
    for x, y in loader:
        controller.backward(nn.functional.mse_loss(model(x), y))
        yield controller.step()


def test_the_log_keeps_its_lines_where_a_state_is_refused(
    tmp_path: Path, saved: list[dict[str, Any]]
) -> None:
    training = Training(log_dir=tmp_path / "log")
    training.train(20)
    lines = (tmp_path / "log" / "decisions.jsonl").read_text()
    state = copy.deepcopy(saved[1])  # of an earlier step: loading it would drop lines
    state["loader"]["order"] = {"size": 7}

    with pytest.raises(ConfigurationError):
        training.controller.load_state_dict(state)

    assert (tmp_path / "log" / "decisions.jsonl").read_text() == lines
    training.train(20)
    training.controller.close()
    assert len(read_episode(tmp_path / "log").records) > lines.count("\n")


@pytest.mark.parametrize("state", [None, [], {}, {"version": 1}, 3, "state"])
def test_what_is_no_state_is_refused(state: Any) -> None:
    training = Training()
    before = training.everything()
    with pytest.raises(ConfigurationError, match=r"version|batch size"):
        training.controller.load_state_dict(state)
    assert same(training.everything(), before)


@pytest.mark.parametrize(
    ("given", "own"),
    [
        ({"a": 1}, {"b": 1}),
        ({"a": 1}, {"a": 1, "b": 1}),
        ({"a": 1, "b": 1}, {"a": 1}),
        ({"a": -1}, {"a": 0}),
        ({"a": True}, {"a": 0}),
        ({"a": 1.0}, {"a": 0}),
        ({"a": "1"}, {"a": 1.0}),
        ({"a": 1}, {"a": True}),
        ({"a": 3}, {"a": {"b": 1}}),
        ({"a": 3}, {"a": []}),
        ({"a": torch.zeros(2)}, {"a": torch.zeros(3)}),
        ({"a": torch.zeros(2).double()}, {"a": torch.zeros(2)}),
        ({"a": [0.0, 0.0]}, {"a": torch.zeros(2)}),
        (
            {"dtype": "<f8", "shape": [2], "data": [1.0]},
            {"dtype": "<f8", "shape": [2], "data": [0.0, 0.0]},
        ),
        (
            {"dtype": "<f8", "shape": [1], "data": ["x"]},
            {"dtype": "<f8", "shape": [1], "data": [0.0]},
        ),
    ],
)
def test_another_kind_is_refused(given: Any, own: Any) -> None:
    require_like(own, own)
    with pytest.raises(ConfigurationError, match="Nothing of it was taken"):
        require_like(given, own)


def test_a_block_that_fails_leaves_no_trace() -> None:
    training = Training()
    before = training.everything()
    loop = training.controller._run.adapter._loop

    def spoil(error: BaseException) -> None:
        loop.steps = 7
        loop.__dict__["new"] = 1
        sampler: Any = training.loader.sampler
        sampler._queue.tail = ["x"]
        sampler._planned.append(None)
        for generator in (None, training.generator):
            torch.randn(3, generator=generator)
        random.random()
        np.random.rand()
        raise error

    damaged = pytest.raises(ConfigurationError, match=r"KeyError: 'plain'")
    with damaged, all_or_nothing(training.controller):
        spoil(KeyError("plain"))
    assert same(training.everything(), before)
    assert "new" not in vars(loop)
    with pytest.raises(KeyboardInterrupt), all_or_nothing(training.controller):
        spoil(KeyboardInterrupt())
    assert same(training.everything(), before)
    with all_or_nothing(loop):
        loop.steps = 7
    assert loop.steps == 7
