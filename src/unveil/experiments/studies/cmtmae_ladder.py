"""CMT-MAE: its ladder at equal time, from MAE and two controls to the whole, with the teacher and with a random one."""

from ..study.design import Arm, RunOf, Study, scales


def step(name: str, masking: str, targets: str, **dials: str) -> Arm:
    """A step of the ladder: the attention that guides masks, and the features that are predicted."""
    return Arm(name, "cmtmae", {"masking": masking, "targets": targets, **dials})


CONTROL = step("random masks, teacher targets", "uniform", "teacher")
WHOLE = step("CMT-MAE", "collaborative", "collaborative")
RANDOM = step("random teacher", "collaborative", "collaborative", teacher="random")

study = Study(
    question="What do collaborative masks and collaborative targets add to a teacher's targets?",
    arms=(
        Arm("MAE", "mae"),
        CONTROL,
        step("teacher masks, pixel targets", "teacher", "pixels"),
        step("teacher alone", "teacher", "teacher"),
        step("collaborative masks", "collaborative", "teacher"),
        step("collaborative targets", "teacher", "collaborative"),
        WHOLE,
        step("CMT-MAE, hard", "collaborative", "collaborative", draw="hard"),
        step("random teacher, random masks", "uniform", "teacher", teacher="random"),
        RANDOM,
        step("random teacher, hard", "collaborative", "collaborative", draw="hard", teacher="random"),
    ),
    baseline=CONTROL.name,
    scales=scales(
        cpu_arms=("MAE", CONTROL.name, WHOLE.name, RANDOM.name),
        shared={"teacher": RunOf("MAE")},
        minutes={"smoke": 0.005, "cpu": 5.0, "gpu": 10.0},
    ),
    note=(
        "Most of what CMT-MAE gains over MAE may come from the teacher's targets: they are the baseline here. What a"
        " random teacher gives as well comes from the shape of a ViT, not from what the teacher has learned."
    ),
)
