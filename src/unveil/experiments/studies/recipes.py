"""The study of all recipes beside one another."""

from dataclasses import replace

from ..study.design import EQUAL_TIME, Arm, Options, RunOf, Study, scales

NAMES = ("MAE", "CrossMAE", "CMT-MAE", "SimMIM", "MaskFeat", "HPM")


def measurements(updates: int, few: str = "10%") -> dict[str, Options]:
    """On frozen features, and by fine-tuning with so many updates, on all labels and on a few that each seed draws."""
    return {
        "knn": {},
        "linear": {},
        "finetune": {"updates": updates},
        "lowshot": {"shots": (few,), "draws": 1, "by": "finetune", "updates": updates},
    }


AT_EQUAL_TIME = scales(
    arms=dict.fromkeys(("cpu", "paper"), ("MAE", "CrossMAE", "CMT-MAE")),
    shared={"teacher": RunOf("MAE")},
    protocols=measurements(250),
    smoke_protocols=measurements(4, few="90%"),
    published={"linear": {}, "finetune": {}, "lowshot": {"shots": ("1%", "10%"), "by": "finetune"}},
    minutes=EQUAL_TIME,
)
SMOKE_SCALE = AT_EQUAL_TIME["smoke"]
SMOKE_SCALE = replace(SMOKE_SCALE, options={**SMOKE_SCALE.options, "mask_unit": 16})  # 4 squares of an image of 32 px

recipes = Study(
    question="Which recipe learns the most in the same time, and does pretraining beat training from scratch?",
    arms=tuple(Arm(name, name.replace("-", "").lower()) for name in NAMES),
    baseline="MAE",
    scales={**AT_EQUAL_TIME, "smoke": SMOKE_SCALE, "gpu": replace(AT_EQUAL_TIME["gpu"], protocols=measurements(4000))},
    note=(
        "CMT-MAE's teacher is the MAE of the same seed, whose own training is not counted, or that of --teacher. From"
        " scratch is the same fine-tuning of an encoder that was not trained, measured beside the baseline's runs."
    ),
)
