"""CMT-MAE: how the two attention maps are fused."""

from ..study.design import Arm, RunOf, Study, scales

WORDS = ("linear", "attention-weighted", "geometric", "maximum", "product", "mean-rank", "entropy-gated", "learned")

study = Study(
    question="Does it matter how the attention of teacher and student is fused?",
    arms=(Arm("MAE", "mae"), *(Arm(word, "cmtmae", {"fusion": word}) for word in WORDS)),
    baseline="linear",
    scales=scales(cpu_arms=("MAE", "linear", "geometric", "learned"), shared={"teacher": RunOf("MAE")}),
)
