"""What smoothing between the frames of a video brings, and what it costs: calmer answers, later ones.

    python benchmarks/smoothing.py FER2013.zip --json benchmarks/results/smoothing.json

There are no films among the data, so they are made: each shows a picture of the public test for two seconds and then
another for two, 25 frames a second, moved, turned and scaled a little along a smooth path, with noise and
JPEG's losses in every frame. Published weights, every half-life over the same probabilities. With --json,
docs/predict.md says the same.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from sections import write_section

from ferattn.bench.record import environment
from ferattn.data import FER2013, cache
from ferattn.predict import Pretrained, equalise_once, open_pretrained, stack_crops
from ferattn.smoothing import Smoother

HALF_LIVES = (0.0, 0.04, 0.1, 0.2, 0.4)  # the first picture lasts five of the longest: the memory is full then
RATE = 25  # frames a second
CUT = 2 * RATE  # the second picture's first frame
SHIFT, TURN, SCALE = 1.5, 4.0, 0.04  # standard deviations: pixels of 48, degrees, share
NOISE, QUALITY = 6.0, 60  # standard deviation in levels of 255; of JPEG


def path_of_camera(random: np.random.Generator, frames: int) -> NDArray[np.float64]:
    """Four smooth random paths around 0 with a standard deviation of 1, (frames, 4): noise blurred over 0.4 s."""
    window = np.hanning(int(0.8 * RATE) + 2)[1:-1]
    noise = random.standard_normal((4, frames + len(window) - 1))
    return np.stack([np.convolve(row, window / np.linalg.norm(window), mode="valid") for row in noise], 1)


def film(picture: NDArray[np.uint8], random: np.random.Generator) -> list[NDArray[np.uint8]]:
    """Half a film: a picture under a camera that is not still."""
    found = []
    for x, y, turn, scale in path_of_camera(random, CUT):
        matrix = cv2.getRotationMatrix2D((23.5, 23.5), TURN * turn, 1 + SCALE * scale)
        matrix[:, 2] += SHIFT * x, SHIFT * y
        moved = cv2.warpAffine(picture, matrix, (48, 48), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        noisy = (moved + NOISE * random.standard_normal(moved.shape)).round().clip(0, 255).astype(np.uint8)
        _, data = cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        found.append(equalise_once(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)))
    return found


def probabilities(found: Pretrained, crops: list[NDArray[np.uint8]]) -> NDArray[np.float64]:
    """Calibrated, frame by frame, (frames, classes)."""
    with torch.inference_mode():
        parts = [found.model(found.transform(part)) for part in stack_crops(crops).split(100)]
    shares: NDArray[np.float64] = (torch.cat(parts).double() / (found.temperature or 1)).softmax(1).numpy()
    return shares


def smoothed(shares: NDArray[np.float64], half_life: float) -> NDArray[np.int64]:
    """The most probable class of each frame after smoothing."""
    smoother = Smoother(half_life)
    names = [str(row) for row in range(shares.shape[1])]
    rows = [
        list(smoother(0, dict(zip(names, now, strict=True)), index / RATE).values())
        for index, now in enumerate(shares.tolist())
    ]
    return np.array(rows).argmax(1)


def usual(answers: NDArray[np.int64]) -> int:
    """The answer most often given."""
    return int(np.bincount(answers).argmax())


def figures(films: list[NDArray[np.float64]], labels: NDArray[np.int64], half_life: float) -> dict[str, float | None]:
    """Of all films: accuracy over frames, changes of the answer while the picture stays, delay after the cut.

    The delay ends with the first frame whose answer is the one most often given to the second picture frame by frame.
    It is of the films in which that is not the answer to the first picture too, the same ones for every half-life;
    where the answer never comes it is infinite.
    """
    hits: list[NDArray[np.bool_]] = []
    changes, waits = [], []
    for shares, label in zip(films, labels, strict=True):
        answers, alone = smoothed(shares, half_life), shares.argmax(1)
        hits.append(answers[:CUT] == label)
        changes.append(np.mean(answers[1:CUT] != answers[: CUT - 1]) * RATE)
        if usual(alone[:CUT]) != usual(alone[CUT:]):
            reached = np.flatnonzero(answers[CUT:] == usual(alone[CUT:]))
            waits.append(reached[0] / RATE if len(reached) else np.inf)
    ends = np.quantile(waits, [0.5, 0.9], method="higher")
    return {
        "accuracy": float(np.mean(hits)),
        "changes_per_s": float(np.mean(changes)),
        "films_that_change": len(waits),
        "delay_median_s": float(ends[0]),
        "delay_p90_s": float(ends[1]) if np.isfinite(ends[1]) else None,
        "never_within_2_s": float(np.mean(np.isinf(waits))),
    }


def page(report: dict[str, Any]) -> str:
    """The section of docs/predict.md."""
    lines = [
        "| `--smooth`, s | accuracy, % | changes of the answer, 1/s | delay, s | 90 % within, s | never, % |",
        "|--:|--:|--:|--:|--:|--:|",
        *(
            f"| {name} | {100 * row['accuracy']:.1f} | {row['changes_per_s']:.2f} | {row['delay_median_s']:.2f} | "
            f"{'-' if row['delay_p90_s'] is None else format(row['delay_p90_s'], '.2f')} | "
            f"{100 * row['never_within_2_s']:.1f} |"
            for name, row in report["half_life_s"].items()
        ),
        "",
        f"{report['films']:,} films, made: a picture of the public test for two seconds, then another for two, at",
        f"{RATE} frames a second, moved, turned and scaled a little, with noise and JPEG's losses in each frame.",
        "Accuracy and changes are of the first picture, while nothing changes but the camera. The delay is the time",
        "until the usual answer to the second comes, where it is another than the first's, in "
        f"{report['half_life_s']['0']['films_that_change']} films. A recorded face moves otherwise.",
        "`python benchmarks/smoothing.py fer2013.zip --json benchmarks/results/smoothing.json` measured it, with the",
        f"weights `{report['weights']}`.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and print; write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--films", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="of which pictures meet, and of all that moves")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = open_pretrained("cnn_se")
    public = cache(FER2013(asked.data, "public").with_classes(found.classes))
    random = np.random.default_rng(asked.seed)
    pairs = np.stack([random.permutation(len(public))[: asked.films] for _ in range(2)], 1)
    pictures, labels = public.images[:, 0].numpy(), public.labels.numpy()
    films = [probabilities(found, [frame for row in pair for frame in film(pictures[row], random)]) for pair in pairs]
    report = {
        "weights": found.name,
        "films": len(films),
        "seed": asked.seed,
        "frames_per_s": RATE,
        "environment": environment(torch.device("cpu")),
        "half_life_s": {f"{half_life:g}": figures(films, labels[pairs[:, 0]], half_life) for half_life in HALF_LIVES},
    }
    print(json.dumps(report, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        write_section("predict.md", "smoothing", page(report))


if __name__ == "__main__":
    main()
