"""Brings a decided batch size to the data pipeline, the gradient and the learning rate."""
