"""Make the pictures of docs/faces.md: the astronaut of scikit-image, nobody else.

Usage: python docs/faces_pictures.py [YUNET.onnx]   (without a path the weights come from the model hub)
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from skimage.data import astronaut

from ferattn.faces import Face, crop, detect, illuminate, make_detector

FOLDER = Path(__file__).parent / "_static" / "faces"


def marked(picture: np.ndarray, faces: dict[str, Face]) -> Image.Image:
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for color, face in faces.items():
        x, y, width, height = face.box
        draw.rectangle((x, y, x + width, y + height), outline=color, width=3)
        for px, py in face.landmarks or ():
            draw.ellipse((px - 3, py - 3, px + 3, py + 3), fill=color)
    return image


def strip(pictures: list[np.ndarray], gap: int = 8) -> Image.Image:
    height = max(picture.shape[0] for picture in pictures)
    width = sum(picture.shape[1] for picture in pictures) + gap * (len(pictures) - 1)
    canvas = Image.new("L", (width, height), 255)
    x = 0
    for picture in pictures:
        canvas.paste(Image.fromarray(picture), (x, 0))
        x += picture.shape[1] + gap
    return canvas


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    options = {"weights": sys.argv[1]} if len(sys.argv) > 1 else {}
    yunet = make_detector("yunet", **options)
    picture = astronaut()
    [face] = detect(picture, yunet, channels="rgb")
    [square] = detect(picture, "cascade", channels="rgb")
    print("yunet:  ", face)
    print("cascade:", square)
    whole = marked(picture, {"lime": face, "orange": square})
    whole.crop((96, 0, 352, 256)).quantize(64).save(FOLDER / "detected.png", optimize=True)

    turned = np.asarray(Image.fromarray(picture).rotate(25, Image.Resampling.BICUBIC, center=(224, 120)))
    [tilted] = detect(turned, yunet, channels="rgb")
    x, y, width, height = face.box
    cut_off = Face((x, y - 90, width, height))
    variants = [
        crop(turned, tilted, 112, channels="rgb"),
        crop(turned, tilted, 112, channels="rgb", align=False),
        crop(turned, tilted, 112, channels="rgb", square=False, padding="black"),
        crop(turned, tilted, 112, channels="rgb", margin=0.5),
        crop(picture[90:], cut_off, 112, channels="rgb"),
        crop(picture[90:], cut_off, 112, channels="rgb", padding="black"),
    ]
    strip(variants).save(FOLDER / "crops.png", optimize=True)

    plain = crop(picture, face, 112, channels="rgb")
    dark = (255 * (plain / 255) ** 2.2).round().astype(np.uint8)
    steps = [plain, dark, *(illuminate(dark, [name]) for name in ("gamma", "emboss", "lbp"))]
    strip(steps).save(FOLDER / "illumination.png", optimize=True)


if __name__ == "__main__":
    main()
