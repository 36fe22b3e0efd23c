"""Augmentations for training on labels: few, batched, on any device, and each a pure function of its chance."""

from .erasing import erase
from .mixing import Mix, mix_images, soft_labels
from .randaugment import RandAugment

__all__ = ["Mix", "RandAugment", "erase", "mix_images", "soft_labels"]
