"""What is shown of a sample: its maps, where they are looked at, what is hidden, what comes back; all on a sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from ...modeling.masked_model import MaskedModel
from ...modeling.masking import Masker
from ...modeling.patches import validity
from ...modeling.targets import Pixels
from ...modeling.types import Batch, Layout, Modality
from ...reporting.figures import Bar, Block, Panel, draw_sheet
from ...reporting.pictures import Picture, attention_overlay, colours, hide_patches, patch_values, scalar_colours
from ..analysis.attention_maps import AttentionMaps, collect_attention_maps, hidden_tokens, masks_by_sampler
from .colormaps import MapRenderer
from .reconstructions import feature_distances, image_objectives, only_visible, reconstructions

FAR = (0.0, 1.0)  # distances of features that are shown: of one direction, and at right angles
FEATURES = Bar("1 - cos of predicted and true features", scalar_colours, "0", "1 or more")


@dataclass(frozen=True)
class MapPictures:
    """The pictures of one map of one sample; what it or the model does not have is None or not there.

    `masks` has one for each way of drawing, `given` what is predicted of this map when another one alone is given,
    by that one's name. `shares` says how much of all attention is hidden by each mask, and how much this map has.
    `features` is there where the look of a map is not predicted: how far predicted features are from the true ones.
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


@torch.no_grad()
def sample_pictures(
    model: MaskedModel,
    batch: Batch,
    names: Sequence[str],
    modalities: Sequence[Modality],
    views: Mapping[str, MapRenderer],
) -> list[list[MapPictures]]:
    """For each sample of a batch what is to be shown of each of its maps. The model is in eval, all of its masks' own
    chance; every hidden token is asked for."""
    own = model.masker
    seen = model.encode_decode(batch, Masker(own.score, own.visible, 1 - own.visible, own.predict_score, own.unit))
    gazes = collect_attention_maps(model, batch, seen)
    layout = seen.latents.tokens.layout
    inputs = list(layout.spans)
    looks = _looks(gazes, layout)
    unseen = {"own": hidden_tokens(seen.mask.visible, layout.num_tokens)}
    if len(inputs) == 1:
        unseen |= masks_by_sampler(model, batch, gazes.mask_source)
    total = gazes.mask_source.sum(dim=1).clamp_min(1e-12)
    shares = {name: (gazes.mask_source * is_hidden).sum(dim=1) / total for name, is_hidden in unseen.items()}
    back, apart = reconstructions(model, batch, seen), feature_distances(model, batch, seen)
    crossed = cross_modal_reconstructions(model, batch, inputs) if len(modalities) > 1 else {}
    shown = []
    for i, name in enumerate(names):
        rows = []
        for m in modalities:
            known, image = validity(batch, m)[i], batch.maps[m.name][i]
            if m.name in batch.present and not batch.present[m.name][i]:
                rows.append(MapPictures(name, m.name, None))
                continue
            view = views[m.name]
            original = view(image, known)

            def made(maps: Tensor, i: int = i, view: MapRenderer = view, image: Tensor = image) -> Picture:
                return view(maps[i], torch.ones_like(image[:1], dtype=torch.bool), like=image)

            told = {who: at[i] for who, at in looks.get(m.name, {}).items()}
            over = {who: attention_overlay(original, at.reshape(layout.grid).cpu().numpy()) for who, at in told.items()}
            masks = {}
            if m.name in layout.spans:
                span = layout.spans[m.name]
                masks = {
                    way: hide_patches(original, is_hidden[i, span].nonzero()[:, 0].cpu().numpy(), layout.grid)
                    for way, is_hidden in unseen.items()
                }
            rows.append(
                MapPictures(
                    name,
                    m.name,
                    original,
                    over.get("student"),
                    over.get("teacher"),
                    over.get("blend"),
                    masks.pop("own", None),
                    made(back[m.name]) if m.name in back else None,
                    masks,
                    {
                        source: made(maps[m.name])
                        for source, maps in crossed.items()
                        if source != m.name and m.name in maps and _has(batch, source, i)
                    },
                    {way: float(share[i]) for way, share in shares.items()} | _part(gazes, layout, m.name, i),
                    patch_values(original, apart[m.name][i].reshape(layout.grid).cpu().numpy(), FAR)
                    if m.name in apart
                    else None,
                )
            )
        shown.append(rows)
    return shown


def cross_modal_reconstructions(
    model: MaskedModel, batch: Batch, inputs: Sequence[str]
) -> dict[str, dict[str, Tensor]]:
    """What the model makes of every map, by the name of the one that it is given whole while the others are hidden."""
    found = {}
    for name in inputs if len(inputs) > 1 else ():
        found[name] = reconstructions(model, batch, model.encode_decode(batch, only_visible(name, len(inputs))))
    return found


def predicts_norm_pix(model: MaskedModel) -> bool:
    """Whether what is shown of an image was predicted relative to each patch's own mean and standard deviation."""
    return any(isinstance(o.target, Pixels) and o.target.norm_pix for o in image_objectives(model).values())


def draw_samples(
    title: str, shown: Sequence[Sequence[MapPictures]], views: Mapping[str, MapRenderer], notes: Sequence[str]
) -> Picture:
    """Everything on one picture: of samples with one map a large image with two rows beside it, else a row a map."""
    is_single = all(len(rows) == 1 for rows in shown)
    blocks = [_single(rows[0]) if is_single else _several(rows, views) for rows in shown]
    keys = [Bar("attention", colours, "low", "high"), *(view.key for view in views.values() if view.key)]
    keys += [FEATURES] if any(one.features is not None for rows in shown for one in rows) else []
    return draw_sheet(title, blocks, keys, notes)


def _single(one: MapPictures) -> Block:
    first = [
        Panel("teacher attention", one.teacher),
        Panel("student attention" if one.teacher is not None else "attention", one.attention),
        Panel("blend", one.blend),
        Panel(f"mask as trained, {one.shares['own']:.0%}", one.hidden),
        Panel("prediction", one.reconstructed),
        Panel("feature distance", one.features),
    ]
    second = [Panel(f"{way}, {one.shares[way]:.0%}", picture) for way, picture in one.masks.items()]
    rows = [[p for p in first if p.picture is not None], second]
    return Block(one.sample, rows, Panel("image", one.original))


def _several(rows: Sequence[MapPictures], views: Mapping[str, MapRenderer]) -> Block:
    has_teacher = any(one.teacher is not None for one in rows)
    sources = [name for name in views if any(name in one.given for one in rows)]
    lines = []
    for one in rows:
        title = views[one.modality].title
        if one.original is None:
            lines.append([Panel(title, None, "missing")])
            continue
        share = f" {one.shares['attention']:.0%}" if "attention" in one.shares else ""
        line = [
            Panel(title, one.original),
            Panel(f"attention{share}", one.attention, "no input"),
            *([Panel("teacher attention", one.teacher, "not seen")] if has_teacher else []),
            Panel("mask", one.hidden, "never shown"),
            Panel("prediction", one.reconstructed, "not predicted"),
        ]
        for source in sources:
            empty = "given" if source == one.modality else "not predicted"
            line.append(Panel(f"from {source} alone", one.given.get(source), empty))
        lines.append(line)
    return Block(rows[0].sample, lines)


def _looks(gazes: AttentionMaps, layout: Layout) -> dict[str, dict[str, Float[Tensor, "B N"]]]:
    """Who looks at each modality. Of a single one also the guide, where two look: else it is one of them."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, span in layout.spans.items():
        found[name] = {"student": gazes.student[:, span]}
        teacher = gazes.teacher_map(name)
        if teacher is not None:
            found[name]["teacher"] = teacher
            if gazes.guide is not None and len(layout.spans) == 1:
                found[name]["blend"] = gazes.guide
    return found


def _part(gazes: AttentionMaps, layout: Layout, modality: str, i: int) -> dict[str, float]:
    if len(layout.spans) == 1 or modality not in layout.spans:
        return {}
    student = gazes.student[i]
    return {"attention": float(student[layout.spans[modality]].sum() / student.sum().clamp_min(1e-12))}


def _has(batch: Batch, modality: str, i: int) -> bool:
    return modality not in batch.present or bool(batch.present[modality][i])
