"""CrossMAE: would MAE gain from blended encoder maps, too (table 7)?"""

from ..study import Arm, Study
from ..study.presets import scales

study = Study(
    question="Is it inter-block attention alone that makes the difference?",
    arms=(
        Arm("MAE", "mae"),
        Arm("MAE + blend", "mim", {"decoder": "self", "blend": "linear"}),
        Arm("CrossMAE 25 %", "crossmae"),
        Arm("CrossMAE 75 %", "crossmae", {"predicted": 0.75}),
    ),
    baseline="MAE",
    scales=scales(paper={"epochs": 400, "warmup_epochs": 20}),
    note="The paper has 83.0, 83.0, 83.2 and 83.3 % by fine-tuning after 400 epochs.",
)
