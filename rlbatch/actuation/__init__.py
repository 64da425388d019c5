"""Brings a decided batch size to the data pipeline, the gradient and the learning rate."""

from rlbatch.actuation.accumulation import WindowAccumulator
from rlbatch.actuation.delivery import Delivered
from rlbatch.actuation.learning_rate import LearningRateCoupling, coupling_factor
from rlbatch.actuation.loader import elastic_loader
from rlbatch.actuation.order import ShuffledSampler
from rlbatch.actuation.sampler import ElasticBatchSampler
from rlbatch.actuation.schedule import SampleSchedule, scheduler_advice
from rlbatch.actuation.stream import ElasticIterable
from rlbatch.actuation.window import WindowPlan, plan_window, quantise_batch_size

__all__ = [
    "Delivered",
    "ElasticBatchSampler",
    "ElasticIterable",
    "LearningRateCoupling",
    "SampleSchedule",
    "ShuffledSampler",
    "WindowAccumulator",
    "WindowPlan",
    "coupling_factor",
    "elastic_loader",
    "plan_window",
    "quantise_batch_size",
    "scheduler_advice",
]
