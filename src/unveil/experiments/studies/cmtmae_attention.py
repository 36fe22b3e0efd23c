"""CMT-MAE: quality of the attention and gain in accuracy, epoch by epoch."""

from ..study.design import KNN_AND_LINEAR, Arm, RunOf, Share, Study, scales

study = Study(
    question="Do masks help more where attention finds things better?",
    arms=(
        Arm("MAE", "mae"),
        Arm("random teacher", "cmtmae", {"teacher": "random"}),
        Arm("CMT-MAE", "cmtmae", {"teacher": RunOf("MAE")}),
    ),
    baseline="MAE",
    scales=scales(
        cpu={"epochs": 32},
        shared={"save_every": Share(0.125)},
        smoke={"save_every": Share(0.5)},
        paper={"save_every": Share(0.125)},
        published={**KNN_AND_LINEAR, "finetune": {}},
        along={"knn": {}},
        analyses={"attention": {}},
    ),
    note="Attention is held against the classes of pixels where the images have them, as scenes do. An epoch of a"
    " curve is a point of a longer schedule, not a run of its own.",
)
