"""The options of `pretrain`, of recipes and of protocols as types, for completion, hover and type checkers.

They are defined where they are used; tests/test_option_types.py holds these lists to them. An option of a recipe or
protocol file of your own is given in a dict: `pretrain("my.py", **{"my_option": 3})`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, Literal, TypedDict

from ..data.given_types import Data


class RecipeOptions(TypedDict, total=False):
    """The options of all recipes; a recipe refuses those that it does not have."""

    size: str
    patch: int
    image_size: Sequence[int] | int
    epochs: float
    warmup_epochs: float
    batch_size: int
    lr: float
    min_lr: float
    optimizer: Literal["adamw", "muon", "sgd"]
    weight_decay: float
    clip: float | None
    crop_scale: float
    resize_positions: Literal["interpolate", "extrapolate"]
    encoder_positions: Literal["sincos", "learned", "fixed"]
    registers: int
    layer_scale: float | None
    mlp: Literal["gelu", "swiglu"]
    flip: Literal["none", "h", "hv", "d4"]
    masking: (
        Literal[
            "high", "hint", "low", "collaborative", "teacher", "uniform", "block", "inverse-block", "grid", "attention"
        ]
        | str
        | Callable[..., Any]
    )
    hint_top: float
    hint_shown: float
    momentum: float
    momentum_end: float
    visible: float
    predicted: float | None
    norm_pix: bool
    decoder_dim: int
    decoder_depth: int
    decoder_heads: int
    teacher: str | PathLike[str] | None
    teacher_channels: Sequence[int] | int | None
    targets: Literal["collaborative", "teacher", "pixels"]
    student_weight: float
    alpha: float | None
    target_student_weight: float | None
    stage1_epochs: float | None
    restart: bool
    draw: Literal["gumbel", "hard", "noisy", "hint", "low", "keep"]
    temperature: float
    noise: float
    fusion: Literal[
        "linear", "attention-weighted", "geometric", "maximum", "product", "mean-rank", "entropy-gated", "learned"
    ]
    map_norm: Literal["sum", "minmax", "rank", "none"]
    map_clip: float | None
    query: Literal["cls", "mean", "all"]
    layer: int
    teacher_heads: Sequence[int] | int | None
    student_heads: Sequence[int] | int | None
    student: Literal["momentum", "online"]
    momentum_schedule: Literal["cosine", "linear", "constant"]
    teacher_features: int | None
    student_features: int
    projected: bool
    target_norm: Literal["layer", "l2", "none", "instance"]
    loss: Literal["smooth-l1", "cosine", "l2", "l1"] | None
    beta: float | None
    positions: Literal["predicted", "all"]
    pixels: float
    hog: float
    decoder: Literal["self", "cross", "cross-self", "linear", "task"]
    blend: Literal["linear", "softmax", "project", "none"]
    lr_scale: Literal["predicted", "inverse", "none"]
    blend_init: Literal["paper", "released"]
    num_maps: int | None
    maps: Sequence[int] | int | None
    use_input: bool
    self_attention: bool
    hardest: float
    hardest_end: float
    momentum_epochs: float
    bins: int
    mask_unit: int | None
    ask: Literal["uniform", "hardest"]
    hide: Literal["drop", "blank"]
    target: Literal[
        "norm-pixels",
        "pixels",
        "hog",
        "features",
        "data2vec",
        "maskdistill",
        "maps",
        "teacher",
        "student",
        "collaborative",
    ]
    budget: Literal["dirichlet", "adaptive", "joint"]
    concentration: Sequence[float] | float
    tasks: Literal["all", "uniform"]
    harder_gets: Literal["visible", "hidden"]
    budget_temperature: float
    budget_floor: float
    extra_norm_pix: bool
    weighting: Literal["sum", "uncertainty"]
    target_features: int
    weight_decay_on: Literal["matrices", "all"]
    qkv_init: Literal["fused", "separate"]
    guide: Literal["attention", "error", "foreseen"]
    guide_heads: Literal["all", "random"]
    heads_drawn: Literal["step", "image"]
    guide_warmup: float
    guide_every: int
    guide_scale: Literal["full", "half"]
    guidance: Literal["faithful", "fast"]
    statistics: float


class PretrainOptions(RecipeOptions, total=False):
    """The options of `unveil.pretrain` itself, and those of all recipes."""

    config: str | PathLike[str] | None
    data: Data
    image_column: str | None
    tile: int | None
    tile_overlap: int
    tile_valid: float
    modalities: Sequence[str] | str
    group_by: str | None
    held_out: Literal["spread", "last"]
    held_out_share: float
    out: str | PathLike[str] | None
    init_from: str | PathLike[str] | None
    init_channels: Sequence[str] | str
    allow_missing: bool
    init_epoch: float | None
    continue_schedule: Literal["restart", "tail", "x10"]
    overwrite: bool
    paper: bool
    minutes: float | None
    seed: int
    device: str
    precision: Literal["auto", "float32", "bf16"]
    compile: Literal["auto", "on", "off"]
    shard: bool
    checkpoint_activations: bool
    micro_batch: int | None
    repeats: int
    augment_on: Literal["cpu", "device"]
    workers: int | None
    threads: int | None
    save_minutes: float
    val_every: float | None
    save_every: float | None
    hang_minutes: float
    check: Literal["auto", "all", "sample", "none"]
    max_broken: float
    log: (
        Literal["tensorboard", "wandb", "mlflow", "trackio"]
        | Sequence[Literal["tensorboard", "wandb", "mlflow", "trackio"]]
    )
    tensorboard: bool
    trust: bool
    checkpoint_format: Literal["safetensors", "dcp"]


class ProtocolOptions(TypedDict, total=False):
    """The options of all protocols but `inputs`, an argument of `evaluate`; each goes to all protocols that have it."""

    epochs: int | None
    head: Literal["linear", "convnext", "upernet", "dpt", "auto"]
    frozen: bool | None
    modalities: Sequence[str] | str
    layout: Literal["auto", "folders", "ade20k", "nyuv2", "hypersim", "camvid", "coco", "yolo", "voc"]
    preset: Literal[
        "auto",
        "probe",
        "small",
        "multimae-nyuv2",
        "mae-b",
        "mae-l",
        "mae-h",
        "crossmae-paper",
        "crossmae-released",
        "multimae",
        "cached",
        "mae",
        "mae-ade20k",
        "multimae-ade20k",
        "multimae-hypersim",
        "vitdet",
    ]
    schedule: Literal[
        "auto", "probe", "small", "mae", "mae-ade20k", "multimae-ade20k", "multimae-hypersim", "multimae-nyuv2"
    ]
    batch_size: int | None
    lr: float | None
    image_size: int | None
    depth_scale: float | None
    max_depth: float | None
    loss: Literal["berhu", "l1"]
    updates: int | None
    warmup_epochs: float | None
    weight_decay: float | None
    layer_decay: float | None
    drop_path: float | None
    randaugment: float | None
    mixup: float | None
    cutmix: float | None
    smoothing: float | None
    erasing: float | None
    ema: float | None
    lrs: Sequence[float] | float
    probe_epochs: int
    by: Literal["knn", "knn-whitened", "linear", "linear-lbfgs", "attentive", "finetune"]
    shots: Sequence[str] | str
    draws: int
    otherwise: Literal["knn", "knn-whitened", "linear-lbfgs"] | None
    classes: int | None
    ignore: int | None
    first_class: int | None
    train_patches: int
    hidden: Sequence[float] | float
    cross_modal: bool
    by_place: bool
    cascade: bool
    positions: Literal["auto", "interpolate", "extrapolate", "both"]
    relative_positions: bool
    window: int | None
    split: str | None
    late: Literal["ignore", "give"]
    context: int
    radius: int
    neighbours: int
    temperature: float
    short_side: int
    stride: int | None
    stretch: bool
    soft_labels: bool
    save_masks: str | None
    predict: Sequence[str] | str
    to: Sequence[str] | str
