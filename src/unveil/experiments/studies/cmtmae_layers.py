"""CMT-MAE: which layers it changes, by CKA with those of an MAE of the same seed."""

from ..study.design import Arm, RunOf, Study, scales

study = Study(
    question="Which layers does CMT-MAE learn otherwise than MAE?",
    arms=(
        Arm("MAE", "mae"),
        Arm("teacher alone", "cmtmae", {"masking": "teacher", "targets": "teacher"}),
        Arm("CMT-MAE", "cmtmae"),
    ),
    baseline="teacher alone",
    scales=scales(shared={"teacher": RunOf("MAE")}, analyses={"features": {"run_b": RunOf("MAE")}}),
    note="1 is a layer that is like MAE's up to a rotation. Two MAEs of other seeds are not at 1 either.",
)
