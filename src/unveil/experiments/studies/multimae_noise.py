"""MultiMAE: guided masks with noise in the attention."""

from ..study.design import Arm, Study, maps

study = Study(
    question="How much noise should be added to the attention that guides the mask?",
    arms=(
        Arm("random", "multimae"),
        Arm("no noise", "multimae-attention"),
        *(Arm(f"noise {n:g}", "multimae-attention", {"draw": "noisy", "noise": n}) for n in (0.25, 0.5, 0.75)),
    ),
    baseline="no noise",
    scales=maps(cpu_arms=("random", "no noise", "noise 0.25", "noise 0.75")),
    note="The project gives one figure for all shares of noise.",
)
