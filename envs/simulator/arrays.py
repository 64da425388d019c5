"""The array type of the simulator: floats, integers or masks, with one entry a run."""

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
