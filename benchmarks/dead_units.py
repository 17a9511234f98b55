"""Why `luo2023` trains with batch norm: how many units of the fully connected layer die at Adam's 0.002.

python benchmarks/dead_units.py FER2013.zip --json benchmarks/results/dead-units.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F

from ferattn import create_model
from ferattn.data import open_dataset
from ferattn.training import load_recipe, make_parts


def train(images: torch.Tensor, labels: torch.Tensor, *, norm: str | None, lr: float, steps: int, seed: int) -> dict:
    """A few steps of Adam on batches of 64, no augmentation: the loss, and what is dead, every twenty steps.

    A unit is dead for a batch if it is 0 for each of its 64 pictures.
    """
    torch.manual_seed(seed)
    model = create_model("cnn", num_classes=7, in_chans=1, norm_layer=norm).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr)
    read: dict[str, torch.Tensor] = {}
    model.pre_logits.act1.register_forward_hook(lambda _module, _inputs, out: read.update(out=out.detach()))
    rows, total = [], 0.0
    for step in range(1, steps + 1):
        chosen = torch.randint(len(images), (64,))
        x = images[chosen].to(memory_format=torch.channels_last) / 255
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        loss = F.cross_entropy(logits.float(), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
        if step % 20 == 0:
            dead = (read["out"].flatten(1).amax(0) <= 0).float().mean().item()
            rows.append({"step": step, "loss": round(total / 20, 4), "dead": round(dead, 4)})
            total = 0.0
    return {"norm": norm or "none", "lr": lr, "seed": seed, "steps": rows}


def main() -> None:
    """Train with and without norm, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    parts = make_parts(open_dataset(asked.data, "fer2013"), load_recipe("luo2023", "fer2013"))
    images, labels = torch.as_tensor(parts.train.images), torch.as_tensor(parts.train.labels)
    found = []
    for norm, lr in ((None, 0.002), (None, 0.0002), ("batchnorm2d", 0.002)):
        for seed in range(asked.seeds):
            row = train(images, labels, norm=norm, lr=lr, steps=asked.steps, seed=seed)
            found.append(row)
            by_step = (f"step {s['step']}: loss {s['loss']:.3f}, {s['dead']:.0%} dead" for s in row["steps"])
            print(f"norm {row['norm']}, lr {lr:g}, seed {seed}:", "; ".join(by_step))
    if asked.json:
        asked.json.write_text(json.dumps({"torch": torch.__version__, "runs": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
