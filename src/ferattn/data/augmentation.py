"""What each paper does to its training images, and what a strong recipe does, as data.

Where a paper gives a number it stands here; where it gives none, the docstring says what was chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from ferattn.errors import InvalidOption

__all__ = ["AUGMENTATIONS", "Augmentation"]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training images are changed, each by its own random numbers.

    Attributes:
        zoom: Width and height of the window, each drawn from 1 - zoom to 1 + zoom of the image's.
        shift: Share of the width and of the height by which the image moves at most, either way.
        crop_area: Smallest and largest share of the area that a random resized crop keeps.
        crop_ratio: Smallest and largest width over height of that crop; sides stop at the image's.
        rotate_degrees: Largest rotation, either way.
        flip: Probability of mirroring left to right.
        erase: Probability of blanking a rectangle.
        erase_area: Smallest and largest share of the area that is blanked.
        erase_ratio: Smallest and largest width over height of what is blanked.
        mixup: Alpha of the Beta distribution for mixup; 0 turns it off.
        cutmix: Alpha of the Beta distribution for CutMix; 0 turns it off.
        zca_epsilon: What is added to the variances in ZCA whitening; None leaves whitening out.

    Raises:
        InvalidOption: If a number is out of range.
    """

    zoom: float = 0.0
    shift: float = 0.0
    crop_area: tuple[float, float] = (1.0, 1.0)
    crop_ratio: tuple[float, float] = (1.0, 1.0)
    rotate_degrees: float = 0.0
    flip: float = 0.0
    erase: float = 0.0
    erase_area: tuple[float, float] = (0.02, 0.33)
    erase_ratio: tuple[float, float] = (0.3, 3.3)
    mixup: float = 0.0
    cutmix: float = 0.0
    zca_epsilon: float | None = None

    @property
    def mixes(self) -> bool:
        """Whether pictures are mixed with one another."""
        return bool(self.mixup or self.cutmix)

    def __post_init__(self) -> None:
        ranges: dict[str, tuple[float, float]] = {
            "zoom": (0, 0.99),
            "shift": (0, 1),
            "crop_area": (1e-3, 1),
            "crop_ratio": (1e-2, 1e2),
            "rotate_degrees": (0, 180),
            "flip": (0, 1),
            "erase": (0, 1),
            "erase_area": (0, 1),
            "erase_ratio": (1e-2, 1e2),
            "mixup": (0, 100),
            "cutmix": (0, 100),
            "zca_epsilon": (1e-12, 1e3),
        }
        for field in fields(self):
            value = getattr(self, field.name)
            low, high = ranges[field.name]
            if value is None and field.name == "zca_epsilon":
                continue
            pair = value if isinstance(value, tuple) else (value, value)
            if isinstance(value, tuple) != isinstance(field.default, tuple) or len(pair) != 2:
                raise InvalidOption(f"{field.name}={value!r}: like {field.default!r}, please.")
            if not low <= pair[0] <= pair[1] <= high:
                raise InvalidOption(f"{field.name}={value!r}: from {low:g} to {high:g}, the smaller number first.")

    @property
    def moves(self) -> bool:
        """Whether images are resampled, beyond mirroring."""
        return self.crops or max(self.zoom, self.shift, self.rotate_degrees) > 0

    @property
    def crops(self) -> bool:
        """Whether there is a random resized crop."""
        return {*self.crop_area, *self.crop_ratio} != {1.0}


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": Augmentation(),
    "miskow2022": Augmentation(zoom=0.3, flip=0.5),
    "luo2023": Augmentation(shift=0.1),
    "luo2023-wide": Augmentation(shift=0.2),
    "chap2021": Augmentation(shift=0.1, flip=0.5, zca_epsilon=1e-6),
    "strong": Augmentation(
        crop_area=(0.8, 1.0),
        crop_ratio=(3 / 4, 4 / 3),
        rotate_degrees=15,
        flip=0.5,
        erase=0.25,
        mixup=0.2,
        cutmix=1.0,
    ),
}
"""Augmentations by recipe.

``miskow2022`` (arXiv 2410.17740): zoom 0.3 and flip; width and height are zoomed independently and the border
is repeated, as Keras does. ``luo2023``: width and height shifts, whose size the paper leaves open: 0.1 here, and
0.2 in ``luo2023-wide``. ``chap2021``: shifts of 0.1, flip, ZCA with epsilon 1e-6. ``strong``: random resized crop,
rotation, flip, erasing, and mixup or CutMix in turn.
"""
