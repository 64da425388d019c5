"""What the controller cannot steer in a `transformers.Trainer`, refused before the run begins."""

from __future__ import annotations

from typing import Any

import transformers
from accelerate.utils import DistributedType
from torch.utils.data import IterableDataset

from rlbatch.errors import ConfigurationError

# What the controlled trainer overrides or reads; the names are the Trainer's own.
_TOGETHER = (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
_HOOKS = (
    *("get_train_dataloader", "set_initial_training_values", "get_batch_samples", "training_step"),
    *("_init_training_state", "_prepare_for_training", "_run_epoch", "create_scheduler"),
    *("_save_checkpoint", "_save_optimizer_and_scheduler", "_track_num_input_tokens"),
    *("loss_is_scaled_for_ga", "floating_point_ops", "evaluate", "compute_loss", "log"),
)


def check_version(trainer: type) -> None:
    """Refuse a Trainer that works in another way than the one this was written for.

    Raises:
        ConfigurationError: A method is missing.
    """
    missing = [name for name in _HOOKS if not hasattr(trainer, name)]
    if missing:
        raise ConfigurationError(
            f"Expected the Trainer of transformers 5.23, got that of {transformers.__version__}, "
            f"which has no {', '.join(missing)}. Run: pip install 'transformers>=5.23'"
        )


def check_trainer(trainer: Any) -> None:
    """Refuse settings under which a changed batch size would not be what is trained on.

    Raises:
        ConfigurationError: There is one; the message says what to do.
    """
    args, problems = trainer.args, [*_data_problems(trainer), *_sharing_problems(trainer)]
    if args.auto_find_batch_size:
        problems.append(
            "auto_find_batch_size changes the batch size too. Turn it off, and give what fits into "
            "memory as ControllerConfig(limits=Limits(micro_batch_size=...))"
        )
    optim = str(getattr(args.optim, "value", args.optim)).lower()
    if "lomo" in optim or "layerwise" in optim:
        problems.append(
            f"optim={optim} updates the weights within the backward pass, so that micro-batches "
            "cannot be accumulated. Choose another optimizer"
        )
    if problems:
        raise ConfigurationError(
            "The batch size cannot be controlled: " + ". ".join(problems) + "."
        )


def _sharing_problems(trainer: Any) -> list[str]:
    args = trainer.args
    problems: list[str] = []
    accelerator = trainer.accelerator
    together = accelerator.distributed_type in _TOGETHER or accelerator.is_fsdp2
    shares = accelerator.parallelism_config  # a model's layers or sequences among processes
    if args.world_size > 1 and (not together or trainer.is_distributed_loading_by_transformers):
        problems.append(
            f"{args.world_size} processes share the training by {accelerator.distributed_type}, "
            "whose steps have rules of their own. Launch them for DistributedDataParallel or FSDP2 "
            "(fsdp=True), or a single one"
        )
    if shares is not None and shares.tp_size * shares.cp_size * shares.sp_size > 1:
        problems.append(
            "tensor, context or sequence parallelism gives several processes the same samples. "
            "Leave parallelism_config out"
        )
    if args.n_gpu > 1:
        problems.append(
            f"DataParallel splits each batch over {args.n_gpu} GPUs. Show one of them to the "
            "process, with CUDA_VISIBLE_DEVICES=0"
        )
    old_fsdp = trainer.is_fsdp_enabled and not accelerator.is_fsdp2
    if trainer.is_deepspeed_enabled or old_fsdp or trainer.is_model_parallel:
        problems.append(
            "DeepSpeed, the older FSDP or a model over several devices steps by rules of its own. "
            "Train on one device, or on several processes with DistributedDataParallel or FSDP2"
        )
    return problems


def _data_problems(trainer: Any) -> list[str]:
    args = trainer.args
    data: Any = trainer.train_dataset
    streams = bool(isinstance(data, IterableDataset))
    together = args.train_batch_size * args.world_size
    problems: list[str] = []
    if data is not None and not hasattr(data, "__len__"):
        problems.append(
            "the train_dataset is a stream of unknown length, by which progress is counted. Give "
            "it a __len__; an estimate will do"
        )
    elif streams and args.world_size > 1:
        problems.append(
            f"the train_dataset is a stream, of which {args.world_size} processes cannot each take "
            "a share. Give a dataset with __len__ and __getitem__, or train on one"
        )
    elif data is not None and args.dataloader_drop_last and len(data) % together:
        problems.append(
            f"dataloader_drop_last leaves out {len(data) % together} samples of each "
            "epoch; which ones would depend on the batch sizes. Set it to False"
        )
    if str(args.train_sampling_strategy) == "batch_rebalance":
        problems.append(
            "train_sampling_strategy='batch_rebalance' puts batches together for one batch size. "
            "Choose 'random', 'sequential' or 'group_by_length'"
        )
    if not args.dataloader_in_order:
        problems.append(
            "dataloader_in_order=False hands out batches in an order that cannot be told. Leave it "
            "at True"
        )
    if args.accelerator_config.dispatch_batches:
        problems.append("dispatch_batches reads a stream of batches. Leave it unset")
    return problems
