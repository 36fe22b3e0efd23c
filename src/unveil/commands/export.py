"""`unveil export`: the encoder of a run as files that timm, transformers, ONNX or plain torch read."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import nn

from ..evaluation.kept_heads import KeptHead, Task, read_head
from ..evaluation.predictors import ClassPredictor, Predictor
from ..modeling.image_encoder import FeatureExtractor, ImageEncoder
from ..modeling.public_vits.classifier_layouts import timm_classifier, transformers_classifier
from ..modeling.public_vits.layouts import (
    check_layout,
    processor_config,
    timm_config,
    timm_weights,
    transformers_config,
    transformers_weights,
    vit_mae,
)
from ..recipes.options import accept_python_values, as_text, as_tuple
from ..recipes.registry import paper_of
from ..recipes.run import Run
from ..reporting.model_card import model_card
from ..reporting.run_record import read_run
from ..runs.atomic import replacing, write_json, write_text
from ..runs.checkpoint import write_weights
from ..runs.console import user_path
from ..runs.folder import check_writable
from .head_files import CONFIG, WEIGHTS, output_of, write_head
from .load import load_predictor

Format = Literal["timm", "transformers", "onnx", "torch", "safetensors"]
_FILES = (
    *(WEIGHTS, CONFIG, "preprocessor_config.json"),
    *("encoder.pt2", "encoder.onnx", "preprocess.json", "README.md"),
)
_OF_TASK: dict[Task, tuple[Format, ...]] = {
    "classes": get_args(Format),
    "semseg": ("onnx", "torch", "safetensors"),
    "depth": ("onnx", "torch", "safetensors"),
    "boxes": ("safetensors",),
}
_KINDS: dict[Task, str] = {
    "classes": "classes of images",
    "semseg": "a class for every pixel",
    "depth": "depth for every pixel",
    "boxes": "boxes and masks",
}
_WHY = {
    True: "how many boxes there are depends on the image, and a program has outputs of known shapes",
    False: "its models have no such head on a ViT",
}


@dataclass(frozen=True)
class _Layout:
    """How a format is written into a folder, and the Python that loads it from there."""

    write: Callable[[ImageEncoder, Path, str | None], None]
    load: str
    needs: tuple[str, ...] = ()


@accept_python_values
def export(
    run: str | PathLike[str] | Run,
    *,
    to: Format = "timm",
    out: str | PathLike[str] | None = None,
    decoder: bool = False,
    head: str | None = None,
    image_size: int | Sequence[int] = (),
    at_epoch: float | None = None,
    licence: str | None = None,
    push: str | None = None,
    overwrite: bool = False,
    trust: bool = False,
) -> Path:
    """Write the encoder of a run as a folder that other tools load, with a model card; returns the folder.

    With `head` it is the encoder with a head that was kept. One of classes goes to all formats: timm's with its head,
    transformers' ViTForImageClassification, a program from images to scores. Of `segment` and `depth`, onnx and torch
    are programs from images of one size to scores or metres for every pixel. `safetensors` holds every head, that of
    `detect` too, for `unveil.load(folder, head=...)` and `unveil predict folder`.

    Features of the exported model are those of `unveil.load`: within 1e-5 for timm and transformers, 1e-4 for ONNX.

    to: timm (VisionTransformer), transformers (ViTModel), onnx and torch (programs from images in [0, 1] to features,
        normalisation included, the batch free), or safetensors (unveil's own names, for `unveil.load`)
    out: the folder to write; by default export-<format> in the run folder
    decoder: with transformers, the whole autoencoder as ViTMAEForPreTraining; of recipe mae
    head: the protocol whose head to export too, such as finetune, segment or detect, that `evaluate --keep` has kept
    image_size: height and width in pixels of the images that the exported encoder reads, or one number; by default
        those of training
    at_epoch: the weights that the run saved then (`pretrain --save-every`), in place of the newest
    licence: of these weights, for the card, such as apache-2.0; none is guessed
    push: upload the folder to the Hugging Face Hub as OWNER/NAME, which needs `huggingface-cli login`
    overwrite: replace files that an earlier export left in the folder
    trust: execute the recipe file of a run whose encoder is of classes of its own, or with decoder of any recipe file,
        where you have not run it before

    Raises ValueError for an encoder that the format has no place for, and where the folder holds files.

    >>> import unveil
    >>> folder = unveil.export("runs/a", to="timm", out="exported", licence="apache-2.0")
    exported: README.md, config.json, model.safetensors
    """
    run, out, image_size = as_text(run), as_text(out), as_tuple(image_size)
    layout = _LAYOUTS[to]
    if push is not None and importlib.util.find_spec("huggingface_hub") is None:
        raise ValueError("--push needs huggingface_hub: pip install 'unveil[hub]'")
    if decoder and to != "transformers":
        raise ValueError("--decoder is for --to transformers, whose ViTMAEForPreTraining has one")
    if head is not None and (decoder or at_epoch is not None):
        raise ValueError("--head says its weights itself: leave --decoder and --at-epoch out")
    if image_size and (decoder or head is not None or to == "safetensors"):
        raise ValueError("--image-size is of the encoder alone, in another format than safetensors, which has any size")
    stored = Run.open(run, trust)
    folder = user_path(out) if out is not None else stored.path / f"export-{to}"
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise ValueError(f"{folder} holds files; give another --out, or --overwrite to replace those of an export")
    kept = None if head is None else read_head(stored.path, head)
    at_epoch = at_epoch if kept is None else kept.facts.get("at_epoch")
    if kept is not None:
        _check_head(str(head), kept, to)
    missing = [name for name in layout.needs if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"--to {to} needs {' and '.join(missing)}: pip install 'unveil[{to}]'")
    encoder = _encoder(stored, to, at_epoch, kept)
    model = None if kept is None else load_predictor(stored, head, "cpu", trust)
    if image_size:
        own = cast("ImageEncoder", encoder)
        own.encoder.set_image_size(image_size)
        own.image_size = own.encoder.image_size
    autoencoder = vit_mae(stored.model(epoch=at_epoch)) if decoder else None
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in _FILES:  # of an earlier export, perhaps in another format
        (folder / name).unlink(missing_ok=True)
    load = _LOAD_MAE if decoder else layout.load
    if kept is not None and model is not None:
        load = _write_head(stored, kept, model, to, folder, licence, encoder)
    elif autoencoder is not None:
        _write(folder, *autoencoder, cast("ImageEncoder", encoder))
    else:
        layout.write(cast("ImageEncoder", encoder), folder, licence)
    write_text(folder / "README.md", _card(stored, encoder, at_epoch, load, licence, model))
    print(f"{folder}: {', '.join(sorted(f.name for f in folder.iterdir()))}")
    if push is not None:
        _push(folder, push)
    return folder


def _encoder(run: Run, to: Format, at_epoch: float | None, head: KeptHead | None) -> FeatureExtractor:
    """The encoder to export. Raises ValueError for one that the format has no place for."""
    if head is not None and to in ("onnx", "torch", "safetensors"):  # which take a head with any encoder
        return run.encoder("mean", at_epoch)
    if head is not None and not isinstance(run.encoder("mean", at_epoch), ImageEncoder):
        raise ValueError(
            f"{run.path} is an encoder of another project, whose heads go with --to onnx, torch or safetensors"
        )
    encoder = run.own_encoder(at_epoch)
    if to in ("timm", "transformers"):
        check_layout(encoder.encoder, to)
    return encoder


def _check_head(name: str, head: KeptHead, to: Format) -> None:
    """Raise ValueError for a format that has no place for a kept head."""
    formats = _OF_TASK[head.task]
    if to not in formats:
        raise ValueError(
            f"--head {name} is of {_KINDS[head.task]}, which goes with --to {' or '.join(formats)}, and not with {to}:"
            f" {_WHY[to in ('onnx', 'torch')]}"
        )


def _card(
    run: Run,
    encoder: FeatureExtractor,
    at_epoch: float | None,
    load: str,
    licence: str | None,
    model: Predictor | None,
) -> str:
    mean, std = encoder.statistics
    height, width = encoder.image_size
    weights = run.checkpoint(at_epoch).identity if model is None else model.facts["weights"]
    shape = {
        "images": f"{encoder.channels} channels, {width} x {height} pixels",
        "patch": f"{encoder.patch} pixels",
        "width, blocks, heads": f"{encoder.dim}, {encoder.depth}, {encoder.blocks[0].attn.heads}",
        "mean of a channel": " ".join(f"{value:g}" for value in mean),
        "standard deviation": " ".join(f"{value:g}" for value in std),
        "parameters": f"{sum(p.numel() for p in encoder.parameters()):,}",
        "weights": f"of step {weights.get('step')}, {weights['checksum']}",
    }
    if model is None:
        shape["features"] = "the mean of the patch tokens after the last norm"
    head = {} if model is None else _head_facts(model)
    return model_card(read_run(run.path), weights, load, shape, paper_of(run.config.recipe), licence, head)


def _head_facts(model: Predictor) -> dict[str, object]:
    """What the card says of a head."""
    height, width = model.view_size
    facts: dict[str, object] = {
        "trained by": f"`unveil evaluate --protocol {model.facts.get('protocol')}`",
        "predicts": _KINDS[model.task],
    }
    facts["images"] = f"{', '.join(m.name for m in model.inputs)}, read at {width} x {height} pixels"
    if model.task == "depth":
        return facts | {"unit": "metres"}
    return facts | {f"{len(model.classes)} classes, in the order of its outputs": ", ".join(model.classes)}


def _write_head(
    run: Run, head: KeptHead, model: Predictor, to: Format, folder: Path, licence: str | None, encoder: FeatureExtractor
) -> str:
    """Write a kept head with its encoder in a format; returns Python that loads it."""
    if to == "safetensors":
        write_head(run, head, model, folder)
        return _LOAD_HEAD.replace("NAME", str(head.facts["protocol"]))
    load, output = _LAYOUTS[to].load, "metres" if model.task == "depth" else "scores"
    if to in ("torch", "onnx"):
        names = [m.name for m in model.inputs] if len(model.inputs) > 1 else ["images"]
        if to == "torch":
            _write_program(model.program(), model.example(), folder)
        else:
            _write_onnx(model.program(), model.example(), folder, names, output)
        size = {"input_size": (model.channels, *model.view_size), "inputs": names}
        write_json(folder / "preprocess.json", encoder.preprocess_config | size | output_of(model))
        given = {"(images)": f"({', '.join(names)})", '"images": images': ", ".join(f'"{n}": {n}' for n in names)}
        for before, after in {"features": output, **given}.items():
            load = load.replace(before, after)
        return load
    assert isinstance(model, ClassPredictor)
    assert isinstance(encoder, ImageEncoder)
    linear = model.linear()
    state, config = timm_classifier(linear, licence) if to == "timm" else transformers_classifier(linear)
    _write(folder, {name: tensor.detach() for name, tensor in state.items()}, config, encoder)
    return load.replace("features", output) if to == "timm" else _LOAD_CLASSIFIER


def _write(folder: Path, weights: Mapping[str, torch.Tensor], config: Mapping[str, Any], encoder: ImageEncoder) -> None:
    write_weights(folder / WEIGHTS, {n: t.contiguous().cpu() for n, t in weights.items()}, {"format": "pt"})
    write_json(folder / CONFIG, config)
    if "model_type" in config:
        write_json(folder / "preprocessor_config.json", processor_config(encoder.encoder))


def _to_timm(encoder: ImageEncoder, folder: Path, licence: str | None) -> None:
    _write(folder, timm_weights(encoder.encoder), timm_config(encoder.encoder, licence), encoder)


def _to_transformers(encoder: ImageEncoder, folder: Path, licence: str | None) -> None:
    _write(folder, transformers_weights(encoder.encoder), transformers_config(encoder.encoder), encoder)


def _to_torch(encoder: ImageEncoder, folder: Path, licence: str | None) -> None:
    _write_program(encoder, _example(encoder), folder)
    write_json(folder / "preprocess.json", encoder.preprocess_config)


def _to_onnx(encoder: ImageEncoder, folder: Path, licence: str | None) -> None:
    _write_onnx(encoder, _example(encoder), folder)
    write_json(folder / "preprocess.json", encoder.preprocess_config)


def _example(encoder: ImageEncoder) -> tuple[torch.Tensor, ...]:
    """Two images, so that the batch is free in what is traced."""
    return (torch.rand(2, encoder.channels, *encoder.image_size),)


def _free(model: nn.Module, maps: Sequence[torch.Tensor]) -> tuple[Any, ...]:
    """What of the shapes of a model's arguments is free: the batch, the same of all maps."""
    free = ({0: torch.export.Dim("batch")},) * len(maps)
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(model.forward).parameters.values())
    return (free,) if takes_any else free


def _write_program(model: nn.Module, maps: tuple[torch.Tensor, ...], folder: Path) -> None:
    program = torch.export.export(model, maps, dynamic_shapes=_free(model, maps))
    with replacing(folder / "encoder.pt2") as temporary, temporary.open("wb") as file:
        torch.export.save(program, file)


def _write_onnx(
    model: nn.Module,
    maps: tuple[torch.Tensor, ...],
    folder: Path,
    names: Sequence[str] = ("images",),
    output: str = "features",
) -> None:
    with replacing(folder / "encoder.onnx") as temporary:
        torch.onnx.export(
            model,
            maps,
            str(temporary),
            input_names=list(names),
            output_names=[output],
            dynamo=True,
            external_data=False,
            dynamic_shapes=_free(model, maps),
        )


def _to_safetensors(encoder: ImageEncoder, folder: Path, licence: str | None) -> None:
    encoder.save(folder / WEIGHTS)


def _push(folder: Path, name: str) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(name, exist_ok=True)
    print(f"uploaded to {api.upload_folder(folder_path=str(folder), repo_id=name)}")


_LOAD_MAE = """
from transformers import ViTMAEForPreTraining

model = ViTMAEForPreTraining.from_pretrained("FOLDER")
"""
_LOAD_CLASSIFIER = """
from transformers import ViTForImageClassification  # images are normalised by ViTImageProcessor

model = ViTForImageClassification.from_pretrained("FOLDER")
scores = model(images).logits
"""
_LOAD_HEAD = """
import unveil  # images in [0, 1], of any size

model = unveil.load("FOLDER", head="NAME")
predictions = model(images)
"""
_LAYOUTS: dict[str, _Layout] = {
    "timm": _Layout(
        _to_timm,
        """
import timm  # 1.0.20 or newer; images are normalised by the mean and deviation below

model = timm.create_model("local-dir:FOLDER", pretrained=True)
features = model(images)
""",
    ),
    "transformers": _Layout(
        _to_transformers,
        """
from transformers import ViTModel  # images are normalised by ViTImageProcessor

model = ViTModel.from_pretrained("FOLDER", add_pooling_layer=False)
features = model(images).last_hidden_state[:, 1:].mean(dim=1)
""",
    ),
    "torch": _Layout(
        _to_torch,
        """
import torch  # images in [0, 1]

features = torch.export.load("FOLDER/encoder.pt2").module()(images)
""",
    ),
    "onnx": _Layout(
        _to_onnx,
        """
import onnxruntime  # images in [0, 1], an array of float32

session = onnxruntime.InferenceSession("FOLDER/encoder.onnx")
features = session.run(None, {"images": images})[0]
""",
        ("onnx", "onnxscript"),
    ),
    "safetensors": _Layout(
        _to_safetensors,
        """
import unveil  # images in [0, 1]

features = unveil.load("FOLDER/model.safetensors")(images)
""",
    ),
}
