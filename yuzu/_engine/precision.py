"""Which arithmetic CUDA may use for float32 products while a run lasts.

cuDNN uses TF32 for float32 convolutions unless told not to, so ``"highest"`` has to say so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def products(precision: str, device: torch.device) -> Iterator[None]:
    """TF32 products for ``"high"`` and ``"medium"``, none for ``"highest"``; PyTorch's settings are put back
    afterwards.
    """
    if device.type != "cuda":
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "highest"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
