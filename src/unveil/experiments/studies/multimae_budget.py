"""MultiMAE: how visible patches are shared between modalities, fixed or following the losses."""

from ..study.design import Arm, Study, maps

study = Study(
    question="Should a modality that is hard to predict show more, or less?",
    arms=(
        Arm("Dirichlet 1", "multimae-attention"),
        Arm("Dirichlet 0.2", "multimae-attention", {"concentration": (0.2,)}),
        Arm("joint", "multimae-attention", {"budget": "joint"}),
        Arm("adaptive, harder shows more", "multimae-attention", {"budget": "adaptive"}),
        Arm("adaptive, harder shows less", "multimae-attention", {"budget": "adaptive", "harder_gets": "hidden"}),
    ),
    baseline="Dirichlet 1",
    scales=maps(cpu_arms=("Dirichlet 1", "joint", "adaptive, harder shows more", "adaptive, harder shows less")),
)
