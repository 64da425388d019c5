"""Who decides: published rules, PPO, search across runs, evaluation and the shipped policy."""
