"""From pictures to emotions: faces, crops, probabilities, videos."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from skimage.data import astronaut
from torch import Tensor, nn

from ferattn.data import AUGMENTATIONS, BatchTransform
from ferattn.errors import InvalidInput, InvalidOption, UnknownChoice
from ferattn.faces import Face, crop, histogram_equalise
from ferattn.predict import EmotionRecognizer, equalise_once, open_pretrained
from ferattn.shipped import SHIPPED
from ferattn.smoothing import Smoother

CLASSES = ("dark", "bright")
PICTURE = np.zeros((40, 60, 3), np.uint8)
PICTURE[5:15, 5:15] = 200  # a bright face of 10 pixels, and a dark one of 20 beside it
BOXES = [(5, 5, 10, 10, 0.9), (30, 10, 20, 20, 0.8)]


class Brightness(nn.Module):
    """Logits from the mean of each picture; remembers what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(4.0))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        self.seen.append(x)
        mean = x.mean((1, 2, 3)) - 0.5
        return self.gain * torch.stack([-mean, mean], 1)


def recognizer(**options: Any) -> EmotionRecognizer:
    options = {"detector": lambda image: BOXES, "size": 8} | options
    return EmotionRecognizer(Brightness().train(), BatchTransform(AUGMENTATIONS["none"]), CLASSES, **options)


def test_faces_come_largest_first_with_their_probabilities() -> None:
    large, small = recognizer()(PICTURE, channels="rgb")
    assert (large.face.area, small.face.area) == (400, 100)
    assert (large.emotion, small.emotion) == ("dark", "bright")
    assert small.confidence == pytest.approx(float(torch.tensor(8 * (200 / 255 - 0.5)).sigmoid()), abs=1e-3)
    assert list(small.probabilities) == list(CLASSES)
    assert sum(small.probabilities.values()) == pytest.approx(1)
    assert recognizer(detector=lambda image: [])(PICTURE, channels="rgb") == []


def test_the_network_sees_the_crop() -> None:
    found = recognizer(margin=0.2, detector=lambda image: BOXES[:1])
    found(PICTURE, channels="rgb")
    wanted = crop(PICTURE, Face(BOXES[0][:4]), 8, margin=0.2, channels="rgb")
    assert torch.allclose(found.model.seen[0][0, 0], torch.from_numpy(wanted) / 255)
    colour = recognizer(channels=3, size=9)
    colour(PICTURE, channels="rgb")
    assert colour.model.seen[0].shape == (2, 3, 9, 9)


def test_eyes_are_levelled_and_histograms_equalised_where_asked_for() -> None:
    picture = astronaut()
    tilted = Face((178, 65, 91, 111), 0.9, ((200, 105), (245, 125), (222, 130), (205, 150), (240, 155)))
    seen = []
    for options in ({}, {"align": False}, {"equalise": True}):
        found = recognizer(detector=lambda image: [tilted], size=48, **options)
        found(picture, channels="rgb")
        seen.append((found.model.seen[0][0, 0] * 255).round().byte().numpy())
    assert np.array_equal(seen[0], crop(picture, tilted, 48, margin=0, channels="rgb"))
    assert np.array_equal(seen[1], crop(picture, tilted, 48, margin=0, align=False, channels="rgb"))
    assert np.array_equal(seen[2], histogram_equalise(seen[0]))
    assert not np.array_equal(seen[0], seen[1])
    flat = np.arange(2304, dtype=np.uint16).reshape(48, 48) // 9
    recoded = cv2.imdecode(cv2.imencode(".jpg", np.minimum(2 * flat, 255).astype(np.uint8))[1], cv2.IMREAD_GRAYSCALE)
    once = histogram_equalise(recoded)
    assert equalise_once(once) is once  # and no second time
    assert np.array_equal(equalise_once(recoded // 2), histogram_equalise(recoded // 2))


def test_temperature_and_views_change_the_probabilities() -> None:
    plain, cool = (recognizer(temperature=t)(PICTURE, channels="rgb")[1] for t in (1, 4))
    odds = [np.log(face.probabilities["bright"] / face.probabilities["dark"]) for face in (plain, cool)]
    assert odds[0] == pytest.approx(4 * odds[1])
    crops = recognizer(views="ten-crop", temperature=0.05)
    found = crops(PICTURE, channels="rgb")[1].probabilities["bright"]
    mean = crops.model.seen[0].mean((1, 2, 3)) - 0.5
    each = (8 * mean.double() / 0.05).sigmoid().unflatten(0, (2, 10))[1]
    assert found == pytest.approx(float(each.mean()), abs=1e-6)  # probabilities are averaged, not logits


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_stream_keeps_the_order_and_never_more_than_a_batch(batch_size: int) -> None:
    rng = np.random.default_rng(0)
    counts = [2, 0, 0, 1, 3, 0, 2]
    boxes = iter([[(i, 0, 5 + i, 5, 0.5) for i in range(count)] for count in counts])
    found = recognizer(detector=lambda image: next(boxes), batch_size=batch_size)
    drawn = []

    def pictures() -> Iterator[np.ndarray]:
        for _ in counts:
            drawn.append(rng.integers(0, 255, (20, 20), dtype=np.uint8))
            yield drawn[-1]

    ahead = []
    for number, faces in enumerate(found.stream(pictures())):
        assert len(faces) == counts[number]
        ahead.append(len(drawn) - number)
    assert max(ahead) <= batch_size + 1
    assert max(len(batch) for batch in found.model.seen) <= batch_size
    assert sum(len(batch) for batch in found.model.seen) == sum(counts)


@pytest.mark.parametrize("broken", ["picture", "channels", "detector"])
def test_a_stream_hands_out_what_came_before_an_error(broken: str) -> None:
    second = {"picture": b"no picture", "channels": PICTURE, "detector": PICTURE[:30, :30, 0]}[broken]
    found = recognizer(detector=lambda image: [(1, 1, 9, 9)] if len(image) > 30 else [(1, 1, -9, 9)])
    faces = found.stream([PICTURE[..., 0], second])
    assert len(next(faces)) == 1
    with pytest.raises((InvalidInput, InvalidOption), match=r"cannot read|channels=|-9"):
        next(faces)


def test_a_face_outside_the_picture_is_none() -> None:
    boxes = [(60, 5, 5, 5), (5, 40, 5, 5), (-5, 5, 5, 5), (5, -5, 5, 5), (-2, -2, 5, 5), (58, 38, 5, 5)]
    found = recognizer(detector=lambda image: boxes)(PICTURE, channels="rgb")
    assert sorted(face.face.box for face in found) == boxes[4:]


def test_numbers_of_numpy_are_numbers() -> None:
    found = recognizer(temperature=np.float32(2), size=np.int64(8))
    assert json.dumps(found.temperature) == "2.0"
    assert found(PICTURE, channels="rgb") == recognizer(temperature=2)(PICTURE, channels="rgb")
    assert Smoother(np.float64(0.5)).half_life == 0.5


def test_a_network_without_weights_of_its_own_will_do() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.mean((1, 2, 3)), x.amax((1, 2, 3))], 1)

    found = EmotionRecognizer(Fixed(), BatchTransform(AUGMENTATIONS["none"]), CLASSES, detector="none")
    assert found(PICTURE, channels="rgb")[0].emotion == "bright"


def test_gray_weights_in_colour_see_three_equalised_channels() -> None:
    found = recognizer(channels=3, equalise=True, size=9)
    found(PICTURE, channels="rgb")
    seen = found.model.seen[0]
    assert seen.shape == (2, 3, 9, 9)
    assert torch.equal(seen[:, 0], seen[:, 2])


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Two seconds at 10 frames a second: dark, then bright."""
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for number in range(20):
        writer.write(np.full((48, 64, 3), 30 if number < 10 else 220, np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize(
    ("every", "seen"),
    [(0.0, list(range(20))), (1e-9, list(range(20))), (0.5, [0, 5, 10, 15]), (0.25, [0, 3, 5, 8, 10, 13, 15, 18])],
)
def test_a_video_frame_by_frame(film: Path, every: float, seen: list[int]) -> None:
    frames = list(recognizer(detector="none", batch_size=3).video(film, every=every))
    assert [frame.index for frame in frames] == seen
    assert [frame.seconds for frame in frames] == pytest.approx([index / 10 for index in seen])
    assert [frame.faces[0].emotion for frame in frames] == ["dark" if index < 10 else "bright" for index in seen]


def test_faces_of_a_video_are_followed_and_smoothed(film: Path) -> None:
    def find(image: np.ndarray) -> list[tuple[float, ...]]:
        """A face that stays, and from the bright half on a larger one beside it."""
        return [(4, 4, 20, 20, 0.9), *([(30, 4, 30, 30, 0.9)] if image.mean() > 100 else [])]

    frames = list(recognizer(detector=find).video(film, every=0.5))
    assert [[face.track for face in frame.faces] for frame in frames] == [[0], [0], [1, 0], [1, 0]]
    calm = list(recognizer(detector=find).video(film, every=0.5, smooth=1.0))
    mixed = [frame.faces[-1].probabilities["bright"] for frame in calm]
    each = [frame.faces[-1].probabilities["bright"] for frame in frames]
    weights = [2**-0.5, 1]  # of the frame before, and of this one
    assert mixed[0] == each[0]
    assert mixed[1] == pytest.approx(np.average(each[:2], weights=weights))
    assert mixed[2] == pytest.approx(np.average(each[:3], weights=[0.5, *weights]))
    assert calm[2].faces[0].probabilities == frames[2].faces[0].probabilities  # who has just come
    assert recognizer(detector=find)(PICTURE, channels="rgb")[0].track is None


class Film:
    """A video whose frames come at other times, and of which some are missing."""

    usual = cv2.VideoCapture
    times: list[float]

    def __init__(self, path: str) -> None:
        self.film, self.index = self.usual(path), -1

    def grab(self) -> bool:
        self.index += 1
        return self.index < len(self.times) and self.film.grab()

    def get(self, what: int) -> float:
        return self.times[self.index] if what == cv2.CAP_PROP_POS_MSEC else self.film.get(what)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.film, name)


def test_a_frame_at_which_the_detector_fails_is_one_frame(film: Path) -> None:
    usual = list(recognizer(detector="none", batch_size=3).video(film))
    calls = []

    def shaky(image: np.ndarray) -> list[tuple[float, ...]]:
        calls.append(1)
        if len(calls) in (1, 5, 6):
            raise RuntimeError("out of order")
        return [(0.0, 0.0, float(image.shape[1]), float(image.shape[0]))]

    frames = list(recognizer(detector=shaky, batch_size=3).video(film))
    failed = [index for index, frame in enumerate(frames) if frame.problem]
    assert failed == [0, 4, 5]
    assert frames[4].problem.endswith("failed: RuntimeError: out of order")
    assert [(frame.index, frame.seconds) for frame in frames] == [(frame.index, frame.seconds) for frame in usual]
    for frame, other in zip(frames, usual, strict=True):
        seen = [face.emotion for face in frame.faces]
        assert seen == ([] if frame.problem else [face.emotion for face in other.faces])


def test_frames_have_the_times_that_the_file_gives(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ten_a_second, one_a_second = [40 + 100.0 * i for i in range(10)], [40 + 1000.0 * i for i in range(2, 12)]
    monkeypatch.setattr(Film, "times", ten_a_second + one_a_second, raising=False)
    monkeypatch.setattr(cv2, "VideoCapture", Film)
    frames = list(recognizer(detector="none").video(film, every=2))
    wanted = [(0, 0), (10, 2), (12, 4), (14, 6), (16, 8), (18, 10)]
    assert [(frame.index, round(frame.seconds, 3)) for frame in frames] == wanted
    monkeypatch.setattr(Film, "times", [0.0] * 20)  # a file without times: the usual rate
    frames = list(recognizer(detector="none").video(film))
    assert [frame.seconds for frame in frames] == pytest.approx([index / 10 for index in range(20)])


def test_a_video_that_ends_early_is_told(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Film, "times", [0.0] * 11, raising=False)
    monkeypatch.setattr(cv2, "VideoCapture", Film)
    with pytest.warns(UserWarning, match="11 of 20 frames"):
        assert len(list(recognizer(detector="none").video(film))) == 11


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no video"):
        next(recognizer().video(tmp_path / "no.avi"))
    (tmp_path / "bad.avi").write_bytes(b"no film")
    with pytest.raises(InvalidInput, match="as a video"):
        next(recognizer().video(tmp_path / "bad.avi"))
    with pytest.raises(InvalidOption, match="every"):
        next(recognizer().video(tmp_path / "no.avi", every=-1))
    with pytest.raises(InvalidOption, match="half-life of -1"):
        next(recognizer().video(tmp_path / "no.avi", smooth=-1))
    for options, error, said in (
        ({"channels": 2}, InvalidOption, "channels=2"),
        ({"temperature": 0}, InvalidOption, "temperature"),
        ({"batch_size": 0}, InvalidOption, "batch_size"),
        ({"batch_size": 1.5}, InvalidOption, "batch_size"),
        ({"temperature": "1"}, InvalidOption, "temperature"),
        ({"temperature": True}, InvalidOption, "temperature"),
        ({"size": 0}, InvalidOption, "size"),
        ({"size": 48.5}, InvalidOption, "size"),
        ({"size": (48, 48)}, InvalidOption, "size"),
        ({"margin": -1}, InvalidOption, "margin"),
        ({"temperature": float("inf")}, InvalidOption, "temperature"),
        ({"views": "five"}, UnknownChoice, "ten-crop"),
        ({"detector": "yunett"}, UnknownChoice, "yunet"),
    ):
        with pytest.raises(error, match=said):
            recognizer(**options)
    with pytest.raises(UnknownChoice, match="did you mean"):
        open_pretrained("cnn_sse")
    for other in ("cnn_eca", "resnet18", "ferattn_resnet18.a1_in1k"):  # nothing is downloaded to find that out
        with pytest.raises(InvalidOption, match=r"no weights that classify .* with it\. Options: cnn_se"):
            open_pretrained(other)
    with pytest.raises(InvalidOption, match="not a folder of weights that `ferattn ship` wrote"):
        open_pretrained(f"local-dir:{tmp_path}")
    with pytest.raises(InvalidOption, match="a name of its own for each output"):
        EmotionRecognizer(Brightness(), BatchTransform(AUGMENTATIONS["none"]), ["happy", "happy"], detector="none")
    outputs = EmotionRecognizer(Brightness(), BatchTransform(AUGMENTATIONS["none"]), "abc", detector="none")
    with pytest.raises(InvalidInput, match="2 outputs for 3 classes"):
        outputs(PICTURE, channels="rgb")


def test_a_folder_of_weights_is_what_its_model_is() -> None:
    named, opened = open_pretrained("cnn_se"), open_pretrained(f"local-dir:{Path(str(SHIPPED)) / 'cnn_se'}")
    images = torch.rand(3, 1, 48, 48)
    assert torch.equal(opened.model(images), named.model(images))
    for about in ("classes", "temperature", "size", "channels", "name", "equalised"):
        assert getattr(opened, about) == getattr(named, about)
    assert repr(opened.transform) == repr(named.transform)


def test_the_published_weights_know_a_smile(yunet_onnx: Path) -> None:
    from ferattn.faces import make_detector

    [face] = EmotionRecognizer.from_pretrained(detector=make_detector("yunet", weights=yunet_onnx))(
        astronaut(), channels="rgb"
    )
    assert face.emotion == "happy"
    assert face.confidence > 0.7
    assert face.face.box == pytest.approx((178, 65, 91, 111), abs=2)
