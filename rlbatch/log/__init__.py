"""The episode log of a run: written, read, and shown by TensorBoard."""
