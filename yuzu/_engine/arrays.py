"""Types of what users pass, for type checkers and editors."""

from typing import Any, TypeAlias, TypeVar

import numpy.typing as npt
import torch

Array = TypeVar("Array", torch.Tensor, npt.NDArray[Any])  # the kind that comes in is the kind that goes out
AnyArray: TypeAlias = torch.Tensor | npt.NDArray[Any]
Device: TypeAlias = str | int | torch.device | None
