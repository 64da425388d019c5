"""What a checkpoint holds of a control loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlbatch.control.cost_tracker import CostTracker
from rlbatch.control.coupled_rate import CoupledRate
from rlbatch.control.decision_logger import DecisionLogger
from rlbatch.control.engine import DecisionEngine
from rlbatch.control.loop_progress import LoopProgress
from rlbatch.control.rollback import Rollback
from rlbatch.control.saved_state import require_like
from rlbatch.control.training_parts import StepMonitor


@dataclass(frozen=True)
class LoopState:
    """The parts of a control loop that coming decisions depend on."""

    progress: LoopProgress
    guard: Rollback
    engine: DecisionEngine
    rate: CoupledRate
    cost_tracker: CostTracker
    monitor: StepMonitor
    logger: DecisionLogger

    def state_dict(self) -> dict[str, Any]:
        """Return their states.

        Within a chunk that the guard may undo, that is the weights before it, too.
        """
        at = self.progress
        return {
            "plain": at.state_dict(),
            "guard": self.guard.state_dict(within_chunk=at.chunk_steps > 0),
            "engine": self.engine.state_dict(),
            "rate": self.rate.state_dict(),
            "cost_tracker": self.cost_tracker.state_dict(),
            "monitor": self.monitor.state_dict(at.chunk_done),
            "log_position": self.logger.known,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            ConfigurationError: It is damaged or of another run; parts of it may have been taken.
        """
        # Engine and monitor look at theirs themselves: it depends on policy and ranks.
        own = {**self.state_dict(), "engine": None, "monitor": None}
        require_like(state, own, "the state of the run")
        self.progress.load_state_dict(state["plain"])
        self.guard.load_state_dict(state["guard"])
        self.engine.load_state_dict(state["engine"])
        self.rate.load_state_dict(state["rate"])
        self.cost_tracker.load_state_dict(state["cost_tracker"])
        self.monitor.load_state_dict(state["monitor"])
        self.logger.known = state["log_position"]
