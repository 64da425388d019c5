"""What `scripts/check_gpu.py` checks and measures on one GPU, a module for each part."""
