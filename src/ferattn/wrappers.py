"""What people wrap a model in: ``torch.compile``, and one copy for each GPU."""

from __future__ import annotations

from torch import nn

__all__ = ["unwrap"]


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``, however nested.

    >>> plain = nn.Conv2d(1, 1, 3)
    >>> unwrap(nn.DataParallel(plain)) is unwrap(plain) is plain
    True
    """
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner
