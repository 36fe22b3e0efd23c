"""CMT-MAE: the first three experiments with their controls, from MAE to the whole."""

from ..study import Arm, RunOf, Study
from ..study.presets import scales


def step(name: str, masking: str, targets: str) -> Arm:
    """A step of the ladder: whose attention hides, whose features are predicted."""
    return Arm(name, "cmtmae", {"masking": masking, "targets": targets})


study = Study(
    question="What do collaborative masks and collaborative targets add to a teacher's targets?",
    arms=(
        Arm("MAE", "mae"),
        step("random masks, teacher targets", "uniform", "teacher"),
        step("teacher masks, pixel targets", "teacher", "pixels"),
        step("teacher alone", "teacher", "teacher"),
        step("collaborative masks", "collaborative", "teacher"),
        step("collaborative targets", "teacher", "collaborative"),
        step("CMT-MAE", "collaborative", "collaborative"),
    ),
    baseline="random masks, teacher targets",
    scales=scales(
        cpu_arms=("MAE", "random masks, teacher targets", "teacher alone", "CMT-MAE"),
        shared={"teacher": RunOf("MAE")},
    ),
    note="Most of what CMT-MAE gains over MAE may come from the teacher's targets: they are the baseline here.",
)
