"""A run of a plain loop: what its controller has once there is a loader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from rlbatch.arguments import require_function, require_kind
from rlbatch.control import checks
from rlbatch.control.build import keeps_size
from rlbatch.control.config import ControllerConfig
from rlbatch.control.gradient_accumulator import GradientAccumulator
from rlbatch.control.loader import ControlledLoader, loader_sizes, sizes_for_model
from rlbatch.control.loader_events import LoaderEvents, Owner
from rlbatch.control.memory_passes import MemoryPasses
from rlbatch.control.ranks import Ranks
from rlbatch.control.saved_state import check_state, require_like
from rlbatch.control.schedule_watch import ScheduleWatch
from rlbatch.control.torch_parts import torch_parts
from rlbatch.control.user_state import UserState
from rlbatch.control.users_parts import warn_of_smaller_parts
from rlbatch.data.learning_rate import LearningRateCoupling
from rlbatch.data.loader import check_is_loader
from rlbatch.data.plain_steps import PlainSteps, SampleCount
from rlbatch.loop_adapter import LoopAdapter
from rlbatch.policy.base import Policy


@dataclass(frozen=True)
class PlainRun:
    """The parts of a run, from which the controller's methods are made.

    Attributes:
        adapter: Decides.
        loader: Hands out micro-batches.
        accumulator: Runs backward passes and steps.
        passes: Lets a batch come again where memory ran out.
        plain_steps: Counts the steps of the plain loop.
        coupling: Multiplies the learning rate while the optimizer steps.
        user: What the user has registered.
    """

    adapter: LoopAdapter
    loader: ControlledLoader
    accumulator: GradientAccumulator
    passes: MemoryPasses
    plain_steps: PlainSteps
    coupling: LearningRateCoupling
    user: UserState

    def backward(self, loss: Tensor, weight: Any, retain_graph: bool | None) -> Tensor | None:
        """Run a micro-batch's backward pass; see `BatchController.backward`.

        Returns:
            The mean loss by which the pass is to be measured; None if it is not.
        """
        accumulator, passes = self.accumulator, self.passes
        if passes.finds_limit:
            passes.require_watched()
        accumulator.backward(loss, weight, retain_graph)
        if passes.averages and not passes.averaged():
            return None
        if weight is not None and accumulator.parts.is_weighted:
            self.adapter.leave_unmeasured()
            loss = accumulator.parts.told(loss, accumulator.delivered)
        return loss if self.adapter.control_loop.watching else None

    def skip(self) -> None:
        """Leave the optimizer step under way out; see `BatchController.skip`."""
        delivered = self.accumulator.skip()
        self.passes.repeating = False
        self.adapter.abandon_step()
        self.user.leave_out()
        self.plain_steps.leave_out(delivered.step_samples, delivered.step_end)
        self.loader.skip_step()

    def close(self) -> None:
        """The run is over: optimizers may step as they like, and the log is closed."""
        self.accumulator.close()
        self.adapter.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the last optimizer step."""
        return {
            **self.adapter.state_dict(),
            "memory": self.passes.state_dict(),
            "plain_steps": self.plain_steps.state_dict(),
            "schedules": self.user.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            ConfigurationError: It is of another run, or damaged.
        """
        with self.adapter.ranks.refuse_together():
            check_state(state, self.adapter.base_batch_size)
            own = {**self.state_dict(), "control_loop": None}
            if not self.passes.takes(state.get("memory")):
                own["memory"] = None  # a limit that is not looked at
            require_like({**state, "control_loop": None}, own, "the controller's state")
            self.passes.load_state_dict(state.get("memory"))
            self.plain_steps.load_state_dict(state["plain_steps"])
            self.user.load_state_dict(state["schedules"])
        self.adapter.load_state_dict(state)


@dataclass(frozen=True)
class PlainLoop:
    """A user's training and the settings for it, from which a run is made.

    Attributes:
        model: What is trained.
        optimizer: Its optimizer.
        batch_size: The user's.
        policy: Decides.
        policy_name: What to call it.
        config: The settings.
        scaler: A `torch.amp.GradScaler` in use.
        accumulator: Makes what runs backward passes and steps; None: torch's.
    """

    model: nn.Module
    optimizer: Optimizer
    batch_size: int
    policy: Policy
    policy_name: str
    config: ControllerConfig
    scaler: Any = None
    accumulator: Callable[[Ranks], GradientAccumulator] | None = None

    def __post_init__(self) -> None:
        """Refuse what is no scaler, and what makes no accumulator.

        Raises:
            ConfigurationError: The message says what to give.
        """
        checks.check_scaler(self.scaler)
        require_function("accumulator", self.accumulator, "a function of the ranks")

    def begin(self, owner: Owner, loader: DataLoader[Any], user: UserState) -> PlainRun:
        """Return a run over a user's loader, which is not used itself any more.

        Args:
            owner: The controller that steers the model.
            loader: The user's.
            user: What the user has registered.

        Raises:
            ConfigurationError: The loader has another batch size than was said, it cannot be
                resized, or several processes share the training.
        """
        check_is_loader(loader)
        ranks = Ranks.of(self.model)
        loader = ranks.share(loader)
        batch_size, dataset_size = loader_sizes(loader)
        limits = self.config.limits
        told = {"drop_last": loader.drop_last, "micro_batch_size": limits.micro_batch_size}
        ranks.require_same(batch_size=batch_size, samples_of_an_epoch=dataset_size, **told)
        checks.check_loader_size(batch_size, ranks.world_size, self.batch_size)
        if self.accumulator is None:
            warn_of_smaller_parts(self.model, limits, batch_size)
        passes = MemoryPasses(self.model, limits, self.batch_size, ranks)
        accumulator = self.make_accumulator(ranks, synchronises=not passes.averages)
        accumulator.parts.ranks = ranks
        self._watch_schedules(accumulator, ranks, dataset_size)
        count = SampleCount(self.batch_size, dataset_size, bool(loader.drop_last))
        parts = torch_parts(self.model, self.optimizer, scaler=self.scaler, ranks=ranks)
        adapter = LoopAdapter(
            parts,
            batch_size=self.batch_size,
            dataset_size=dataset_size,
            policy=self.policy,
            policy_name=self.policy_name,
            config=sizes_for_model(
                self.config, self.model, self.batch_size, dataset_size, ranks.world_size
            ),
            ranks=ranks,
        )
        plain_steps = PlainSteps(count)
        events = LoaderEvents(owner, self.model, adapter, accumulator, passes, plain_steps)
        limit = passes.limit if limits.divisible else None
        events.loader = adapter.loader = controlled = ControlledLoader(
            loader, events, batch_size=self.batch_size, micro_batch_size=limit, ranks=ranks
        )
        controlled.sampler.largest_step = limits.largest_step(ranks.world_size)
        passes.attach(adapter, accumulator, controlled)
        user.attach(parts.weights)
        coupling = parts.rate.coupling
        return PlainRun(adapter, controlled, accumulator, passes, plain_steps, coupling, user)

    def make_accumulator(self, ranks: Ranks, *, synchronises: bool = True) -> GradientAccumulator:
        """Return what runs backward passes and steps.

        Args:
            ranks: The processes that train together.
            synchronises: They average gradients in a step's last backward pass.
        """
        if self.accumulator is not None:
            made = self.accumulator(ranks)
            hint = "It is what `accumulator` has to return."
            return require_kind("An accumulator", made, GradientAccumulator, hint)
        return GradientAccumulator(
            self.model, self.optimizer, self.scaler, ranks.world_size, synchronises=synchronises
        )

    def _watch_schedules(
        self, accumulator: GradientAccumulator, ranks: Ranks, dataset_size: int
    ) -> None:
        limits, share = self.config.limits, self.batch_size // ranks.world_size
        limit = limits.micro_batch_size
        divides = limits.divisible and isinstance(limit, int) and limit < share
        accumulator.changes = not keeps_size(self.policy_name, self.config)
        if accumulator.changes or divides:
            accumulator.schedules = ScheduleWatch(self.optimizer, dataset_size)
