"""Choosing one batch size for a whole run: by doubling, by Bayesian optimisation, by a bandit."""
