"""MultiMAE: the learning rate when a finished training is continued with guided masks."""

from ..study.design import Arm, RunOf, Share, Study, maps


def continued(name: str, recipe: str, schedule: str) -> Arm:
    """A sixteenth more, as 100 epochs are to the 1600 of the public checkpoint."""
    dials = {"init_from": RunOf("MultiMAE"), "continue_schedule": schedule, "epochs": Share(1 / 16)}
    return Arm(name, recipe, dials)


study = Study(
    question="Which learning rate suits a training continued with guided masks, and is it the masks that help?",
    arms=(
        Arm("MultiMAE", "multimae"),
        continued("random masks, tail", "multimae", "tail"),
        continued("guided, tail", "multimae-attention", "tail"),
        continued("guided, x10", "multimae-attention", "x10"),
        continued("guided, restart", "multimae-attention", "restart"),
    ),
    baseline="random masks, tail",
    scales=maps(cpu_seeds=2, paper={"epochs": 1600}),
    note="The project reports 83.5 (tail), 83.4 (x10) and 83.3 % (restart) on ImageNet, from the public checkpoint.",
)
