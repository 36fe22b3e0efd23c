"""Studies of CrossMAE: the ablations of its paper, whose tables the notes cite."""

from ..study.design import CROSSMAE_ABLATION, Arm, Study, Times, scales

MAE = Arm("MAE", "mae")
CROSSMAE = Arm("CrossMAE", "crossmae")
ALL_HIDDEN = {"predicted": 0.75}
LAST_MAP = Arm("last map alone", "crossmae", {"blend": "none"})
MAE_BLEND = Arm("MAE + blend", "mim", {"decoder": "self", "blend": "linear"})
TWELVE_BLOCKS = {"size": "tiny"}
LR_SCALES = {"a third": "predicted", "the same": "none", "three times": "inverse"}

crossmae_blend = Study(
    question="Does it matter how encoder maps are blended?",
    arms=(
        Arm("linear", "crossmae", {"blend": "linear"}),
        Arm("linear, as released", "crossmae", {"blend": "linear", "blend_init": "released"}),
        Arm("softmax", "crossmae", {"blend": "softmax"}),
        Arm("linear, all predicted", "crossmae", {"blend": "linear", **ALL_HIDDEN}),
        Arm("projected, all predicted", "crossmae", {"blend": "project", **ALL_HIDDEN}),
        LAST_MAP,
        Arm("without the input", "crossmae", {"use_input": False}),
    ),
    baseline="linear",
    scales=scales(
        arms={"cpu": ("linear", "softmax", "linear, all predicted", "projected, all predicted")},
        paper=CROSSMAE_ABLATION,
    ),
    note="Table 8: 83.2 and 83.2 % for linear and softmax, 25 % predicted. Table 9: 83.3 and 83.5 % without and with"
    " projections, all hidden patches predicted.",
)

crossmae_coco = Study(
    question="Does an encoder that CrossMAE has trained find and outline things as well as MAE's?",
    arms=(MAE, CROSSMAE),
    baseline="MAE",
    scales=scales(
        protocols={"detect": {}},
        smoke_protocols={"detect": {"epochs": 1, "batch_size": 8}},
        published={"detect": {"preset": "vitdet", "relative_positions": True}},
    ),
    note="Table 2, ViTDet on COCO with ViT-B and ViT-L: box AP of MAE 51.2 and 54.6, of CrossMAE 52.1 and 54.9; mask AP"
    " 45.5 and 48.6, 46.3 and 48.8; boxes are those of rendered scenes or of what --boxes names, as published of COCO.",
)

crossmae_decoder_attention = Study(
    question="Do the masked tokens of an MAE's decoder read one another?",
    arms=(MAE, Arm("MAE, half hidden", "mae", {"visible": 0.5}), MAE_BLEND),
    baseline="MAE",
    scales=scales(analyses={"attention": {}}),
    note="The paper's 1.42 and 0.39 are sums over 8 blocks and 16 heads of a mean per pair; attention that is even"
    " would give 0.65 for both, and there are three times as many masked tokens: 45 % of it goes to them.",
)

crossmae_decoder_blocks = Study(
    question="Do later decoder blocks add the details, and do they read earlier encoder maps?",
    arms=(CROSSMAE, LAST_MAP, MAE),
    baseline="CrossMAE",
    scales=scales(cpu={"decoder_depth": 4}, paper={"epochs": 800}, analyses={"blocks": {}}),
    note="Appendix D. Shares are of the prediction, and sum to 1; detail is 0 for flat, about 1 for noise. Each run's"
    " folder holds analysis/blocks.png, the reconstruction block by block, and which maps its blocks read.",
)

crossmae_decoder_depth = Study(
    question="How deep must the decoder be?",
    arms=tuple(Arm(f"{n} block{'s' * (n > 1)}", "crossmae", {"decoder_depth": n, **ALL_HIDDEN}) for n in (1, 4, 8, 12)),
    baseline="12 blocks",
    scales=scales(paper=CROSSMAE_ABLATION),
    note="Table 3e: 83.0, 83.1, 83.1 and 83.3 % by fine-tuning after 400 epochs, 75 % predicted.",
)

crossmae_ladder = Study(
    question="What does each part of CrossMAE cost, and what does it save?",
    arms=(
        MAE,
        Arm("+ cross-attention", "crossmae", {"blend": "none", **ALL_HIDDEN}),
        Arm("+ a third predicted", "crossmae", {"blend": "none", "predicted": 0.25}),
        Arm("+ blend (CrossMAE 25 %)", "crossmae", {"predicted": 0.25}),
        Arm("all predicted (CrossMAE 75 %)", "crossmae", ALL_HIDDEN),
    ),
    baseline="MAE",
    scales=scales(
        arms={"cpu": ("MAE", "+ cross-attention", "+ a third predicted", "+ blend (CrossMAE 25 %)")},
        paper=CROSSMAE_ABLATION,
    ),
    note="Table 5: 9.35, 7.38, 6.32 and 8.41 minutes an epoch; the paper's last row predicts all hidden patches again.",
)

crossmae_lr = Study(
    question="How should the learning rate follow the share of patches that is predicted?",
    arms=tuple(Arm(name, "crossmae", {"lr_scale": word}) for name, word in LR_SCALES.items()),
    baseline="the same",
    scales=scales(cpu={"lr": 6e-3}, gpu={"lr": 1e-3}, paper=CROSSMAE_ABLATION),
    note="The released code takes a third; the paper's text does not compare them.",
)

crossmae_mae_blend = Study(
    question="Is it inter-block attention alone that makes the difference?",
    arms=(MAE, MAE_BLEND, Arm("CrossMAE 25 %", "crossmae"), Arm("CrossMAE 75 %", "crossmae", ALL_HIDDEN)),
    baseline="MAE",
    scales=scales(paper=CROSSMAE_ABLATION),
    note="Table 7: 83.0, 83.0, 83.2 and 83.3 % by fine-tuning after 400 epochs.",
)

crossmae_maps = Study(
    question="How many encoder maps should the decoder read?",
    arms=(
        Arm("1 map", "crossmae", {"blend": "none", **ALL_HIDDEN}),
        *(Arm(f"{n} maps", "crossmae", {"num_maps": n, **ALL_HIDDEN}) for n in (3, 6, 12)),
    ),
    baseline="1 map",
    scales=scales(smoke=TWELVE_BLOCKS, cpu={**TWELVE_BLOCKS, "epochs": 12}, paper=CROSSMAE_ABLATION),
    note="Table 3d: 82.9, 83.3, 83.5 and 83.3 %, 75 % predicted. More than one are blended with the patch embeddings;"
    " the paper does not say which 3 or 6: here they are evenly spread.",
)

crossmae_mask_ratio = Study(
    question="Does CrossMAE need three quarters of the patches hidden?",
    arms=tuple(Arm(f"hides {p} %", "crossmae", {"visible": 1 - p / 100, "predicted": p / 100}) for p in (65, 75, 85)),
    baseline="hides 75 %",
    scales=scales(paper=CROSSMAE_ABLATION),
    note="Table 3b: 83.5, 83.3 and 83.3 % by fine-tuning after 400 epochs, all hidden patches predicted.",
)

crossmae_prediction_ratio = Study(
    question="How few patches can be predicted, and does the learning rate have to follow?",
    arms=tuple(
        Arm(f"predicts {100 * p:g} %, {rate}", "crossmae", {"predicted": p, "lr_scale": scale})
        for scale, rate in (("predicted", "rate in proportion"), ("none", "same rate"))
        for p in (0.15, 0.25, 0.5, 0.75)
    ),
    baseline="predicts 75 %, same rate",
    scales=scales(
        arms={"cpu": tuple(f"predicts {p} %, same rate" for p in (15, 25, 50, 75))},
        cpu={"lr": 6e-3},
        gpu={"lr": 1e-3},
        paper=CROSSMAE_ABLATION,
    ),
    note="Table 3c: 83.1 (15 %), 83.2 (25 %) and 83.3 % (75 %). At 75 % both rates are the same.",
)

crossmae_resolution = Study(
    question="What do images of twice the side gain, with four times the patches?",
    arms=(CROSSMAE, Arm("CrossMAE, twice the side", "crossmae", {"image_size": Times(2)})),
    baseline="CrossMAE",
    scales=scales(magnified=2, cpu={"patch": 8}, paper=CROSSMAE_ABLATION),
    note="Table 3f: 83.2 % at 224 px and 84.6 % at 448 px after 400 epochs, 25 % predicted; MAE at 448 px has 84.8 %.",
)

crossmae_self_attention = Study(
    question="Do predictions need one another?",
    arms=(
        MAE,
        Arm("CrossMAE", "crossmae", ALL_HIDDEN),
        Arm("CrossMAE + self-attention", "crossmae", {**ALL_HIDDEN, "self_attention": True}),
    ),
    baseline="CrossMAE",
    scales=scales(paper=CROSSMAE_ABLATION),
    note="Table 3a: 83.0, 83.3 and 83.3 % by fine-tuning after 400 epochs.",
)
