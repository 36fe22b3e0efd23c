"""CMT-MAE: how long the teacher guides alone, against the time to a given k-NN accuracy."""

from ..study.design import KNN_AND_LINEAR, Arm, RunOf, Share, Study, scales

SHARES = (0.0, 0.05, 0.125, 0.25, 0.5, 1.0)

study = Study(
    question="Does a first stage with the teacher alone pay, and how long should it be?",
    arms=(
        Arm("MAE", "mae"),
        *(Arm(f"stage one {100 * s:g} %", "cmtmae", {"stage1_epochs": Share(s)}) for s in SHARES),
    ),
    baseline="stage one 12.5 %",
    scales=scales(
        cpu_arms=("MAE", "stage one 0 %", "stage one 12.5 %"),
        cpu={"epochs": 32},
        shared={"teacher": RunOf("MAE"), "save_every": Share(0.125)},
        smoke={"save_every": Share(0.5)},
        paper={"save_every": Share(0.125)},
        along={"knn": {}},
        published={**KNN_AND_LINEAR, "finetune": {}},
    ),
    time_to="knn accuracy",
    note="The time is that of weights saved during one training. The teacher is the MAE of the same seed, whose own"
    " training is not counted.",
)
