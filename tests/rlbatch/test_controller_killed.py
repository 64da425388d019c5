"""A training process that is killed again and again ends where an undisturbed one does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rlbatch.episode_log import read_episode

SCRIPT = """
import os, sys, time
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from rlbatch.controller import BatchController
from rlbatch.testing import ScriptedPolicy

folder, pause = sys.argv[1], float(sys.argv[2])
torch.set_num_threads(1)
torch.manual_seed(5)
model = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.2), nn.Tanh(), nn.Linear(16, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
generator = torch.Generator().manual_seed(0)
x = torch.randn(200, 6, generator=generator)
loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8, shuffle=True)
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
loader = controller.loader(loader)

def save():
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(),
             "controller": controller.state_dict(), "samples": samples}
    torch.save(state, path + ".new")
    os.replace(path + ".new", path)

if samples == 0:
    save()
while samples < 3000:
    for inputs, targets in loader:
        controller.backward(nn.functional.mse_loss(model(inputs), targets))
        done = controller.step()
        if done:
            samples += done
            time.sleep(pause)
            if controller.components["steps"] % 7 == 0:
                save()
controller.close()
torch.save(model.state_dict(), folder + "/final.pt")
"""


@pytest.mark.slow
def test_killed_and_resumed_runs_end_alike(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def start(folder: Path, pause: float) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(script), str(folder), str(pause)]
        return subprocess.Popen(command, env=environment)

    assert start(whole, 0.0).wait() == 0
    kills = 0
    while kills < 4:
        process = start(killed, 0.01)
        checkpoint, before = killed / "checkpoint.pt", _stamp(killed / "checkpoint.pt")
        while process.poll() is None and _stamp(checkpoint) == before:
            time.sleep(0.005)  # at least one new checkpoint each time, so that the end is reached
        time.sleep(0.013 * kills)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert not (killed / "final.pt").exists()
    assert start(killed, 0.0).wait() == 0

    weights = [torch.load(folder / "final.pt", weights_only=True) for folder in (whole, killed)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    logs = [read_episode(folder / "log") for folder in (whole, killed)]
    assert [r.to_json() for r in logs[0].records] == [r.to_json() for r in logs[1].records]
    assert len(logs[0].records) > 10


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0
