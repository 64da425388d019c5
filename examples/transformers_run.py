"""Train a small language model with Hugging Face's Trainer and an adaptive batch size.

    python examples/transformers_run.py
    torchrun --standalone --nproc-per-node 2 examples/transformers_run.py

No network and some seconds on a processor; the text is Python's own help.
"""

from __future__ import annotations

import tempfile
from pydoc_data.topics import topics

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments, set_seed

from rlbatch.control.config import ControllerConfig
from rlbatch.control.limits import Limits
from rlbatch.integrations.transformers import ControlledTrainer

BLOCK = 32


class Text(Dataset[dict[str, Tensor]]):
    """Blocks of characters."""

    def __init__(self, characters: str) -> None:
        codes = torch.tensor([min(ord(character), 127) for character in characters])
        self.blocks = codes[: len(codes) // BLOCK * BLOCK].view(-1, BLOCK)

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.blocks[index], "labels": self.blocks[index]}


def network() -> GPT2LMHeadModel:
    """Make a model of one layer for characters."""
    sizes = {"vocab_size": 128, "n_positions": BLOCK, "n_embd": 32, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def main() -> None:
    """Train two epochs and say what the batch size did."""
    torch.set_num_threads(1)
    set_seed(0)
    text = "".join(topics.values())
    train_set = Text(text[:48_000])
    with tempfile.TemporaryDirectory() as folder:
        trainer = ControlledTrainer(
            network(),
            TrainingArguments(
                folder,
                per_device_train_batch_size=8,
                num_train_epochs=2,
                learning_rate=3e-3,
                lr_scheduler_type="cosine",
                logging_steps=25,  # of 8 samples, as ever
                eval_strategy="epoch",
                save_strategy="no",
                dataloader_pin_memory=False,
                use_cpu=True,
                disable_tqdm=True,
                report_to=[],
            ),
            train_dataset=train_set,
            eval_dataset=Text(text[48_000:54_000]),
            config=ControllerConfig(target_loss=2.5, limits=Limits(micro_batch_size=64)),
        )
        trainer.train()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if not trainer.is_world_process_zero():
        return
    report(trainer, 2 * len(train_set))


def report(trainer: ControlledTrainer, samples: int) -> None:
    """Say what the batch size, the rate and the loss came to."""
    history = trainer.state.log_history
    used = [line["batch_size"] for line in history if "batch_size" in line]
    rate = [line["learning_rate"] for line in history if "learning_rate" in line][-1]
    loss = [line["eval_loss"] for line in history if "eval_loss" in line][-1]
    print(
        f"{trainer.state.global_step} steps over {samples} samples, "
        f"batch size {min(used)} to {max(used)}, validation loss {loss:.3f}, "
        f"last learning rate {rate:.1e}"
    )


if __name__ == "__main__":
    main()
