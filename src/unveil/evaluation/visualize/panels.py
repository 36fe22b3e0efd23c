"""Pictures of a sample: its maps, attention, masks and predictions, and all of them on one sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...data.modality_config import Declared
from ...data.sources import SampleSource, Source, origin
from ...modeling.masked_model import ForwardOutput, MaskedModel
from ...modeling.patches import validity
from ...modeling.targets import Pixels
from ...modeling.types import Batch, Layout, Modality
from ...reporting.figures import Bar, Key, Legend, Panel, PanelBlock, Sheet, draw_sheet
from ...reporting.pictures import (
    Picture,
    attention_overlay,
    class_picture,
    colours,
    hide_patches,
    how_viewed,
    patch_values,
    scalar_colours,
    scalar_picture,
    viewable,
)
from ..analysis.attention import AttentionMaps, collect_attention_maps, hidden_tokens, masks_by_sampler
from .reconstructions import (
    feature_distances,
    image_objectives,
    interpolations,
    map_errors,
    only_visible,
    reconstructions,
    unaided_reconstructions,
    under_other_masks,
)


@dataclass(frozen=True)
class MapRenderer:
    """Draws the maps of one modality.

    `limits` are those of the colours, in the unit of the data, None for an image in [0, 1]; `places` are the class ids
    that occur, with -1 for unlabelled pixels. Colours of distances are of the logarithm where their limits are
    positive and apart (`is_log`), so that near things differ in depth.
    """

    modality: Modality
    limits: tuple[float, float] | None = None
    unit: str = ""
    classes: tuple[str, ...] = ()
    places: tuple[int, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.modality.name} ({self.unit})" if self.unit else self.modality.name

    @property
    def is_measured(self) -> bool:
        """Whether it is one number a pixel, shown in colours."""
        return self.limits is not None and self.modality.channels == 1

    @property
    def is_log(self) -> bool:
        """Whether the colours of measurements are those of their logarithm."""
        if not self.is_measured or self.limits is None:
            return False
        is_distance = self.unit in _LENGTHS or self.modality.normalise == "robust"
        return is_distance and 0 < _FAR * self.limits[0] < self.limits[1]

    @property
    def range(self) -> float:
        """How far the values of a map go: what its errors are shares of."""
        low, high = self.limits or (0.0, 1.0)
        return max(high - low, 1e-12)

    def __call__(self, image: Tensor, known: Tensor, like: Tensor | None = None) -> Picture:
        """A map C H W as a picture; `known` 1 H W says where it is valid."""
        values, valid = image.cpu().numpy(), known[0].cpu().numpy()
        if self.modality.kind == "categorical":
            return class_picture(values[0], valid, self.modality.num_classes)
        if self.is_measured and self.limits is not None:
            if self.is_log:
                low, high = self.limits
                return scalar_picture(np.log(np.maximum(values[0], low / 2)), valid, (math.log(low), math.log(high)))
            return scalar_picture(values[0], valid, self.limits)
        if self.limits is not None:
            values = (values - self.limits[0]) / max(self.limits[1] - self.limits[0], 1e-12)
        return viewable(values, None if like is None else like.cpu().numpy())

    @property
    def key(self) -> Key | None:
        """What its colours mean; None for images."""
        if self.modality.kind == "categorical":
            names = [self.classes[i] if i < len(self.classes) else f"class {i}" for i in self.places if i >= 0]
            names += ["no class"] * (-1 in self.places)
            return Legend(self.modality.name, self.modality.num_classes, self.places, names)
        if self.is_measured and self.limits is not None:
            low, high = (f"{limit:.3g}" for limit in self.limits)
            name = f"{self.modality.name}, log scale" if self.is_log else self.modality.name
            return Bar(name, scalar_colours, low, f"{high} {self.unit}".strip())
        return None

    @property
    def note(self) -> str:
        """A sentence for the caption, where one is needed."""
        return "" if self.modality.kind == "categorical" else how_viewed(self.modality.channels)


def map_renderers(modalities: Sequence[Modality], source: Source, batch: Batch) -> dict[str, MapRenderer]:
    """The renderers of a batch of a source, which knows the units and the classes of its maps."""
    whole = origin(source)[0]
    return renderers_of(modalities, whole.declared if isinstance(whole, SampleSource) else (), batch)


def renderers_of(
    modalities: Sequence[Modality], declarations: Sequence[Declared], batch: Batch
) -> dict[str, MapRenderer]:
    """A renderer for each modality; the limits of its colours are the 1st and 99th percentile of a batch's maps."""
    declared = {d.name: d for d in declarations}
    renderers = {}
    for m in modalities:
        own = declared.get(m.name)
        unit, classes = (own.unit, own.classes) if own else ("", ())
        image, known = batch.maps[m.name], validity(batch, m)
        limits, places = None, ()
        if m.kind == "categorical":
            places = tuple(image[known].unique().tolist()) + (() if known.all() else (-1,))
        else:
            values = image[known.expand_as(image)].cpu().numpy()
            is_picture = bool(((values >= 0) & (values <= 1)).all())  # what has a unit of its own lies elsewhere
            if not is_picture or (m.channels == 1 and (unit or m.normalise != "fixed")):
                low, high = np.percentile(values, (1, 99)).tolist() if len(values) else (0.0, 1.0)
                limits = (low, high)
        renderers[m.name] = MapRenderer(m, limits, unit, classes, places)
    return renderers


ATTENTION = Bar("attention over that of an even map", colours, "1/8", "8")
_LENGTHS = ("mm", "cm", "m", "km")
_FAR = 3.0  # how many times the low limit the high one is, from which on colours are logarithmic
DISTANCES = (0.0, 1.0)  # of features, the limits of the colours: the same direction, and at right angles
FEATURES = Bar("1 - cos of predicted and true features", scalar_colours, "0", "1 or more")


@dataclass(frozen=True)
class MapPictures:
    """The pictures of one map of one sample, None where there is nothing to draw.

    `masks` has the mask of each sampler, for a run whose masks are guided; `given` the prediction of this map from
    each other one alone. `shares` is the share of the attention that each mask hides ("own": the run's), and that this
    map has ("attention"). `features` is the distance of predicted and true features, where no map is predicted.
    `unaided` is the prediction without the true patches' mean and deviation, where they are put back in
    `reconstructed`; `interpolated` is what the visible pixels alone give. `errors` of these are root mean squares over
    hidden pixels, shares of the range (of classes: the share of wrong pixels). `hidden_patches` are of a `grid`.
    """

    sample: str
    modality: str
    original: Picture | None
    attention: Picture | None = None
    teacher: Picture | None = None
    blend: Picture | None = None
    hidden: Picture | None = None
    reconstructed: Picture | None = None
    masks: Mapping[str, Picture] = field(default_factory=dict)
    given: Mapping[str, Picture] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)
    features: Picture | None = None
    unaided: Picture | None = None
    interpolated: Picture | None = None
    errors: Mapping[str, float] = field(default_factory=dict)
    hidden_patches: Sequence[int] = ()
    grid: tuple[int, int] = (0, 0)


@torch.no_grad()
def sample_pictures(
    model: MaskedModel,
    batch: Batch,
    names: Sequence[str],
    modalities: Sequence[Modality],
    renderers: Mapping[str, MapRenderer],
    output: ForwardOutput | None = None,
) -> list[list[MapPictures]]:
    """The pictures of each sample and map of a batch, under the model's own masks, every hidden token predicted.

    The model is in eval mode. An `output` of it may be under other masks.
    """
    if output is None:
        output = model.encode_decode(batch, model.masker.predict_all())
    attention = collect_attention_maps(model, batch, output)
    layout = output.latents.tokens.layout
    masks = {"own": hidden_tokens(output.mask.visible, layout.num_tokens)}
    if len(layout.spans) == 1 and attention.guide is not None:
        masks |= masks_by_sampler(model, batch, attention.guide)
    total = attention.mask_source.sum(dim=1).clamp_min(1e-12)
    shares = {name: (attention.mask_source * hides).sum(dim=1) / total for name, hides in masks.items()}
    predicted, distances = reconstructions(model, batch, output), feature_distances(model, batch, output)
    unaided, interpolated = unaided_reconstructions(model, batch, output), interpolations(model, batch, output)
    kinds = {"reconstructed": predicted, "unaided": unaided, "interpolated": interpolated}
    errors = {kind: map_errors(model, batch, output, maps) for kind, maps in kinds.items()}
    from_one = {
        name: reconstructions(model, batch, model.encode_decode(batch, only_visible([name], layout.spans)))
        for name in (layout.spans if len(layout.spans) > 1 else ())
    }

    def has(modality: str, i: int) -> bool:
        return modality not in batch.present or bool(batch.present[modality][i])

    def pictures(m: Modality, i: int) -> MapPictures:
        image, render = batch.maps[m.name][i], renderers[m.name]
        original = render(image, validity(batch, m)[i])

        def prediction(maps: Tensor) -> Picture:
            return render(maps[i], torch.ones_like(image[:1], dtype=torch.bool), like=image)

        def cells(values: Tensor) -> np.ndarray:
            return values[i].reshape(layout.grid).float().cpu().numpy()

        overlays = {
            of: attention_overlay(original, cells(values)) for of, values in _maps_of(attention, layout, m.name).items()
        }
        span = layout.spans.get(m.name)
        hidden = {
            name: hide_patches(original, hides[i, span].nonzero()[:, 0].cpu().numpy(), layout.grid)
            for name, hides in (masks if span is not None else {}).items()
        }
        patches = masks["own"][i, span].nonzero()[:, 0].tolist() if span is not None else []
        scale = 1.0 if m.kind == "categorical" else render.range
        own_errors = {k: float(by_map[m.name][i]) / scale for k, by_map in errors.items() if m.name in by_map}
        own_share = {}
        if span is not None and len(layout.spans) > 1:
            student = attention.student[i]
            own_share["attention"] = float(student[span].sum() / student.sum().clamp_min(1e-12))
        return MapPictures(
            names[i],
            m.name,
            original,
            overlays.get("student"),
            overlays.get("teacher"),
            overlays.get("blend"),
            hidden.pop("own", None),
            prediction(predicted[m.name]) if m.name in predicted else None,
            hidden,
            {
                source: prediction(maps[m.name])
                for source, maps in from_one.items()
                if source != m.name and m.name in maps and has(source, i)
            },
            {name: float(share[i]) for name, share in shares.items()} | own_share,
            patch_values(original, cells(distances[m.name]), DISTANCES) if m.name in distances else None,
            prediction(unaided[m.name]) if m.name in unaided else None,
            prediction(interpolated[m.name]) if math.isfinite(own_errors.get("interpolated", math.nan)) else None,
            own_errors,
            patches,
            layout.grid,
        )

    return [
        [pictures(m, i) if has(m.name, i) else MapPictures(name, m.name, None) for m in modalities]
        for i, name in enumerate(names)
    ]


@torch.no_grad()
def other_masks(
    model: MaskedModel,
    batch: Batch,
    modalities: Sequence[Modality],
    renderers: Mapping[str, MapRenderer],
    count: int = 3,
) -> dict[str, list[tuple[Picture, Picture]]]:
    """For each map of a batch's first sample, the sample under further masks and the predictions under them.

    Of predictions whose patches are normalised those that need no true patch. A mask that follows attention without
    chance is the same each time, and is left out; so is a map that the sample lacks.
    """
    same, output = under_other_masks(model, batch, count)
    layout = output.latents.tokens.layout
    hides = hidden_tokens(output.mask.visible, layout.num_tokens)
    maps = reconstructions(model, same, output) | unaided_reconstructions(model, same, output)
    if len(hides.unique(dim=0)) < count:
        return {}
    pictures = {}
    for m in modalities:
        if m.name not in layout.spans or m.name not in maps or (m.name in same.present and not same.present[m.name][0]):
            continue
        image, render = same.maps[m.name][0], renderers[m.name]
        original, whole = render(image, validity(same, m)[0]), torch.ones_like(image[:1], dtype=torch.bool)
        patches = [hidden[layout.spans[m.name]].nonzero()[:, 0].cpu().numpy() for hidden in hides]
        pictures[m.name] = [
            (hide_patches(original, ids, layout.grid), render(predicted, whole, like=image))
            for ids, predicted in zip(patches, maps[m.name], strict=True)
        ]
    return pictures


def _maps_of(attention: AttentionMaps, layout: Layout, modality: str) -> dict[str, Float[Tensor, "B N"]]:
    """The attention maps over one modality; the blend is drawn where it is one of teacher and student, of one
    modality."""
    if modality not in layout.spans:
        return {}
    maps = {"student": attention.student[:, layout.spans[modality]]}
    if (teacher := attention.teacher_map(modality)) is not None:
        maps["teacher"] = teacher
        if attention.guide is not None and len(layout.spans) == 1:
            maps["blend"] = attention.guide
    return maps


def predicts_norm_pix(model: MaskedModel) -> bool:
    """Whether the predictions that are drawn are of pixels normalised by each patch's mean and deviation."""
    return any(isinstance(o.target, Pixels) and o.target.norm_pix for o in image_objectives(model).values())


def sheet_of(
    title: str, samples: Sequence[Sequence[MapPictures]], renderers: Mapping[str, MapRenderer], notes: Sequence[str]
) -> Sheet:
    """All pictures on one sheet: of samples with one map a large image beside one or two rows, else a row a map."""
    is_single = all(len(maps) == 1 for maps in samples)
    blocks = [_single(maps[0]) if is_single else _several(maps, renderers) for maps in samples]
    keys = [ATTENTION, *(r.key for r in renderers.values() if r.key)]
    keys += [FEATURES] if any(one.features is not None for maps in samples for one in maps) else []
    return Sheet(title, blocks, keys, notes)


def draw_samples(
    title: str, samples: Sequence[Sequence[MapPictures]], renderers: Mapping[str, MapRenderer], notes: Sequence[str]
) -> Picture:
    """The sheet of `sheet_of` as one picture, 1280 pixels wide."""
    sheet = sheet_of(title, samples, renderers, notes)
    return draw_sheet(sheet.title, sheet.blocks, sheet.keys, sheet.notes)


def _single(one: MapPictures) -> PanelBlock:
    first = [
        Panel("teacher attention", one.teacher),
        Panel("student attention" if one.teacher is not None else "attention", one.attention),
        Panel("blend", one.blend),
        Panel(f"mask as trained, {one.shares['own']:.0%}", one.hidden),
        Panel(_with_error("prediction", "unaided", one), one.unaided),
        Panel(
            _with_error("with true mean" if one.unaided is not None else "prediction", "reconstructed", one),
            one.reconstructed,
        ),
        Panel(_with_error("interpolated", "interpolated", one), one.interpolated),
        Panel("feature distance", one.features),
    ]
    second = [Panel(f"{sampler}, {one.shares[sampler]:.0%}", picture) for sampler, picture in one.masks.items()]
    rows = [[p for p in first if p.picture is not None], *([second] if second else [])]
    return PanelBlock(one.sample, rows, Panel("image", one.original))


def _with_error(caption: str, kind: str, one: MapPictures) -> str:
    error = one.errors.get(kind, math.nan)
    return f"{caption}, ±{error:.0%}" if math.isfinite(error) else caption


def _several(maps: Sequence[MapPictures], renderers: Mapping[str, MapRenderer]) -> PanelBlock:
    has_teacher = any(one.teacher is not None for one in maps)
    sources = [name for name in renderers if any(name in one.given for one in maps)]
    rows = []
    for one in maps:
        title = renderers[one.modality].title
        if one.original is None:
            rows.append([Panel(title, None, "missing")])
            continue
        share = f" {one.shares['attention']:.0%}" if "attention" in one.shares else ""
        row = [
            Panel(title, one.original),
            Panel(f"attention{share}", one.attention, "not an input"),
            *([Panel("teacher attention", one.teacher, "not read")] if has_teacher else []),
            Panel("mask", one.hidden, "not an input"),
            Panel("prediction", one.reconstructed, "not predicted"),
        ]
        for source in sources:
            empty = "given" if source == one.modality else "not predicted"
            row.append(Panel(f"from {source} alone", one.given.get(source), empty))
        rows.append(row)
    return PanelBlock(maps[0].sample, rows)
