"""Arguments of wrong kinds are refused where they are given; numbers may be NumPy's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rlbatch
from rlbatch.arguments import real_number, whole_number
from rlbatch.control.settings import Settings
from rlbatch.errors import ConfigurationError, RlbatchError
from rlbatch.policy.registry import pretrained_file
from rlbatch.testing import ScriptedPolicy

BASE = 8
# A value of each kind that somebody may give by mistake.
VALUES: dict[str, Any] = {
    "True": True, "'x'": "x", "b'x'": b"x", "a class": dict, "an object": object(), "[3]": [3],
    "{}": {"a": 1}, "a function": lambda *_: None, "2.5": 2.5, "nan": float("nan"), "-1": -1,
    "0": 0, "numpy 8": np.int64(8), "numpy True": np.True_, "numpy 8.0": np.float32(8.0),
    "array 8": np.array(8), "array [8, 9]": np.array([8, 9]), "tensor 8": torch.tensor(8),
    "tensor True": torch.tensor(True), "a complex": 1j, "10**400": 10**400,
}  # fmt: skip
WHOLE = {"numpy 8", "array 8", "tensor 8"}
NUMBER = {*WHOLE, "2.5", "numpy 8.0"}
TRUTH = {"True", "numpy True", "tensor True"}
TAKEN: dict[str, set[str]] = {
    "model": set(),
    "optimizer": set(),
    "batch_size": {*WHOLE, "10**400"},
    "policy": set(),
    "config": set(),
    "scaler": set(),
    "accumulator": {"a function"},  # refused when it has made none
    "min_batch_size": {*WHOLE, "10**400"},
    "max_batch_size": {*WHOLE, "10**400"},
    "micro_batch_size": {*WHOLE, "10**400"},
    "divisible": TRUTH,
    "memory_limit": NUMBER,
    "first_chunk_steps": set(),  # 8 is above the default of the fewest later
    "min_chunk_steps": WHOLE,
    "chunk_growth": {*NUMBER, "0"},
    "max_chunk_steps": {*WHOLE, "10**400"},
    "limits": set(),
    "cadence": set(),
    "guard": set(),
    "lr_coupling": set(),
    "target_loss": NUMBER,
    "budget": NUMBER,
    "epochs": NUMBER,
    "cost": set(),
    "step_seconds": {"a function"},
    "max_log2_change": NUMBER,
    "cooldown": {*WHOLE, "0", "10**400"},
    "fallback": {"'x'"},  # no policy of that name, which the loader says
    "shadow": TRUTH,
    "noise_rate": {*NUMBER, "0"},
    "off_when": {"a function"},
    "on_error": set(),
    "log_dir": {"'x'"},
    "trackers": set(),
}


def make(**told: Any) -> Any:
    model = nn.Linear(3, 1)
    told = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.01),
        "batch_size": BASE,
        "policy": "fixed",
        **told,
    }
    return rlbatch.BatchController(told.pop("model"), told.pop("optimizer"), **told)


def test_every_argument_is_in_the_table() -> None:
    own = {"model", "optimizer", "batch_size", "policy", "config", "scaler", "accumulator"}
    assert TAKEN.keys() == own | set(Settings.__annotations__)


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_of_another_kind_is_refused_in_a_sentence(name: str) -> None:
    for kind, value in VALUES.items():
        if kind in TAKEN[name]:
            make(**{name: value})
            continue
        with pytest.raises(ConfigurationError) as caught:
            make(**{name: value})
        assert str(caught.value).count(". ") <= 2
        assert len(str(caught.value)) < 400


def test_an_accumulator_that_makes_none() -> None:
    controller = make(accumulator=lambda ranks: None)
    with pytest.raises(
        ConfigurationError, match="An accumulator must be of the class GradientAccumulator"
    ):
        controller.loader(DataLoader(TensorDataset(torch.ones(16, 3)), BASE))


def test_a_scaler_is_named_in_the_message() -> None:
    with pytest.raises(ConfigurationError, match=r"torch\.amp\.GradScaler.*got True"):
        make(scaler=True)
    with pytest.raises(ConfigurationError, match="got the class GradScaler"):
        make(scaler=torch.amp.GradScaler)
    make(scaler=torch.amp.GradScaler("cpu", enabled=False))


def test_parts_of_the_settings_check_their_fields_too() -> None:
    value: Any
    for part in (rlbatch.Limits, rlbatch.Cadence, rlbatch.GuardConfig):
        for name in part.__dataclass_fields__:
            for value in ("x", [3], object(), dict, 1j):
                with pytest.raises(ConfigurationError):
                    part(**{name: value})


def run(folder: Path, number: Any) -> tuple[list[int], dict[str, Any], Any]:
    """Return the sizes of a run's steps, what its log says, and the weights."""
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(72, 3), torch.randn(72, 1))
    model = nn.Linear(3, 1)
    controller = rlbatch.BatchController(
        model, torch.optim.SGD(model.parameters(), lr=0.01), batch_size=number(8),
        policy=ScriptedPolicy((1.0, 0.6, -2.0)), cost="samples", epochs=number(3),
        min_batch_size=number(4), max_batch_size=number(32), micro_batch_size=number(5),
        max_chunk_steps=number(6), cooldown=number(1), log_dir=folder, on_error="raise",
    )  # fmt: skip
    loader = controller.loader(DataLoader(data, 8))
    sizes: list[int] = []
    for _ in range(3):
        for x, y in loader:
            controller.backward(nn.functional.mse_loss(model(x), y))
            sizes.append(controller.step())
    controller.close()
    assert type(controller.base_batch_size) is type(controller.batch_size) is int
    assert type(controller.config.limits.max_batch_size) is int
    head = json.loads((folder / "run.json").read_text())
    return sizes, {name: head[name] for name in ("config", "context")}, model.weight.tolist()


@pytest.mark.parametrize("number", [np.int64, np.uint8, np.array, torch.tensor])
def test_a_run_by_numpys_numbers_is_that_by_pythons(tmp_path: Path, number: Any) -> None:
    one, other = (run(tmp_path / name, kind) for name, kind in (("int", int), ("other", number)))
    for heads in (one[1], other[1]):
        heads["config"].pop("log_dir")
    assert one == other
    assert max(one[0]) > BASE


def test_what_counts_as_a_number() -> None:
    assert [whole_number(v) for v in (3, np.int8(3), torch.tensor([3]))] == [3, 3, 3]
    refused = (True, np.True_, torch.tensor(True), 3.0, np.float64(3), "3", None, np.array([3, 4]))
    assert all(whole_number(value) is None for value in refused)
    for value, kind in ((3, int), (np.int8(3), int), (np.float32(3), float), (3.0, float)):
        assert real_number(value) == 3
        assert type(real_number(value)) is kind
    nothing = (True, np.True_, "3", None, 1j, float("nan"), np.array([3.0]), 10**400)
    assert all(real_number(value) is None for value in nothing)


def test_a_schedule_makes_a_whole_number_of_steps() -> None:
    controller = make()
    scheduler = torch.optim.lr_scheduler.StepLR(controller.optimizer, 3)
    for wrong in (0, 1.5, True, "2"):
        with pytest.raises(ConfigurationError, match="steps must be a whole number"):
            controller.schedule(scheduler, wrong)
    assert controller.schedule(scheduler, np.int64(2)).made == 0


def test_a_path_names_a_policy_file() -> None:
    with pytest.raises(RlbatchError, match="nowhere"):
        make(policy=Path("nowhere") / "policy.safetensors")
    file = pretrained_file("default")
    one, other = (make(policy=kind(file)).policy for kind in (Path, str))
    assert type(one) is type(other)
    assert len(one.members) == len(other.members) > 1
