from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from rlbatch.envs.task import Task, collate_samples, resolve_task, task_names
from rlbatch.errors import ConfigurationError, RlbatchError, UnknownNameError


def squared_error(model: nn.Module, batch: Any) -> torch.Tensor:
    inputs, values = batch
    return nn.functional.mse_loss(model(inputs), values)


def make_task(**changes: Any) -> Task:
    inputs = torch.arange(12.0).view(12, 1)
    settings: dict[str, Any] = {
        "name": "line",
        "model": lambda: nn.Linear(1, 1),
        "train_set": TensorDataset(inputs, 2 * inputs),
        "val_set": TensorDataset(inputs + 0.5, 2 * inputs + 1),
        "loss": squared_error,
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=1e-3),
        "batch_size": 4,
        "target": 0.1,
    }
    return Task(**{**settings, **changes})


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(8))

    def __len__(self) -> int:
        return 8


class Unsized(Dataset[int]):
    def __getitem__(self, index: int) -> int:
        return index


class TestTask:
    def test_fields_and_defaults_are_the_published_ones(self) -> None:
        assert [field.name for field in fields(Task)] == [
            "name", "model", "train_set", "val_set", "loss", "optimizer", "batch_size", "target",
            "max_batch_size", "scheduler", "collate", "epochs",
        ]  # fmt: skip
        task = make_task()
        left_out = (task.max_batch_size, task.scheduler, task.collate, task.epochs)
        assert left_out == (None, None, None, None)

    def test_is_frozen(self) -> None:
        with pytest.raises(FrozenInstanceError):
            make_task().batch_size = 8  # pyright: ignore[reportAttributeAccessIssue]

    @pytest.mark.parametrize(
        ("changes", "parts"),
        [
            ({"name": ""}, ["name", "''"]),
            ({"batch_size": 13}, ["batch_size", "13", "12", "Lower"]),
            ({"batch_size": 0}, ["batch_size", "0", "at least 1"]),
            ({"batch_size": 2.0}, ["batch_size", "2.0", "int"]),
            ({"batch_size": True}, ["batch_size", "True"]),
            ({"max_batch_size": 2}, ["max_batch_size", "2", "batch_size=4", "Raise"]),
            ({"max_batch_size": 16}, ["max_batch_size", "16", "12"]),
            ({"target": 0.0}, ["target", "0.0", "positive"]),
            ({"target": -1.0}, ["target", "-1.0"]),
            ({"target": float("nan")}, ["target", "nan"]),
            ({"target": float("inf")}, ["target", "inf"]),
            ({"model": nn.Identity}, None),
            ({"loss": 0.5}, ["loss", "0.5", "callable"]),
            ({"optimizer": "adamw"}, ["optimizer", "'adamw'", "callable"]),
            ({"collate": 3}, ["collate", "3", "callable"]),
            ({"scheduler": 3}, ["scheduler", "3", "callable"]),
            ({"train_set": Stream()}, ["train_set", "Stream", "map-style"]),
            ({"val_set": Unsized()}, ["val_set", "Unsized", "__len__"]),
            ({"val_set": []}, ["val_set", "at least one sample"]),
        ],
    )
    def test_validation(self, changes: dict[str, Any], parts: list[str] | None) -> None:
        if parts is None:
            make_task(**changes)
            return
        with pytest.raises(ConfigurationError) as caught:
            make_task(**changes)
        for part in parts:
            assert part in str(caught.value)

    def test_replace_validates_again(self) -> None:
        task = make_task(batch_size=4, max_batch_size=12)
        assert replace(task, batch_size=12).batch_size == 12
        with pytest.raises(ConfigurationError, match="max_batch_size"):
            replace(task, max_batch_size=3)


class Fetching(Dataset[int]):
    """Returns other things by batch than one by one, so that a test sees which way was taken."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> int:
        raise AssertionError("a dataset with __getitems__ is asked for a batch at once")

    def __getitems__(self, indices: list[int]) -> list[int]:
        return [10 * index for index in indices]


@pytest.mark.parametrize("collate", [None, lambda samples: ("own", list(samples))])
@pytest.mark.parametrize(
    "dataset", [Fetching(), TensorDataset(torch.arange(10), torch.arange(10.0)), list(range(10))]
)
def test_collate_samples_returns_what_the_data_loader_does(dataset: Any, collate: Any) -> None:
    indices = [7, 2, 2, 9]
    (expected,) = DataLoader(dataset, batch_sampler=[indices], collate_fn=collate)
    assert str(collate_samples(dataset, indices, collate)) == str(expected)


class TestBuiltInNames:
    def test_every_family_comes_in_two_variants(self) -> None:
        families = {
            "digits-mlp", "digits-cnn", "language-id", "translation", "char-lm",
            "tabular-regression", "tabular-classification", "teacher-student",
        }  # fmt: skip
        assert set(task_names()) >= families | {f"{family}-sgd" for family in families}
        assert task_names() == sorted(task_names())

    def test_unknown_name_suggests(self) -> None:
        with pytest.raises(UnknownNameError, match="digits-mlp") as caught:
            resolve_task("digits_mpl")
        assert "digits-mlp" in caught.value.close

    def test_importing_the_door_imports_no_task(self) -> None:
        code = (
            "import sys, rlbatch.envs.task as door; door.task_names();"
            "print([m for m in sys.modules"
            " if m.split('.')[0] == 'sklearn' or m.startswith('rlbatch.envs.tasks.d')])"
        )
        root = Path(__file__).resolve().parents[2]
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "[]"


TASK_FILE = """
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import TensorDataset

from rlbatch.envs.task import Task
from neighbour import TARGET

@dataclass
class Settings:  # dataclasses look their module up in sys.modules
    units: "int" = 3

def make():
    data = TensorDataset(torch.zeros(8, Settings().units))
    return Task(name="mine", model=lambda: nn.Linear(3, 1), train_set=data, val_set=data,
                loss=lambda model, batch: model(batch[0]).square().mean(),
                optimizer=lambda p: torch.optim.SGD(p, lr=0.1), batch_size=2, target=TARGET)

def wrong_type():
    return {"name": "mine"}

def raises():
    return 1 / 0

def invalid():
    from rlbatch.errors import ConfigurationError
    raise ConfigurationError("a message of its own")

number = 3
"""


class TestFileDoor:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        (tmp_path / "neighbour.py").write_text("TARGET = 0.25\n")
        (tmp_path / "job.py").write_text(TASK_FILE)
        (tmp_path / "broken.py").write_text("import no_such_module_anywhere\n")
        monkeypatch.chdir(tmp_path)
        monkeypatch.delitem(sys.modules, "neighbour", raising=False)
        return tmp_path

    def test_loads_by_absolute_and_relative_path(self, folder: Path) -> None:
        path_before = list(sys.path)
        for spec in (f"{folder}/job.py:make", "job.py:make", "./job.py:make"):
            task = resolve_task(spec)
            assert (task.name, task.batch_size, task.target) == ("mine", 2, 0.25)
        assert sys.path == path_before

    def test_reads_the_file_as_it_is_now(self, folder: Path) -> None:
        resolve_task("job.py:make")
        (folder / "job.py").write_text(TASK_FILE.replace('"mine"', '"changed its name"'))
        assert resolve_task("job.py:make").name == "changed its name"

    @pytest.mark.parametrize(
        ("spec", "parts"),
        [
            ("nowhere.py:make", ["no file", "nowhere.py", "Check the path"]),
            ("job.py", ["path/to/file.py:function", "'job.py'"]),
            ("job.py:", ["path/to/file.py:function"]),
            ("job.py:not a name", ["path/to/file.py:function"]),
            ("job:make", ["path/to/file.py:function", "'job:make'"]),
            ("job.py:absent", ["'absent'", "It defines:", "make", "wrong_type"]),
            ("job.py:number", ["'number'", "function"]),
            ("job.py:wrong_type", ["wrong_type()", "Task", "dict"]),
            ("job.py:raises", ["raises()", "ZeroDivisionError", "division by zero"]),
            ("job.py:invalid", ["a message of its own"]),
            ("broken.py:make", ["broken.py", "ModuleNotFoundError", "no_such_module_anywhere"]),
        ],
    )
    @pytest.mark.usefixtures("folder")
    def test_says_what_is_wrong(self, spec: str, parts: list[str]) -> None:
        path_before = list(sys.path)
        with pytest.raises(RlbatchError) as caught:
            resolve_task(spec)
        for part in parts:
            assert part in str(caught.value)
        assert sys.path == path_before

    @pytest.mark.usefixtures("folder")
    def test_keeps_the_cause(self) -> None:
        with pytest.raises(RlbatchError) as caught:
            resolve_task("job.py:raises")
        assert isinstance(caught.value.__cause__, ZeroDivisionError)


def halved(optimizer: Any, steps: int) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, max(steps // 2, 1), 0.5)


def test_the_length_of_a_schedule_in_steps_counts_the_last_incomplete_one() -> None:
    assert make_task(batch_size=5, epochs=2.5, scheduler=halved).planned_steps() == 6  # 30 samples


@pytest.mark.parametrize("fields", [{"epochs": 2.0}, {"scheduler": halved}, {}])
def test_a_schedule_without_a_length_and_a_length_without_a_schedule_plan_no_steps(
    fields: dict[str, Any],
) -> None:
    assert make_task(**fields).planned_steps() is None


@pytest.mark.parametrize("epochs", [0, -1.0, float("nan"), float("inf")])
def test_a_length_that_is_none_is_refused(epochs: float) -> None:
    with pytest.raises(ConfigurationError, match="epochs must be a positive number of passes"):
        make_task(epochs=epochs, scheduler=halved)
