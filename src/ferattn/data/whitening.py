"""ZCA whitening: decorrelate the pixels of an image while staying as close to it as possible."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ferattn.errors import InvalidInput, InvalidOption

__all__ = ["ZCA"]


class ZCA(nn.Module):
    """x -> (x - mean) U (S + epsilon)^(-1/2) U^T, where U S U^T is the covariance of the training images.

    Keras's ``zca_whitening``, which Chap uses: images are centred, then whitened over all pixels and
    channels. Its buffers travel with a model's state dict.

    Args:
        shape: Channels, height and width of the images.
        epsilon: Added to the variances; the larger, the weaker the whitening.

    Source: Chap 2021, augmentation; Bell & Sejnowski 1997 for the formula.

    >>> images = torch.rand(50, 1, 4, 4)
    >>> ZCA((1, 4, 4), epsilon=1e-6).fit(images)(images).shape
    torch.Size([50, 1, 4, 4])
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, shape: tuple[int, int, int], epsilon: float = 1e-6) -> None:
        super().__init__()
        if epsilon <= 0:
            raise InvalidOption(f"epsilon={epsilon!r}: must be positive.")
        self.shape = tuple(shape)
        self.epsilon = epsilon
        pixels = int(torch.tensor(shape).prod())
        self.register_buffer("mean", torch.zeros(pixels))
        self.register_buffer("matrix", torch.eye(pixels))

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.shape}, epsilon={self.epsilon:g}"

    def fit(self, images: Tensor, batch: int = 4096) -> ZCA:
        """Take the statistics of training images.

        Args:
            images: Shape (n, c, h, w): 8-bit pixels, which are divided by 255, or numbers as the model sees
                them.
            batch: How many images to add up at a time.

        Raises:
            InvalidInput: If there are fewer than two images, or of another shape.
        """
        if len(images) < 2 or tuple(images.shape[1:]) != self.shape:
            raise InvalidInput(f"images of shape {tuple(images.shape)}: at least two of {self.shape} are needed.")

        def rows(part: Tensor) -> Tensor:
            values = part.flatten(1).to(self.matrix.device)
            return values.float() / 255 if part.dtype == torch.uint8 else values.float()

        total = torch.zeros(self.mean.shape, dtype=torch.float64, device=self.mean.device)
        for part in torch.split(images, batch):
            total += rows(part).double().sum(0)
        mean = total / len(images)
        covariance = torch.zeros(self.matrix.shape, dtype=torch.float64, device=self.matrix.device)
        for part in torch.split(images, batch):
            centred = rows(part) - mean.float()
            covariance += (centred.T @ centred).double()
        values, vectors = torch.linalg.eigh(covariance / len(images))
        matrix = (vectors / (values.clamp_min(0) + self.epsilon).sqrt()) @ vectors.T
        self.mean.copy_(mean)
        self.matrix.copy_(matrix)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Whiten. Shape: (b, c, h, w)."""
        return ((images.flatten(1) - self.mean) @ self.matrix).view_as(images)
