"""The simulator: training runs on noisy quadratics, thousands advanced together in NumPy."""
