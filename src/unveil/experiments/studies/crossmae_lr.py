"""CrossMAE: the learning rate when a third of the hidden patches is predicted: in proportion, the same, inverse."""

from ..study.design import CROSSMAE_ABLATION, Arm, Study, scales

WORDS = {"predicted": "a third", "none": "the same", "inverse": "three times"}

study = Study(
    question="How should the learning rate follow the share of patches that is predicted?",
    arms=tuple(Arm(name, "crossmae", {"lr_scale": word}) for word, name in WORDS.items()),
    baseline="the same",
    scales=scales(cpu={"lr": 6e-3}, gpu={"lr": 1e-3}, paper=CROSSMAE_ABLATION),
    note="The released code takes a third; the paper's text does not compare them.",
)
