"""Which of the things that people think in a feature of the observation belongs to."""

from __future__ import annotations

from rlbatch.observation import GROUPS

PEOPLES: tuple[str, ...] = (
    "noise",
    "loss",
    "size statistics",
    "cost",
    "plan",
    "limits",
    "learning rate",
    "size so far",
)
"""In the order in which they are shown."""

_OF_GROUP: dict[str, str] = {
    "noise": "noise",
    "loss": "loss",
    "trend": "loss",
    "progress": "loss",
    "validation": "loss",
    "size_statistics": "size statistics",
    "cost": "cost",
    "plan": "plan",
    "objective": "plan",
    "learning_rate": "learning rate",
    "place": "size so far",
    "history": "size so far",
}
_OF_FEATURE = {
    "room_up": "limits",
    "room_down": "limits",
    "epochs_done": "plan",
    "steps_done": "plan",
    "epoch_steps": "plan",
    "weight_seconds": "cost",
    "weight_samples": "cost",
    "weight_joules": "cost",
    "gradient_growth": "noise",
    "mean_size": "size so far",
}


def group_of(feature: str) -> str:
    """Return one of `PEOPLES`; features that are not known belong to `size so far`."""
    if feature in _OF_FEATURE:
        return _OF_FEATURE[feature]
    for group, names in GROUPS.items():
        if feature in names:
            return _OF_GROUP.get(group, PEOPLES[-1])
    return PEOPLES[-1]
