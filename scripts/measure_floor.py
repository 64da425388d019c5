"""What the least wrapper around a training loop would cost, beside the controller.

    python scripts/measure_floor.py [--models mlp cnn] [--batch-size 64] [--rounds 15]

The wrapper changes nothing and can change nothing: a hook on `optimizer.step` that counts, a sum of
losses that stays on the device, and at the ends of the same chunks one read of it and one decision
of the shipped policy from signals that were made before. No data is resized, nothing is measured,
guarded or logged. What it costs no controller that decides as often, by the same networks, can
undercut.

Own time, as in `rlbatch bench overhead`: outside of fetching, passes and the optimizer, less that
of the plain loop, medians of paired rounds; a run is one of 1,000 steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from compare_versions import print_head, print_line  # beside this file
from torch import Tensor, nn
from torch.optim import Optimizer

from rlbatch.agents.evaluate.overhead import part_configs, run_shares
from rlbatch.agents.evaluate.overhead_turns import median_interval, take_turns
from rlbatch.agents.evaluate.overhead_workloads import (
    MODELS,
    AfterStep,
    Arm,
    Workload,
    controlled,
    plain,
)
from rlbatch.control.build import make_engine
from rlbatch.control.config import ControllerConfig
from rlbatch.envs.threads import use_one_thread
from rlbatch.policy.registry import DEFAULT, resolve_policy
from rlbatch.testing import simple_signals

_STEPS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    use_one_thread()
    print_head("loop")
    for model in arguments.models:
        measure(Workload(model, arguments.batch_size, torch.device("cpu")), arguments.rounds)


def measure(workload: Workload, rounds: int) -> None:
    """Print the lines of one model."""
    policy = resolve_policy(DEFAULT)
    configs, share = part_configs(policy), run_shares(policy, _STEPS)["decision"]
    arms: dict[str, Arm] = {
        "plain": plain(workload),
        "controller, step": controlled(workload, policy, configs["step"]),
        "controller, decision": controlled(workload, policy, configs["decision"]),
        "least wrapper, step": plain(workload, least(None)),
        "least wrapper, decision": plain(workload, least(decides())),
    }
    times = take_turns(arms, "plain", workload.device, rounds=rounds, seed=0)
    for loop in ("controller", "least wrapper"):
        print_line(workload.name, loop, times, share, median_interval)


def decides() -> Callable[[], object]:
    """Return a decision of the shipped policy, from a chunk that was measured before."""
    engine = make_engine(resolve_policy(DEFAULT), ControllerConfig())
    signals = simple_signals()
    return lambda: engine.decide(signals)


def least(decide: Callable[[], object] | None) -> AfterStep:
    """Return the least wrapper, deciding after each step or never."""

    def begin(model: nn.Module, optimizer: Optimizer) -> Callable[[Tensor], object]:
        steps, total = 0, torch.zeros(())

        def count(*_: object) -> None:
            nonlocal steps
            steps += 1

        def after(loss: Tensor) -> None:
            nonlocal total
            total += loss.detach()
            if decide is not None:
                float(total)
                decide()

        optimizer.register_step_post_hook(count)
        return after

    return begin


if __name__ == "__main__":
    main()
