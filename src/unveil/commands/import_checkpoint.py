"""`unveil import`: a public checkpoint as a run folder, for every command that takes one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from .._version import __version__
from ..modeling.encoder import Encoder
from ..modeling.public_vits import (
    GIVEN,
    PublicViT,
    WeightFiles,
    encoder_of,
    find_weights,
    saved_statistics,
    sincos_grid,
    summarise,
)
from ..recipes.imported import Imported, has_decoder, own_encoder, with_decoder
from ..recipes.options import accept_python_values, as_text, as_tuple
from ..recipes.recipe import ENCODER
from ..reporting.run_files import mapping
from ..runs.atomic import make_folder
from ..runs.checkpoint import write
from ..runs.console import log, user_path
from ..runs.folder import RunFolder, check_writable
from ..training.config import json_like
from ..training.run_metadata import model_metadata

Activation = Literal["gelu", "quick_gelu", "gelu_pytorch_tanh", "silu"]
_PROJECTION = re.compile(r"(patch_embed\.proj|patch_embeddings?(\.projection)?|conv1|adapters\.rgb\.proj)\.weight$")
_HEADS = {"multimae": 8, "mae": 16}  # of decoders, by their papers


@accept_python_values
def import_checkpoint(
    checkpoint: str | PathLike[str],
    *,
    out: str | PathLike[str],
    mean: float | Sequence[float] = (),
    std: float | Sequence[float] = (),
    image_size: int | Sequence[int] = (),
    heads: int | None = None,
    activation: Activation | None = None,
    decoder_heads: int | None = None,
    norm_pix: Literal["yes", "no"] | None = None,
    usual: bool = False,
    encoder_only: bool = False,
    allow_left_over: bool = False,
    licence: str | None = None,
    source: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Turn a public checkpoint into a run folder; returns the folder.

    It reads MAE, CrossMAE, MultiMAE, transformers (ViT, ViTMAE, DeiT, DINOv2, DINOv3, CLIP, SigLIP), OpenCLIP, timm and
    lightly, and what `unveil export` writes: a weight file, a folder with its configuration, or a name on the hub. A
    masked autoencoder keeps its decoder. What no file says has to be given, and one error lists it.

    out: the run folder to write
    mean: of each channel, of images in [0, 1], by which the encoder's images were normalised
    std: the standard deviation of each channel
    image_size: height and width in pixels that the encoder was trained at, or one number
    heads: number of attention heads
    activation: of the encoder's MLPs
    decoder_heads: number of the decoder's attention heads
    norm_pix: whether the decoder predicts pixels that are normalised patch by patch
    usual: take the usual values of its family for what no file says
    encoder_only: leave the decoder out
    allow_left_over: go on where tensors have no place in the model
    licence: of these weights, for run.json, such as cc-by-nc-4.0; by default what the files beside them say
    source: where they are from, such as a URL, for run.json; by default the address
    overwrite: replace the run that the folder holds

    Raises ValueError for what is no ViT of these, for tensors that are left over, and where a file does not say enough;
    FileNotFoundError and OSError as `unveil.load`.

    >>> import unveil
    >>> folder = unveil.export("runs/a", to="transformers", out="published")  # or weights that others have published
    published: README.md, config.json, model.safetensors, preprocessor_config.json
    >>> unveil.Run(unveil.import_checkpoint(folder, out="runs/imported"))
    <Run runs/imported: an encoder of published>
    """
    checkpoint, out = as_text(checkpoint), as_text(out)
    mean, std, image_size = as_tuple(mean), as_tuple(std), as_tuple(image_size)
    folder = user_path(out)
    if folder.exists() and any(folder.iterdir()) and not (overwrite and (folder / "run.json").exists()):
        raise ValueError(f"{folder} holds files; give another --out, or --overwrite to replace a run")
    if (user_path(checkpoint) / "run.json").exists():
        raise ValueError(f"{checkpoint} is a run folder already; every command takes it as it is")
    files = find_weights(checkpoint)
    given = {"mean": list(mean), "std": list(std), "image_size": list(image_size)}
    given |= {"heads": heads, "activation": activation}
    given["image_size"] = given["image_size"] or _size_of_waves(files)
    files = replace(files, config={**files.config, GIVEN: {name: value for name, value in given.items() if value}})
    encoder = encoder_of(_readable(files), allow_left=allow_left_over, quiet=True)
    keeps = not encoder_only and has_decoder(files)
    _ask(files, encoder, keeps, decoder_heads, norm_pix, usual)
    own = own_encoder(files, encoder.config, encoder.vit.state_dict())
    if own is not None and keeps:
        family = "multimae" if "global_tokens" in files.state else "mae"
        saved_heads = files.config.get("decoder_num_attention_heads", _HEADS[family])
        normalised = bool(files.config.get("norm_pix_loss", True)) if norm_pix is None else norm_pix == "yes"
        own = with_decoder(own, files, decoder_heads or saved_heads, normalised, allow_left_over)
    elif keeps:
        raise ValueError(
            f"{checkpoint} has a decoder, and an encoder that no recipe has; --encoder-only imports that without it"
        )
    if own is not None and own.left and not allow_left_over:
        raise ValueError(
            f"{checkpoint}: {len(own.left)} tensors have no place: {summarise(own.left)}; --allow-left-over goes on"
        )
    check_writable(folder)
    make_folder(folder, exist_ok=True)
    run = RunFolder(folder)
    with run.lock():
        _write(run, files, encoder, own, {"licence": licence or _licence(files), "source": source})
    return folder


def _readable(files: WeightFiles) -> WeightFiles:
    """The files where they say by what images of any number of channels are normalised. Raises ValueError otherwise."""
    channels = _channels(files)
    given = files.config[GIVEN]
    for name in ("mean", "std"):
        if len(given.get(name, [0] * channels)) != channels:
            raise ValueError(f"--{name} takes a number for each of its {channels} channels; got {len(given[name])}")
    is_known = bool(saved_statistics(files)) or "unveil" in files.config or {"mean", "std"} <= given.keys()
    if channels not in (0, 3) and not is_known:
        raise ValueError(
            f"{files.address} reads {channels} channels and does not say by what they are normalised; give --mean and"
            f" --std with {channels} numbers each, of images in [0, 1]"
        )
    return files


def _size_of_waves(files: WeightFiles) -> list[int]:
    """Height and width where a table of sine-cosine positions shows them; empty for a learned one."""
    tables = (t for n, t in files.state.items() if re.search(r"(?<!decoder_)(pos_embed|position_embeddings)$", n))
    patches = [t.shape[-1] for n, t in files.state.items() if t.ndim == 4 and _PROJECTION.search(n)]
    grid = next(filter(None, map(sincos_grid, tables)), None)
    return [side * patches[0] for side in grid] if grid and patches else []


def _channels(files: WeightFiles) -> int:
    """How many channels its images have; 0 where that is not known."""
    shapes = [t.shape for n, t in files.state.items() if t.ndim == 4 and _PROJECTION.search(n)]
    return shapes[0][1] if shapes else 0


def _ask(
    files: WeightFiles,
    encoder: PublicViT,
    keeps: bool,
    decoder_heads: int | None,
    norm_pix: str | None,
    usual: bool,
) -> None:
    """Raise ValueError with all that no file says and no flag gives, unless the usual values are to be taken."""
    config, given, vit = files.config, files.config[GIVEN], encoder.config
    says = config.keys() - {GIVEN}
    open_questions: dict[str, str] = {}
    if not saved_statistics(files) and "unveil" not in config:
        for name, values in (("mean", vit.mean), ("std", vit.std)):
            if name not in given:
                open_questions[f"--{name}"] = " ".join(f"{value:.4g}" for value in values)
    says_heads = {"num_attention_heads", "architecture", "model_cfg", "unveil", "vision_config", "model_args"} & says
    if "heads" not in given and not says_heads:
        open_questions["--heads"] = str(vit.heads)
    if vit.has_pre_norm and "activation" not in given and not says:
        open_questions["--activation"] = vit.activation.replace("-", "_")
    is_sized = {"image_size", "pretrained_cfg", "unveil"} & says
    if vit.positions == "rotary" and "image_size" not in given and not is_sized:
        open_questions["--image-size"] = " ".join(map(str, encoder.image_size))
    if keeps and decoder_heads is None and "decoder_num_attention_heads" not in says:
        open_questions["--decoder-heads"] = str(_HEADS["multimae" if "global_tokens" in files.state else "mae"])
    if keeps and norm_pix is None and "norm_pix_loss" not in says and "global_tokens" not in files.state:
        open_questions["--norm-pix"] = "yes"
    if not open_questions:
        return
    listed = ", ".join(f"{flag} (usually {value})" for flag, value in open_questions.items())
    if not usual:
        raise ValueError(f"{files.address} does not say {listed}; give them, or --usual to take these values")
    log(f"taken as usual: {' '.join(f'{flag} {value}' for flag, value in open_questions.items())}")


def _licence(files: WeightFiles) -> str | None:
    """The licence that the files beside the weights name: in the configuration, or at the head of a model card."""
    named = mapping(files.config.get("pretrained_cfg")).get("license") or files.config.get("license")
    card = user_path(files.address) / "README.md"
    if named is None and card.is_file():
        head = card.read_text(encoding="utf-8", errors="replace").split("\n---", 1)[0]
        line = re.search(r"^license: *(\S+)", head, re.M)
        named = line[1] if line and head.startswith("---") else None
    return str(named) if named else None


def _write(
    run: RunFolder, files: WeightFiles, encoder: PublicViT, own: Imported | None, provenance: Mapping[str, Any]
) -> None:
    """Write the checkpoint of step 0 and `run.json`, which comes last, as a folder without it holds no run."""
    run.clear()
    file = user_path(files.address)
    digest = None
    if file.is_file():
        with file.open("rb") as content_of:
            digest = hashlib.file_digest(content_of, "sha256").hexdigest()
    imported = {
        "source": provenance["source"] or files.address,
        "licence": provenance["licence"],
        "sha256": digest,
        "decoder": own is not None and own.recipe != ENCODER,
    }
    if own is None:
        imported["beside"] = {"config": dict(files.config), "preprocessing": dict(files.preprocessing)}
    modalities = own.encoder.modalities if own else encoder.modalities
    first, content = modalities[0], _model(encoder, own)
    metadata = {
        "unveil": __version__,
        "recipe": own.recipe if own else ENCODER,
        "status": "imported",
        "given": {},
        "options": {name: json_like(value) for name, value in (own.options if own else {}).items()},
        "modality": asdict(first),
        **({"modalities": [asdict(d) for d in own.declared]} if own and own.declared else {}),
        "data": {
            "address": "",
            "count": 0,
            "names": "",
            "held_out": 0,
            "image_size": list(encoder.image_size),
            "channels": first.channels,
            "mean": list(first.mean),
            "std": list(first.std),
        },
        "encoder": asdict(own.encoder) if own else None,
        "model": content,
        "seed": 0,
        "imported": imported,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "last_checkpoint": 0,
    }
    header = {name: metadata[name] for name in ("unveil", "recipe", "options", "modality", "model")}
    state = {"stage": 0, "epoch": 0.0, "seconds": 0.0, "run": metadata}
    weights = own.weights if own else files.state
    write(run.path, "checkpoints", 0, weights, {}, state, {"unveil": json.dumps(header)} if own else {})
    run.update_metadata(**metadata)
    kept = f"with the decoder of {own.recipe}" if own and own.recipe != ENCODER else "an encoder alone"
    beside = "" if own else ", kept under its own names"
    log(f"{run.path}: {kept}{beside}, {len(weights)} tensors; licence: {imported['licence'] or 'none is named'}")


def _model(encoder: PublicViT, own: Imported | None) -> dict[str, Any]:
    """What `run.json` says of the model: all of a masked autoencoder, of an encoder its parameters and heads."""
    if own is None or own.recipe == ENCODER:
        part: Encoder | PublicViT = own.encoder.empty() if own else encoder
        return {
            "parameters": {"encoder": sum(p.numel() for p in part.parameters()), "decoder": 0},
            "heads": encoder.config.heads,
        }
    return model_metadata(own.build()[0], own.encoder.modalities)
