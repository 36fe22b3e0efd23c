"""CrossMAE: how much of an image is hidden (table 3b: 65, 75 and 85 %)."""

from ..study.design import CROSSMAE_ABLATION, Arm, Study, scales

PERCENT = (65, 75, 85)

study = Study(
    question="Does CrossMAE need three quarters of the patches hidden?",
    arms=tuple(Arm(f"hides {p} %", "crossmae", {"visible": 1 - p / 100, "predicted": 0.25}) for p in PERCENT),
    baseline="hides 75 %",
    scales=scales(paper=CROSSMAE_ABLATION),
    note="The paper has 83.5, 83.3 and 83.3 % by fine-tuning after 400 epochs, without intervals.",
)
