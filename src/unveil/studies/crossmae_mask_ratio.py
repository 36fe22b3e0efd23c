"""CrossMAE: how much of an image is hidden (table 3b: 65, 75 and 85 %)."""

from ..study import Arm, Study
from ..study.presets import scales

RATIOS = (0.65, 0.75, 0.85)

study = Study(
    question="Does CrossMAE need three quarters of the patches hidden?",
    arms=tuple(Arm(f"hides {100 * r:.0f} %", "crossmae", {"visible": round(1 - r, 2)}) for r in RATIOS),
    baseline="hides 75 %",
    scales=scales(paper={"epochs": 400, "warmup_epochs": 20}),
    note="The paper finds 83.5, 83.3 and 83.3 % by fine-tuning after 400 epochs.",
)
