"""CrossMAE: the learning rate when a third of the hidden patches is predicted: in proportion, the same, inverse."""

from ..study import Arm, Study
from ..study.presets import scales

WORDS = {"predicted": "a third", "none": "the same", "inverse": "three times"}

study = Study(
    question="How should the learning rate follow the share of patches that is predicted?",
    arms=tuple(Arm(name, "crossmae", {"lr_scale": word}) for word, name in WORDS.items()),
    baseline="the same",
    scales=scales(cpu={"lr": 6e-3}, gpu={"lr": 1e-3}, paper={"epochs": 400, "warmup_epochs": 20}),
    note="The released code takes a third; the paper's text does not compare them.",
)
