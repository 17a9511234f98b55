"""Luo's small CNN for 48x48 faces, under the same contract as a timm model.

Source: Luo 2023, a small CNN with and without squeeze-and-excitation blocks on FER2013: two 3x3 convolutions and a
max-pool, three times over, then a fully connected layer and the classifier. What the paper leaves open is chosen
here: 128 units in the fully connected layer, stride and padding of 1, 2x2 pools, He normal start, and dropout and
batch norm off unless asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from timm.layers import ClassifierHead, get_act_layer, get_norm_layer
from timm.models import checkpoint_seq
from torch import Tensor, nn

from ferattn.errors import InvalidOption, UnknownChoice
from ferattn.heads import FittedHead

__all__ = ["CNN", "find_norm"]

_STAGES = ((32, 64), (128, 128), (256, 256))
_REDUCTION = 2 ** len(_STAGES)


class CNN(nn.Module):
    """Luo's CNN: conv 32, conv 64, pool; conv 128, conv 128, pool; conv 256, conv 256, pool; fully connected.

    ``features`` is one ``Sequential``, as in timm's VGG, and everything timm's tools ask of a model is there:
    ``forward_features``, ``forward_head``, ``forward_intermediates``, ``reset_classifier``, ``feature_info``, ...

    Args:
        num_classes: Outputs of the classifier; 0 for none.
        in_chans: Channels of the picture.
        img_size: Height and width of the picture in pixels; the fully connected layer is fitted to it.
        hidden: Units of the fully connected layer.
        drop_rate: Dropout after the fully connected layer's activation and before the classifier.
        global_pool: What becomes of the head's cells when a picture is larger than ``img_size``.
        act_layer: The activation, a class or one of timm's names.
        norm_layer: A norm after each convolution and after the fully connected layer: ``nn.BatchNorm2d`` or one of
            timm's names, ``"batchnorm2d"``; the paper names none. Without one, three quarters of the fully
            connected layer's units are dead after twenty steps of Adam at the paper's 0.002, with batch norm none
            (``benchmarks/dead_units.py``).

    Shape: (b, in_chans, h, w) to (b, num_classes).

    Raises:
        InvalidOption: If the picture is smaller than 8 pixels on a side.

    >>> import torch
    >>> CNN()(torch.randn(2, 1, 48, 48)).shape
    torch.Size([2, 7])
    """

    default_placement = "stage"
    """The paper's: an attention block before each max-pool."""

    def __init__(
        self,
        *,
        num_classes: int = 7,
        in_chans: int = 1,
        img_size: int | tuple[int, int] = 48,
        hidden: int = 128,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
        act_layer: str | type[nn.Module] = nn.ReLU,
        norm_layer: str | Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        size = (img_size, img_size) if isinstance(img_size, int) else img_size
        kernel = (size[0] // _REDUCTION, size[1] // _REDUCTION)
        if min(kernel) < 1:
            raise InvalidOption(f"img_size must be at least {_REDUCTION} pixels on a side for cnn; got {img_size}.")
        act, norm = get_act_layer(act_layer), find_norm(norm_layer)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.feature_info: list[dict[str, Any]] = []
        layers: list[nn.Module] = []
        channels = in_chans
        for stage, widths in enumerate(_STAGES):
            for width in widths:
                layers.append(nn.Conv2d(channels, width, 3, padding=1))
                layers.extend([] if norm is None else [norm(width)])
                layers.append(act(inplace=True))
                channels = width
            self._tap(channels, 2**stage, len(layers) - 1)
            layers.append(nn.MaxPool2d(2))
        self._tap(channels, _REDUCTION, len(layers) - 1)
        self.features = nn.Sequential(*layers)
        self.num_features = channels
        self.pre_logits: nn.Module = FittedHead(
            channels, hidden, None, kernel=kernel, drop_rate=drop_rate, act=act, norm_layer=norm
        )
        self.head = ClassifierHead(hidden, num_classes, pool_type=global_pool, drop_rate=drop_rate)
        self.head_hidden_size = hidden
        for module in self.features:
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def _tap(self, channels: int, reduction: int, index: int) -> None:
        self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": f"features.{index}"})

    def _stages(self) -> Iterator[nn.Sequential]:
        """``features`` in pieces that end at the taps of ``feature_info``, the last one at the very end."""
        ends = [int(str(info["module"]).rpartition(".")[2]) + 1 for info in self.feature_info]
        ends = [end for end in ends if end <= len(self.features)]
        for start, end in pairwise((0, *ends[:-1], len(self.features))):
            yield self.features[start:end]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """How timm's optimizers sort parameters into layers: one group a module of ``features``, or one in all."""
        return {"stem": r"^features\.0", "blocks": r"^features" if coarse else r"^features\.(\d+)"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each stage in the backward pass instead of keeping its maps."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head.fc  # type: ignore[no-any-return]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the model a new classifier; 0 classes for none, ``global_pool=""`` to keep the head's cells."""
        parameter = next(self.parameters())
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)
        self.head.to(device=parameter.device, dtype=parameter.dtype).train(self.training)

    def forward_features(self, x: Tensor) -> Tensor:
        """The feature map, (b, 256, h // 8, w // 8)."""
        if self.grad_checkpointing:
            return checkpoint_seq(list(self._stages()), x)  # type: ignore[no-any-return]
        return self.features(x)  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """From the feature map to the logits, or to the classifier's input with ``pre_logits``."""
        return self.head(self.pre_logits(x), pre_logits=pre_logits)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """From pictures to logits."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps of ``feature_info``, and the last one again as timm's models return it.

        Args:
            x: Pictures, (b, in_chans, h, w).
            indices: Which maps: None for all, n for the last n, a sequence for those.
            norm: Nothing to do here: there is no final norm.
            stop_early: Do not compute what lies behind the last map asked for.
            output_fmt: Only ``"NCHW"``.
            intermediates_only: Return the maps alone.

        Raises:
            InvalidOption: If there is no such map or no such format.
        """
        if output_fmt != "NCHW":
            raise InvalidOption(f"output_fmt must be 'NCHW'; got {output_fmt!r}.")
        taken = self._take(indices)
        maps = []
        for index, stage in enumerate(self._stages()):
            if stop_early and index > max(taken):
                break
            x = stage(x)
            if index in taken:
                maps.append(x)
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what ``forward_intermediates`` with these indices does not need; returns the indices kept.

        ``prune_norm`` has nothing to do here: there is no final norm.
        """
        taken = self._take(indices)
        last = max(taken)
        cut = last < len(self.feature_info) - 1
        self.features = self.features[: int(self.feature_info[last]["module"].rpartition(".")[2]) + 1]
        if cut:
            self.num_features = self.feature_info[last]["num_chs"]
        if cut or prune_head:
            self.pre_logits = nn.Identity()
            self.head_hidden_size = self.num_features
            self.num_classes = 0
            self.head = ClassifierHead(self.num_features, 0, pool_type="", drop_rate=self.drop_rate)
            self.head.train(self.training)
        return taken

    def _take(self, indices: int | Sequence[int] | None) -> list[int]:
        n = len(self.feature_info)
        if indices is None:
            return list(range(n))
        wanted = range(n - indices, n) if isinstance(indices, int) else [i + n if i < 0 else i for i in indices]
        if not wanted or not all(0 <= i < n for i in wanted):
            raise InvalidOption(f"indices must name some of the {n} feature maps of cnn; got {indices!r}.")
        return list(wanted)


def find_norm(norm_layer: str | Callable[..., nn.Module] | None) -> Callable[..., nn.Module] | None:
    """A norm by timm's name for it; anything else as it is.

    Raises:
        UnknownChoice: If timm knows no such norm.

    >>> find_norm("batchnorm2d")
    <class 'torch.nn.modules.batchnorm.BatchNorm2d'>
    """
    if not isinstance(norm_layer, str):
        return norm_layer
    try:
        return get_norm_layer(norm_layer)  # type: ignore[no-any-return]
    except KeyError:
        raise UnknownChoice(
            f"unknown norm_layer {norm_layer!r}. Options: timm's names, such as 'batchnorm2d', 'groupnorm' or "
            "'layernorm2d', or a class such as nn.BatchNorm2d."
        ) from None
