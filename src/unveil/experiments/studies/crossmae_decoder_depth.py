"""CrossMAE: how deep the decoder is (table 3e: 1, 4, 8 and 12 blocks)."""

from ..study.design import CROSSMAE_ABLATION, Arm, Study, scales

study = Study(
    question="How deep must the decoder be?",
    arms=tuple(Arm(f"{n} block{'s' * (n > 1)}", "crossmae", {"decoder_depth": n}) for n in (1, 4, 8, 12)),
    baseline="12 blocks",
    scales=scales(paper=CROSSMAE_ABLATION),
    note="The paper has 83.0, 83.1, 83.1 and 83.3 % by fine-tuning after 400 epochs.",
)
