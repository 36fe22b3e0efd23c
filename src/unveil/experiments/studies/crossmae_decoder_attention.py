"""CrossMAE: what an MAE's decoder attends to from masked tokens, visible ones or masked ones (1.42 against 0.39)."""

from ..study.design import Arm, Study, scales

study = Study(
    question="Do the masked tokens of an MAE's decoder read one another?",
    arms=(
        Arm("MAE", "mae"),
        Arm("MAE, half hidden", "mae", {"visible": 0.5}),
        Arm("MAE + blend", "mim", {"decoder": "self", "blend": "linear"}),
    ),
    baseline="MAE",
    scales=scales(analyses={"attention": {}}),
    note=(
        "The paper's 1.42 and 0.39 are sums over 8 blocks and 16 heads of a mean per pair; attention that is even"
        " would give 0.65 for both, and there are three times as many masked tokens: 45 % of it goes to them."
    ),
)
