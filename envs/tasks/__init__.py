"""Built-in tasks: small jobs that train in seconds on one CPU thread, one file a family.

Each family has two variants: AdamW (the family's name) and SGD with momentum (that and `-sgd`).
Nothing is imported until a task is asked for.
"""

from __future__ import annotations

TASK_FAMILIES: tuple[str, ...] = (
    "digits-mlp",
    "digits-cnn",
    "language-id",
    "translation",
    "char-lm",
    "tabular-regression",
    "tabular-classification",
    "teacher-student",
)
"""Names of the families; the module of a family has underscores for dashes."""

TASK_FUNCTIONS: dict[str, str] = {
    f"{family}{suffix}": f"{family.replace('-', '_')}:{function}"
    for family in TASK_FAMILIES
    for suffix, function in (("", "adamw"), ("-sgd", "sgd"))
}
"""Task name to `module:function`, relative to this package."""

RANDOM_KINDS: dict[str, str] = {
    "random": "random_perceptron",
    "random-long": "random_perceptron",
    "random-transformer": "random_transformer",
    "field": "field",
}
"""Prefix of a name (random tasks, the field suite) to the module, and to the function in it."""
