"""A batch of real FER2013 faces through one model: its logits and the shapes of its feature maps.

    python examples/01_build.py FER2013

FER2013 is ``fer2013.csv``, ``icml_face_data.csv``, the Kaggle folders, or a zip of one of them. The weights are
random: this shows that the pieces fit, not what they know.
"""

import argparse

import torch

from ferattn import create_model
from ferattn.data import FER2013

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("root", help="a zip, a folder or a CSV file of FER2013")
parser.add_argument("--model", default="resnetv2_50_cbam_elu", help="a model name; see `ferattn models`")
parser.add_argument("--batch", type=int, default=8, help="number of faces")
arguments = parser.parse_args()

dataset = FER2013(arguments.root, split="private")
torch.manual_seed(0)
chosen = torch.randperm(len(dataset))[: arguments.batch].tolist()
faces = torch.stack([dataset[index].image for index in chosen]).float() / 255
labels = [dataset.classes[dataset[index].label] for index in chosen]

model = create_model(arguments.model, num_classes=len(dataset.classes), in_chans=faces.shape[1]).eval()
with torch.no_grad():
    logits = model(faces)
    maps = model.forward_intermediates(faces, intermediates_only=True)

print(f"{model.spec}: {len(model.attention_sites)} attention blocks, faces {tuple(faces.shape)}")
for info, feature_map in zip(model.feature_info, maps, strict=True):
    print(f"  {info['module']:<12} {tuple(feature_map.shape)}")
print(f"logits {tuple(logits.shape)}")
for label, row in zip(labels, logits, strict=True):
    print(f"  {label:<9}" + " ".join(f"{value:+.3f}" for value in row.tolist()))
