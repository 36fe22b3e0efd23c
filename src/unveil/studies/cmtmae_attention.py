"""CMT-MAE: how good attention is, against what it brings, over lengths of training."""

from ..study import Arm, RunOf, Study
from ..study.presets import KNN_AND_LINEAR, scales

study = Study(
    question="Do masks help more where attention finds things better?",
    arms=(
        Arm("MAE", "mae"),
        Arm("random teacher", "cmtmae", {"teacher": "random"}),
        Arm("CMT-MAE", "cmtmae", {"teacher": RunOf("MAE")}),
    ),
    baseline="MAE",
    scales=scales(
        cpu_seeds=2,
        cpu_settings={"10 epochs": {"epochs": 10}, "40 epochs": {"epochs": 40}},
        settings={f"{epochs} epochs": {"epochs": epochs} for epochs in (12, 25, 50, 100)},
        published={**KNN_AND_LINEAR, "finetune": {}},
        analyses={"attention": {}},
    ),
    note="Attention is held against the classes of pixels where the images have them, as scenes do.",
)
