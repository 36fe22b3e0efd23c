"""CrossMAE: how encoder maps are blended (tables 8 and 9): linear, softmax, with a projection of each map."""

from ..study.design import CROSSMAE_ABLATION, Arm, Study, scales

study = Study(
    question="Does it matter how encoder maps are blended?",
    arms=(
        Arm("linear", "crossmae", {"blend": "linear"}),
        Arm("linear, as released", "crossmae", {"blend": "linear", "blend_init": "released"}),
        Arm("softmax", "crossmae", {"blend": "softmax"}),
        Arm("projected", "crossmae", {"blend": "project"}),
        Arm("last map alone", "crossmae", {"blend": "none"}),
        Arm("without the input", "crossmae", {"use_input": False}),
    ),
    baseline="linear",
    scales=scales(cpu_arms=("linear", "softmax", "projected", "last map alone"), paper=CROSSMAE_ABLATION),
    note="The paper has 83.2 and 83.2 % for linear and softmax (25 % predicted), 83.3 and 83.5 % with projections.",
)
