"""The built-in tasks, one module a family.

A module `some_name.py` with a `TaskFamily` called `FAMILY` is all that the task `some-name` takes,
and its variant `some-name-sgd`.
"""
