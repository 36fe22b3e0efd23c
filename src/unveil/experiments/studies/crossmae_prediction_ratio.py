"""CrossMAE: how many patches are predicted, with the learning rate in proportion and without (table 3c)."""

from ..study.design import CROSSMAE_ABLATION, Arm, Study, scales

SHARES = (0.15, 0.25, 0.5, 0.75)

study = Study(
    question="How few patches can be predicted, and does the learning rate have to follow?",
    arms=tuple(
        Arm(f"predicts {100 * p:g} %, {rate}", "crossmae", {"predicted": p, "lr_scale": scale})
        for scale, rate in (("predicted", "rate in proportion"), ("none", "same rate"))
        for p in SHARES
    ),
    baseline="predicts 75 %, same rate",
    scales=scales(
        cpu_arms=tuple(f"predicts {p} %, same rate" for p in (15, 25, 50, 75)),
        cpu={"lr": 6e-3},
        gpu={"lr": 1e-3},
        paper=CROSSMAE_ABLATION,
    ),
    note="The paper has 83.1 (15 %), 83.2 (25 %) and 83.3 % (75 %). At 75 % both rates are the same.",
)
