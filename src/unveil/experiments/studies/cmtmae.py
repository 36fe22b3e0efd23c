"""Studies of CMT-MAE: its parts, its teacher, its student."""

from dataclasses import replace
from typing import Any

from ..study.design import EQUAL_TIME, KNN, KNN_AND_LINEAR, Arm, Options, RunOf, Scale, ScaleName, Share, Study, scales

MAE = Arm("MAE", "mae")
TAUGHT = {"teacher": RunOf("MAE")}  # the MAE of the same seed
MEASURED = {**KNN_AND_LINEAR, "finetune": {}}
FUSIONS = ("linear", "attention-weighted", "geometric", "maximum", "product", "mean-rank", "entropy-gated", "learned")
STAGE_ONE_SHARES = (0.0, 0.05, 0.125, 0.25, 0.5, 1.0)
PUBLIC_TEACHERS = {
    "CLIP B/16": "openai/clip-vit-base-patch16",
    "CLIP L/14": "openai/clip-vit-large-patch14",
    "DINO B/16": "facebook/dino-vitb16",
    "DINOv2 B/14": "facebook/dinov2-base",
    "DeiT B/16": "facebook/deit-base-patch16-224",
    "MAE B/16": "facebook/vit-mae-base",
}
OWN_TEACHERS = ("MAE", "CrossMAE", "random", "taught by MAE", "taught by CrossMAE")


def with_curves(shared: dict[str, Any], **others: Any) -> dict[ScaleName, Scale]:
    """Scales whose runs save their weights eight times, all measured by k-NN."""
    saved = {"save_every": Share(0.125)}
    options: Options = {"shared": {**shared, **saved}, "smoke": {"save_every": Share(0.5)}, "paper": saved}
    return scales(cpu={"epochs": 32}, along={"knn": {}}, published=MEASURED, **options, **others)


def with_videos(by_name: dict[ScaleName, Scale]) -> dict[ScaleName, Scale]:
    """Scales with rendered videos, but for the published one, whose videos the user gives."""
    videos = {"smoke": "scenes:count=3,size=48,seed=2", "cpu": "scenes:count=20,size=96,seed=2"}
    videos["gpu"] = videos["cpu"]
    return {
        name: replace(at, settings=tuple(replace(own, videos=videos.get(name)) for own in at.settings))
        for name, at in by_name.items()
    }


def step(name: str, masking: str, targets: str, **options: str) -> Arm:
    """A step of the ladder: the attention that guides masks, and the features that are predicted."""
    return Arm(name, "cmtmae", {"masking": masking, "targets": targets, **options})


def weighted(name: str, masks: float, targets: float) -> Arm:
    """CMT-MAE with these weights of the student."""
    return Arm(name, "cmtmae", {"student_weight": masks, "target_student_weight": targets})


cmtmae_attention = Study(
    question="Do masks help more where attention finds things better?",
    arms=(MAE, Arm("random teacher", "cmtmae", {"teacher": "random"}), Arm("CMT-MAE", "cmtmae", TAUGHT)),
    baseline="MAE",
    scales=with_curves({}, analyses={"attention": {}}),
    note="Attention is held against the classes of pixels where the images have them, as scenes do. An epoch of a"
    " curve is a point of a longer schedule, not a run of its own.",
)

cmtmae_davis = Study(
    question="Do features of CMT-MAE follow objects through videos better than those of MAE?",
    arms=(MAE, step("teacher alone", "teacher", "teacher"), Arm("CMT-MAE", "cmtmae")),
    baseline="MAE",
    scales=with_videos(
        scales(shared=TAUGHT, protocols={"vos": {}}, smoke_protocols={"vos": {}}, published={"vos": {}}),
    ),
    note="Published is a gain of 6.6 points over MAE on DAVIS 2017, which --videos names; the teacher is the MAE of the"
    " same seed, as published it is CLIP. Positions are interpolated and extrapolated, for figures differ.",
)

cmtmae_fusion = Study(
    question="Does it matter how the attention of teacher and student is fused?",
    arms=(MAE, *(Arm(name, "cmtmae", {"fusion": name}) for name in FUSIONS)),
    baseline="linear",
    scales=scales(arms={"cpu": ("MAE", "linear", "geometric", "learned")}, shared=TAUGHT),
)

cmtmae_ladder = Study(
    question="What do collaborative masks and collaborative targets add to a teacher's targets?",
    arms=(
        MAE,
        step("random masks, teacher targets", "uniform", "teacher"),
        step("teacher masks, pixel targets", "teacher", "pixels"),
        step("teacher alone", "teacher", "teacher"),
        step("collaborative masks", "collaborative", "teacher"),
        step("collaborative targets", "teacher", "collaborative"),
        step("CMT-MAE", "collaborative", "collaborative"),
        step("CMT-MAE, hard", "collaborative", "collaborative", draw="hard"),
        step("random teacher, random masks", "uniform", "teacher", teacher="random"),
        step("random teacher", "collaborative", "collaborative", teacher="random"),
        step("random teacher, hard", "collaborative", "collaborative", draw="hard", teacher="random"),
    ),
    baseline="random masks, teacher targets",
    scales=scales(
        arms={"cpu": ("MAE", "random masks, teacher targets", "CMT-MAE", "random teacher")},
        shared=TAUGHT,
        minutes=EQUAL_TIME,
    ),
    note="Most of what CMT-MAE gains over MAE may come from the teacher's targets: they are the baseline here. What a"
    " random teacher gives as well comes from the shape of a ViT, not from what the teacher has learned.",
)

cmtmae_layers = Study(
    question="Which layers does CMT-MAE learn otherwise than MAE?",
    arms=(MAE, step("teacher alone", "teacher", "teacher"), Arm("CMT-MAE", "cmtmae")),
    baseline="teacher alone",
    scales=scales(shared=TAUGHT, analyses={"features": {"run_b": RunOf("MAE")}}),
    note="1 is a layer that is like MAE's up to a rotation. Two MAEs of other seeds are not at 1 either.",
)

cmtmae_stage_one = Study(
    question="Does a first stage with the teacher alone pay, and how long should it be?",
    arms=(MAE, *(Arm(f"stage one {100 * s:g} %", "cmtmae", {"stage1_epochs": Share(s)}) for s in STAGE_ONE_SHARES)),
    baseline="stage one 12.5 %",
    scales=with_curves(TAUGHT, arms={"cpu": ("MAE", "stage one 0 %", "stage one 12.5 %")}),
    time_to="knn accuracy",
    note="The time is that of weights saved during one training. The teacher is the MAE of the same seed, whose own"
    " training is not counted.",
)

cmtmae_student = Study(
    question="Must the student that guides be an average over time?",
    arms=(
        MAE,
        *(Arm(f"momentum {m:g}", "cmtmae", {"momentum": m}) for m in (0.996, 0.99, 0.9)),
        Arm("online", "cmtmae", {"student": "online"}),
    ),
    baseline="momentum 0.996",
    scales=scales(arms={"cpu": ("MAE", "momentum 0.996", "momentum 0.99", "online")}, shared=TAUGHT),
    note="A run of few updates wants a lower momentum: at 0.996 the average trails by some 250 updates.",
)

cmtmae_student_weight = Study(
    question="Which share should the student have in the masks, and which in the targets?",
    arms=(
        MAE,
        weighted("both 0.3", 0.3, 0.3),
        *(weighted(f"masks {w:g}", w, 0.3) for w in (0.0, 0.15, 0.6, 1.0)),
        *(weighted(f"targets {w:g}", 0.3, w) for w in (0.0, 0.15, 0.6, 1.0)),
        weighted("both 0", 0.0, 0.0),
        weighted("both 1", 1.0, 1.0),
    ),
    baseline="both 0.3",
    scales=scales(
        arms={"cpu": ("MAE", "both 0.3", "masks 0", "targets 0")},
        shared=TAUGHT,
        settings={"base": {"size": "base"}, "small": {"size": "small"}},
        gpu={"patch": 8},
        photographs=True,
        protocols={**KNN_AND_LINEAR, "finetune": {"epochs": 10}, "segment": {}},
        smoke_protocols={**KNN, "segment": {"epochs": 2}},
        published={**MEASURED, "segment": {"preset": "mae"}},
    ),
    note="The paper ties the two, best at 0.3. The teacher is the MAE of the same seed, as published it is CLIP. Each"
    " task has its own best weight: classes of images, by probes and fine-tuning, and of pixels, by segmentation of"
    " scenes or of what --dense names, such as CamVid; as published ADE20K.",
)

cmtmae_teacher = Study(
    question="What does the teacher have to know?",
    arms=(
        MAE,
        Arm("CrossMAE", "crossmae"),
        Arm("random", "cmtmae", {"teacher": "random"}),
        Arm("taught by MAE", "cmtmae", TAUGHT),
        Arm("taught by CrossMAE", "cmtmae", {"teacher": RunOf("CrossMAE")}),
        *(Arm(name, "cmtmae", {"teacher": address}) for name, address in PUBLIC_TEACHERS.items()),
    ),
    baseline="random",
    scales=scales(
        arms={
            "smoke": OWN_TEACHERS,
            "cpu": ("MAE", "random", "taught by MAE"),
            "gpu": OWN_TEACHERS,
            "paper": ("MAE", "random", "taught by MAE", *PUBLIC_TEACHERS),
        }
    ),
    note="An untrained teacher still has the bias of its shape: only a gain over it comes from training the teacher.",
)
