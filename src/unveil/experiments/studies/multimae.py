"""Studies of MultiMAE: masks over several modalities, guided by attention or by error, and what they are good for."""

from typing import Any

from ..study.design import EQUAL_TIME, Arm, Options, RunOf, Share, Study, maps

PUBLIC = "multimae-b_98_rgb+-depth-semseg_1600e_multivit-afff3f8c.pth"  # of MultiMAE's repository
ALL_PROBES: dict[str, Options] = {"knn": {}, "knn-whitened": {}, "linear": {}, "heldout": {}}


def guided(name: str, **options: Any) -> Arm:
    """An arm of multimae-attention with these options of its masks."""
    return Arm(name, "multimae-attention", options)


def continued(name: str, recipe: str, schedule: str, **options: Any) -> Arm:
    """A sixteenth more, as 100 epochs are to the 1600 of the public checkpoint."""
    return Arm(name, recipe, {"continue_schedule": schedule, "epochs": Share(1 / 16), **options})


multimae_budget = Study(
    question="Should a modality that is hard to predict show more, or less?",
    arms=(
        guided("Dirichlet 1"),
        guided("Dirichlet 0.2", concentration=(0.2,)),
        guided("joint", budget="joint"),
        guided("adaptive, harder shows more", budget="adaptive"),
        guided("adaptive, harder shows less", budget="adaptive", harder_gets="hidden"),
    ),
    baseline="Dirichlet 1",
    scales=maps(arms={"cpu": ("Dirichlet 1", "joint", "adaptive, harder shows more", "adaptive, harder shows less")}),
)

multimae_continue = Study(
    question="Which learning rate suits a training continued with guided masks, and is it the masks that help?",
    arms=(
        Arm("MultiMAE", "multimae", {"init_from": None}),
        continued("random masks, tail", "multimae", "tail"),
        continued("guided, tail", "multimae-attention", "tail"),
        continued("guided, x10", "multimae-attention", "x10"),
        continued("guided, restart", "multimae-attention", "restart", warmup_epochs=Share(0.2), init_epoch=None),
    ),
    baseline="random masks, tail",
    scales=maps(
        cpu_seeds=2,
        shared={"init_from": RunOf("MultiMAE")},
        smoke={"epochs": 16, "warmup_epochs": 1},  # so that a sixteenth has updates after its warm-up
        paper={"epochs": 1600, "init_from": PUBLIC, "init_epoch": 1600},
        arms={"paper": ("random masks, tail", "guided, tail", "guided, x10", "guided, restart")},
    ),
    note="The project reports 83.5 (tail), 83.4 (x10) and 83.3 % (restart) on ImageNet, from the public checkpoint of"
    " 1600 epochs, from which the published scale starts too: --init-from says where it is.",
)

multimae_heads = Study(
    question="Should all heads guide the mask, or a random few?",
    arms=(Arm("random masks", "multimae"), guided("all heads"), guided("random heads", guide_heads="random")),
    baseline="all heads",
    scales=maps(),
)

multimae_low_data = Study(
    question="Do guided masks help most where labels are few?",
    arms=(Arm("random", "multimae"), guided("high"), guided("low", draw="low")),
    baseline="random",
    scales=maps(
        protocols={"knn": {}, "lowshot": {"shots": ("10%", "50%"), "draws": 2, "by": "finetune", "epochs": 20}},
        published={"lowshot": {"shots": ("1%", "10%", "10k", "20k"), "by": "finetune", "preset": "multimae"}},
    ),
)

multimae_masks = Study(
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
        arms={"cpu": ("random", "high", "low", "stochastic", "head subset", "uncertainty")},
        cpu_seeds=2,
        protocols=ALL_PROBES,
        smoke_protocols=ALL_PROBES,
        minutes=EQUAL_TIME,
    ),
    note="The project reports 83.3 (random), 83.5 (high) and 83.3 % (low) on ImageNet, single runs that continue a"
    " public checkpoint for 100 epochs (multimae-continue); here arms train from scratch. Losses under common random"
    " masks compare; those under a run's own masks say how hard its task is.",
)

multimae_noise = Study(
    question="How much noise should be added to the attention that guides the mask?",
    arms=(
        Arm("random", "multimae"),
        guided("no noise"),
        *(guided(f"noise {n:g}", draw="noisy", noise=n) for n in (0.25, 0.5, 0.75)),
    ),
    baseline="no noise",
    scales=maps(arms={"cpu": ("random", "no noise", "noise 0.25", "noise 0.75")}),
    note="The project gives one figure for all shares of noise: that of masks without any.",
)
