"""CrossMAE: time and memory from MAE to CrossMAE, one change at a time (table 5)."""

from ..study.design import CROSSMAE_ABLATION, Arm, Study, scales

study = Study(
    question="What does each part of CrossMAE cost, and what does it save?",
    arms=(
        Arm("MAE", "mae"),
        Arm("+ cross-attention", "crossmae", {"blend": "none", "predicted": 0.75}),
        Arm("+ a third predicted", "crossmae", {"blend": "none", "predicted": 0.25}),
        Arm("+ blend (CrossMAE 25 %)", "crossmae", {"predicted": 0.25}),
        Arm("all predicted (CrossMAE 75 %)", "crossmae", {"predicted": 0.75}),
    ),
    baseline="MAE",
    scales=scales(
        cpu_arms=("MAE", "+ cross-attention", "+ a third predicted", "+ blend (CrossMAE 25 %)"),
        paper=CROSSMAE_ABLATION,
    ),
    note="The paper has 9.35, 7.38, 6.32 and 8.41 minutes an epoch; its last row predicts all hidden patches again.",
)
