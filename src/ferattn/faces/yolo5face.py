"""YOLO5Face, the detector of Miskow & Altahhan 2022, from an ONNX file.

The network runs in OpenCV's ``dnn``, because the ``faces`` extra already brings OpenCV for YuNet; ONNX
Runtime would be a second large dependency for the same work. Both shapes in which the network is exported are
read: one table of decoded candidates (1, n, 16), or the three raw heads (1, 3, h, w, 16) at strides 8, 16 and
32.

Source: Qi, Tan, Yao and Liu, "YOLO5Face: Why Reinventing a Face Detector", arXiv 2105.12931. The arithmetic
of the heads is that of YOLOv5, with landmarks as offsets in units of the anchor.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ferattn.errors import InvalidInput, InvalidOption, WeightsMismatch
from ferattn.faces.face import Face
from ferattn.faces.framing import resize
from ferattn.faces.weights import checksum, existing
from ferattn.faces.yunet import import_cv2, quiet

__all__ = ["YOLO5Face", "decode_heads", "letterbox", "select"]

# Width and height in pixels of the three anchors of each head, of the networks with three heads (n, s, m, l).
_ANCHORS = {
    8: ((4.0, 5.0), (8.0, 10.0), (13.0, 16.0)),
    16: ((23.0, 29.0), (43.0, 55.0), (73.0, 105.0)),
    32: ((146.0, 217.0), (231.0, 300.0), (335.0, 433.0)),
}
_GRAY = 114  # what YOLOv5 was trained to see around a picture


class YOLO5Face:
    """The YOLO5Face detector.

    Args:
        weights: Path of the ONNX file (n, s, m or l variant, exported with or without the decoding).
        min_score: Faces with a lower confidence (objectness times class probability) are left out.
        overlap: Of two boxes whose intersection over union is larger, only the better one is kept.
        input_size: Height and width in pixels at which the network was exported, a multiple of 32.

    Raises:
        MissingDependency: If OpenCV is not installed.
        WeightsMismatch: If the file does not exist, or is no YOLO5Face network of this input size.
        InvalidOption: If a number is out of range.
    """

    name = "yolo5face"

    def __init__(
        self,
        weights: str | os.PathLike[str] | None = None,
        *,
        min_score: float = 0.5,
        overlap: float = 0.5,
        input_size: int = 640,
    ) -> None:
        for option, value in (("min_score", min_score), ("overlap", overlap)):
            if not 0 < value <= 1:
                raise InvalidOption(f"{option} is above 0 and at most 1; got {value}")
        if input_size < 32 or input_size % 32:
            raise InvalidOption(f"input_size is a multiple of 32 pixels; got {input_size}")
        if weights is None:
            raise InvalidOption(
                "detector 'yolo5face' needs weights: the path of an ONNX file exported from YOLO5Face"
            )
        self.min_score, self.overlap, self.input_size = min_score, overlap, input_size
        cv2 = import_cv2("YOLO5Face", "dnn")
        path = existing(weights, "YOLO5Face")
        self.sha256 = checksum(path)
        try:
            with quiet(cv2):
                self._net = cv2.dnn.readNetFromONNX(str(path))
                candidates = self._candidates(np.zeros((1, 3, input_size, input_size), np.float32))
        except (cv2.error, InvalidInput) as error:
            raise WeightsMismatch(
                f"{str(path)!r} is no YOLO5Face network with an input of {input_size}x{input_size} pixels: "
                f"{getattr(error, 'err', error)}"
            ) from error
        self.candidates = len(candidates)

    def __repr__(self) -> str:
        return (
            f"YOLO5Face(weights=sha256:{self.sha256[:12]}, min_score={self.min_score}, "
            f"overlap={self.overlap}, input_size={self.input_size})"
        )

    def __call__(self, image: NDArray[np.uint8]) -> list[Face]:
        """Find the faces, best first.

        Shape: image (h, w, 3), uint8, RGB.
        """
        boxed, scale, left, top = letterbox(image, self.input_size)
        blob = boxed.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
        rows = select(self._candidates(blob), self.min_score, self.overlap)
        shift = torch.tensor([left, top], dtype=rows.dtype)
        rows[:, 0:2] -= shift
        rows[:, 5:15] -= shift.repeat(5)
        faces = []
        for x, y, width, height, score, *points in rows.tolist():
            pairs = tuple((points[i] / scale, points[i + 1] / scale) for i in range(0, 10, 2))
            faces.append(Face((x / scale, y / scale, width / scale, height / scale), score, pairs))
        return faces

    def _candidates(self, blob: NDArray[np.float32]) -> Tensor:
        self._net.setInput(blob)
        outputs = self._net.forward(self._net.getUnconnectedOutLayersNames())
        tensors = [torch.from_numpy(np.asarray(output)) for output in outputs]
        tables = [t for t in tensors if t.ndim == 3 and t.shape[0] == 1 and t.shape[2] == 16]
        if len(tables) == 1:
            return tables[0][0].clone()
        return decode_heads(tensors, self.input_size)


def letterbox(image: NDArray[np.uint8], size: int) -> tuple[NDArray[np.uint8], float, int, int]:
    """Shrink or enlarge a picture into a square without distortion, gray around it.

    Shape: (h, w, 3) -> (size, size, 3), with the scale and the width of the left and the top border in
    pixels.

    >>> boxed, scale, left, top = letterbox(np.zeros((10, 20, 3), np.uint8), 64)
    >>> boxed.shape, scale, left, top
    ((64, 64, 3), 3.2, 0, 16)
    """
    height, width = image.shape[:2]
    scale = size / max(height, width)
    to_height, to_width = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (size - to_height) // 2, (size - to_width) // 2
    boxed = np.full((size, size, 3), _GRAY, np.uint8)
    boxed[top : top + to_height, left : left + to_width] = resize(image, to_height, to_width)
    return boxed, scale, left, top


def decode_heads(heads: Sequence[Tensor], input_size: int) -> Tensor:
    """Raw heads to a table of candidates in pixels of the network's input.

    With t the raw outputs, s the logistic function, g the cell's column and row, d the stride, a the anchor::

        centre = (2 s(t_xy) - 0.5 + g) d      size = (2 s(t_wh))^2 a      landmark = t a + g d
        objectness = s(t_4)                   class probability = s(t_15)

    Shape: three of (1, 3, h, w, 16) -> (n, 16): centre x and y, width, height, objectness, five landmarks (x,
    y), class probability.

    Raises:
        InvalidInput: If these are not the heads at strides 8, 16 and 32 of an input of ``input_size`` pixels.

    Source: arXiv 2105.12931, section 3; YOLOv5's detection layer.
    """
    by_side = {input_size // stride: stride for stride in _ANCHORS}
    shapes = [tuple(head.shape) for head in heads]
    expected = [(1, 3, side, side, 16) for side in by_side]
    if sorted(shapes) != sorted(expected):
        raise InvalidInput(
            f"expected one output (1, n, 16) or three of {', '.join(map(str, expected))}; "
            f"this network gives {', '.join(map(str, shapes))}"
        )
    decoded = []
    for head in heads:
        raw = head[0].double()
        stride = by_side[raw.shape[1]]
        anchors = torch.tensor(_ANCHORS[stride], dtype=raw.dtype)[:, None, None, :]
        rows, columns = torch.meshgrid(torch.arange(raw.shape[1]), torch.arange(raw.shape[2]), indexing="ij")
        cells = torch.stack([columns, rows], dim=-1)[None]
        gates = raw.sigmoid()
        landmarks = raw[..., 5:15] * anchors.repeat(1, 1, 1, 5) + (cells * stride).repeat(1, 1, 1, 5)
        parts = [
            (2 * gates[..., 0:2] - 0.5 + cells) * stride,
            (2 * gates[..., 2:4]).square() * anchors,
            gates[..., 4:5],
            landmarks,
            gates[..., 15:16],
        ]
        decoded.append(torch.cat(parts, dim=-1).reshape(-1, 16))
    return torch.cat(decoded).to(heads[0].dtype)


def select(candidates: Tensor, min_score: float, overlap: float) -> Tensor:
    """The candidates that are faces: scored, thresholded, non-maximum suppressed, best first.

    Shape: (n, 16) as from ``decode_heads`` -> (m, 15): left, top, width, height, score, five landmarks (x,
    y).
    """
    from torchvision.ops import nms

    score = candidates[:, 4] * candidates[:, 15]
    sound = torch.isfinite(candidates).all(dim=1) & (candidates[:, 2:4] > 0).all(dim=1)
    kept = sound & (score >= min_score)
    rows, score = candidates[kept], score[kept].clamp(max=1)
    corner, size = rows[:, 0:2] - rows[:, 2:4] / 2, rows[:, 2:4]
    order = nms(torch.cat([corner, corner + size], dim=1), score, overlap)
    return torch.cat([corner, size, score[:, None], rows[:, 5:15]], dim=1)[order]
