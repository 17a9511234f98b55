"""Finds the faces in pictures and videos, and says which emotion each shows."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ferattn.data import VIEWS, BatchTransform, is_equalised, views
from ferattn.errors import DetectorFailed, InvalidInput, InvalidOption, choose, is_number, require_whole
from ferattn.faces import Detector, Face, FaceTracker, crop, histogram_equalise, read_picture, read_video
from ferattn.faces.crops import Color, check_crop_options, is_outside
from ferattn.faces.detectors import ask, make_detector
from ferattn.faces.pictures import Channels, Picture
from ferattn.predict.pretrained import Pretrained, open_pretrained
from ferattn.smoothing import Smoother

__all__ = ["EmotionRecognizer", "Frame", "RecognizedFace", "equalise_once", "stack_crops"]


@dataclass(frozen=True)
class RecognizedFace:
    """A face and what the network says of it.

    Attributes:
        face: Where it is, in pixels of the upright picture.
        probabilities: Of each emotion, in the order of the network's outputs; they add up to 1.
        track: In a video a number, the same in each frame in which the face was followed; None in pictures.
    """

    face: Face
    probabilities: Mapping[str, float]
    track: int | None = None

    @property
    def emotion(self) -> str:
        """The most probable one."""
        return max(self.probabilities, key=lambda name: self.probabilities[name])

    @property
    def confidence(self) -> float:
        """Its probability."""
        return self.probabilities[self.emotion]


@dataclass(frozen=True)
class Frame:
    """A frame of a video.

    Attributes:
        index: Its number, from 0.
        seconds: Its time, from the first frame on.
        faces: Who is in it, the largest face first.
        problem: Where the detector failed at it, how.
    """

    index: int
    seconds: float
    faces: list[RecognizedFace]
    problem: str = ""


def equalise_once(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture histogram-equalised, unless it is so already: twice would spread the noise of white areas.

    Shape: (h, w) -> (h, w), uint8.
    """
    return image if is_equalised(torch.from_numpy(image)[None]) else histogram_equalise(image)


def stack_crops(crops: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Crops of one size as images for a transform.

    Shape: (h, w) or (h, w, 3) each -> (n, 1, h, w) or (n, 3, h, w), uint8
    """
    images = torch.from_numpy(np.stack(crops))
    return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)


class EmotionRecognizer:
    """Finds the faces in a picture and says which emotion each shows.

    It computes on the device where the model is, many faces at a time, and leaves the model in evaluation mode.

    Args:
        model: From images to logits.
        transform: From 8-bit images to what the model sees; used without augmentation.
        classes: Names of the model's outputs.
        detector: A name of ``ferattn.faces.DETECTORS``, a detector, or a function; ``"none"`` for pictures that are
            nothing but a face.
        size: Height and width of a crop in pixels.
        channels: 1 for gray crops, 3 for colour.
        margin: Around the face, as a share of its box; see ``ferattn.faces.crop``. The pictures of FER2013 end where
            detectors end a face, hence 0.
        equalise: Equalise the histogram of each crop that is not so already, for weights that learnt from such
            pictures; colour crops turn gray.
        align: Turn each face until its eyes are level, where the detector says where they are.
        temperature: By which logits are divided: 1 for the probabilities as the network has them.
        views: Test-time views over which probabilities are averaged, an entry of ``ferattn.data.VIEWS``.
        batch_size: Faces at a time.

    Raises:
        InvalidOption: If a number is out of range.
        UnknownChoice: If there is no such detector or kind of views.
    """

    def __init__(
        self,
        model: nn.Module,
        transform: BatchTransform,
        classes: Sequence[str],
        *,
        detector: str | Detector | Callable[[NDArray[np.uint8]], Iterable[Any]] = "auto",
        size: int = 48,
        channels: int = 1,
        margin: float = 0.0,
        align: bool = True,
        equalise: bool = False,
        temperature: float = 1.0,
        views: str = "none",
        batch_size: int = 64,
    ) -> None:
        if channels not in (1, 3):
            raise InvalidOption(f"channels={channels!r}: 1 for gray or 3 for colour.")
        if not is_number(temperature) or not 0 < temperature < math.inf:
            raise InvalidOption(f"temperature={temperature!r}: a positive number.")
        require_whole(batch_size, "batch_size", least=1)
        if len(set(classes)) != len(classes):
            raise InvalidOption(f"classes={tuple(classes)!r}: a name of its own for each output.")
        check_crop_options(size=size, margin=margin, color="gray", padding="edge")
        choose(VIEWS, views, "test-time views")
        self.model, self.transform, self.classes = model, transform, tuple(classes)
        self.detector = make_detector(detector)
        self.size, self.channels, self.margin = size, channels, margin
        self.align, self.equalise = align, equalise
        self.temperature, self.views, self.batch_size = float(temperature), views, batch_size

    @classmethod
    def from_pretrained(cls, name: str = "cnn_se", **options: Any) -> EmotionRecognizer:
        """With the published weights of a model, calibrated where they are.

        Args:
            name: See :func:`open_pretrained`.
            options: Those of the class: ``detector``, ``margin``, ``views``, ...

        Raises:
            InvalidOption: If the weights have no classifier of emotions.
        """
        return cls.of(open_pretrained(name), **options)

    @classmethod
    def of(cls, found: Pretrained, **options: Any) -> EmotionRecognizer:
        """With a network and what belongs to it.

        Args:
            found: The network; its size, channels, contrast and temperature hold unless ``options`` says otherwise.
            options: Those of the class.
        """
        about = {
            "size": max(found.size),
            "channels": found.channels,
            "equalise": bool(found.equalised),
            "temperature": found.temperature or 1.0,
        }
        return cls(found.model, found.transform, found.classes, **about | options)

    def __call__(self, picture: Picture, *, channels: Channels | None = None) -> list[RecognizedFace]:
        """The faces in a picture, the largest first; none if there is none.

        Args:
            picture: A path, the bytes of a file, a PIL picture, an array or a tensor; see
                ``ferattn.faces.read_picture``.
            channels: ``"rgb"`` or ``"bgr"`` for a colour array.

        Raises:
            InvalidInput: If the picture cannot be read, or the detector fails at it.
        """
        return next(self.stream([picture], channels=channels))

    def stream(
        self, pictures: Iterable[Picture], *, channels: Channels | None = None
    ) -> Iterator[list[RecognizedFace]]:
        """The faces of each picture, in the pictures' order, classified many at a time.

        Args:
            pictures: As many as you like: no more than a batch of faces is kept.
            channels: ``"rgb"`` or ``"bgr"`` for colour arrays.

        Raises:
            InvalidInput: If a picture cannot be read, or the detector fails at it; what came before has been handed
                out then, as for any error, and the same iterator of pictures goes on behind it.
        """
        waiting: list[list[Face]] = []
        crops: list[NDArray[np.uint8]] = []
        for picture in pictures:
            try:
                found = self.crops(picture, channels=channels)
            except Exception:
                yield from self._finish(waiting, crops)
                raise
            waiting.append([face for face, _ in found])
            crops += [cut for _, cut in found]
            if max(len(crops), len(waiting)) >= self.batch_size:
                yield from self._finish(waiting, crops)
                waiting, crops = [], []
        yield from self._finish(waiting, crops)

    def attempts(
        self, pictures: Iterable[Picture], *, channels: Channels | None = None
    ) -> Iterator[list[RecognizedFace] | DetectorFailed]:
        """As :meth:`stream`, but where the detector fails at a picture its error stands for the faces."""
        left, over = iter(pictures), False
        while not over:
            try:
                yield from self.stream(left, channels=channels)
                over = True
            except DetectorFailed as error:
                yield error

    def crops(self, picture: Picture, *, channels: Channels | None = None) -> list[tuple[Face, NDArray[np.uint8]]]:
        """The faces in a picture or at its edge, the largest first, each as the network is given it.

        Args:
            picture: As when calling.
            channels: ``"rgb"`` or ``"bgr"`` for a colour array.

        Shape: each crop (size, size), or (size, size, 3) in colour

        Raises:
            InvalidInput: If the picture cannot be read, or the detector fails at it.
        """
        image = read_picture(picture, channels=channels)
        inside = (face for face in ask(self.detector, image) if not is_outside(face, *image.shape[1::-1]))
        faces = sorted(inside, key=lambda face: face.area, reverse=True)
        return [(face, self._crop(image, face)) for face in faces]

    def video(self, path: str | Path, *, every: float = 0.0, smooth: float = 0.0) -> Iterator[Frame]:
        """The faces of a video, frame by frame, each with the number of its track (``ferattn.faces.FaceTracker``).

        Args:
            path: Of the file.
            every: Seconds from one frame that is looked at to the next; 0 for every frame.
            smooth: Seconds after which what a face showed counts half: its probabilities are the weighted mean over
                this and the earlier frames of its track. 0 for each frame by itself.

        Raises:
            InvalidInput: If the video cannot be read; it warns of one that ends early.
            InvalidOption: If ``every`` or ``smooth`` is negative.
            MissingDependency: If OpenCV or SciPy is not installed.
        """
        tracker, memory = FaceTracker(), Smoother(smooth)
        times: deque[tuple[int, float]] = deque()

        def frames() -> Iterator[NDArray[np.uint8]]:
            for index, seconds, image in read_video(path, every=every):
                times.append((index, seconds))
                yield image

        # attempts() reads on before it hands out: the times of what it has handed out are the first that wait.
        for faces in self.attempts(frames(), channels="bgr"):
            index, seconds = times.popleft()
            if isinstance(faces, DetectorFailed):
                yield Frame(index, seconds, [], str(faces))
                continue
            tracks = tracker([face.face for face in faces], seconds)
            yield Frame(index, seconds, [
                RecognizedFace(face.face, memory(track, face.probabilities, seconds), track)
                for track, face in zip(tracks, faces, strict=True)
            ])  # fmt: skip

    def _crop(self, image: NDArray[np.uint8], face: Face) -> NDArray[np.uint8]:
        color: Color = "gray" if self.channels == 1 or self.equalise else "rgb"
        cut = crop(image, face, self.size, margin=self.margin, align=self.align, color=color, channels="rgb")
        if not self.equalise:
            return cut
        cut = equalise_once(cut)
        return cut if self.channels == 1 else np.repeat(cut[..., None], 3, axis=2)

    def _finish(self, waiting: list[list[Face]], crops: list[NDArray[np.uint8]]) -> Iterator[list[RecognizedFace]]:
        rows = iter([row for start in range(0, len(crops), self.batch_size)
                     for row in self._classify(crops[start : start + self.batch_size])])  # fmt: skip
        for faces in waiting:
            yield [RecognizedFace(face, dict(zip(self.classes, next(rows), strict=True))) for face in faces]

    def _classify(self, crops: list[NDArray[np.uint8]]) -> list[list[float]]:
        parameter = next(self.model.parameters(), None)
        device = torch.device("cpu") if parameter is None else parameter.device
        self.model.eval()
        self.transform.eval().to(device)
        with torch.inference_mode():
            stack = views(stack_crops(crops).to(device), self.views)
            images = self.transform(stack.flatten(0, 1))
            images = images if parameter is None else images.to(parameter.dtype)
            logits = self.model(images).double().unflatten(0, stack.shape[:2])
            if logits.shape[2:] != (len(self.classes),):
                raise InvalidInput(f"the model has {logits.shape[-1]} outputs for {len(self.classes)} classes.")
            rows: list[list[float]] = (logits / self.temperature).softmax(-1).mean(1).tolist()
        return rows
