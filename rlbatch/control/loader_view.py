"""What a program asks its loader for besides batches."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

_SIZES = (
    "The batch size changes during the run, and a batch may come in parts. Ask the batch itself: "
    "len(x); or controller.batch_size, samples of an optimizer step."
)


class LoaderView:
    """Has what the user's loader has, but for what a changing batch size leaves without a value."""

    def __init__(self, users: DataLoader[Any]) -> None:
        """Show the user's loader."""
        self._users = users

    def __len__(self) -> int:
        """Raise TypeError: the number of batches depends on sizes yet to be decided."""
        raise TypeError(
            "The loader of a controller has no len(): how many batches there will be is not "
            "decided yet. Take len() of the DataLoader that it was made from for a schedule, which "
            "controller.schedule then lets go by samples; count samples for progress: "
            "loader.sampler.position of len(loader.dataset)."
        )

    def __bool__(self) -> bool:
        """There is a loader, whatever its length."""
        return True

    def __getattr__(self, name: str) -> Any:
        """Return what the user's loader has, of what is not asked of this one."""
        if name in ("batch_size", "batch_sampler"):
            raise AttributeError(f"A controller's loader has no {name}. {_SIZES}")
        if name.startswith("_"):  # of Python's protocols, and while it is copied
            raise AttributeError(name)
        return getattr(self._users, name)

    @property
    def batch_size(self) -> int:
        """Raise AttributeError: it changes."""
        raise AttributeError  # `__getattr__` says more

    @batch_size.setter
    def batch_size(self, _: int) -> None:
        raise AttributeError(
            "The controller sets the batch size. Limits of it are settings of the controller: "
            "min_batch_size, max_batch_size."
        )
