"""The policy file of a training, and the card beside it that says what it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlbatch.agents.own_tasks.evaluation import Score, as_json
from rlbatch.agents.own_tasks.plan import Plan
from rlbatch.agents.own_tasks.validation import Candidate
from rlbatch.files import write_atomically
from rlbatch.policy.file import load_policy, save_policy
from rlbatch.policy.registry import PRETRAINED, pretrained_file

POLICY_FILE, CARD_FILE = "policy.safetensors", "policy.md"

_KINDS = {
    "learned": "A network that was trained on these tasks.",
    "shipped": "The policy that ships with rlbatch, unchanged: on the validation seeds nothing "
    "that was tried here was surely better (by two standard errors).",
    "schedule": "A batch size that follows the loss and the steps, found by a search on these "
    "tasks and written as a policy; its name has log2 of the size over the task's at the end, "
    "and its change for each e-fold of the loss above the target and for each doubling of the "
    "steps.",
    "size": "One batch size for the whole run, written as a policy: on the validation seeds no "
    "network was better.",
    "rule": "A simple rule, written as a policy: on the validation seeds no network was better.",
}

_NOT_COMPARED = (
    "The policy that ships with rlbatch, unchanged: the training was stopped before anything was "
    "compared."
)


def file_of(candidate: Candidate) -> Path:
    """Return the policy file of a candidate."""
    name = candidate.policy
    return pretrained_file(name) if name in PRETRAINED else Path(name)


def keep(
    plan: Plan,
    candidate: Candidate,
    out: Path,
    *,
    validation: Mapping[str, tuple[float, int]],
    tested: Sequence[Score] = (),
    test_seeds: int = 0,
) -> Path:
    """Write a candidate as the training's policy file, with its card.

    Args:
        plan: Of the training.
        candidate: What is kept.
        out: Folder.
        validation: Scores of the candidates and their seeds, by which it was chosen; empty before
            there are any.
        tested: Scores of the evaluation; empty before it.
        test_seeds: Its seeds.
    """
    policy = load_policy(file_of(candidate))
    results: dict[str, Any] = {
        "kept": candidate.name,
        "kind": candidate.kind,
        "tasks": list(plan.tasks),
        "profile": plan.profile,
        "lr_coupling": plan.coupling,
        "validation": {name: score for name, (score, _) in validation.items()},
        "validation_seeds": {name: seeds for name, (_, seeds) in validation.items()},
        "evaluation": as_json(tested),
        "evaluation_seeds": test_seeds,
    }
    card = replace(policy.card, results=results)
    path = out / POLICY_FILE
    save_policy(path, replace(policy, card=card), card)
    text = _text(plan, candidate, results, tested)
    write_atomically(out / CARD_FILE, text)
    return path


def _text(
    plan: Plan, candidate: Candidate, results: Mapping[str, Any], tested: Sequence[Score]
) -> str:
    """Return the card in words."""
    lines = ["# The policy in policy.safetensors", "", f"**{candidate.name}.** "]
    lines[-1] += _KINDS[candidate.kind] if results["validation"] else _NOT_COMPARED
    lines += ["", f"Tasks: {', '.join(plan.tasks)}"]
    lines += ["", f"Clock: {plan.profile}. The learning rate follows the size by {plan.coupling}."]
    if results["validation"]:
        lines += ["", "## What it was chosen from", ""]
        lines += ["Ratios on validation seeds, geometric means; who fell far behind got few:", ""]
        lines += ["| policy | ratio | seeds |", "|---|---|---|"]
        ordered = sorted(results["validation"].items(), key=lambda item: item[1])
        seeds = results["validation_seeds"]
        lines += [f"| {name} | {score:.3f} | {seeds[name]} |" for name, score in ordered]
    if tested:
        lines += ["", "## What it scores on seeds that it never saw", "", *table(plan, tested)]
    return "\n".join(lines) + "\n"


def table(plan: Plan, tested: Sequence[Score]) -> list[str]:
    """Return the lines of the evaluation's table, in Markdown."""
    starts = [f"start {start:g}" for start in plan.starts]
    heads = ["task", "policy", *starts, "all [95%]", "reached"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for score in tested:
        name = f"**{score.policy}** (kept)" if score.kept else score.policy
        cells = [score.task or "all", name, *(f"{value:.3f}" for value in score.by_start)]
        lines.append(f"| {' | '.join([*cells, str(score.all), f'{score.reached:.0%}'])} |")
    return lines
