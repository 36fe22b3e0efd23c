"""CrossMAE: how many encoder maps each decoder block blends (table 3d: 1, 3, 6 and 12)."""

from ..study.design import CROSSMAE_ABLATION, Arm, Study, scales

TWELVE_BLOCKS = {"size": "tiny"}

study = Study(
    question="How many encoder maps should the decoder read?",
    arms=(
        Arm("last map alone", "crossmae", {"blend": "none"}),
        *(Arm(f"{n} maps", "crossmae", {"num_maps": n}) for n in (3, 6, 12)),
    ),
    baseline="last map alone",
    scales=scales(smoke=TWELVE_BLOCKS, cpu={**TWELVE_BLOCKS, "epochs": 12}, paper=CROSSMAE_ABLATION),
    note="The paper has 82.9, 83.3, 83.5 and 83.3 %, and does not say which 3 or 6: here they are evenly spread.",
)
