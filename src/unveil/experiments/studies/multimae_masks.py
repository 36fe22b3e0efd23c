"""MultiMAE: masks guided by attention or by error, against random ones, at equal time."""

from ..study.design import Arm, Dials, Study, maps

MEASURES: dict[str, Dials] = {"knn": {}, "knn-whitened": {}, "linear": {}, "heldout": {}}


def guided(name: str, **dials: str) -> Arm:
    """An arm of multimae-attention with these options of its masks."""
    return Arm(name, "multimae-attention", dials)


study = Study(
    question="Does it help to hide what the model attends to, or what it finds hard?",
    arms=(
        Arm("random", "multimae"),
        guided("high"),
        guided("low", draw="low"),
        guided("stochastic", draw="noisy"),
        guided("head subset", guide_heads="random"),
        guided("uncertainty", guide="error"),
        guided("foreseen uncertainty", guide="foreseen"),
        guided("hint", draw="hint"),
        guided("drawn", draw="gumbel"),
    ),
    baseline="random",
    scales=maps(
        cpu_arms=("random", "high", "low", "stochastic", "head subset", "uncertainty"),
        cpu_seeds=2,
        protocols=MEASURES,
        smoke_protocols=MEASURES,
        minutes={"smoke": 0.005, "cpu": 5.0, "gpu": 10.0},
    ),
    note=(
        "The project reports 83.3 (random), 83.5 (high) and 83.3 % (low) on ImageNet, single runs. Losses under common"
        " random masks compare; those under a run's own masks say how hard its task is."
    ),
)
