"""The fully connected head of VGG and of Luo's CNN, fitted to the feature map it will read."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.models import register_notrace_module
from torch import Tensor, nn

__all__ = ["FittedHead", "fold_stretch"]


@register_notrace_module  # it looks at its map's size, as the head of timm's VGG does
class FittedHead(nn.Module):
    """Fully connected layers on a whole feature map, written as convolutions, before the classifier.

    The first layer's kernel is the feature map itself, so flattening (c, h, w) and a ``Linear`` give the same
    numbers. Attributes and state-dict keys are those of the head of timm's VGG (``fc1``, ``act1``, ``drop``,
    ``fc2``, ``act2``), whose kernel is 7x7 whatever the map: at 48 pixels that stretches a 2x2 map to 7x7 and
    spends 102.8 M parameters on it where 8.4 M do.

    Args:
        channels: Channels of the feature map.
        hidden: Outputs of the first layer.
        out: Outputs of the second layer; None leaves the second layer out.
        kernel: Height and width of the feature map, in cells.
        drop_rate: Dropout after the first layer.
        act: Makes the activation; called with ``inplace=True``.
        norm_layer: Makes a norm for the first layer's outputs, before the activation; None for none.

    Shape: (b, channels, h, w) to (b, out or hidden, 1, 1) when the map has the kernel's size. A larger map gives
    one output per position of the kernel; a smaller one is stretched to it.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        out: int | None,
        *,
        kernel: tuple[int, int],
        drop_rate: float,
        act: type[nn.Module] = nn.ReLU,
        norm_layer: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.kernel = kernel
        self.fc1 = nn.Conv2d(channels, hidden, kernel)
        self.norm1 = nn.Identity() if norm_layer is None else norm_layer(hidden)
        self.act1 = act(inplace=True)
        self.drop = nn.Dropout(drop_rate)
        self.fc2 = nn.Identity() if out is None else nn.Conv2d(hidden, out, 1)
        self.act2 = nn.Identity() if out is None else act(inplace=True)
        for layer in (self.fc1, self.fc2):
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Read the feature map ``x``."""
        h, w = self.kernel
        if x.shape[-2] < h or x.shape[-1] < w:
            x = F.adaptive_avg_pool2d(x, (max(h, x.shape[-2]), max(w, x.shape[-1])))
        x = self.drop(self.act1(self.norm1(self.fc1(x))))
        return self.act2(self.fc2(x))  # type: ignore[no-any-return]


def fold_stretch(weight: Tensor, kernel: tuple[int, int]) -> Tensor:
    """The weights that do on a map what ``weight`` does on that map stretched or averaged to ``weight``'s own size.

    Stretching is linear, so it folds into the weights: nothing of the function is lost, and 7x7 weights from
    ImageNet serve a 2x2 map exactly as timm's VGG would, with a twelfth of the parameters.

    Args:
        weight: Convolution weights, (o, c, H, W).
        kernel: Height and width of the map.

    Shape: (o, c, H, W) to (o, c, h, w).
    """
    h, w = kernel
    rows = F.adaptive_avg_pool2d(torch.eye(h, dtype=torch.float64)[None, :, :, None], (weight.shape[2], 1))
    columns = F.adaptive_avg_pool2d(torch.eye(w, dtype=torch.float64)[None, :, :, None], (weight.shape[3], 1))
    folded = torch.einsum("ocHW,hH,wW->ochw", weight.double().cpu(), rows[0, :, :, 0], columns[0, :, :, 0])
    return folded.to(weight)
