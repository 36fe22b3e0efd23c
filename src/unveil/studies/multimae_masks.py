"""MultiMAE: guided masks, most attended or least hidden, with hints, noise or a draw, against random ones."""

from ..study import Arm, Study
from ..study.presets import maps

study = Study(
    question="Does it help to hide what the model attends to?",
    arms=(
        Arm("random", "multimae"),
        Arm("high", "multimae-attention"),
        Arm("low", "multimae-attention", {"draw": "low"}),
        Arm("hint", "multimae-attention", {"draw": "hint"}),
        Arm("drawn", "multimae-attention", {"draw": "gumbel"}),
        Arm("by error", "multimae-attention", {"guide": "error"}),
    ),
    baseline="random",
    scales=maps(cpu_arms=("random", "high", "low", "hint")),
    note="The project reports 83.3 (random), 83.5 (high) and 83.3 % (low) on ImageNet, single runs.",
)
