"""CrossMAE: what each decoder block adds to a reconstruction, and which encoder maps it reads (appendix D)."""

from ..study.design import Arm, Study, scales

study = Study(
    question="Do later decoder blocks add the details, and do they read earlier encoder maps?",
    arms=(
        Arm("CrossMAE", "crossmae"),
        Arm("last map alone", "crossmae", {"blend": "none"}),
        Arm("MAE", "mae"),
    ),
    baseline="CrossMAE",
    scales=scales(cpu={"decoder_depth": 4}, paper={"epochs": 800}, analyses={"blocks": {}}),
    note=(
        "Shares are of the prediction, and sum to 1; detail is 0 for what is flat and about 1 for noise. Each run's"
        " folder holds analysis/blocks.png, the reconstruction block by block, and which maps its blocks read."
    ),
)
