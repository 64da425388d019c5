"""A real process that trains, and is told by a real signal to leave the batch size alone."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rlbatch.control.off_switch import SignalSwitch
from rlbatch.errors import ConfigurationError
from rlbatch.log.episode_reader import read_episode

PROGRAM = """
import signal, sys, time
import torch
from torch.utils.data import DataLoader, TensorDataset
import rlbatch
from rlbatch.control.off_switch import SignalSwitch
from rlbatch.testing import ScriptedPolicy

torch.manual_seed(0)
x = torch.randn(512, 3)
model = torch.nn.Linear(3, 1)
controller = rlbatch.BatchController(
    model, torch.optim.SGD(model.parameters(), 0.01), batch_size=8, policy=ScriptedPolicy((1.0,)),
    cost="samples", log_dir=sys.argv[1], off_when=SignalSwitch(signal.SIGUSR1), max_chunk_steps=4,
)
loader = controller.loader(DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), 8, shuffle=True))
last = None
for epoch in range(10**6):
    for a, b in loader:
        controller.backward(torch.nn.functional.mse_loss(model(a), b))
        last = controller.step() or last
    print(epoch, last, controller.components["enabled"], flush=True)
    if not controller.components["enabled"]:
        break
controller.close()
"""


def test_a_signal_turns_the_controller_off_in_a_run(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline().split()
        process.send_signal(signal.SIGUSR1)
        rest = process.stdout.read().splitlines()
    assert process.returncode == 0
    assert first[2] == "True"
    assert rest[-1].split()[2] == "False"
    records = read_episode(tmp_path / "log").records
    assert [record.event for record in records].count("off") == 1
    assert [record.event for record in records[-2:]] == ["off", "end"]
    assert records[-2].batch_size_before > records[-2].batch_size == 8


def test_a_handler_from_before_is_called_too_and_put_back() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: heard.append(number))
    try:
        mine = signal.getsignal(signal.SIGUSR2)
        switch = SignalSwitch(signal.SIGUSR2)
        assert not switch()
        signal.raise_signal(signal.SIGUSR2)
        assert switch()
        assert heard == [signal.SIGUSR2]
        switch.close()
        assert signal.getsignal(signal.SIGUSR2) is mine
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_signals_that_nobody_can_listen_to_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="SIGUSR1"):
        SignalSwitch(signal.SIGKILL)
    caught: list[Exception] = []

    def elsewhere() -> None:
        try:
            SignalSwitch(signal.SIGUSR2)
        except ConfigurationError as error:
            caught.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(caught) == 1
