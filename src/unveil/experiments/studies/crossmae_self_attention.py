"""CrossMAE: is it of use that masked patches read one another (table 3a)?"""

from ..study.design import CROSSMAE_ABLATION, Arm, Study, scales

study = Study(
    question="Do predictions need one another?",
    arms=(
        Arm("MAE", "mae"),
        Arm("CrossMAE", "crossmae", {"predicted": 0.75}),
        Arm("CrossMAE + self-attention", "crossmae", {"predicted": 0.75, "self_attention": True}),
    ),
    baseline="CrossMAE",
    scales=scales(paper=CROSSMAE_ABLATION),
    note="The paper has 83.0, 83.3 and 83.3 % by fine-tuning after 400 epochs.",
)
