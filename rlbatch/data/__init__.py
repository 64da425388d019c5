"""Brings a decided batch size to the data pipeline, the gradient and the learning rate."""

from rlbatch.data.delivery import Delivered
from rlbatch.data.learning_rate import LearningRateCoupling, coupling_factor
from rlbatch.data.loader import elastic_loader
from rlbatch.data.loss_weights import LossWeights
from rlbatch.data.order import ShuffledSampler
from rlbatch.data.sample_schedule import SampleSchedule
from rlbatch.data.sampler import ElasticBatchSampler
from rlbatch.data.step_plan import StepPlan, plan_step, round_batch_size
from rlbatch.data.stream import ElasticIterable

__all__ = [
    "Delivered",
    "ElasticBatchSampler",
    "ElasticIterable",
    "LearningRateCoupling",
    "LossWeights",
    "SampleSchedule",
    "ShuffledSampler",
    "StepPlan",
    "coupling_factor",
    "elastic_loader",
    "plan_step",
    "round_batch_size",
]
