"""MultiMAE: masks guided by all heads or by a random few of them."""

from ..study.design import Arm, Study, maps

study = Study(
    question="Should all heads guide the mask, or a random few?",
    arms=(
        Arm("random masks", "multimae"),
        Arm("all heads", "multimae-attention"),
        Arm("random heads", "multimae-attention", {"guide_heads": "random"}),
    ),
    baseline="all heads",
    scales=maps(),
)
