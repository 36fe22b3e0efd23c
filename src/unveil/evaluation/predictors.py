"""Encoders with a head that `evaluate --keep` has kept: images to classes, to classes of pixels, to depth."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ..data.extras import optional
from ..data.transforms import Sample
from ..modeling.image_encoder import FeatureExtractor, ImageEncoder
from ..modeling.normalizer import Normalizer
from ..modeling.patches import known_pixels
from ..modeling.public_vits.classifier_layouts import LinearClassifier
from ..modeling.types import DEPTH, Batch, Modality
from .dense.data import DenseView
from .dense.model import DenseModel, check_dense
from .dense.windows import predict_windows
from .detection.average_precision import Found
from .detection.model import Detector, Heads, check_windowed, whole_blocks
from .detection.ops import NEEDED
from .detection.views import DetectionView
from .detection.whole_images import detect_whole
from .finetuning import Classifier
from .kept_heads import KeptHead, Task
from .protocols.attentive import AttentivePool, normed_tokens
from .types import check_trainable

AT_ONCE = 32  # windows of a dense prediction


class Predictor(nn.Module):
    """An encoder with a trained head, in eval mode: `unveil.load(run, head="finetune")(images)`.

    Images are B C H W, uint8 or float in [0, 1]; their normalisation is included. `classes` are the names of the
    outputs, none of depth; `facts` say which protocol trained the head, on which data and on which weights of the
    encoder. `transform` makes pictures (paths, PIL, arrays) its input. Raises ValueError for a head that does not fit
    the encoder.
    """

    def __init__(self, head: KeptHead, encoder: FeatureExtractor):
        super().__init__()
        self.task: Task = head.task
        self.classes, self.facts = head.classes, dict(head.facts)
        self.image_size, self.channels = encoder.image_size, encoder.channels
        self.view_size = encoder.image_size  # of what the model itself reads
        self.transform: Callable[[Any], Tensor] | None = encoder.transform
        self.inputs: tuple[Modality, ...] = encoder.modalities[:1]

    @property
    def device(self) -> torch.device:
        """The device of the weights, to which images are moved."""
        return next(self.parameters()).device

    @abstractmethod
    def forward(self, images: Any) -> Any:
        """Predictions of images: scores whose softmax over dimension 1 are probabilities, metres, or boxes."""

    @abstractmethod
    def program(self) -> nn.Module:
        """What `torch.export` and ONNX can write of it: a module of tensors alone, for images of `view_size`.

        Raises ValueError where there is none.
        """

    def example(self) -> tuple[Tensor, ...]:
        """Two images, one tensor for each map that is read, as `program` takes them."""
        return (torch.rand(2, self.channels, *self.view_size),)

    def extra_repr(self) -> str:
        what = f"{len(self.classes)} classes" if self.classes else "metres"
        return f"{self.task}, {what}, by {self.facts.get('protocol', 'unknown')}"


class ClassPredictor(Predictor):
    """Images -> scores of classes, B K."""

    def __init__(self, head: KeptHead, encoder: FeatureExtractor):
        super().__init__(head, encoder)
        self.model = _CLASSIFIERS[head.model](head, encoder)

    def forward(self, images: Tensor) -> Float[Tensor, "B K"]:
        scores: Tensor = self.model(images)
        return scores

    def program(self) -> nn.Module:
        """The module itself, of tensors already. Takes images as `forward` does."""
        return self

    def linear(self) -> LinearClassifier:
        """What it is where it is linear in one token of the last block, for the layouts of other projects.

        Raises ValueError where it is not.
        """
        encoder, own = getattr(self.model, "encoder", None), self.model
        if isinstance(own, _FineTunedClassifier) and isinstance(tuned := own.model.encoder, ImageEncoder):
            if own.model.pool == "all":
                raise ValueError("this head reads the mean of all tokens, of which other layouts know nothing")
            head, norm = own.model.head, own.model.norm
            return LinearClassifier(tuned.encoder, own.model.pool, norm, head.weight, head.bias, self.classes)
        if isinstance(own, _LinearClassifier) and isinstance(encoder, ImageEncoder):
            pool, is_last = encoder.pool, encoder.layers in ((), (encoder.depth,))
            if (pool == "cls" or pool == "mean") and is_last and encoder.normalizer is None:
                weight, bias = own.head.weight, own.head.bias
                return LinearClassifier(encoder.encoder, pool, None, weight, bias, self.classes)
        raise ValueError(
            "this head is not linear in the class token or the mean of the patches of the last block; use --to onnx or"
            " torch, which take it as it is"
        )


class DensePredictor(Predictor):
    """Images -> scores of classes for every pixel, B K H W, or depth in metres, B 1 H W; at the size of the images.

    Images of any size are read in windows, as `evaluate` reads them, without gradients. An encoder of several maps
    takes them by name: `{"rgb": images, "depth": metres}`.
    """

    def __init__(self, head: KeptHead, encoder: FeatureExtractor):
        super().__init__(head, encoder)
        settings, own = head.settings, check_dense(encoder)
        assert own is not None
        known = {m.name: m for m in encoder.modalities}
        self.inputs = tuple(known[name] for name in settings["inputs"])
        height, width = settings["image_size"]
        self.view_size = height, width
        self.view = DenseView(self.view_size, fit=settings["fit"])
        self.metres = (settings["mean"], settings["std"]) if head.task == "depth" else None
        self.stored = (settings.get("first", 0), settings.get("void"))  # of class ids in files
        outputs, blocks = settings["outputs"], settings["blocks"]
        self.model = DenseModel(own, self.inputs, settings["head"], outputs, frozen=False, seed=0, blocks=blocks)
        _fill(self.model, head)

    def forward(self, images: Tensor | Mapping[str, Tensor]) -> Float[Tensor, "B K H W"]:
        maps = images if isinstance(images, Mapping) else {self.inputs[0].name: images}
        if missing := [m.name for m in self.inputs if m.name not in maps]:
            raise ValueError(
                f"this head reads {', '.join(m.name for m in self.inputs)}; {', '.join(missing)} is missing"
            )
        sizes = {_checked(maps[m.name], m) for m in self.inputs}
        if len(sizes) > 1:
            raise ValueError(f"maps of one call have one number and size; got {', '.join(map(str, sorted(sizes)))}")
        valid = {m.name: known_pixels(maps[m.name], m) for m in self.inputs if _is_measured(m)}
        samples = [
            Sample(
                {m.name: maps[m.name][row].cpu() for m in self.inputs},
                {name: known[row].cpu() for name, known in valid.items()},
            )
            for row in range(len(maps[self.inputs[0].name]))
        ]
        return torch.stack(self.predict(samples)).to(self.device)

    def program(self) -> nn.Module:
        """The prediction of images of the view's own size, which are one window; with gradients."""
        return _DenseProgram(self.model, self.metres).eval()

    def example(self) -> tuple[Tensor, ...]:
        size = self.view_size
        return tuple(
            torch.randint(0, m.num_classes, (2, 1, *size))
            if m.kind == "categorical"
            else torch.rand(2, m.channels, *size)
            for m in self.inputs
        )

    def predict(
        self, samples: Sequence[Sample], autocast: AbstractContextManager[Any] | None = None
    ) -> list[Float[Tensor, "K H W"]]:
        """The prediction of each sample at its own size, in the memory of the processor."""
        made = predict_windows(self.model, samples, self.view, self.inputs, AT_ONCE, autocast or nullcontext())
        if self.metres is None:
            return made
        mean, std = self.metres
        return [prediction * std + mean for prediction in made]


def _checked(images: object, modality: Modality) -> tuple[int, int, int]:
    """The number, height and width of images. Raises ValueError for what is no tensor B C H W."""
    channels = 1 if modality.kind == "categorical" else modality.channels
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != channels:
        given = tuple(images.shape) if isinstance(images, Tensor) else f"a {type(images).__name__}"
        raise ValueError(f"{modality.name} is B x {channels} x H x W; got {given}")
    return len(images), images.shape[-2], images.shape[-1]


def _is_measured(modality: Modality) -> bool:
    """Whether a map has pixels without a value: of class ids, and of depth, of which 0 is none."""
    return modality.kind == "categorical" or modality.name == DEPTH.name


class _DenseProgram(nn.Module):
    """A dense model as a function of its maps, at the size of its view: scores of classes, or metres."""

    def __init__(self, model: DenseModel, metres: tuple[float, float] | None):
        super().__init__()
        self.model, self.metres = model, metres

    def forward(self, *maps: Tensor) -> Float[Tensor, "B K H W"]:
        own, valid = dict[str, Tensor](), dict[str, Tensor]()
        for m, values in zip(self.model.inputs, maps, strict=True):
            first = m.stride // 2
            own[m.name] = values[:, :, first :: m.stride, first :: m.stride] if m.stride > 1 else values
            valid[m.name] = known_pixels(own[m.name], m)
        key = torch.zeros(maps[0].shape[0], dtype=torch.int64, device=maps[0].device)
        prediction: Tensor = self.model(Batch(own, key, torch.zeros((), device=key.device), valid))
        return prediction if self.metres is None else prediction * self.metres[1] + self.metres[0]


class BoxPredictor(Predictor):
    """Images -> for each a dict of `boxes` N 4 (x0, y0, x1, y1 in pixels), `labels`, `scores`, as torchvision has them.

    Labels count from 0, as `classes` do. Where masks were learned, `masks` are N H W. Without gradients.
    """

    def __init__(self, head: KeptHead, encoder: FeatureExtractor):
        super().__init__(head, encoder)
        settings, own = head.settings, check_windowed(encoder)
        assert own is not None
        side, grid = settings["side"], settings["side"] // own.patch
        sizes: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in settings["heads"].items()}
        positions = (grid, grid) if settings["relative"] else None
        trunk = own.windowed(settings["window"], whole_blocks(own.depth), settings["positions"], positions)
        self.view_size = side, side
        self.view = DetectionView(self.view_size)
        self.modality = Modality("rgb", encoder.channels, *encoder.statistics)
        self.model = Detector(trunk, Heads(**sizes), len(head.classes), settings["masks"], 0, not head.trains_encoder)
        _fill(self.model, head)

    def forward(self, images: Shaped[Tensor, "B C H W"]) -> list[dict[str, Tensor]]:
        coder = optional("faster_coco_eval", NEEDED).mask
        _checked(images, self.modality)
        made = []
        for one in self.predict([Sample({"rgb": image.cpu()}) for image in images]):
            found = {"boxes": one.boxes, "labels": one.labels, "scores": one.scores}
            if one.masks is not None:
                empty = np.zeros((0, *images.shape[-2:]), np.uint8)
                found["masks"] = np.stack([coder.decode(mask) for mask in one.masks]) if one.masks else empty
            made.append({name: torch.from_numpy(value).to(self.device) for name, value in found.items()})
        return made

    def predict(self, samples: Sequence[Sample], autocast: AbstractContextManager[Any] | None = None) -> list[Found]:
        """What is found in each sample, in its own pixels."""
        return detect_whole(self.model, samples, self.view, self.modality, autocast or nullcontext())

    def program(self) -> nn.Module:
        """There is none: how many proposals and boxes there are depends on the image."""
        raise ValueError("a head of boxes is no program of tensors: how many boxes it finds depends on the image")


class _LinearClassifier(nn.Module):
    """The feature of an encoder, and a linear layer."""

    def __init__(self, head: KeptHead, encoder: FeatureExtractor):
        super().__init__()
        settings, tensors = head.settings, head.tensors
        encoder.pool = settings["pool"]
        encoder.read(settings["layers"], settings["combine"])
        if "normalize" in settings:
            mean, scale = (tensors.get(f"normalizer.{name}") for name in ("mean", "scale"))
            encoder.normalizer = Normalizer(settings["normalize"], mean, scale)
        self.encoder = encoder
        self.head = nn.Linear(tensors["weight"].shape[1], len(tensors["weight"]))
        self.head.load_state_dict({name: tensors[name] for name in ("weight", "bias")})

    def forward(self, images: Tensor) -> Float[Tensor, "B K"]:
        scores: Tensor = self.head(self.encoder(images).float())
        return scores


class _AttentiveClassifier(nn.Module):
    """The tokens of an encoder, and a learned query that attends to them."""

    def __init__(self, head: KeptHead, encoder: FeatureExtractor):
        super().__init__()
        num_classes = len(head.tensors["head.weight"])
        self.encoder = encoder
        self.probe = AttentivePool(encoder.dim, head.settings["heads"], num_classes, torch.Generator())
        self.probe.load_state_dict(dict(head.tensors))

    def forward(self, images: Tensor) -> Float[Tensor, "B K"]:
        trainable = check_trainable(self.encoder)
        assert trainable is not None
        scores: Tensor = self.probe(normed_tokens(trainable, self.encoder.as_float(images)).float())
        return scores


class _FineTunedClassifier(nn.Module):
    """A fine-tuned encoder with its linear layer."""

    def __init__(self, head: KeptHead, encoder: FeatureExtractor):
        super().__init__()
        trainable = check_trainable(encoder)
        assert trainable is not None
        self.model = Classifier(trainable, len(head.tensors["head.weight"]), head.settings["pool"], torch.Generator())
        _fill(self.model, head)

    def forward(self, images: Tensor) -> Float[Tensor, "B K"]:
        own: Any = self.model.encoder
        scores: Tensor = self.model(own.as_float(images))
        return scores


_CLASSIFIERS: dict[str, Callable[[KeptHead, FeatureExtractor], nn.Module]] = {
    "linear": _LinearClassifier,
    "attentive": _AttentiveClassifier,
    "finetune": _FineTunedClassifier,
}


_PREDICTORS: dict[Task, Callable[[KeptHead, FeatureExtractor], Predictor]] = {
    "classes": ClassPredictor,
    "semseg": DensePredictor,
    "depth": DensePredictor,
    "boxes": BoxPredictor,
}


def _fill(model: nn.Module, head: KeptHead) -> None:
    """Load the weights of a head into a model, whose encoder has its own where the head was trained alone."""
    own = {} if head.trains_encoder else {n: t for n, t in model.state_dict().items() if n.startswith("encoder.")}
    model.load_state_dict({**own, **head.tensors})


def predictor(head: KeptHead, encoder: FeatureExtractor) -> Predictor:
    """The predictor of a kept head, in eval mode, its weights frozen. Raises ValueError where the two do not fit."""
    try:
        made = _PREDICTORS[head.task](head, encoder)
    except (KeyError, TypeError, RuntimeError, AssertionError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"the head does not fit the encoder ({reason}); evaluate again with --keep") from error
    if made.classes and len(made.classes) != _outputs(head):
        raise ValueError(f"the head has {_outputs(head)} outputs and {len(made.classes)} classes; evaluate again")
    made.requires_grad_(False)
    return made.eval()


def _outputs(head: KeptHead) -> int:
    if head.model == "dense":
        return int(head.settings["outputs"])
    if head.model == "detect":
        return len(head.classes)  # by which its layers are built
    return len(head.tensors["weight" if head.model == "linear" else "head.weight"])
