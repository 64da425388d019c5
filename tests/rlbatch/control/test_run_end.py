"""The log's last line where nobody closes the controller."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rlbatch.control.config import ControllerConfig
from rlbatch.control.cost_tracker import CostTracker
from rlbatch.control.run_end import CLOSED, DROPPED
from rlbatch.controller import BatchController
from rlbatch.log.decision_record import DecisionRecord
from rlbatch.log.episode_log import read_episode
from rlbatch.testing import ScriptedPolicy

SAMPLES, SIZE = 203, 8


def make(log: Path, **loader: Any) -> tuple[BatchController, Any]:
    """Return a controller of a small run and its loader."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    policy = ScriptedPolicy((1.0, 0.0, -1.0, 1.0) * 9)
    controller = BatchController(
        model, optimizer, batch_size=SIZE, policy=policy, cost="samples", log_dir=log
    )
    data = TensorDataset(torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(1)))
    return controller, controller.loader(DataLoader(data, SIZE, shuffle=True, **loader))


def train(controller: BatchController, loader: Any, steps: int = 0) -> None:
    """Make some steps, or go through the epoch."""
    for (x,) in loader:
        controller.backward(controller.model(x).square().mean())
        controller.step()
        if steps and controller.steps == steps:
            break


def lines(folder: Path) -> list[DecisionRecord]:
    return list(read_episode(folder).records)


def texts(records: Iterable[DecisionRecord]) -> list[str]:
    return [record.to_json() for record in records]  # NaN equals itself there


# Each run is forked from a process that has everything imported, and ends as processes do.
PROGRAM = """
import os, resource, signal, sys
from pathlib import Path
from tests.rlbatch.control.test_run_end import make, train

folder, cases = Path(sys.argv[1]), sys.argv[2:]
case = "parent"
for name in cases:
    child = os.fork()
    if not child:
        case = name
        break
    os.waitpid(child, 0)
if case != "parent":
    workers = {"num_workers": 2, "persistent_workers": True} if case == "workers" else {}
    controller, loader = make(folder / case, **workers)
    train(controller, loader)
    train(controller, loader, steps=controller.steps + 5)
if case == "closed":
    controller.close()
elif case == "raised":
    raise ValueError("of the user's")
elif case == "interrupted":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    signal.raise_signal(signal.SIGINT)
elif case == "exited":
    sys.exit(3)
elif case == "forked":
    os.fork()  # both end here
elif case == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
elif case == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
"""
CASES = (
    *("closed", "returned", "raised", "interrupted", "exited", "forked", "workers"),
    *("killed", "full"),
)


@pytest.mark.slow
def test_however_a_process_ends_its_log_has_one_end(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), *CASES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    *decisions, end = lines(tmp_path / "closed")
    assert (end.event, end.reasons) == ("end", (CLOSED,))
    assert end.step > decisions[-1].step
    unclosed = [*decisions, replace(end, reasons=(DROPPED,))]
    for case in ("returned", "raised", "interrupted", "exited", "forked"):
        assert texts(lines(tmp_path / case)) == texts(unclosed), case
    for case in ("killed", "full"):
        assert texts(lines(tmp_path / case)) == texts(decisions), case
    *decisions, end = lines(tmp_path / "workers")  # where sizes change later
    assert "end" not in [record.event for record in decisions]
    assert (end.event, end.reasons) == ("end", (DROPPED,))
    assert end.step > decisions[-1].step
    assert done.stderr.count("rlbatch:") == 1
    assert "rlbatch: the log has no end: Cannot write the episode log" in done.stderr


def test_a_controller_that_is_dropped_ends_its_log_and_keeps_nothing_alive(tmp_path: Path) -> None:
    controller, loader = make(tmp_path / "log")
    train(controller, loader, steps=6)
    before, size = lines(tmp_path / "log"), controller.batch_size
    assert before[-1].event == "decision"
    model = weakref.ref(controller.model)
    held = controller.model.weight  # what the user keeps does not keep the run open

    del controller, loader
    gc.collect()

    assert model() is None
    assert held.shape == (1, 4)
    *decisions, end = lines(tmp_path / "log")
    assert texts(decisions) == texts(before)
    assert (end.event, end.step, end.batch_size, end.reasons) == ("end", 6, size, (DROPPED,))
    assert end.samples_seen == end.cost > decisions[-1].cost
    assert end.epoch == end.samples_seen / SAMPLES


def test_a_run_without_a_step_has_nothing_to_end(tmp_path: Path) -> None:
    controller, loader = make(tmp_path / "log")
    iterator = iter(loader)
    next(iterator)

    del controller, loader, iterator
    gc.collect()

    assert lines(tmp_path / "log") == []


def test_one_that_is_resumed_before_the_first_is_collected_is_not_disturbed(tmp_path: Path) -> None:
    whole, loader = make(tmp_path / "whole")
    train(whole, loader)
    whole.close()
    first, loader = make(tmp_path / "log")
    train(first, loader, steps=7)
    weights, state = first.model.state_dict(), first.state_dict()
    train(first, loader, steps=9)

    second, resumed = make(tmp_path / "log")
    second.model.load_state_dict(weights)
    second.load_state_dict(state)
    train(second, resumed, steps=8)
    del first, loader
    gc.collect()
    train(second, resumed)
    second.close()
    second.close()

    assert lines(tmp_path / "log")[-1].step == second.steps
    events = [record.event for record in lines(tmp_path / "log")]
    assert events.count("end") == 1
    assert [r.index for r in lines(tmp_path / "log")] == list(range(len(events)))
    del second, resumed
    gc.collect()
    assert [record.event for record in lines(tmp_path / "log")] == events


def test_closing_one_that_another_has_taken_over_is_no_error(tmp_path: Path) -> None:
    first, loader = make(tmp_path / "log")
    train(first, loader, steps=5)
    state = first.state_dict()
    second, resumed = make(tmp_path / "log")
    second.load_state_dict(state)
    train(second, resumed, steps=6)

    first.close()
    second.close()

    ends = [record for record in lines(tmp_path / "log") if record.event == "end"]
    assert [(end.step, end.reasons) for end in ends] == [(6, (CLOSED,))]


def test_a_state_loaded_on_the_way_is_where_the_run_is(tmp_path: Path) -> None:
    controller, loader = make(tmp_path / "log")
    train(controller, loader, steps=5)
    state = json.dumps(controller.state_dict()["control_loop"]["log_position"])
    saved = controller.state_dict()
    train(controller, loader, steps=9)
    controller.load_state_dict(saved)

    del controller, loader
    gc.collect()

    assert len(lines(tmp_path / "log")) == int(state)


def test_the_cost_so_far_has_the_seconds_since_the_last_chunk() -> None:
    now = [0.0]
    tracker = CostTracker(ControllerConfig(), lambda: now[0])
    assert tracker.so_far == 0.0
    tracker.resume()
    tracker.begin_chunk()
    now[0] = 3.0
    assert tracker.so_far == pytest.approx(3.0)
    tracker.pause()
    now[0] = 9.0
    assert tracker.so_far == pytest.approx(3.0)
    tracker.end_chunk(8, 4)
    assert tracker.so_far == tracker.total
