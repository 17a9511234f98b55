"""What a photograph has to go through before weights trained on FER2013 know it: framing and contrast.

    python benchmarks/photographs.py FER2013.zip YUNET.onnx --json benchmarks/results/photographs.json

How large a detector's box is beside FER2013's pictures, and the accuracy of the published weights on the public test
as it comes, cut out anew around the detected faces, and darker, brighter and flatter, with and without histogram
equalisation. With --json, docs/predict.md says the same.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sections import write_section

from ferattn.data import FER2013, cache, equalised_share
from ferattn.faces import Face, crop, make_detector, pick
from ferattn.predict import Pretrained, equalise_once, open_pretrained

CHANGES = {
    "as it comes": lambda x: x,
    "darker: gamma 2": lambda x: 255 * (x / 255) ** 2,
    "brighter: gamma 0.5": lambda x: 255 * (x / 255) ** 0.5,
    "half the contrast": lambda x: 64 + x / 2,
    "a quarter of the contrast, dark": lambda x: 10 + x / 4,
}
MARGINS = (-0.1, 0.0, 0.1, 0.2)


def accuracy(found: Pretrained, pictures: list[NDArray[np.uint8]], labels: torch.Tensor) -> float:
    """Share of pictures that the weights know."""
    images = torch.from_numpy(np.stack(pictures))[:, None]
    with torch.inference_mode():
        answers = torch.cat([found.model(found.transform(part)).argmax(1) for part in images.split(100)])
    return float((answers == labels).double().mean())


def boxes(pictures: list[NDArray[np.uint8]], detector: Any) -> list[Face | None]:
    """The largest face of each picture."""
    return [pick(detector(np.repeat(picture[..., None], 3, axis=2))) for picture in pictures]


def shares(faces: list[Face | None], side: int) -> dict[str, Any]:
    """Sizes and places of faces as shares of the picture's side."""
    rows = np.array([(max(f.box[2:]), f.box[0] + f.box[2] / 2, f.box[1] + f.box[3] / 2) for f in faces if f]) / side
    names = ("longer side", "centre x", "centre y")
    quartiles = np.percentile(rows, [25, 50, 75], axis=0)
    return {
        "found": len(rows),
        "of": len(faces),
        **{name: quartiles[:, i].round(3).tolist() for i, name in enumerate(names)},
    }


def page(report: dict[str, Any]) -> str:
    """The section of docs/predict.md."""
    framing, contrast = report["accuracy_by_framing"], report["accuracy_by_contrast"]
    lines = [
        "FER2013's pictures end where a detector's face ends: half of the boxes have a longer side between",
        *(
            f"{row['longer side'][0]:.2f} and {row['longer side'][2]:.2f} of the picture's ({name}, {row['found']} "
            f"faces in {row['of']} pictures{'), and' if name == 'yunet' else ')'}"
            for name, row in report["boxes"].items()
        ),
        "in the training set. So faces are cut out without a margin, and looser crops are known worse:",
        "",
        f"| the same {report['with_face']} pictures of the public test | accuracy, % |",
        "|---|--:|",
        *(f"| {name} | {100 * value:.1f} |" for name, value in framing.items()),
        "",
        "Cut out anew, a picture has been resampled and turned until the eyes are level, and what lies beyond its",
        "edge is made up; a photograph has more to show there.",
        "",
        f"Of these pictures {100 * report['histogram_equalised']:.0f} % came histogram-equalised ({{doc}}`data`), so "
        "crops are equalised unless they are so already:",
        "",
        f"| {report['images']:,} pictures of the public test, made | accuracy as they are, % | equalised, % |",
        "|---|--:|--:|",
        *(
            f"| {name} | {100 * row['as it is']:.1f} | {100 * row['equalised']:.1f} |"
            for name, row in contrast.items()
        ),
        "",
        "`python benchmarks/photographs.py fer2013.zip YUNET.onnx --json benchmarks/results/photographs.json`",
        f"measured both, with the weights `{report['weights']}`.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and print; write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("yunet", type=Path)
    parser.add_argument("--images", type=int, default=1000, help="of the public test, and of the training set")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = open_pretrained("cnn_se")
    public = cache(FER2013(asked.data, "public").with_classes(found.classes))
    rows = np.linspace(0, len(public) - 1, min(asked.images, len(public))).round().astype(np.int64)
    test = public.subset(rows)
    pictures, labels = list(test.images[:, 0].numpy()), test.labels
    train = FER2013(asked.data, "train")
    places = np.linspace(0, len(train) - 1, asked.images).round().astype(np.int64)
    seen = list(cache(train.subset(places)).images[:, 0].numpy())
    detectors = {"yunet": make_detector("yunet", weights=asked.yunet), "cascade-lbp": make_detector("cascade")}
    framing = {name: shares(boxes(seen[: 1000 if name == "yunet" else 200], detector), 48)
               for name, detector in detectors.items()}  # fmt: skip

    faces = boxes(pictures, detectors["yunet"])
    with_face = [row for row, face in enumerate(faces) if face]
    cut = {"as it comes": accuracy(found, [pictures[row] for row in with_face], labels[with_face])}
    for margin in MARGINS:
        crops = [equalise_once(crop(pictures[row], faces[row], 48, margin=margin)) for row in with_face]
        cut[f"cut out anew, margin {margin:g}"] = accuracy(found, crops, labels[with_face])

    contrast: dict[str, dict[str, float]] = {}
    for name, change in CHANGES.items():
        changed = [np.round(change(picture.astype(np.float64))).clip(0, 255).astype(np.uint8) for picture in pictures]
        equal = [equalise_once(picture) for picture in changed]
        contrast[name] = {"as it is": accuracy(found, changed, labels), "equalised": accuracy(found, equal, labels)}
    report = {
        "weights": found.name,
        "images": len(pictures),
        "histogram_equalised": equalised_share(test),
        "boxes": framing,
        "with_face": len(with_face),
        "accuracy_by_framing": cut,
        "accuracy_by_contrast": contrast,
    }
    print(json.dumps(report, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        write_section("predict.md", "photographs", page(report))


if __name__ == "__main__":
    main()
