"""CMT-MAE: a student that is averaged over time against the student as it is."""

from ..study.design import Arm, RunOf, Study, scales

study = Study(
    question="Must the student that guides be an average over time?",
    arms=(
        Arm("MAE", "mae"),
        Arm("momentum 0.996", "cmtmae", {"momentum": 0.996}),
        Arm("momentum 0.99", "cmtmae", {"momentum": 0.99}),
        Arm("momentum 0.9", "cmtmae", {"momentum": 0.9}),
        Arm("online", "cmtmae", {"student": "online"}),
    ),
    baseline="momentum 0.996",
    scales=scales(cpu_arms=("MAE", "momentum 0.996", "momentum 0.99", "online"), shared={"teacher": RunOf("MAE")}),
    note="A run of few updates wants a lower momentum: at 0.996 the average trails by some 250 updates.",
)
