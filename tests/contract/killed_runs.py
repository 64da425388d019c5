"""Runs of each integration that are killed at random points: `killed_runs.py NAME FOLDER KILLS`.

Each attempt is forked from a process that has the framework imported, goes on from the latest
checkpoint, and is killed at a call of any Python function in it, which is drawn by chance: in a
step, in a decision, while a checkpoint is written. What it trained is compared with a run that
nobody disturbs, step by step. Its policy goes another way where one bit of its signals differs.
"""

# pyright: reportArgumentType=false, reportIncompatibleMethodOverride=false

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

BASE, SAMPLES = 8, 75
EVERY = 2  # optimizer steps between two checkpoints
SETTINGS: dict[str, Any] = {
    **{"cost": "samples", "micro_batch_size": 5, "noise_rate": 2.0, "lr_coupling": "adascale"},
    **{f"{name}_chunk_steps": 2 for name in ("first", "min", "max")},
    **{"max_batch_size": 24, "on_error": "raise"},
}


class Attempt:
    """One process of a run.

    Attributes:
        folder: Of the run: what it has seen, its log and its checkpoints.
        epochs: Of the run.
    """

    def __init__(self, folder: Path, epochs: int, calls: int | None) -> None:
        """Die at a call of a function.

        Args:
            folder: Of the run.
            epochs: Of the run.
            calls: So many of them are let pass behind the attempt's first step, which imports
                much; None: all.
        """
        self.folder, self.epochs = folder, epochs
        self._dies_at, self._calls, self._counts = calls, 0, False
        seen = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._seen = os.open(folder / "seen.jsonl", seen)

    def _count(self, frame: Any, event: str, what: Any) -> None:
        if event == "call":
            self._calls += 1
            if self._calls == self._dies_at:
                os.kill(os.getpid(), signal.SIGKILL)

    def note(self, step: int, *what: Any) -> None:
        """Write down what a step was made of."""
        os.write(self._seen, (json.dumps([step, *what]) + "\n").encode())
        if not self._counts:
            self._counts = True
            sys.setprofile(self._count)

    @property
    def latest(self) -> Path | None:
        """The latest checkpoint that counts."""
        pointer = self.folder / "latest"
        return self.folder / pointer.read_text() if pointer.exists() else None

    def count_in(self, name: str) -> None:
        """Let a checkpoint count, all of which is written."""
        new = self.folder / "latest.new"
        new.write_text(name)
        new.replace(self.folder / "latest")

    def end(self, weights: Any) -> None:
        """The run is over."""
        sys.setprofile(None)
        (self.folder / "final").write_text(repr(weights))
        (self.folder / "calls").write_text(str(self._calls))


def is_due(steps: int) -> bool:
    return steps % EVERY == 0


def plain(attempt: Attempt) -> None:
    import torch
    from torch.utils.data import DataLoader

    import rlbatch
    from tests.rlbatch.integrations.steered import ByBits
    from tests.rlbatch.integrations.transformers_ranks import Rows

    torch.manual_seed(7)
    model = _network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    controller = rlbatch.BatchController(
        model, optimizer, batch_size=BASE, policy=ByBits(), log_dir=attempt.folder / "log",
        **SETTINGS,
    )  # fmt: skip
    loader = controller.loader(DataLoader(Rows(SAMPLES), BASE, shuffle=True))
    parts = {"model": model, "optimizer": optimizer, "controller": controller}
    if attempt.latest is not None:
        state = torch.load(attempt.latest, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])

    def save(name: str) -> None:
        torch.save({k: v.state_dict() for k, v in parts.items()}, attempt.folder / name)

    _loop(attempt, controller, loader, model, optimizer, save)


def accelerate(attempt: Attempt) -> None:
    import torch
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    from rlbatch.integrations.accelerate import AcceleratedController
    from tests.rlbatch.integrations.steered import ByBits
    from tests.rlbatch.integrations.transformers_ranks import Rows

    accelerator = Accelerator(cpu=True)
    torch.manual_seed(7)
    model = _network()
    prepared: Any = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.01))
    controller = AcceleratedController(
        accelerator, *prepared, batch_size=BASE, policy=ByBits(), log_dir=attempt.folder / "log",
        **SETTINGS,
    )  # fmt: skip
    accelerator.register_for_checkpointing(controller)
    loader = controller.loader(DataLoader(Rows(SAMPLES), BASE, shuffle=True))
    if attempt.latest is not None:
        accelerator.load_state(str(attempt.latest))

    def save(name: str) -> None:
        accelerator.save_state(str(attempt.folder / name))

    _loop(attempt, controller, loader, model, prepared[1], save)


def _network() -> Any:
    from torch import nn

    parts = nn.Linear(6, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 1)
    return nn.Sequential(*parts).double()


def _loop(
    attempt: Attempt, controller: Any, loader: Any, model: Any, optimizer: Any, save: Any
) -> None:
    from torch.nn.functional import mse_loss

    batch: list[list[int]] = []
    while loader.sampler.epoch < attempt.epochs:
        for part in loader:
            batch.append(part["index"].tolist())
            loss = mse_loss(model(part["x"])[:, 0], part["labels"])
            controller.backward(loss)
            if not controller.step():
                continue
            attempt.note(controller.steps, controller.batch_size, batch, float(loss))
            batch = []
            if is_due(controller.steps):
                name = f"step{controller.steps}"
                save(name)
                attempt.count_in(name)
    controller.close()
    attempt.end([p.tolist() for p in model.parameters()])


def lightning(attempt: Attempt) -> None:
    import torch
    from lightning.pytorch import Callback, LightningModule, Trainer
    from torch.utils.data import DataLoader

    from rlbatch.integrations.lightning import BatchSizeCallback
    from tests.rlbatch.integrations.steered import ByBits
    from tests.rlbatch.integrations.transformers_ranks import Rows

    class Net(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.batch, self.loss = _network(), list[list[int]](), 0.0

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.batch.append(batch["index"].tolist())
            loss = torch.nn.functional.mse_loss(self.net(batch["x"])[:, 0], batch["labels"])
            self.loss = float(loss.detach())
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=0.01)

    class Notes(Callback):
        latest = -1  # step

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.latest = trainer.global_step

        def on_train_batch_end(self, trainer: Any, net: Any, *_: Any) -> None:
            step = trainer.global_step
            if step == self.latest:  # of a part of a step
                return
            self.latest = step
            attempt.note(step, control.controller.batch_size, net.batch, net.loss)
            net.batch = []
            if is_due(step):
                trainer.save_checkpoint(attempt.folder / f"step{step}.ckpt")
                attempt.count_in(f"step{step}.ckpt")

    torch.manual_seed(7)
    net = Net()
    control: Any = BatchSizeCallback(ByBits(), log_dir=attempt.folder / "log", **SETTINGS)
    trainer = Trainer(
        max_epochs=attempt.epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=[control, Notes()],
        default_root_dir=attempt.folder,
    )  # fmt: skip
    trainer.fit(net, DataLoader(Rows(SAMPLES), BASE, shuffle=True), ckpt_path=attempt.latest)
    attempt.end([p.tolist() for p in net.parameters()])


def transformers(attempt: Attempt) -> None:
    import torch
    from transformers import TrainerCallback, TrainingArguments, set_seed

    from rlbatch.control.settings import make_config
    from rlbatch.integrations.transformers import ControlledTrainer
    from tests.rlbatch.integrations.steered import ByBits
    from tests.rlbatch.integrations.transformers_ranks import Regression, Rows

    class Notes(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            assert trainer.controller is not None
            attempt.note(state.global_step, trainer.controller.batch_size, model.seen)
            model.seen = []
            control.should_save = is_due(state.global_step)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            attempt.count_in(f"checkpoint-{state.global_step}")

    torch.manual_seed(7)
    model = Regression(0.2)
    set_seed(7)
    args = TrainingArguments(
        output_dir=str(attempt.folder), use_cpu=True, report_to=[], disable_tqdm=True,
        per_device_train_batch_size=BASE, num_train_epochs=attempt.epochs, learning_rate=0.01,
        save_strategy="no", dataloader_pin_memory=False, logging_strategy="no",
    )  # fmt: skip
    trainer = ControlledTrainer(
        model, args, train_dataset=Rows(SAMPLES), callbacks=[Notes()], policy=ByBits(),
        config=make_config(None, {**SETTINGS, "log_dir": attempt.folder / "log"}),
    )  # fmt: skip
    latest = attempt.latest
    trainer.train(resume_from_checkpoint=None if latest is None else str(latest))
    attempt.end([p.tolist() for p in model.parameters()])


def keras(attempt: Attempt) -> None:
    import keras as framework
    import numpy as np

    from rlbatch.integrations.keras import BatchSizeControl
    from tests.rlbatch.integrations.steered import ByBits

    class Notes(framework.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            weights = [w.tolist() for w in model.get_weights()]
            attempt.note(control.steps, control.batch_size, weights)

    rng = np.random.default_rng(0)
    x = rng.normal(size=(SAMPLES, 6)).astype("float32")
    y = np.sin(x.sum(1, keepdims=True)).astype("float32")
    framework.utils.set_random_seed(0)
    dense = framework.layers.Dense
    layers = [dense(12, "tanh"), framework.layers.Dropout(0.2), dense(1)]
    model = framework.Sequential([framework.Input((6,)), *layers])
    model.compile(optimizer=framework.optimizers.Adam(0.01), loss="mse", run_eagerly=True)
    control = BatchSizeControl(
        BASE, ByBits(), log_dir=attempt.folder / "log",
        **{k: v for k, v in SETTINGS.items() if k != "micro_batch_size"},
    )  # fmt: skip
    backup = control.backup(attempt.folder / "backup", save_freq=EVERY, delete=False)
    callbacks = [control, Notes(), backup]  # a step that is saved has been noted
    model.fit(control.dataset(x, y), epochs=attempt.epochs, verbose=0, callbacks=callbacks)
    attempt.end([w.tolist() for w in model.get_weights()])


_TORCH = "torch._dynamo", "torch.utils.data", "tests.rlbatch.integrations.steered"
_ROWS = (*_TORCH, "tests.rlbatch.integrations.transformers_ranks")
IMPORTS = {  # once, and not in each attempt
    "plain": (*_ROWS, "rlbatch.controller"),
    "accelerate": (*_ROWS, "rlbatch.integrations.accelerate"),
    "lightning": (*_ROWS, "rlbatch.integrations.lightning"),
    "transformers": (*_ROWS, "rlbatch.integrations.transformers"),
    "keras": (*_TORCH, "rlbatch.integrations.keras"),
}
PROGRAMS: dict[str, Callable[[Attempt], None]] = {
    "plain": plain,
    "accelerate": accelerate,
    "lightning": lightning,
    "transformers": transformers,
    "keras": keras,
}


def fork(name: str, folder: Path, epochs: int, calls: int | None) -> int:
    """Run an attempt in a process of its own, and return how it ended."""
    folder.mkdir(exist_ok=True)
    if not [*folder.glob("latest"), *folder.glob("backup/[0-9]*")]:
        shutil.rmtree(folder / "log", ignore_errors=True)  # nothing to go on from: a new run
    child = os.fork()
    if not child:
        with open(folder / "said", "ab") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        code = 1
        with contextlib.suppress(SystemExit):
            try:
                PROGRAMS[name](Attempt(folder, epochs, calls))
                code = 0
            except BaseException:
                import traceback

                traceback.print_exc()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def read(folder: Path) -> dict[int, list[Any]]:
    made: dict[int, list[Any]] = {}
    for line in (folder / "seen.jsonl").read_text().splitlines():
        step, *what = json.loads(line)
        made.setdefault(step, []).append(what)
    return made


def compare(whole: Path, killed: Path) -> None:
    """Require that all that was seen is what the undisturbed run has seen."""
    expected, found = read(whole), read(killed)
    assert all(len(attempts) == 1 for attempts in expected.values())
    assert found.keys() == expected.keys()
    for step, attempts in found.items():
        assert attempts == expected[step] * len(attempts), (step, attempts, expected[step])
    assert (killed / "final").read_text() == (whole / "final").read_text()
    logs = [(folder / "log" / "decisions.jsonl").read_text() for folder in (whole, killed)]
    assert logs[0] == logs[1]
    assert len({attempts[0][0] for attempts in expected.values()}) > 3  # sizes


def main(name: str, folder: Path, kills: int, seconds: int = 3600) -> None:
    """Kill runs so often, or for so long, and compare each with an undisturbed one."""
    ends = time.monotonic() + seconds
    warnings.simplefilter("ignore")
    folder.mkdir(exist_ok=True)
    for module in IMPORTS[name]:
        importlib.import_module(module)
    draw, whole = random.Random(1), folder / "whole"
    epochs = max(6, 4 * kills // 5)  # few kills need no long run
    assert fork(name, whole, epochs, None) == 0, (whole / "said").read_text()[-2000:]
    steps = len(read(whole))
    # An attempt lasts for eight steps at most, as many of which are lost as are not saved.
    most = 8 * int((whole / "calls").read_text()) // steps
    made = runs = 0
    while made < kills and time.monotonic() < ends:
        runs += 1
        killed = folder / f"killed{runs}"
        while True:
            kill = made < kills and time.monotonic() < ends
            code = fork(name, killed, epochs, draw.randint(1, most) if kill else None)
            if code == 0:
                break
            assert code == -signal.SIGKILL, (killed / "said").read_text()[-2000:]
            made += 1
            print(made, sum(map(len, read(killed).values())), file=sys.stderr, flush=True)
        compare(whole, killed)
    assert made, f"no time was left in {seconds} seconds to kill a run"
    attempts = sum(map(len, read(folder / "killed1").values()))
    print(json.dumps({"kills": made, "runs": runs, "steps": steps, "attempted": attempts}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
