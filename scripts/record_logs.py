"""Records the small logs of real runs that tests read and the documentation shows.

    python scripts/record_logs.py          # all of them
    python scripts/record_logs.py example-log  # one

Record them again when the shipped policy or the observation changes: tests/rlbatch/inspect/
test_replay.py asks the recorded policies again and expects the recorded decisions.

* `docs/example-log`: `rlbatch run`, the default policy from an eighth of the task's batch size.
* `docs/example-log-goodput`: the same run under the goodput rule.
* `tests/rlbatch/inspect/logs/live`: a loop of torch with a limit, a cooldown and a roll-back.
* `tests/rlbatch/inspect/logs/ddp`: two ranks.
* `tests/rlbatch/inspect/logs/keras`: Keras's `fit`, on torch.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "tests" / "rlbatch" / "inspect" / "logs"
DOCS = ROOT / "docs"


def main() -> None:
    recorders = {
        "example-log": record_example,
        "example-log-goodput": lambda folder: record_example(folder, "goodput"),
        "live": record_live,
        "ddp": record_ddp,
        "keras": record_keras,
    }
    for name in sys.argv[1:] or recorders:
        folder = (DOCS if name.startswith("example") else LOGS) / name
        shutil.rmtree(folder, ignore_errors=True)
        recorders[name](folder)
        for events in folder.glob("events.out*"):
            events.unlink()
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{folder.relative_to(ROOT)}: {size / 1000:.0f} kB")


def record_example(folder: Path, policy: str = "default") -> None:
    arguments = f"--policy {policy} --task digits-mlp-sgd --profile accelerator-4096 --start 0.125"
    command = [sys.executable, "-m", "rlbatch", "run", *arguments.split(), "--out", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def record_live(folder: Path) -> None:
    """A loop whose learning rate is raised once so far that the guard has to act."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader

    import rlbatch

    data, model = _data(), _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    controller = rlbatch.BatchController(
        model,
        optimizer,
        batch_size=4,
        policy="goodput",
        max_batch_size=512,
        max_log2_change=1.0,
        cooldown=1,
        log_dir=folder,
    )
    loader = controller.loader(DataLoader(data, batch_size=4, shuffle=True))
    steps = 0
    for _ in range(5):
        for x, y in loader:
            controller.backward(nn.functional.mse_loss(model(x), y))
            if controller.step():
                steps += 1
                optimizer.param_groups[0]["lr"] = 3.0 if 89 <= steps < 92 else 0.02
        with torch.no_grad():
            controller.report_validation(
                float(nn.functional.mse_loss(model(data.tensors[0]), data.tensors[1]))
            )
    controller.close()


def record_ddp(folder: Path) -> None:
    from torch.multiprocessing.spawn import spawn

    spawn(_rank, args=(2, str(folder)), nprocs=2)


def _rank(rank: int, world_size: int, folder: str) -> None:
    import torch
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data import DataLoader, DistributedSampler

    import rlbatch

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29541")
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    torch.set_num_threads(1)
    data = _data()
    model = DistributedDataParallel(_model())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    sampler: DistributedSampler[Any] = DistributedSampler(data)
    controller = rlbatch.BatchController(
        model, optimizer, batch_size=32, policy="goodput", max_batch_size=512, log_dir=folder
    )
    loader = controller.loader(DataLoader(data, 16, sampler=sampler))
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for x, y in loader:
            controller.backward(nn.functional.mse_loss(model(x), y))
            controller.step()
    controller.close()
    torch.distributed.destroy_process_group()


def record_keras(folder: Path) -> None:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    from rlbatch.integrations.keras import BatchSizeControl

    keras.utils.set_random_seed(0)
    inputs, values = (tensor.numpy() for tensor in _data().tensors)
    layers: Any = keras.layers
    model: Any = keras.Sequential(
        [keras.Input((10,)), layers.Dense(32, activation="relu"), layers.Dense(1)]
    )
    model.compile(optimizer="adam", loss="mse")
    control = BatchSizeControl(32, "goodput", max_batch_size=512, log_dir=folder)
    data = control.dataset(inputs, values)
    model.fit(data, epochs=3, callbacks=[control], shuffle=False, verbose=0)


def _data() -> Any:
    import torch
    from torch.utils.data import TensorDataset

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1500, 10, generator=generator)
    values = inputs.sum(dim=1, keepdim=True).tanh()
    return TensorDataset(inputs, values + 0.3 * torch.randn(1500, 1, generator=generator))


def _model() -> Any:
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))


if __name__ == "__main__":
    main()
