"""The study of the library's own recipe: against its parents, and with each of its parts taken away."""

from ..study.design import EQUAL_TIME, Arm, RunOf, Study, scales

unveil = Study(
    question="Does the recipe unveil learn more in the same time than the recipes it is made of, and by which part?",
    arms=(
        Arm("unveil", "unveil"),
        Arm("a quarter visible", "unveil", {"visible": 0.25}),
        Arm("normalised pixels alone", "unveil", {"statistics": 0.0}),
        Arm("CrossMAE", "crossmae"),
        Arm("MAE", "mae"),
        Arm("CMT-MAE", "cmtmae", {"teacher": RunOf("CrossMAE")}),
        Arm("the last map alone", "unveil", {"blend": "none"}),
        Arm("Muon", "unveil", {"optimizer": "muon"}),
    ),
    baseline="unveil",
    scales=scales(
        arms={"cpu": ("unveil", "a quarter visible", "normalised pixels alone", "CrossMAE")},
        shared={"batch_size": 128},
        smoke={"batch_size": 16},
        protocols={"linear-lbfgs": {}, "knn": {}, "knn-whitened": {}},
        minutes=EQUAL_TIME,
    ),
    note="CMT-MAE's teacher is the CrossMAE of the same seed, whose own training is not counted.",
)
