"""The controlled Trainer against the Trainer itself, on models small enough for a processor."""

# The framework's own annotations do not fit its use.
# pyright: reportArgumentType=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

transformers = pytest.importorskip("transformers")

from transformers import (  # noqa: E402
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from rlbatch.control.config import ControllerConfig  # noqa: E402
from rlbatch.control.guard import GuardConfig  # noqa: E402
from rlbatch.control.settings import make_config  # noqa: E402
from rlbatch.errors import ConfigurationError  # noqa: E402
from rlbatch.integrations.transformers import (  # noqa: E402
    ControlledTrainer,
    ControlledTrainerMixin,
)
from rlbatch.log.episode_log import read_episode  # noqa: E402
from rlbatch.policy.registry import FOR_EPOCHS  # noqa: E402
from rlbatch.testing import ScriptedPolicy  # noqa: E402
from rlbatch.testing.actuator_contract import ActuatorContract, Job, LoopContract, Step  # noqa: E402
from tests.rlbatch.integrations.steered import (  # noqa: E402
    TWO_STEP_CHUNKS,
    ByBits,
    known_plan,
)

SAMPLES = 75
BASE = 8
GROW = ScriptedPolicy((1.0, 0.5, -2.0, 2.5))


class Rows(Dataset[dict[str, Any]]):
    """Numbered rows: a batch tells which samples it holds."""

    def __init__(self, size: int = SAMPLES) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(size, 6, generator=generator)
        self.y = self.x.sum(1).sin()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": self.x[index], "labels": self.y[index], "index": index}


class Stream(IterableDataset[dict[str, Any]]):
    def __iter__(self) -> Any:
        return iter([])


class KnownStream(IterableDataset[dict[str, Any]]):
    """The rows, one after the other; it knows how many."""

    def __init__(self) -> None:
        self.rows = Rows()

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Any:
        return (self.rows[index] for index in torch.randperm(len(self)).tolist())


class Network(nn.Module):
    """A small regression; notes what it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 1))
        self.seen: list[list[int]] = []

    def forward(self, x: Tensor, index: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        if self.training:
            self.seen.append(index.tolist())
        out = self.net(x)[:, 0]
        if labels is None:
            return {"logits": out}
        return {"loss": nn.functional.mse_loss(out, labels), "logits": out}


class Notes(TrainerCallback):
    """What a user's callback sees."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.epochs: list[float] = []
        self.batches: list[list[int]] = []
        self.rates: list[float] = []
        self.max_steps: list[int] = []

    def on_step_begin(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
        self.events.append("begin")
        if isinstance(model, Network):
            self._from = len(model.seen)

    def on_substep_end(self, *args: Any, **kwargs: Any) -> None:
        self.events.append("substep")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append("end")
        self.epochs.append(state.epoch)
        self.max_steps.append(state.max_steps)
        self.rates.append(kwargs["lr_scheduler"].get_last_lr()[0])
        model = kwargs["model"]
        if isinstance(model, Network):
            self.batches.append([index for part in model.seen[self._from :] for index in part])


def arguments(out: Path, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(out),
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "per_device_train_batch_size": BASE,
        "num_train_epochs": 3,
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(**{**settings, **changes})


def config(**changes: Any) -> ControllerConfig:
    return make_config(None, {**TWO_STEP_CHUNKS, **changes})


@dataclass
class Made:
    """A Trainer that has trained, and what was seen."""

    trainer: Any
    notes: Notes
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.notes.batches]

    @property
    def weights(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.trainer.model.parameters()])


def train(
    kind: type[Trainer],
    out: Path,
    *,
    model: Callable[[], nn.Module] = Network,
    data: Dataset[Any] | None = None,
    resume: str | None = None,
    args: dict[str, Any] | None = None,
    callbacks: tuple[TrainerCallback, ...] = (),
    **kwargs: Any,
) -> Made:
    set_seed(7)
    notes = Notes()
    trainer = kind(
        model(),
        arguments(out, **(args or {})),
        train_dataset=Rows() if data is None else data,
        callbacks=[*callbacks, notes],
        **kwargs,
    )
    trainer.train(resume_from_checkpoint=resume)
    return Made(trainer, notes)


def history(made: Made) -> list[dict[str, Any]]:
    """What was logged, but for measured times and what the controller adds."""
    return [
        {k: v for k, v in line.items() if "runtime" not in k and "_per_second" not in k}
        for line in ({**line, "batch_size": None} for line in made.trainer.state.log_history)
    ]


# -- delivered is decided --


class JobModel(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.seen = net, []

    def forward(self, x: Tensor, labels: Tensor, index: Tensor) -> dict[str, Tensor]:
        self.seen.append(index.tolist())
        return {"loss": nn.functional.mse_loss(self.net(x), labels)}


class Recorder(TrainerCallback):
    stop_after = 0

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.decided: list[int] = []
        self.trainer: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._from = len(kwargs["model"].seen)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._parameters = [p.detach().clone() for p in kwargs["model"].parameters()]
        controller = getattr(self.trainer, "controller", None)
        self._size = 0 if controller is None else controller.batch_size

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        parts = kwargs["model"].seen[self._from :]
        epoch = math.ceil(state.epoch) - 1
        controller = getattr(self.trainer, "controller", None)
        seen = None if controller is None else controller.samples_seen
        self.steps.append(Step(self._size, epoch, parts, self._parameters, seen))
        if len(self.steps) == self.stop_after:
            control.should_save = control.should_training_stop = True


def train_job(
    job: Job,
    folder: Path,
    recorder: Recorder,
    accumulation: int = 1,
    *,
    trainer: Any = ControlledTrainer,
    resume: Any = None,
) -> list[Step]:
    model = JobModel(job.model)
    settings = {"policy": job.policy, "config": make_config(None, job.settings)}
    recorder.trainer = trainer(
        model,
        arguments(
            folder,
            per_device_train_batch_size=job.batch_size // accumulation,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=job.epochs,
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
            logging_strategy="no",
        ),
        train_dataset=job.dataset,
        data_collator=lambda rows: {
            "x": torch.stack([row[0] for row in rows]),
            "labels": torch.stack([row[1] for row in rows]),
            "index": torch.tensor([row[2] for row in rows]),
        },
        optimizers=(torch.optim.SGD(model.parameters(), lr=job.learning_rate), None),
        callbacks=[recorder],
        **(settings if trainer is ControlledTrainer else {}),
    )
    recorder.trainer.train(resume_from_checkpoint=resume)
    return recorder.steps


class TestContract(LoopContract):
    @pytest.fixture(autouse=True)
    def _in_a_folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def train(self, job: Job) -> list[Step]:
        return train_job(job, self.folder, Recorder())

    def plain(self, job: Job) -> list[list[Tensor]]:
        steps = train_job(job, self.folder, Recorder(), trainer=Trainer)
        return [step.parameters for step in steps]

    def resume(self, job: Job, after: int) -> list[Step]:
        first = Recorder()
        first.stop_after = after
        steps = list(train_job(job, self.folder, first))
        again = self.job(0)
        return steps + train_job(again, self.folder, Recorder(), resume=True)


class TestContractAccumulating(ActuatorContract):
    @pytest.fixture(autouse=True)
    def _in_a_folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def train(self, job: Job) -> list[Step]:
        return train_job(job, self.folder, Recorder(), 4)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_log_names_the_steps_that_the_model_saw(tmp_path: Path, workers: int) -> None:
    made = train(
        ControlledTrainer,
        tmp_path / "out",
        args={"dataloader_num_workers": workers, "num_train_epochs": 6},
        policy=GROW,
        controller=config(log_dir=tmp_path / "log"),
    )
    expected = [BASE] * len(made.sizes)
    for line in read_episode(tmp_path / "log").records:
        if line.event == "decision":
            expected[line.effective_step :] = [line.batch_size] * (
                len(expected) - line.effective_step
            )
    ends = {i for i, e in enumerate(made.notes.epochs) if float(e).is_integer()}
    assert len(ends) == 6
    assert len(set(expected)) > 3
    for step, (got, said) in enumerate(zip(made.sizes, expected, strict=True)):
        assert got == said or (step in ends and got < said)
    for epoch in range(6):
        seen = [
            index
            for at, batch in zip(made.notes.epochs, made.notes.batches, strict=True)
            if math.ceil(at) - 1 == epoch
            for index in batch
        ]
        assert sorted(seen) == list(range(SAMPLES))


# -- the plain run --


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"gradient_accumulation_steps": 3},
        {"bf16": True, "max_grad_norm": 0.1, "weight_decay": 0.1},
        {"max_steps": 17, "lr_scheduler_type": "cosine", "warmup_steps": 4},
        {"num_train_epochs": 1.5, "logging_steps": 0.2, "logging_first_step": True},
        {"train_sampling_strategy": "sequential", "max_grad_norm": 0.0, "adam_beta2": 0.95},
        {"dataloader_num_workers": 1, "logging_steps": 3},
        {"eval_strategy": "steps", "eval_steps": 4, "eval_on_start": True, "eval_delay": 5},
        {"eval_strategy": "epoch", "logging_strategy": "epoch"},
        {
            "eval_strategy": "epoch",
            "lr_scheduler_type": "reduce_lr_on_plateau",
            "lr_scheduler_kwargs": {"patience": 0, "threshold": 0.5},
            "metric_for_best_model": "loss",
        },
    ],
    ids=lambda args: " ".join(args) or "plain",
)
def test_fixed_is_the_plain_run_bit_for_bit(tmp_path: Path, args: dict[str, Any]) -> None:
    evaluates = {"eval_dataset": Rows(20)}
    plain = train(Trainer, tmp_path, args=args, **evaluates)
    fixed = train(ControlledTrainer, tmp_path, args=args, policy="fixed", **evaluates)
    assert plain.trainer.model.seen == fixed.trainer.model.seen
    assert torch.equal(plain.weights, fixed.weights)
    assert history(plain) == history(fixed)
    if "gradient_accumulation_steps" not in args:
        assert plain.notes.events == fixed.notes.events
    assert plain.notes.epochs == fixed.notes.epochs
    assert plain.notes.rates == fixed.notes.rates
    assert plain.notes.max_steps == fixed.notes.max_steps


@pytest.mark.parametrize("args", [{}, {"gradient_accumulation_steps": 3}], ids=str)
def test_a_stream_of_known_length_is_the_plain_run(tmp_path: Path, args: dict[str, Any]) -> None:
    plain = train(Trainer, tmp_path, args=args, data=KnownStream())
    fixed = train(ControlledTrainer, tmp_path, args=args, data=KnownStream(), policy="fixed")
    assert plain.trainer.model.seen == fixed.trainer.model.seen
    assert torch.equal(plain.weights, fixed.weights)
    assert history(plain) == history(fixed)
    assert plain.notes.epochs == fixed.notes.epochs


def test_a_stream_goes_on_within_an_epoch(tmp_path: Path) -> None:
    args = {"save_strategy": "steps", "save_steps": 4}
    told: dict[str, Any] = {"args": args, "policy": GROW, "controller": config()}
    whole = train(ControlledTrainer, tmp_path / "whole", data=KnownStream(), **told)
    order = [index for batch in whole.notes.batches for index in batch]
    assert len(set(whole.sizes)) > 3
    for epoch in range(3):
        assert sorted(order[epoch * SAMPLES :][:SAMPLES]) == list(range(SAMPLES))
    saved = sorted((tmp_path / "whole").glob("checkpoint-*"), key=lambda p: int(p.name[11:]))
    for checkpoint in saved[1:3]:
        steps = int(checkpoint.name[11:])
        again = train(
            ControlledTrainer,
            tmp_path / "again",
            data=KnownStream(),
            resume=str(checkpoint),
            **told,
        )
        assert again.notes.batches == whole.notes.batches[steps:]
        assert torch.equal(again.weights, whole.weights)


# -- gradients --


class Tokens(Dataset[dict[str, Tensor]]):
    """Random sentences, of which very different numbers of tokens have a label."""

    def __init__(self, size: int = 64, length: int = 12) -> None:
        generator = torch.Generator().manual_seed(1)
        self.ids = torch.randint(2, 40, (size, length), generator=generator)
        kept = torch.randint(1, length + 1, (size, 1), generator=generator)
        self.labels = torch.where(torch.arange(length) < kept, self.ids, -100)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index], "labels": self.labels[index]}


class Sentences(Tokens):
    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index, 0] % 3}


def gpt2() -> nn.Module:
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "vocab_size": 40}
    drop = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **drop, bos_token_id=0, eos_token_id=1))


def bert(kind: Any) -> nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    drop = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return kind(BertConfig(vocab_size=40, intermediate_size=32, num_labels=3, **sizes, **drop))


def classifier() -> nn.Module:
    return bert(BertForSequenceClassification)


def masked() -> nn.Module:
    return bert(BertForMaskedLM)


SGD_STEPS: dict[str, Any] = {
    "train_sampling_strategy": "sequential",
    "optim": "sgd",
    "learning_rate": 0.1,
    "max_grad_norm": 0.0,
    "lr_scheduler_type": "constant",
    "num_train_epochs": 1,
}
ADDS_UP = "ignore:rlbatch. the loss takes num_items_in_batch and is not divided:UserWarning"


@pytest.mark.filterwarnings(ADDS_UP)
@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize(
    ("model", "data"), [(gpt2, Tokens()), (masked, Tokens()), (classifier, Sentences())]
)
def test_a_divided_batch_has_the_gradient_of_the_whole_one(
    tmp_path: Path, model: Callable[[], nn.Module], data: Dataset[Any], accumulation: int
) -> None:
    """32 samples at once in the Trainer, against 32 in parts of 5 or of 8."""
    whole = train(
        Trainer,
        tmp_path,
        model=model,
        data=data,
        args={**SGD_STEPS, "per_device_train_batch_size": 32},
    )
    parts = train(
        ControlledTrainer,
        tmp_path,
        model=model,
        data=data,
        args={
            **SGD_STEPS,
            "per_device_train_batch_size": 32 // accumulation,
            "gradient_accumulation_steps": accumulation,
        },
        policy="fixed",
        controller=config(micro_batch_size=5 if accumulation == 1 else None),
    )
    torch.testing.assert_close(parts.weights, whole.weights, rtol=1e-4, atol=1e-6)
    losses = [
        [line["loss"] for line in made.trainer.state.log_history[:-1]] for made in (whole, parts)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    norms = [
        [line["grad_norm"] for line in m.trainer.state.log_history[:-1]] for m in (whole, parts)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_the_trainer_alone_adds_up_means_and_the_controlled_one_says_so(tmp_path: Path) -> None:
    """Should this fail in a later version, the warning has no reason any more."""
    args = {**SGD_STEPS, "gradient_accumulation_steps": 4}
    alone = train(Trainer, tmp_path, model=classifier, data=Sentences(), args=args)
    with pytest.warns(UserWarning, match="averaged, so that the gradient is that of the whole"):
        ours = train(
            ControlledTrainer,
            tmp_path,
            model=classifier,
            data=Sentences(),
            args=args,
            policy="fixed",
            controller=config(),
        )
    first, second = (made.trainer.state.log_history[0] for made in (alone, ours))
    assert first["grad_norm"] == pytest.approx(4 * second["grad_norm"], rel=1e-4)
    assert first["loss"] == pytest.approx(4 * second["loss"], rel=1e-4)


@pytest.mark.filterwarnings(ADDS_UP)
@pytest.mark.parametrize("divides", [True, False])
def test_a_loss_function_of_the_users_is_weighted_as_it_is_meant(
    tmp_path: Path, divides: bool
) -> None:
    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        squares = (outputs["logits"] - labels).square()
        if divides and num_items_in_batch is not None:
            return squares.sum() / num_items_in_batch
        return squares.mean()

    def run(kind: Any, size: int, **kwargs: Any) -> Made:
        args = {**SGD_STEPS, "per_device_train_batch_size": size}
        return train(kind, tmp_path, args=args, compute_loss_func=loss, model=still, **kwargs)

    whole = run(Trainer, 24)
    settings = config(micro_batch_size=7)
    parts = run(ControlledTrainer, 24, policy="fixed", controller=settings)
    torch.testing.assert_close(parts.weights, whole.weights)


def still() -> nn.Module:
    model = Network()
    model.net[2] = nn.Identity()
    return model


def test_finding_out_how_a_loss_is_weighted_changes_nothing_else(tmp_path: Path) -> None:
    """It is found out at the first divided step: random numbers and modes are as before."""

    class Dropped(GPT2LMHeadModel):
        pass

    def model() -> nn.Module:
        made = gpt2()
        made.transformer.drop.p = 0.3
        return made

    def run(scaled: bool | None) -> Made:
        kind = type("Told", (ControlledTrainer,), {"loss_is_scaled_for_ga": scaled})
        args = {**SGD_STEPS, "per_device_train_batch_size": 16}
        settings = config(micro_batch_size=4)
        return train(
            kind,
            tmp_path,
            model=model,
            data=Tokens(),
            args=args,
            policy="fixed",
            controller=settings,
        )

    assert torch.equal(run(None).weights, run(True).weights)


# -- what is counted in steps counts samples --


def test_the_schedule_ends_where_it_would_whatever_the_sizes(tmp_path: Path) -> None:
    args = {"lr_scheduler_type": "cosine", "warmup_steps": 5}
    plain = train(Trainer, tmp_path, args=args)
    grown = train(ControlledTrainer, tmp_path, args=args, policy=GROW, controller=config())
    assert len(set(grown.sizes)) > 3
    per_epoch = math.ceil(SAMPLES / BASE)
    at, epoch = 0, 0
    for size, rate in zip(grown.sizes, grown.notes.rates, strict=True):
        at += size
        if at == SAMPLES:
            at, epoch = 0, epoch + 1
        assert rate == pytest.approx(
            plain.notes.rates[epoch * per_epoch + at // BASE - 1], abs=1e-12
        )
    assert grown.notes.rates[-1] == 0.0
    assert grown.trainer.lr_scheduler.last_epoch == plain.trainer.lr_scheduler.last_epoch


@pytest.mark.parametrize("name", ["logging", "eval", "save"])
@pytest.mark.parametrize("script", [(3.0,), (-2.0,), (2.0, -3.0, 3.0)])
def test_events_stay_at_their_samples(tmp_path: Path, name: str, script: tuple[float, ...]) -> None:
    """Every 5 steps of 8 samples: at the first optimizer step at or behind each 40 samples."""
    seen: list[int] = []

    class Watch(TrainerCallback):
        samples = 0

        def on_log(self, *args: Any, logs: Any = None, **kwargs: Any) -> None:
            if name == "logging" and "loss" in logs:
                seen.append(self.samples)

        def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
            if name == "eval":
                seen.append(self.samples)

        def on_save(self, *args: Any, **kwargs: Any) -> None:
            if name == "save":
                seen.append(self.samples)

        def on_step_end(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
            Watch.samples = sum(map(len, model.seen))

    made = train(
        ControlledTrainer,
        tmp_path,
        data=Rows(80),
        args={
            "logging_steps": 5,
            f"{name}_strategy": "steps",
            f"{name}_steps": 5,
            "num_train_epochs": 4,
            "save_only_model": False,
        },
        eval_dataset=Rows(8),
        callbacks=(Watch(),),
        policy=ScriptedPolicy(script),
        controller=config(),
    )
    ends = [sum(made.sizes[: index + 1]) for index in range(len(made.sizes))]
    due = sorted({next(e for e in ends if e >= 40 * k) for k in range(1, 9)})
    assert seen == due


@pytest.mark.parametrize("args", [{"max_steps": 13}, {"num_train_epochs": 1.25}])
def test_a_run_ends_at_its_samples(tmp_path: Path, args: dict[str, Any]) -> None:
    plain = train(Trainer, tmp_path, args=args)
    for policy in (GROW, ScriptedPolicy((2.0, 1.0)), ScriptedPolicy((-1.0,))):
        made = train(ControlledTrainer, tmp_path, args=args, policy=policy, controller=config())
        assert sum(made.sizes) == sum(plain.sizes)
        assert made.trainer.state.global_step == made.trainer.state.max_steps == len(made.sizes)
        assert made.trainer.state.epoch == plain.trainer.state.epoch


def test_the_steps_left_are_told(tmp_path: Path) -> None:
    made = train(ControlledTrainer, tmp_path, policy=ScriptedPolicy((2.0,)), controller=config())
    assert made.notes.max_steps[0] == 30  # 3 epochs of 75 samples, in steps of 8
    assert made.notes.max_steps[2] < 15
    assert made.notes.max_steps[-1] == len(made.sizes)


@pytest.mark.parametrize(
    ("args", "planned"),
    [({}, 3 * SAMPLES), ({"max_steps": 15}, 1.5 * SAMPLES)],  # 10 steps of 8 in an epoch
)
def test_the_trainer_tells_how_long_the_run_is(
    tmp_path: Path, args: dict[str, Any], planned: float
) -> None:
    own = ControllerConfig(log_dir=tmp_path / "log", on_error="raise")
    train(ControlledTrainer, tmp_path, args=args, controller=own)
    assert known_plan(tmp_path / "log") == (FOR_EPOCHS, planned)


def test_the_log_tells_the_batch_size_beside_the_loss(tmp_path: Path) -> None:
    made = train(
        ControlledTrainer, tmp_path, policy=ScriptedPolicy((1.0, 0.5)), controller=config()
    )
    lines = [line for line in made.trainer.state.log_history if "loss" in line]
    assert [line["batch_size"] for line in lines] == made.sizes


# -- going on from a checkpoint --


SAVE = {"save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 4}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_decides_and_sees_the_same(
    tmp_path: Path, accumulation: int, workers: int
) -> None:
    args = {
        **SAVE,
        "lr_scheduler_type": "cosine",
        "per_device_train_batch_size": BASE // accumulation,
        "gradient_accumulation_steps": accumulation,
        "dataloader_num_workers": workers,
        "num_train_epochs": 4,
    }

    def run(folder: str, resume: str | None = None, log: str = "log") -> Made:
        return train(
            ControlledTrainer,
            tmp_path / folder,
            args=args,
            eval_dataset=Rows(16),
            resume=resume,
            policy=ScriptedPolicy((1.0, 0.5, -1.5, 2.0, -1.0, 1.0)),
            controller=config(lr_coupling="sqrt", log_dir=tmp_path / log),
        )

    whole = run("whole")
    saved = sorted((tmp_path / "whole").glob("checkpoint-*"), key=lambda p: int(p.name[11:]))
    assert len(saved) > 4
    decisions = [line.batch_size for line in read_episode(tmp_path / "log").records]
    for checkpoint in saved[1:-1]:
        steps = int(checkpoint.name[11:])
        again = run("again", str(checkpoint))
        assert again.notes.batches == whole.notes.batches[steps:]
        assert again.notes.epochs == whole.notes.epochs[steps:]
        assert again.notes.rates == whole.notes.rates[steps:]
        assert torch.equal(again.weights, whole.weights)
        lines = read_episode(tmp_path / "log").records
        assert [line.batch_size for line in lines] == decisions
        assert history(again)[:-1] == history(whole)[:-1]


@pytest.mark.slow
def test_runs_resumed_at_any_checkpoint_decide_by_the_same_bits(tmp_path: Path) -> None:
    args = {
        "save_strategy": "steps",
        "save_steps": 1,
        "per_device_train_batch_size": BASE // 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
    }

    def run(folder: str, resume: str | None = None) -> Made:
        told = config(lr_coupling="adascale", noise_rate=2.0, max_batch_size=40)
        return train(ControlledTrainer, tmp_path / folder, args=args, resume=resume,
                     policy=ByBits(), controller=told)  # fmt: skip

    whole = run("whole")
    assert len(set(whole.sizes)) > 3
    for steps in random.Random(0).sample(range(1, len(whole.sizes)), 4):
        again = run("again", str(tmp_path / "whole" / f"checkpoint-{steps}"))
        assert again.notes.batches == whole.notes.batches[steps:], steps
        assert torch.equal(again.weights, whole.weights), steps


def test_a_finished_run_is_not_continued(tmp_path: Path) -> None:
    args = {"save_strategy": "steps", "save_steps": 100, "max_steps": 13}
    kwargs: dict[str, Any] = {"policy": GROW, "controller": config(), "args": args}
    whole = train(ControlledTrainer, tmp_path, **kwargs)
    again = train(ControlledTrainer, tmp_path, resume=True, **kwargs)
    assert again.sizes == []
    assert torch.equal(again.weights, whole.weights)


def test_other_checkpoints_are_refused(tmp_path: Path) -> None:
    args = {"save_strategy": "steps", "save_steps": 4}
    train(Trainer, tmp_path / "plain", args=args)
    with pytest.raises(ConfigurationError, match="saved without a controller"):
        train(
            ControlledTrainer,
            tmp_path / "plain",
            args=args,
            resume=str(tmp_path / "plain" / "checkpoint-4"),
            policy="fixed",
        )
    train(ControlledTrainer, tmp_path / "ours", args=args, policy="fixed")
    with pytest.raises(ConfigurationError, match="saved with batch size 8"):
        train(
            ControlledTrainer,
            tmp_path / "ours",
            args={**args, "gradient_accumulation_steps": 2},
            resume=str(tmp_path / "ours" / "checkpoint-4"),
            policy="fixed",
        )


# -- the user's own parts --


def test_accumulation_steps_are_told_as_ever(tmp_path: Path) -> None:
    made = train(
        ControlledTrainer,
        tmp_path,
        args={"gradient_accumulation_steps": 2},
        data=Rows(64),
        policy=ScriptedPolicy((2.0,)),
        controller=config(),
    )
    steps = " ".join(made.notes.events).split("begin ")[1:]
    parts = [step.split().count("substep") + 1 for step in steps]
    assert parts[:2] == [2, 2]  # of 16 samples
    assert max(parts) == 8  # 64 samples, in parts of 8


def test_a_callback_may_end_an_epoch_or_the_run(tmp_path: Path) -> None:
    class Ends(TrainerCallback):
        def __init__(self) -> None:
            self.epoch_ends: list[bool] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_epoch_stop = state.global_step == 3
            control.should_training_stop = state.global_step == 9

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.epoch_ends.append(control.should_epoch_stop)

    ends = Ends()
    made = train(ControlledTrainer, tmp_path, callbacks=(ends,), policy="fixed")
    assert len(made.sizes) == 9
    assert ends.epoch_ends == [True, False]
    second = [index for batch in made.notes.batches[3:] for index in batch]
    assert len(set(second)) == len(second) == 6 * BASE


def test_a_step_that_was_left_out_leaves_no_gradient(tmp_path: Path) -> None:
    """A callback that ends the epoch in the middle of an optimizer step."""

    class Leaves(TrainerCallback):
        done = False

        def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not Leaves.done:
                Leaves.done = control.should_epoch_stop = True

    norms: list[float] = []

    class First(TrainerCallback):
        def on_step_begin(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            norms.append(sum(float(grad.norm()) for grad in grads))

    train(
        ControlledTrainer,
        tmp_path,
        args={"gradient_accumulation_steps": 2, "num_train_epochs": 2},
        callbacks=(Leaves(), First()),
        policy="fixed",
        controller=config(),
    )
    assert norms == [0.0] * len(norms)


def test_changing_the_accumulation_behind_its_back_is_refused(tmp_path: Path) -> None:
    """The Trainer itself would lose samples and step with half gradients."""

    class Changes(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            args.gradient_accumulation_steps = 2

    with pytest.raises(ConfigurationError, match="the controller decides"):
        train(ControlledTrainer, tmp_path, callbacks=(Changes(),), policy="fixed")


def test_overrides_belong_below_the_controller(tmp_path: Path) -> None:
    class Doubles:
        def training_step(self, model: Any, inputs: Any, *args: Any) -> Tensor:
            inputs["x"] = 2 * inputs["x"]
            return super().training_step(model, inputs, *args)

    class Above(Doubles, ControlledTrainer):  # type: ignore[misc]
        pass

    class Below(ControlledTrainerMixin, Doubles, Trainer):  # type: ignore[misc]
        pass

    class Plain(Doubles, Trainer):  # type: ignore[misc]
        pass

    with pytest.raises(ConfigurationError, match="Put yours below it"):
        train(Above, tmp_path, policy="fixed")
    below = train(Below, tmp_path, policy="fixed")
    assert torch.equal(below.weights, train(Plain, tmp_path).weights)


def test_a_trainer_that_trained_trains_again(tmp_path: Path) -> None:
    """As the plain one: with the weights and the optimizer that it has."""

    def twice(kind: Any, **kwargs: Any) -> Made:
        made = train(kind, tmp_path, **kwargs)
        made.trainer.train()
        return made

    plain = twice(Trainer)
    fixed = twice(ControlledTrainer, policy="fixed", controller=config(lr_coupling="linear"))
    assert torch.equal(plain.weights, fixed.weights)
    assert not fixed.trainer.optimizer.optimizer._optimizer_step_pre_hooks
    loader = fixed.trainer.get_train_dataloader()
    assert len(loader) == math.ceil(SAMPLES / BASE)  # outside of train, the Trainer's own


# -- the controller's own parts --


def test_the_learning_rate_follows_within_the_step_alone(tmp_path: Path) -> None:
    rates: list[tuple[int, float]] = []

    class Sgd(torch.optim.SGD):
        def step(self, *args: Any, **kwargs: Any) -> Any:
            rates.append((len(rates), self.param_groups[0]["lr"]))
            return super().step(*args, **kwargs)

    made = train(
        ControlledTrainer,
        tmp_path,
        data=Rows(640),
        args={"lr_scheduler_type": "constant", "num_train_epochs": 1},
        optimizer_cls_and_kwargs=(Sgd, {"lr": 0.01}),
        policy=ScriptedPolicy((2.0, -3.0)),
        controller=config(lr_coupling="sqrt"),
    )
    assert len(set(made.sizes)) == 3
    for (_, rate), size in zip(rates, made.sizes, strict=True):
        assert rate == pytest.approx(0.01 * math.sqrt(size / BASE))
    logged = [line["learning_rate"] for line in made.trainer.state.log_history if "loss" in line]
    assert set(logged) == {0.01}


@pytest.mark.parametrize("best", [None, "a_loss", "b_loss"])
def test_decisions_see_the_validation_loss(tmp_path: Path, best: str | None) -> None:
    """Of several evaluation sets, that whose loss chooses the best model."""
    sets = {"a": Rows(8), "b": Rows(16)}
    made = train(
        ControlledTrainer,
        tmp_path / "out",
        args={"eval_strategy": "steps", "eval_steps": 4, "metric_for_best_model": best},
        eval_dataset=Rows(8) if best is None else sets,
        policy="fixed",
        controller=config(log_dir=tmp_path / "log"),
    )
    records = read_episode(tmp_path / "log").records
    seen = {r.step: r.signals["val_loss"] for r in records if r.event == "decision"}
    name = "eval_loss" if best is None else f"eval_{best}"
    told = {line["step"]: line[name] for line in made.trainer.state.log_history if name in line}
    assert set(told) == {*range(4, 30, 4), 30}
    for step, loss in told.items():
        if step < 30:  # the decision behind an evaluation sees it, the next one does not
            assert seen[step + 2] == pytest.approx(loss)
            assert math.isnan(seen[step])


@pytest.mark.filterwarnings("ignore:rlbatch. the loss .* undone:RuntimeWarning")
def test_damage_is_undone(tmp_path: Path) -> None:
    made = train(
        ControlledTrainer,
        tmp_path / "out",
        data=Rows(640),
        model=still,
        args={"num_train_epochs": 2, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"},
        optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.2}),
        policy=ScriptedPolicy((-1.0, 4.0, 0.0, 0.0)),
        controller=config(
            lr_coupling="linear",
            guard=GuardConfig(),
            first_chunk_steps=6,
            min_chunk_steps=6,
            max_chunk_steps=6,
            log_dir=tmp_path / "log",
        ),
    )
    events = [line.event for line in read_episode(tmp_path / "log").records]
    assert "rollback" in events
    assert torch.isfinite(made.weights).all()
    assert made.trainer.state.log_history[-2]["loss"] < 1.0


@pytest.mark.filterwarnings(ADDS_UP)
def test_gradient_noise_is_measured(tmp_path: Path) -> None:
    made = train(
        ControlledTrainer,
        tmp_path / "out",
        model=gpt2,
        data=Tokens(256),
        policy="noise-scale",
        controller=ControllerConfig(log_dir=tmp_path / "log", cost="samples", on_error="raise"),
    )
    lines = read_episode(tmp_path / "log").records
    assert lines[-1].event == "end"
    measured = [line.signals["noise_trace"] for line in lines if line.signals]
    assert any(value is not None and value > 0 for value in measured)
    assert made.trainer.controller.components["samples_seen"] == 3 * 256


@pytest.mark.filterwarnings("default::DeprecationWarning")
def test_the_changed_lines_of_the_page_run(
    tmp_path: Path, changed_lines: Callable[[str], tuple[str, str]]
) -> None:
    for controlled, lines in enumerate(changed_lines("transformers.md")):
        args = arguments(tmp_path, eval_strategy="epoch")
        scope: dict[str, Any] = {"model": Network(), "args": args}
        exec(lines, {**scope, "train_set": Rows(), "eval_set": Rows(20)}, scope)
        assert scope["trainer"].state.epoch == 3.0
        if controlled:
            assert scope["trainer"].controller.samples_seen == 3 * SAMPLES


# -- what is refused --


@pytest.mark.parametrize(
    ("args", "kwargs", "match"),
    [
        ({"auto_find_batch_size": True}, {}, "auto_find_batch_size"),
        ({"dataloader_drop_last": True}, {}, "drop_last leaves out 3 samples"),
        ({"optim": "galore_adamw_layerwise"}, {}, "within the backward pass"),
        ({"train_sampling_strategy": "batch_rebalance"}, {}, "batch_rebalance"),
        ({"dataloader_in_order": False}, {}, "in_order"),
        ({"max_steps": 5}, {"train_dataset": Stream()}, "stream of unknown length"),
        ({"accelerator_config": {"dispatch_batches": True}}, {}, "dispatch_batches"),
    ],
)
def test_what_cannot_be_kept_is_refused_at_construction(
    tmp_path: Path, args: dict[str, Any], kwargs: dict[str, Any], match: str
) -> None:
    data = kwargs.pop("train_dataset", Rows())
    with pytest.raises(ConfigurationError, match=match):
        ControlledTrainer(Network(), arguments(tmp_path, **args), train_dataset=data)


def test_processes_that_share_a_training_in_other_ways_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    with pytest.raises(ConfigurationError, match="DistributedDataParallel or FSDP2"):
        ControlledTrainer(Network(), arguments(tmp_path), train_dataset=Rows())


class Deep(Trainer):
    """A Trainer that was told to use DeepSpeed."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self.is_deepspeed_enabled = True


def test_deepspeed_is_refused(tmp_path: Path) -> None:
    class Controlled(ControlledTrainerMixin, Deep):
        pass

    with pytest.raises(ConfigurationError, match=r"DeepSpeed.* steps by rules of its own"):
        Controlled(Network(), arguments(tmp_path), train_dataset=Rows())


def test_another_trainer_is_refused(tmp_path: Path) -> None:
    class Old(ControlledTrainerMixin):
        pass

    with pytest.raises(ConfigurationError, match=r"transformers>=5\.23"):
        Old(Network(), arguments(tmp_path), train_dataset=Rows())


def test_a_batch_size_that_drops_nothing_is_accepted(tmp_path: Path) -> None:
    args = {"dataloader_drop_last": True}
    made = train(ControlledTrainer, tmp_path, data=Rows(80), args=args, policy=GROW)
    assert sum(made.sizes) == 240
