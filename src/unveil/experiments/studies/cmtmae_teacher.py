"""CMT-MAE: what the teacher must have learned; an untrained one is the control."""

from ..study.design import Arm, RunOf, Study, scales

PUBLIC = {
    "CLIP B/16": "openai/clip-vit-base-patch16",
    "CLIP L/14": "openai/clip-vit-large-patch14",
    "DINO B/16": "facebook/dino-vitb16",
    "DINOv2 B/14": "facebook/dinov2-base",
    "DeiT B/16": "facebook/deit-base-patch16-224",
    "MAE B/16": "facebook/vit-mae-base",
}
OURS = ("MAE", "CrossMAE", "random", "taught by MAE", "taught by CrossMAE")

study = Study(
    question="What does the teacher have to know?",
    arms=(
        Arm("MAE", "mae"),
        Arm("CrossMAE", "crossmae"),
        Arm("random", "cmtmae", {"teacher": "random"}),
        Arm("taught by MAE", "cmtmae", {"teacher": RunOf("MAE")}),
        Arm("taught by CrossMAE", "cmtmae", {"teacher": RunOf("CrossMAE")}),
        *(Arm(name, "cmtmae", {"teacher": address}) for name, address in PUBLIC.items()),
    ),
    baseline="random",
    scales=scales(
        smoke_arms=OURS,
        cpu_arms=("MAE", "random", "taught by MAE"),
        gpu_arms=OURS,
        paper_arms=("MAE", "random", "taught by MAE", *PUBLIC),
    ),
    note="An untrained teacher still has the bias of its shape: only a gain over it comes from training the teacher.",
)
