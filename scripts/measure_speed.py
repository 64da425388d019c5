"""Where the time goes: a decision, simulated and real runs, and what the controller costs a step.

    python scripts/measure_speed.py [--parts decision environment live overhead] [--runs 1024]

One thread, and the processor time of that thread, so that other work on the machine disturbs
little; of a decision the least of many repeats, and the median where other work has been between;
of the others the median of turns that alternate.
Prints one Markdown table a part. Beside each part stands what bounds it from below: memory, random
numbers or arithmetic.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from rlbatch import observation
from rlbatch.control.build import fallback_for, make_engine
from rlbatch.control.config import ControllerConfig
from rlbatch.envs.live import LiveRun
from rlbatch.envs.objectives import Objective
from rlbatch.envs.threads import use_one_thread
from rlbatch.policy.learned import LearnedPolicy
from rlbatch.policy.registry import DEFAULT, resolve_policy
from rlbatch.signals.cadence import Cadence
from rlbatch.signals.record import Coupling, Signals
from rlbatch.testing import simple_signals

PARTS = ("decision", "environment", "live", "overhead")
_CHUNKS, _STEPS = 20, 64
_LIVE_TASK, _LIVE_CHUNKS = "digits-mlp", 40
Work = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--runs", type=int, default=1024, help="simulated runs side by side")
    parser.add_argument("--repeats", type=int, default=7, help="of the environment")
    parser.add_argument("--rounds", type=int, default=15, help="pairs of turns, for the overhead")
    arguments = parser.parse_args()
    use_one_thread()
    if "decision" in arguments.parts:
        table("A decision of `default`", ("", "us", "us, caches cold"), decision())
    if "environment" in arguments.parts:
        rows = environment(arguments.runs, arguments.repeats)
        table(f"{arguments.runs} simulated runs", ("", "steps/s", "time over the floor's"), rows)
    if "live" in arguments.parts:
        head = ("", "chunks/s", "over the plain loop")
        table(f"A real run of `{_LIVE_TASK}`", head, live(arguments.repeats))
    if "overhead" in arguments.parts:
        head = ("model", "part", "plain step, us", "own, us", "over a plain step [95%]")
        table("The controller beside a plain loop", head, overhead(arguments.rounds))


def table(title: str, head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> None:
    print(f"\n## {title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def run() -> list[Signals]:
    """Return the chunks of a run in which the loss falls and nothing is strange."""
    return [
        simple_signals(
            train_loss=float(np.exp(-0.05 * chunk)),
            total_steps=10.0 * (chunk + 1),
            total_samples=640.0 * (chunk + 1),
            total_cost=20.0 * (chunk + 1),
        )
        for chunk in range(_CHUNKS)
    ]


def decision() -> Iterator[tuple[str, ...]]:
    """Yield the time of a decision and of its parts, each after the same chunks."""
    chunks, state = run(), observation.initial_state()
    for chunk in chunks:
        _, state = observation.encode(chunk, state)
    seen, _ = observation.encode(chunks[-1], state)
    policy = resolve_policy(DEFAULT)
    assert isinstance(policy, LearnedPolicy)  # noqa: S101 - the shipped one is
    rule = fallback_for(policy)
    assert rule is not None  # noqa: S101 - behind a learned policy there is one
    engine = make_engine(policy, ControllerConfig(target_loss=0.1))
    last, bare = chunks[-1], LearnedPolicy(policy.members, policy.action_grid, values=False)
    start, begun = bare.initial_state(), rule.initial_state()
    weights = [np.concatenate([layer.weight.ravel() for layer in m.policy]) for m in policy.members]
    parts: dict[str, Work] = {
        "observation": lambda: observation.encode(last, state),
        "networks": lambda: bare.decide(seen, last, start),
        "the fallback's rule": lambda: rule.decide(seen, last, begun),
        "all, with limits and rounding": lambda: engine.decide(last),
        "floor: the networks' weights read once": lambda: [w @ w for w in weights],
    }
    for name, work in parts.items():
        yield name, f"{least_microseconds(work):,.0f}", f"{cold_microseconds(work):,.0f}"


def least_microseconds(work: Work, repeats: int = 2000) -> float:
    return min(nanoseconds(work) for _ in range(repeats)) / 1e3


def cold_microseconds(work: Work, repeats: int = 40) -> float:
    """Return the median time behind a pass over 64 MB, which no cache of a core holds."""
    other, times = np.ones(8_000_000), list[int]()
    for _ in range(repeats):
        other.sum()
        times.append(nanoseconds(work))
    return statistics.median(times) / 1e3


def nanoseconds(work: Work) -> int:
    began = time.thread_time_ns()
    work()
    return time.thread_time_ns() - began


def environment(count: int, repeats: int) -> Iterator[tuple[str, ...]]:
    """Yield the steps a second of the simulator, layer by layer, up to PPO."""
    from rlbatch.envs.batch_size_env import DEFAULT_ACTIONS
    from rlbatch.envs.simulator.episodes import QuadraticEpisodes
    from rlbatch.envs.simulator.pool import make_pool
    from rlbatch.envs.simulator.vector_env import QuadraticVecEnv

    pool, rng = make_pool(2048, seed=0), np.random.default_rng(0)
    episodes = QuadraticEpisodes(pool, count, rng)
    episodes.begin(np.arange(count), rng.integers(len(pool), size=count))
    env = QuadraticVecEnv(pool, count, seed=0, actions=DEFAULT_ACTIONS)
    env.reset()
    shape = episodes.runs.loss.shape
    degrees = np.broadcast_to(0.5 * (episodes.runs.tasks.directions[:, None] - 1.0), shape)
    changes = rng.choice([-1.0, 0.0, 1.0], size=count)
    actions = rng.integers(len(DEFAULT_ACTIONS), size=count)
    model = learner(env)
    layers: dict[str, tuple[Work, int]] = {
        "floor: the dynamics' random numbers": (
            lambda: (rng.standard_normal(shape), rng.standard_gamma(degrees)),
            1,
        ),
        "dynamics and signals": (lambda: episodes.runs.advance(episodes.batch_size), 1),
        "+ observation, reward and ends": (lambda: episodes.step(changes), 1),
        "+ episodes that begin anew": (lambda: env.step(actions), 1),
        "+ PPO's decisions and updates": (lambda: model.learn(_STEPS * count), _STEPS),
        "floor of PPO: its updates alone": (model.train, _STEPS),
    }
    first = next(iter(layers))
    for name, (work, steps) in layers.items():
        calls = repeats if steps > 1 else repeats * _STEPS
        # Beside each, the floor anew: what else the machine does meanwhile slows both.
        pairs = [(nanoseconds(work), nanoseconds(layers[first][0])) for _ in range(calls)]
        seconds, floor = (statistics.median(times) / 1e9 for times in zip(*pairs, strict=True))
        yield name, f"{steps * count / seconds:,.0f}", f"{seconds / steps / floor:.1f}"


def learner(env: Any) -> Any:
    """Return PPO with small networks on these environments."""
    from rlbatch.agents.regret_ppo import RegretPPO

    nets: dict[str, Any] = {"net_arch": {"pi": [96, 96], "vf": [128, 128]}}
    return RegretPPO(
        "MlpPolicy", env, n_steps=_STEPS, batch_size=min(4096, _STEPS * env.num_envs), n_epochs=6,
        policy_kwargs=nets, device="cpu",
    )  # fmt: skip


def live(repeats: int) -> Iterator[tuple[str, ...]]:
    """Yield the chunks a second of a small network's run, in the plain loop and in environments."""
    from rlbatch.envs.backend import TorchBackend
    from rlbatch.envs.perceptron import PerceptronBackend
    from rlbatch.envs.task import resolve_task

    task = resolve_task(_LIVE_TASK)
    lengths, done = list[int](), 0
    for _ in range(_LIVE_CHUNKS):
        lengths.append(Cadence().chunk_steps(done))
        done += lengths[-1]
    arms: dict[str, Work] = {
        "plain loop: torch, a DataLoader": lambda: plain_run(task, done),
        "run on torch": lambda: live_run(task, TorchBackend),
        "run on NumPy": lambda: live_run(task, PerceptronBackend),
        "floor: the matrix products": matrix_products(task, done),
    }
    times: dict[str, list[int]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, work in arms.items():
            times[name].append(nanoseconds(work))
    plain = next(iter(times.values()))
    for name, spent in times.items():
        ratio = statistics.median(p / t for p, t in zip(plain, spent, strict=True))
        yield name, f"{_LIVE_CHUNKS / statistics.median(spent) * 1e9:,.0f}", f"{ratio:.2f}"


def plain_run(task: Any, steps: int) -> None:
    """Train as a user does, without anything that looks: no validation, no measurement."""
    model = task.model()
    optimizer = task.optimizer(model.parameters())
    loader = DataLoader(
        task.train_set, batch_size=task.batch_size, shuffle=True, collate_fn=task.collate
    )
    while True:
        for batch in loader:
            task.loss(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            steps -= 1
            if not steps:
                return


def live_run(task: Any, backend: Any) -> None:
    """Train the same steps as an environment does: with validations and measured steps."""
    run = LiveRun(
        task,
        seed=0,
        coupling=Coupling.NONE,
        profile=None,
        objective=Objective(budget=1e9),
        planned_steps=10_000,
        backend=backend,
    )
    for _ in range(_LIVE_CHUNKS):
        run.advance(task.batch_size)


def matrix_products(task: Any, steps: int) -> Work:
    """Return the products of forward and backward passes alone, as NumPy makes them."""
    weights = [p.detach().numpy().T.copy() for p in task.model().parameters() if p.ndim == 2]
    inputs = [np.ones((task.batch_size, len(weight)), np.float32) for weight in weights]
    deltas = [np.ones((task.batch_size, weight.shape[1]), np.float32) for weight in weights]

    def products() -> None:
        for _ in range(steps):
            for place, (weight, value, delta) in enumerate(
                zip(weights, inputs, deltas, strict=True)
            ):
                np.matmul(value, weight)
                np.matmul(value.T, delta)
                if place:
                    np.matmul(delta, weight.T)

    return products


def overhead(rounds: int) -> Iterator[tuple[str, ...]]:
    """Yield what the controller costs three small models, as `rlbatch bench overhead` does."""
    from rlbatch.agents.evaluate.overhead import OverheadSettings, measure_overhead

    settings = OverheadSettings(
        batch_sizes=(64,), policies=(DEFAULT,), devices=("cpu",), rounds=rounds
    )
    for row in measure_overhead(settings):
        own = "" if row.own_microseconds is None else f"{row.own_microseconds:+,.0f}"
        percent = [f"{100 * (x - 1):+.1f}" for x in (row.ratio, row.ratio_low, row.ratio_high)]
        between = f"{percent[0]}% [{percent[1]}, {percent[2]}]"
        yield row.model, row.part, f"{row.plain_microseconds:,.0f}", own, between


if __name__ == "__main__":
    main()
