"""MultiMAE: fine-tuning on few labels after random and after guided masks."""

from ..study.design import Arm, Study, maps

study = Study(
    question="Do guided masks help most where labels are few?",
    arms=(
        Arm("random", "multimae"),
        Arm("high", "multimae-attention"),
        Arm("low", "multimae-attention", {"draw": "low"}),
    ),
    baseline="random",
    scales=maps(
        protocols={"knn": {}, "lowshot": {"shots": ("10%", "50%"), "draws": 2, "by": "finetune", "epochs": 20}},
        published={"lowshot": {"shots": ("1%", "10%", "10k", "20k"), "by": "finetune"}},
    ),
)
