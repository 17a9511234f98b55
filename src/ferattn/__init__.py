"""Attention-augmented convolutional backbones for facial emotion recognition, on PyTorch and timm."""
