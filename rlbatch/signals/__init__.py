"""Raw measurements of a chunk of training: what they are and how they are estimated."""

from rlbatch.signals.record import COST_CURVE_SIZES, Coupling, RunContext, Signals

__all__ = ["COST_CURVE_SIZES", "Coupling", "RunContext", "Signals"]
