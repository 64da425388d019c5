"""A training process that is killed again and again ends where an undisturbed one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rlbatch.log.decision_record import DecisionRecord
from rlbatch.log.episode_log import read_episode
from tests.contract.killed_runs import read

TRAIN = """
import json, os, random, signal, sys, time
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from rlbatch.controller import BatchController
from rlbatch.testing import ScriptedPolicy

torch.set_num_threads(1)

def train(folder, workers=0, pause=0.0, kill=None):
    # Goes on from the last checkpoint. kill: optimizer steps from here, and the line to die at.
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.2), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator)
    rows = TensorDataset(torch.arange(200), x, x.sum(1, keepdim=True))
    controller = BatchController(
        model, optimizer, batch_size=8, policy=ScriptedPolicy((1.0, -1.0, 1.5, 0.0, -0.5) * 9),
        cost="samples", micro_batch_size=10, lr_coupling="adascale", log_dir=folder + "/log",
    )
    path, samples = folder + "/checkpoint.pt", 0
    if os.path.exists(path):
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        controller.load_state_dict(state["controller"])
        samples = state["samples"]
    loader = controller.loader(
        DataLoader(rows, batch_size=8, shuffle=True, num_workers=workers)
    )
    seen = os.open(folder + "/seen.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    left = kill[0] if kill else -1

    def die_at(line):
        if left == 0 and kill[1] == line:
            os.kill(os.getpid(), signal.SIGKILL)

    def save():
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                 "controller": controller.state_dict(), "samples": samples}
        torch.save(state, path + ".new")
        if left <= 0:
            die_at("save")
        os.replace(path + ".new", path)

    if samples == 0:
        save()
    batch = []
    while samples < 2500:
        for indices, inputs, targets in loader:
            step = controller.components["steps"]
            batch.append(indices.tolist())
            die_at("arrive")
            controller.backward(nn.functional.mse_loss(model(inputs), targets))
            die_at("backward")
            done = controller.step()
            if not done:
                continue
            os.write(seen, (json.dumps([step, controller.batch_size, batch]) + "\\n").encode())
            samples, batch, left = samples + done, [], left - 1
            die_at("step")
            time.sleep(pause)
            if controller.components["steps"] % 5 == 0 or (left == 0 and kill[1] == "save"):
                save()
    controller.close()
    torch.save(model.state_dict(), folder + "/final.pt")
"""

ALONE = (
    TRAIN
    + """
train(sys.argv[1], pause=float(sys.argv[2]))
"""
)

# Each run is a process of its own, forked from one that has torch imported already.
FORKED = (
    TRAIN
    + """
def run(*arguments):
    child = os.fork()
    if not child:
        train(*arguments)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

torch.optim.AdamW([nn.Parameter(torch.zeros(1))])  # imports much when first made
whole, killed, workers, kills = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
draw = random.Random(int(sys.argv[5]))
codes = [run(whole, workers)]
for _ in range(kills):
    line = draw.choice(["arrive", "backward", "step", "save"])
    codes.append(run(killed, workers, 0.0, (draw.randint(1, 16), line)))
codes.append(run(killed, workers))
print(json.dumps(codes))
"""
)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "kills"), [(0, 12), (2, 5)])
def test_a_run_killed_at_random_steps_is_the_undisturbed_run(
    tmp_path: Path, workers: int, kills: int
) -> None:
    whole, killed = _folders(tmp_path)
    script = tmp_path / "train.py"
    script.write_text(FORKED)
    command = [sys.executable, script, whole, killed, str(workers), str(kills), "1"]
    with (tmp_path / "codes").open("w") as out:
        # Not a pipe: workers of a killed run hold it open for a while.
        subprocess.run(command, env=_environment(), stdout=out, check=True)
    codes = json.loads((tmp_path / "codes").read_text())
    assert codes == [0, *[-signal.SIGKILL] * kills, 0]

    expected, found = (read(folder) for folder in (whole, killed))
    assert sorted(expected) == list(range(len(expected)))
    assert expected.keys() == found.keys()
    for step, attempts in found.items():
        # Also the steps that were lost had the samples of the undisturbed run.
        assert attempts == expected[step] * len(attempts)
    assert sum(map(len, found.values())) > len(found)
    assert len({json.dumps(attempts[0][0]) for attempts in expected.values()}) > 3  # sizes
    _check_alike(whole, killed)


# Its changes depend on the last bit of each signal and of each entry of the observation.
BITS = """
import hashlib, dataclasses, numpy as np
from rlbatch.policy import tools

class Bits(ScriptedPolicy):
    needs_gradient_noise = True

    def decide(self, observation, signals, state):
        values = [np.asarray(getattr(signals, field.name), dtype=np.float64).tobytes()
                  for field in dataclasses.fields(signals) if field.name != "context"]
        digest = hashlib.sha256(b"".join([*values, observation.tobytes()])).digest()
        return tools.decision((digest[0] % 5 - 2) / 2, "bits"), np.asarray(state) + 1

"""


@pytest.mark.slow
def test_a_run_killed_fifty_times_decides_by_the_same_bits(tmp_path: Path) -> None:
    whole, killed = _folders(tmp_path)
    script = tmp_path / "train.py"
    text = FORKED.replace("\ndef train(", BITS + "def train(", 1)
    text = text.replace("ScriptedPolicy((1.0, -1.0, 1.5, 0.0, -0.5) * 9)", "Bits(())")
    # More steps than fifty kills let pass, with checkpoints close enough to move on.
    text = text.replace("samples < 2500", "samples < 40000").replace("% 5 == 0", "% 2 == 0")
    assert text.count("Bits(())") == text.count("samples < 40000") == text.count("% 2 == 0") == 1
    script.write_text(text)
    command = [sys.executable, script, whole, killed, "0", "50", "2"]
    with (tmp_path / "codes").open("w") as out:
        subprocess.run(command, env=_environment(), stdout=out, check=True)
    assert json.loads((tmp_path / "codes").read_text()) == [0, *[-signal.SIGKILL] * 50, 0]

    expected, found = (read(folder) for folder in (whole, killed))
    assert expected.keys() == found.keys()
    for step, attempts in found.items():
        assert attempts == expected[step] * len(attempts)
    _check_alike(whole, killed)


@pytest.mark.slow
def test_killed_and_resumed_runs_end_alike(tmp_path: Path) -> None:
    whole, killed = _folders(tmp_path)
    script = tmp_path / "train.py"
    script.write_text(ALONE)

    def start(folder: Path, pause: float) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(script), str(folder), str(pause)]
        return subprocess.Popen(command, env=_environment())

    assert start(whole, 0.0).wait() == 0
    for kills in range(2):
        process = start(killed, 0.01)
        checkpoint, before = killed / "checkpoint.pt", _stamp(killed / "checkpoint.pt")
        while process.poll() is None and _stamp(checkpoint) == before:
            time.sleep(0.005)  # at least one new checkpoint each time, so that the end is reached
        time.sleep(0.013 * kills)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (killed / "final.pt").exists()
    assert start(killed, 0.0).wait() == 0
    _check_alike(whole, killed)


def _folders(tmp_path: Path) -> tuple[Path, Path]:
    folders = tmp_path / "whole", tmp_path / "killed"
    for folder in folders:
        folder.mkdir()
    return folders


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def _records(folder: Path) -> list[DecisionRecord]:
    return list(read_episode(folder / "log").records)


def _check_alike(whole: Path, killed: Path) -> None:
    weights = [torch.load(folder / "final.pt", weights_only=True) for folder in (whole, killed)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    records = [_records(folder) for folder in (whole, killed)]
    assert [r.to_json() for r in records[0]] == [r.to_json() for r in records[1]]
    assert [r.index for r in records[1]] == list(range(len(records[1])))
    assert len(records[1]) > 10
