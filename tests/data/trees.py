"""Synthetic datasets with the real naming: noise instead of faces."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ferattn.data import CachedDataset, Records

FER_FOLDERS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
CSV_ORDER = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
USAGES = ("Training", "PublicTest", "PrivateTest")


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def fer_rows(per_cell: int = 2) -> list[tuple[int, str, np.ndarray]]:
    """(emotion, usage, pixels) with one more image in training cells."""
    rows = []
    for usage in USAGES:
        for label in range(7):
            for _ in range(per_cell + (usage == "Training")):
                rows.append((label, usage, noise(len(rows), 48, 48)))
    return rows


def csv_text(rows: list[tuple[int, str, np.ndarray]], header: str = "emotion,pixels,Usage") -> str:
    lines = [header]
    for label, usage, pixels in rows:
        text = " ".join(map(str, pixels.ravel()))
        cells = {"emotion": str(label), "pixels": text, "usage": usage}
        lines.append(",".join(cells[column.strip().lower()] for column in header.split(",")))
    return "\n".join(lines) + "\n"


def fer_tree(root: Path, rows: list[tuple[int, str, np.ndarray]] | None = None) -> Path:
    for number, (label, usage, pixels) in enumerate(rows or fer_rows()):
        split = "train" if usage == "Training" else "test"
        write(root / split / CSV_ORDER[label] / f"{usage}_{1000 + number}.png", png(pixels))
    return root


def ck48_tree(root: Path, subjects: int = 12, seed: int = 0) -> Path:
    generator = np.random.default_rng(seed)
    folders = ("anger", "contempt", "disgust", "fear", "happy", "sadness", "surprise")
    for subject in range(subjects):
        for sequence in range(int(generator.integers(1, 5))):
            emotion = folders[int(generator.integers(7))]
            last = int(generator.integers(10, 30))
            for frame in range(last - 2, last + 1):
                name = f"S{10 + subject:03d}_{sequence + 1:03d}_{frame:08d}.png"
                write(root / emotion / name, png(noise(hash((subject, sequence, frame)) % 2**32, 48, 48)))
    return root


def ck_original_tree(root: Path) -> Path:
    """Three sequences of six frames; two have an emotion: 3 (disgust) and 7 (surprise)."""
    for subject, sequence, code in (("S005", "001", 3), ("S010", "004", 7), ("S010", "005", None)):
        for frame in range(1, 7):
            name = f"{subject}_{sequence}_{frame:08d}.png"
            write(root / "cohn-kanade-images" / subject / sequence / name, png(noise(frame, 49, 64)))
        if code is not None:
            text = f"   {code:.7e}\n"
            path = root / "Emotion" / subject / sequence / f"{subject}_{sequence}_00000006_emotion.txt"
            write(path, text.encode())
    return root


def jaffe_tree(root: Path) -> Path:
    number = 1
    for subject in ("KA", "KL", "KM", "KR", "MK", "NA", "NM", "TM", "UY", "YM"):
        for code in ("AN", "DI", "FE", "HA", "NE", "SA", "SU"):
            buffer = io.BytesIO()
            Image.fromarray(noise(number, 64, 64)).save(buffer, format="TIFF")
            write(root / f"{subject}.{code}1.{number}.tiff", buffer.getvalue())
            number += 1
    return root


def zipped(folder: Path, target: Path, top: str = "") -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, f"{top}{path.relative_to(folder)}")
    return target


def toy(n: int = 40, *, classes: int = 4, side: int = 12, channels: int = 1, subjects: int = 0) -> CachedDataset:
    """A cached dataset of noise."""
    generator = np.random.default_rng(0)
    records = Records(
        ids=tuple(f"image-{row:04d}" for row in range(n)),
        labels=generator.integers(0, classes, n),
        classes=tuple(f"class-{label}" for label in range(classes)),
        subjects=tuple(f"P{row % subjects:02d}" for row in range(n)) if subjects else None,
    )
    return CachedDataset("toy", records, torch.from_numpy(noise(1, n, channels, side, side)))
