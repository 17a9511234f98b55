"""A folder or zip of pictures in, a folder of face crops out.

The folders below the input are kept, so class folders stay class folders, and CK+'s files with labels are copied.
Every file of the input has a line in ``crop_report.csv``: kept or dropped, and why. A run can be killed at any moment
and taken up by the same call; two at once are refused.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ferattn.errors import DetectorFailed, FerattnError, InvalidInput, InvalidOption, choose
from ferattn.faces.crops import Color, Padding, check_crop_options, crop
from ferattn.faces.detectors import SEVERAL, Several, ask, best_available, make_detector, pick
from ferattn.faces.face import Detector, Face
from ferattn.faces.illumination import GRAY_ONLY, ILLUMINATION, illuminate
from ferattn.faces.journal import LOCK, Journal, Row, claim
from ferattn.faces.pictures import png_bytes, read_picture
from ferattn.faces.sources import FolderSource, Item, Source, keep_apart, open_source
from ferattn.files import alone, write_atomically

__all__ = ["CropSummary", "NoFace", "crop_folder"]

NoFace = Literal["drop", "whole"]
_NO_FACE = {"drop": False, "whole": True}  # keep the picture?
_FAILED = "detector failed"
_LABELS = re.compile(r".*_emotion\.txt", re.IGNORECASE)
"""Files that are no pictures, and without which the pictures have no labels: CK+'s."""


@dataclass(frozen=True)
class CropSummary:
    """What a run did.

    Args:
        detector: Name of the detector.
        kept: Pictures with a crop, those of earlier runs included.
        copied: Files with labels that were taken over as they are.
        dropped: Number of files without a crop, by reason.
        with_face: Pictures in which at least one face was found.
        readable: Pictures that were looked at.
        resumed: Files done by an earlier run.
        seconds: Duration of this run.
        report: Path of the report.
    """

    detector: str
    kept: int
    copied: int
    dropped: Mapping[str, int]
    with_face: int
    readable: int
    resumed: int
    seconds: float
    report: Path

    @property
    def found_share(self) -> float:
        """Share of the readable pictures in which a face was found; NaN if there was none to read."""
        return self.with_face / self.readable if self.readable else float("nan")


@dataclass(frozen=True)
class _Cutter:
    """Turns one item into a row and a file; the same for every thread."""

    source: Source
    folder: Path
    crop_options: Mapping[str, Any]
    illumination: tuple[str, ...]
    several: Several
    keep_whole: bool

    def __call__(self, item: Item, output: str, detector: Detector) -> Row:
        try:
            image = read_picture(self.source.read(item.name))
        except InvalidInput as error:
            return Row(item.name, reason="unreadable", detail=str(error), stamp=item.stamp)
        try:
            faces = ask(detector, image)
        except DetectorFailed as error:
            return Row(item.name, reason=_FAILED, detail=str(error), stamp=item.stamp)
        face, reason = pick(faces, self.several), ""
        if face is None and faces:
            return Row(item.name, reason="several faces", faces=str(len(faces)), stamp=item.stamp)
        if face is None:
            if not self.keep_whole:
                return Row(item.name, reason="no face", faces="0", stamp=item.stamp)
            # A face that is the whole picture already has no margin to add and nothing to level.
            face, reason = Face((0, 0, image.shape[1], image.shape[0])), "whole picture"
        options = {**self.crop_options, **({"margin": 0.0} if reason else {})}
        cut = illuminate(crop(image, face, channels="rgb", **options), self.illumination)
        write_atomically(self._target(output), png_bytes(cut), durable=False)
        score = "" if face.score is None else f"{face.score:.4f}"
        x, y, width, height = (f"{value:.2f}" for value in face.box)
        return Row(
            item.name,
            output,
            "kept",
            reason,
            faces=str(len(faces)),
            score=score,
            x=x,
            y=y,
            width=width,
            height=height,
            stamp=item.stamp,
        )

    def copy(self, item: Item) -> Row:
        """Take over a file with labels as it is."""
        try:
            content = self.source.read(item.name)
        except InvalidInput as error:
            return Row(item.name, reason="unreadable", detail=str(error))
        write_atomically(self._target(item.name), content, durable=False)
        return Row(item.name, item.name, "copied", "labels")

    def _target(self, output: str) -> Path:
        target = self.folder / output
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.parent.resolve().is_relative_to(self.folder.resolve()):
            raise InvalidOption(f"{str(target.parent)!r} is a link that leads out of the output folder")
        return target


def crop_folder(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    detector: str | Detector | Callable[[NDArray[np.uint8]], Iterable[Any]] = "auto",
    detector_options: Mapping[str, Any] | None = None,
    size: int = 80,
    margin: float = 0.1,
    square: bool = True,
    align: bool = True,
    color: Color = "gray",
    padding: Padding = "edge",
    illumination: Iterable[str] = (),
    several: Several = "largest",
    no_face: NoFace = "drop",
    workers: int | None = None,
    on_start: Callable[[str, int], None] | None = None,
    on_done: Callable[[str], None] | None = None,
) -> CropSummary:
    """Cut the faces out of all pictures of a folder or zip.

    Args:
        source: A folder, searched with its subfolders, or a zip.
        destination: An empty or new folder, or the output of the same call before: what it did is not done
            again.
        detector: A name of ``DETECTORS``, a detector or a function. A name is built once per worker; an
            object is shared, and called by one worker at a time.
        detector_options: Options of the named detector.
        size: As in ``crop``, like ``margin``, ``square``, ``align``, ``color`` and ``padding``.
        margin: See ``crop``.
        square: See ``crop``.
        align: See ``crop``.
        color: See ``crop``.
        padding: See ``crop``.
        illumination: Steps of ``ILLUMINATION``, applied to the crop one after the other.
        several: What to do with several faces; see ``pick``.
        no_face: What to do without one: ``"drop"`` the picture, or take the ``"whole"`` picture.
        workers: Number of threads; None for one per processor.
        on_start: Called once with the detector's description and the number of files still to do.
        on_done: Called after each file with its status or the reason for which it was dropped.

    Raises:
        InvalidInput: If there is no folder or zip, or no picture in it.
        InvalidOption: If an option is impossible, or the output lies inside the input or belongs to something
            else.
        UnknownChoice: If an option is none of its table's.
    """
    started = time.monotonic()
    steps = tuple(illumination)
    _check_options(size, margin, color, padding, steps, several, no_face, workers)
    root, folder = Path(source), Path(destination)
    keep_apart(root, folder)
    crop_options = {
        "size": size,
        "margin": margin,
        "square": square,
        "align": align,
        "color": color,
        "padding": padding,
    }
    with open_source(root) as opened:
        if isinstance(opened, FolderSource):
            opened.avoid = folder.resolve()
        items = opened.items()
        if not any(not item.problem for item in items):
            raise InvalidInput(f"there is no picture in {str(root)!r} ({len(items)} other files)")
        if detector == "auto" and not detector_options:
            detector = best_available()  # once, and not again in every thread
        first = make_detector(detector, **(detector_options or {}))
        settings = {
            **crop_options,
            "detector": repr(first),
            "illumination": list(steps),
            "input": os.fsdecode(root.resolve()).encode(errors="surrogateescape").decode(errors="replace"),
            "no_face": no_face,
            "several": several,
        }
        claim(folder, settings)
        with alone(folder, LOCK):
            claim(folder, settings)  # again: another run may have been quicker
            journal = Journal(folder)
            outputs = _outputs(items)
            todo = [item for item in items if not _is_done(item, outputs, journal, folder)]
            cutter = _Cutter(opened, folder, crop_options, steps, several, _NO_FACE[no_face])
            if on_start is not None:
                on_start(repr(first), len(todo))
            build = _one_each(first, detector, detector_options or {})
            _run(cutter, todo, outputs, build, journal, workers or os.cpu_count() or 1, on_done)
            report = journal.finish({item.name for item in items})
    rows = [journal.rows[item.name] for item in items]
    return CropSummary(
        detector=first.name,
        kept=sum(row.status == "kept" for row in rows),
        copied=sum(row.status == "copied" for row in rows),
        dropped=Counter(row.reason for row in rows if row.status == "dropped"),
        with_face=sum(row.faces not in ("", "0") for row in rows),
        readable=sum(row.faces != "" for row in rows),
        resumed=len(items) - len(todo),
        seconds=time.monotonic() - started,
        report=report,
    )


def _check_options(
    size: int,
    margin: float,
    color: str,
    padding: str,
    steps: tuple[str, ...],
    several: str,
    no_face: str,
    workers: int | None,
) -> None:
    check_crop_options(size=size, margin=margin, color=color, padding=padding)
    for step in steps:
        choose(ILLUMINATION, step, "illumination")
    for step in GRAY_ONLY.intersection(steps):
        if color != "gray":
            raise InvalidOption(f"illumination {step!r} needs color='gray'; got {color!r}")
    choose(SEVERAL, several, "several")
    choose(_NO_FACE, no_face, "no_face")
    if workers is not None and workers < 1:
        raise InvalidOption(f"workers is at least 1; got {workers}")


def _outputs(items: Iterable[Item]) -> dict[str, str]:
    """The crop's name of each usable item: its own with .png, or with .png added where two would clash."""
    usable = [item.name for item in items if not item.problem]
    # Folded, because a.JPG and A.png are one file on Windows and macOS.
    taken = Counter(str(PurePosixPath(name).with_suffix("")).casefold() for name in usable)
    names: dict[str, str] = {}
    used: set[str] = set()
    for name in usable:
        bare = str(PurePosixPath(name).with_suffix(""))
        output = f"{bare}.png" if taken[bare.casefold()] == 1 else f"{name}.png"
        number = 2
        while output.casefold() in used:  # a.jpg beside a.png takes a.jpg.png, which may be a picture too
            output, number = f"{name}-{number}.png", number + 1
        used.add(output.casefold())
        names[name] = output
    return names


def _is_done(item: Item, outputs: Mapping[str, str], journal: Journal, folder: Path) -> bool:
    row = journal.rows.get(item.name)
    if row is None or item.problem or row.stamp != item.stamp:
        return False
    if row.reason == _FAILED:  # perhaps not again
        return False
    return row.status == "dropped" or (row.output == outputs[item.name] and (folder / row.output).is_file())


def _one_each(first: Detector, detector: Any, options: Mapping[str, Any]) -> Callable[[], Detector]:
    """Builds the detector of a thread: OpenCV's and scikit-image's keep state while they work."""
    if not isinstance(detector, str):
        lock = threading.Lock()
        return lambda: _Shared(first, lock)
    spare = [first]
    lock = threading.Lock()

    def build() -> Detector:
        with lock:
            return spare.pop() if spare else make_detector(detector, **options)

    return build


@dataclass(frozen=True)
class _Shared:
    """A detector that several threads use in turn."""

    detector: Detector
    lock: threading.Lock

    @property
    def name(self) -> str:
        return self.detector.name

    def __call__(self, image: NDArray[np.uint8]) -> list[Face]:
        with self.lock:
            return self.detector(image)


def _run(
    cutter: _Cutter,
    todo: list[Item],
    outputs: Mapping[str, str],
    build: Callable[[], Detector],
    journal: Journal,
    workers: int,
    on_done: Callable[[str], None] | None,
) -> None:
    own = threading.local()

    def one(item: Item) -> Row:
        if item.problem == "not a picture" and item.detail.startswith("suffix") and _LABELS.fullmatch(item.name):
            return cutter.copy(item)
        if item.problem:
            return Row(item.name, reason=item.problem, detail=item.detail)
        if not hasattr(own, "detector"):
            own.detector = build()
        try:
            return cutter(item, outputs[item.name], own.detector)
        except FerattnError as error:
            # An impossible option, or a user's detector that returned nonsense: say for which picture.
            raise type(error)(f"{item.name}: {error}") from error

    journal.start()
    with _one_thread_each():
        _work(one, todo, journal, workers, on_done)


def _work(
    one: Callable[[Item], Row],
    todo: list[Item],
    journal: Journal,
    workers: int,
    on_done: Callable[[str], None] | None,
) -> None:
    executor = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="ferattn-crop")
    try:
        for future in as_completed([executor.submit(one, item) for item in todo]):
            row = future.result()
            journal.add(row)
            if on_done is not None:
                on_done(row.reason if row.status == "dropped" else row.status)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
        journal.close()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let PyTorch and OpenCV work in the calling thread alone: pictures are what runs in parallel here.

    Waking their own threads for pictures this small is slower than the work, ten times so on a busy machine.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    cv2 = sys.modules.get("cv2")  # loaded by now if any detector uses it
    opencv_before = cv2.getNumThreads() if cv2 is not None else 0
    if cv2 is not None:
        cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if cv2 is not None:
            cv2.setNumThreads(opencv_before)
