"""CrossMAE: would MAE gain from blended encoder maps, too (table 7)?"""

from ..study.design import CROSSMAE_ABLATION, Arm, Study, scales

study = Study(
    question="Is it inter-block attention alone that makes the difference?",
    arms=(
        Arm("MAE", "mae"),
        Arm("MAE + blend", "mim", {"decoder": "self", "blend": "linear"}),
        Arm("CrossMAE 25 %", "crossmae"),
        Arm("CrossMAE 75 %", "crossmae", {"predicted": 0.75}),
    ),
    baseline="MAE",
    scales=scales(paper=CROSSMAE_ABLATION),
    note="The paper has 83.0, 83.0, 83.2 and 83.3 % by fine-tuning after 400 epochs.",
)
