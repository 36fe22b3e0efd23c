"""Flags of the public MAE, CrossMAE, MultiMAE, SimMIM, Pixio and Hugging Face scripts, answered with ours.

Nothing is translated silently: some of them mean something else there (a batch per GPU, an absolute learning rate,
a share that is hidden), so the answer shows each flag with its counterpart and the whole command, ready to copy.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from ..recipes.options import Option, UsageError
from .flags import by_name, flag_name, split

Answer = tuple[list[str], str]  # our words, none where there is nothing to say, and why
Convert = Callable[[Sequence[str]], Answer]

_SAVING = "epochs; the newest weights are saved every --save-minutes besides"
_RESUMING = "starts from weights; an unfinished run goes on when its command is repeated"
_SAME_NAMES = ("warmup_epochs", "min_lr", "weight_decay", "decoder_depth", "decoder_dim")  # with underscores
_IMAGE_SIZES = ("input_size", "img_size", "image_height")
RENAMED = (
    dict.fromkeys(("blr", "base_learning_rate"), ("--lr", "per 256 images of the batch"))
    | dict.fromkeys(("clip_grad", "max_grad_norm"), ("--clip", "largest norm of the gradient"))
    | dict.fromkeys(("patch_size", "model_patch_size"), ("--patch", "in pixels"))
    | dict.fromkeys(_IMAGE_SIZES, ("--image-size", "or height and width"))
    | dict.fromkeys(("data_path", "train_dir"), ("--data", "any folder of images, no class folders needed"))
    | dict.fromkeys(("output_dir", "output"), ("--out", "the run folder"))
    | dict.fromkeys(("finetune", "model_name_or_path"), ("--init-from", "starts from weights"))
    | dict.fromkeys(("num_workers", "dataloader_num_workers"), ("--workers", ""))
    | dict.fromkeys(("save_freq", "save_ckpt_freq"), ("--save-every", _SAVING))
    | {name: (f"--{name.replace('_', '-')}", "") for name in _SAME_NAMES}
    | {
        "kept_mask_ratio": ("--predicted", "share of all patches that is predicted"),
        "image_column_name": ("--image-column", "of a Parquet file"),
        "label_column_name": ("--label-column", "of a Parquet file"),
        "decoder_num_heads": ("--decoder-heads", ""),
        "mask_patch_size": ("--mask-unit", "in pixels"),
        "num_train_epochs": ("--epochs", ""),
        "dataset_name": ("--data", "a folder or a Parquet file: nothing is downloaded"),
        "resume": ("--init-from", _RESUMING),
        "alphas": ("--concentration", "of the Dirichlet, one for all modalities or one for each"),
    }
)

SWITCHES = {
    "norm_pix_loss": ("--norm-pix", ""),
    "extra_norm_pix_loss": ("--extra-norm-pix", ""),
    "use_input": ("--use-input", ""),
    "self_attn": ("--self-attention", ""),
    "weight_fm": ("--blend linear", "the blend of encoder maps"),
    "no_lr_scale": ("--lr-scale none", "the rate is not scaled by predicted / hidden"),
    "inverse_lr": ("--lr-scale inverse", ""),
    "overwrite_output_dir": ("--overwrite", ""),
    "global_pool": ("--pool mean", ""),
    "cls_token": ("--pool cls", ""),
    "sample_tasks_uniformly": ("--tasks uniform", "a set of the modalities is drawn for each image"),
}

_ACCUMULATION = ("accum_iter", "accumulation_steps", "gradient_accumulation_steps")
_BATCH = ("batch_size", "batch_size_per_gpu", "per_device_train_batch_size")
_GOES_ON = "an unfinished run in --out goes on when its command is repeated"
_TORCHRUN = "torchrun starts several: torchrun --nproc-per-node GPUS -m unveil pretrain ..."
_FINE_TUNING = "belongs to fine-tuning: unveil evaluate RUN --protocol finetune"
_ROLES = 'all that is read is predicted; role = "input" or "output" in a declaration says otherwise'
_OF_SEVERAL = ("num_encoded_tokens",)  # whose meaning hangs on other flags
_DONE = "done where it helps"
NEEDLESS = (
    dict.fromkeys(_ACCUMULATION, "--batch-size is the whole effective batch; memory decides how it is cut")
    | dict.fromkeys(("log_dir", "log_wandb", "wandb_project", "tag"), "metrics.jsonl is always in the run folder")
    | dict.fromkeys(("start_epoch", "auto_resume", "no_auto_resume"), _GOES_ON)
    | dict.fromkeys(("world_size", "local_rank", "dist_on_itp", "dist_url", "dist_backend"), _TORCHRUN)
    | dict.fromkeys(("job_dir", "nodes", "ngpus", "partition", "timeout", "use_volta32"), _TORCHRUN)
    | dict.fromkeys(("drop_path", "layer_decay", "mixup", "cutmix", "smoothing", "reprob", "aa"), _FINE_TUNING)
    | {"out_domains": _ROLES, "standardize_depth": "done by default; a declaration says otherwise"}
    | dict.fromkeys(("num_global_tokens", "n_cls_tokens"), "there is one class token")
    | dict.fromkeys(("loss_on_unmasked", "no_loss_on_unmasked"), "only hidden patches are predicted")
    | dict.fromkeys(("pin_mem", "no_pin_mem", "multi_epochs_dataloader", "fp32_output_adapters"), _DONE)
    | dict.fromkeys(("enable_flash_attention2", "use_flash_attn"), "torch's own fast attention is used")
    | dict.fromkeys(("amp_opt_level", "fp16", "bf16", "dtype"), "--precision auto takes bf16 where the device has it")
    | dict.fromkeys(("warmup_lr", "lr_scheduler_type"), "linear warm-up from 0, then a cosine to --min-lr")
    | dict.fromkeys(("opt_betas", "opt_eps", "momentum"), "those of the recipe's AdamW")
    | dict.fromkeys(("save_steps", "save_strategy"), "see --save-minutes and --save-every")
    | dict.fromkeys(("cfg", "opts"), "--config reads a YAML file of unveil's own options")
    | {"warmup_ratio": "see --warmup-epochs", "do_train": "", "do_eval": "", "train_interpolation": "always bicubic"}
)


def _model(values: Sequence[str]) -> Answer:
    name = values[0]
    size = re.search(r"tiny|small|base|large|huge", name)
    patch, image = re.search(r"patch(\d+)", name), re.search(r"patch\d+_(\d+)", name)
    words = ["--size", size[0]] if size else []
    words += ["--patch", patch[1]] if patch else []
    words += ["--image-size", image[1]] if image else []
    return words, "the method is the word after pretrain"


def _use_fm(values: Sequence[str]) -> Answer:
    maps = [int(v) for v in values]
    if maps == [-1]:
        return [], "all blocks are blended by default"
    if min(maps) < 0:
        return [], "give the blocks counted from 1: --maps 6 12"
    return ["--maps", *(str(m + 1) for m in maps)], "blocks are counted from 1"


def _num_encoded_tokens(values: Sequence[str], domains: int) -> Answer:
    share = f"--visible {int(values[0]) / (196 * domains):.6g}".split()
    each = f" of each of {domains} modalities" if domains > 1 else ""
    return share, f"as a share of the 196 patches{each}, of 16 px in 224 x 224"


_DOMAINS = "folders of --data; others than rgb, depth and semseg are declared"
_UNIT = "side in pixels of what is hidden whole, for patches of 16"
CONVERTED: dict[str, Convert] = {
    "mask_ratio": lambda v: (["--visible", f"{1 - float(v[0]):.6g}"], "share that the encoder sees: 1 - mask_ratio"),
    "model": _model,
    "use_fm": _use_fm,
    "in_domains": lambda v: (["--modalities", *v[0].split("-")], _DOMAINS),
    "mask_grid": lambda v: (["--mask-unit", str(16 * int(v[0]))], _UNIT),
    "opt": lambda v: (["--optimizer", v[0].lower()], "adamw (by default), muon or sgd"),
    "hflip": lambda v: (["--flip", "none" if v and float(v[0]) == 0 else "h"], ""),
}


def refuse_foreign(command: str, words: Sequence[str], flags: Sequence[Option]) -> None:
    """Raise `UsageError` when words hold another project's flags: each with ours, and the whole command in ours."""
    ours = by_name(flags)
    pieces = list(split(words, flags))
    if not any(_is_foreign(word, ours) for word, _ in pieces):
        return
    batch, domains = _effective_batch(pieces), _num_domains(pieces)
    convert = CONVERTED | {"num_encoded_tokens": partial(_num_encoded_tokens, domains=domains)}
    rows: list[tuple[str, str, str]] = []
    corrected: list[str] = []
    for word, values in pieces:
        name = flag_name(word)
        if name in _BATCH and batch:
            new, why = ["--batch-size", str(batch)], "the whole effective batch: times the number of your GPUs"
        elif name in ("lr", "learning_rate"):
            new = ["--lr", f"{float(values[0]) * 256 / batch:.4g}"] if batch and values else []
            why = "ours is per 256 images of the batch, theirs the final rate"
        elif _is_foreign(word, ours):
            new, why = _in_recipe(*_answer(name, values, convert), ours)
        else:
            corrected += [word] * bool(word) + values
            continue
        corrected += new
        rows.append((" ".join([word, *values]), " ".join(new) or "(leave out)", why))
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    table = "\n".join(f"  {a:{widths[0]}}   {b:{widths[1]}}   {why}".rstrip() for a, b, why in rows)
    several = "these flags are" if len(rows) > 1 else "this flag is"
    raise UsageError(
        f"{several} from another project's script; in unveil's words:\n{table}",
        f"the whole command: unveil {command} {shlex.join(corrected)}",
    )


def _is_foreign(word: str, ours: dict[str, Option]) -> bool:
    name = flag_name(word)
    is_known = any(name in table for table in (RENAMED, SWITCHES, NEEDLESS, CONVERTED, _BATCH[1:], _OF_SEVERAL))
    return bool(word) and name not in ours and is_known


def _effective_batch(pieces: Sequence[tuple[str, list[str]]]) -> int | None:
    """Their batch per GPU times their accumulation, on one GPU."""
    given = {flag_name(word): values[0] for word, values in pieces if word and values and values[0].isdigit()}
    batch = next((int(given[name]) for name in _BATCH if name in given), None)
    steps = next((int(given[name]) for name in _ACCUMULATION if name in given), 1)
    return batch * steps if batch else None


def _num_domains(pieces: Sequence[tuple[str, list[str]]]) -> int:
    """How many modalities their model reads: a-b-c."""
    domains = next((values[0] for word, values in pieces if flag_name(word) == "in_domains" and values), "rgb")
    return len(domains.split("-"))


def _answer(name: str, values: Sequence[str], convert: Mapping[str, Convert]) -> Answer:
    if name in convert:
        try:
            return convert[name](values)
        except (ValueError, IndexError):
            return [], "its value could not be read"
    if name in SWITCHES:
        words, why = SWITCHES[name]
        return words.split(), why
    if name in RENAMED:
        word, why = RENAMED[name]
        return [word, *values], why
    return [], NEEDLESS.get(name, "see --batch-size")


def _in_recipe(words: list[str], why: str, ours: dict[str, Option]) -> Answer:
    """The answer as far as this command has the option: not at all, by default already, or as given."""
    accepted: list[str] = []
    for word, values in split(words, list(ours.values())):
        flag = ours.get(flag_name(word))
        if flag is None:
            why = f"this command has no {word}"
        elif flag.is_switch and flag.default is True:
            why = f"on by default; --no-{word[2:]} turns it off"
        else:
            accepted += [word, *values]
    return accepted, why
