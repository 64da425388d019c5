"""`LoopAdapter`: the seam between a training loop and the controller, whatever the framework."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rlbatch.control.build import (
    make_control_loop,
    make_engine,
    named_policy,
    require_within,
    run_info,
)
from rlbatch.control.config import ControllerConfig
from rlbatch.control.decision_logger import Place
from rlbatch.control.few_sizes import PowersOfTwo
from rlbatch.control.ranks import Ranks
from rlbatch.control.saved_state import STATE_VERSION, all_or_nothing, check_state, require_like
from rlbatch.control.training_parts import BatchLoader, TrainingParts
from rlbatch.control.user_state import UserState
from rlbatch.control.validation_watch import ValidationWatch
from rlbatch.log.episode_log import EpisodeLog
from rlbatch.policy.base import Policy


class LoopAdapter:
    """What a training loop tells the controller, and what it gets from it.

        adapter = LoopAdapter(parts, batch_size=64, dataset_size=50_000, epochs=10)
        for epoch in range(10):
            adapter.begin_epoch()
            for samples in steps:  # of `adapter.batch_size`, fewer at an epoch's end
                adapter.begin_step(adapter.batch_size, sizes)  # of its micro-batches
                for part in micro_batches:  # a backward pass each
                    adapter.after_backward(loss)
                step(learning_rate * adapter.learning_rate_factor)
                adapter.end_step(sum(sizes), epoch=epoch, position=position)
            adapter.end_epoch()

    All sizes are in samples, over all ranks. The control loop sets `parts.rate.factor`; the adapter
    of a framework sees to it that a step is made with it.

    Attributes:
        config: The settings.
        policy: Decides.
        policy_name: What to call it.
        base_batch_size: For which the learning rate was chosen.
        dataset_size: Samples of an epoch.
        ranks: The processes that train together.
        loader: Is told the batch size; None where the loop asks for it before each step.
        few_sizes: The batch sizes that are allowed; None for any within the limits.
        control_loop: Counts, watches and decides, for a loop in which each call counts.
    """

    def __init__(  # noqa: PLR0913 - keywords, each for itself
        self,
        parts: TrainingParts,
        *,
        batch_size: int,
        dataset_size: int,
        policy: Policy | str = "default",
        policy_name: str | None = None,
        config: ControllerConfig | None = None,
        epochs: float = 0.0,
        loader: BatchLoader | None = None,
        ranks: Ranks | None = None,
        powers_of_two: bool = False,
        log_info: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepare a run that starts at the user's batch size.

        Args:
            parts: The training, as its framework shows it.
            batch_size: The user's, for which the learning rate was chosen.
            dataset_size: Samples of an epoch.
            policy: A name (`default`, `fixed`, `goodput`, a policy file ...) or a policy.
            policy_name: What to call a policy that is given itself; None: by its class.
            config: The settings; None for the defaults.
            epochs: How long the run is planned to be, where `config` does not say; 0: unknown.
            loader: Is told the batch size; None where the loop asks for it.
            ranks: The processes that train together; None for this one alone.
            powers_of_two: Allow the user's size times powers of two only: for steps that are
                compiled anew for each size.
            log_info: What else the head of the log is to say.

        Raises:
            ConfigurationError: The user's batch size lies outside of the limits.
            UnknownNameError: There is no policy of that name.
        """
        config = (config or ControllerConfig()).lasting(epochs)
        self.policy, name = named_policy(policy, config)
        self.policy_name = policy_name or name
        self.base_batch_size, self.dataset_size = batch_size, dataset_size
        self.ranks, self.loader = ranks or Ranks(), loader
        self.few_sizes: PowersOfTwo | None = None
        bounds = config.bounds(batch_size, dataset_size, self.ranks.world_size)
        require_within(self.policy, *bounds)
        if powers_of_two:
            self.few_sizes = PowersOfTwo.between(*bounds, batch_size, dataset_size)
            config = self.few_sizes.limited(config)
        self.config = config
        self.control_loop = self._loop = make_control_loop(
            parts,
            config,
            make_engine(self.policy, config, self.few_sizes),
            base_batch_size=batch_size,
            dataset_size=dataset_size,
            ranks=ranks,
        )
        self._parts, self._log_info = parts, dict(log_info or {})
        self._user, self._epochs_done = UserState(), 0.0
        self._user.attach(parts.weights)
        self._log_is_open = self._log_exists = False
        self._validations = ValidationWatch(config.target_loss)

    # -- what a loop tells --

    def begin_epoch(self) -> None:
        """An epoch begins, or what is left of an interrupted one: the clock runs."""
        self._validations.begin_epoch(self._epochs_done)
        self._open_log()
        self._loop.abandon_step()
        self._loop.cost_tracker.resume()

    def begin_step(self, batch_size: int, micro_batch_sizes: Sequence[int]) -> None:
        """Announce an optimizer step, before its first backward pass.

        Args:
            batch_size: That was decided for it; at an epoch's end it may have fewer samples.
            micro_batch_sizes: Samples of its micro-batches, over all ranks.
        """
        self._loop.begin_step(batch_size, micro_batch_sizes)

    def leave_unmeasured(self) -> None:
        """Measure no noise in the step under way, whose parts are not weighted by samples."""
        if self._loop.watching:
            self._parts.monitor.leave_unmeasured()

    def after_backward(self, loss: Any) -> None:
        """Take a micro-batch's mean loss, after its backward pass and before anything clips."""
        if self._loop.watching:
            self._parts.monitor.after_backward(loss)
            self._parts.weights.extend()

    def end_step(self, samples: int, *, epoch: int, position: int) -> None:
        """Count an optimizer step that was made; after the last one of a chunk, decide.

        Args:
            samples: Of the step, over all ranks.
            epoch: Number of its epoch, from 0.
            position: Samples of the epoch after this step, over all ranks.
        """
        self._epochs_done, at = epoch + position / self.dataset_size, self._loop.progress
        before = at.batch_size
        if self.loader is not None:
            self.loader.end_step()
        self._loop.end_step(samples, self._place)
        if at.batch_size != before:
            self._apply_batch_size()

    def abandon_step(self) -> None:
        """Forget the step under way: the optimizer is not going to make it."""
        self._loop.abandon_step()

    def end_epoch(self) -> None:
        """The epoch is over: the clock stands still until the next one."""
        self.pause()

    def report_validation(self, loss: float) -> None:
        """Tell a validation loss; the next decision sees it."""
        self._loop.report_validation(self._validations.report(loss))

    def on_rollback(
        self, save: Callable[[], Any] | Any, restore: Callable[[Any], Any] | None = None
    ) -> None:
        """Let a roll-back restore something else, as `BatchController.on_rollback` does.

        Raises:
            ConfigurationError: There is no way to save or restore it.
        """
        self._user.on_rollback(save, restore)

    def note_memory(self, reason: str) -> None:
        """Note in the log that a pass ran out of memory."""
        self._loop.note("out_of_memory", reason, self._place())

    def pause(self) -> None:
        """Stop the clock."""
        self._loop.cost_tracker.pause()

    def resume(self) -> None:
        """Let the clock run."""
        self._loop.cost_tracker.resume()

    @contextmanager
    def paused(self) -> Generator[None]:
        """Stop the clock within the block, for a validation in the middle of an epoch."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def disable(self, reason: str = "disabled by the user") -> None:
        """Return to the user's batch size and decide nothing any more."""
        self._loop.disable(reason, self._place())
        self._apply_batch_size()

    def close(self) -> None:
        """Note the end of the run in the log and close it; another epoch continues it."""
        if self._log_is_open:
            self._log_is_open = False
            self._loop.close(self._place())

    # -- what a loop gets --

    @property
    def batch_size(self) -> int:
        """Samples per optimizer step that were decided last."""
        return self._loop.progress.batch_size

    @property
    def learning_rate_factor(self) -> float:
        """What the learning rate is multiplied by in the coming steps."""
        return self._loop.rate.factor

    @property
    def steps(self) -> int:
        """Optimizer steps so far."""
        return self._loop.progress.steps

    @property
    def samples_seen(self) -> int:
        """Samples so far, over all ranks."""
        return self._loop.progress.samples_seen

    @property
    def components(self) -> dict[str, Any]:
        """What the controller is doing now, by part."""
        return {
            "policy": self.policy_name,
            "shadow": self.config.shadow,
            "epoch": int(self._epochs_done) if self.loader is None else self.loader.epoch,
            "next_step": self._place().next_step,
            **self._loop.summary(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the last optimizer step; `torch.load` reads it safely."""
        return {**self._place_state(), "control_loop": self._loop.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned; load model and optimizer first.

        The log goes on behind the decisions that the state knows of; later ones are dropped.

        Raises:
            ConfigurationError: It is of another run, or damaged. Nothing of it was taken then.
        """
        with all_or_nothing(self):
            with self.ranks.refuse_together():
                check_state(state, self.base_batch_size)
                own = self._place_state()
                require_like({name: state[name] for name in own}, own, "the controller's state")
                self._epochs_done, self._log_exists = float(state["epochs_done"]), True
                self._validations.resume(self._epochs_done)
                if self.loader is not None:
                    self.loader.load_state_dict(state["loader"])
            # The loop comes last: it drops lines of the log, for which there is no way back.
            self._loop.load_state_dict(state["control_loop"])

    # -- inside --

    def _place_state(self) -> dict[str, Any]:
        return {
            "version": STATE_VERSION,
            "base_batch_size": self.base_batch_size,
            "loader": None if self.loader is None else self.loader.state_dict(),
            "epochs_done": self._epochs_done,
        }

    def _open_log(self) -> None:
        told = self.config.log_dir is not None or self.config.trackers
        if not told or self._log_is_open or not self.ranks.is_main:
            return
        info = run_info(self.policy, self.policy_name, self._parts, self._loop) | self._log_info
        if self.config.log_dir is not None:
            self._loop.logger.open(EpisodeLog(self.config.log_dir, info, resume=self._log_exists))
        self._loop.logger.track(self.config.trackers, info)
        self._log_is_open = self._log_exists = True

    def _apply_batch_size(self) -> None:
        if self.loader is not None:
            self.loader.set_batch_size(self._loop.progress.batch_size)

    def _place(self) -> Place:
        next_step = self._loop.progress.steps if self.loader is None else self.loader.next_step
        return Place(self._epochs_done, next_step)
