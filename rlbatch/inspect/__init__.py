"""Reading episode logs: tables, summaries, explanations, pages."""

from rlbatch.inspect.frames import load

__all__ = ["load"]
