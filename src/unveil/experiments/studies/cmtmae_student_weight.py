"""CMT-MAE: the weight of the student in masks and in targets, separately (the paper ties them, best at 0.3)."""

from ..study.design import KNN_AND_LINEAR, Arm, RunOf, Study, scales


def both(name: str, masks: float, targets: float) -> Arm:
    """CMT-MAE with these shares of the student."""
    return Arm(name, "cmtmae", {"student_weight": masks, "target_student_weight": targets})


study = Study(
    question="Which share should the student have in the masks, and which in the targets?",
    arms=(
        Arm("MAE", "mae"),
        both("both 0.3", 0.3, 0.3),
        *(both(f"masks {w:g}", w, 0.3) for w in (0.0, 0.15, 0.6, 1.0)),
        *(both(f"targets {w:g}", 0.3, w) for w in (0.0, 0.15, 0.6, 1.0)),
        both("both 0", 0.0, 0.0),
        both("both 1", 1.0, 1.0),
    ),
    baseline="both 0.3",
    scales=scales(
        cpu_arms=("MAE", "both 0.3", "masks 0", "targets 0"),
        shared={"teacher": RunOf("MAE")},
        settings={"base": {"size": "base"}, "small": {"size": "small"}},
        gpu={"patch": 8},
        photographs=True,
        protocols={**KNN_AND_LINEAR, "finetune": {"epochs": 10}},
        published={**KNN_AND_LINEAR, "finetune": {}},
    ),
    note="The teacher is the MAE of the same seed, except as published, where it is CLIP.",
)
