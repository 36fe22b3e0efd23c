"""ViTDet: a plain ViT, the simple feature pyramid on its last map, and the heads of Mask R-CNN or Cascade Mask R-CNN.

Li et al., 2022 (arXiv 2203.16527); He et al., 2017 (Mask R-CNN); Cai and Vasconcelos, 2018 (Cascade R-CNN). Anchors,
matching, coding of boxes and the selection of predictions are torchvision's.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..types import FeatureEncoder, TrainableEncoder
from .ops import detection_modules
from .sampling import KeyedSampler

CASCADE = ((0.5, (10.0, 10.0, 5.0, 5.0)), (0.6, (20.0, 20.0, 10.0, 10.0)), (0.7, (30.0, 30.0, 15.0, 15.0)))
LEVELS = ("0", "1", "2", "3", "pool")  # strides of a quarter, a half, one, two and four patches
BETA = 1 / 9  # where the smooth L1 loss of boxes becomes linear
Losses = Float[Tensor, " B"]
Truth = dict[str, Tensor]  # boxes N 4, labels N from 1, and masks N H W where there are any


@runtime_checkable
class WindowedEncoder(TrainableEncoder, Protocol):
    """An encoder that can read large images, with attention in windows."""

    @property
    def patch(self) -> int:
        """The side in pixels of the square patch of a token."""

    @property
    def resize_positions(self) -> str:
        """How images of another size than `image_size` get their positions."""

    def windowed(self, window: int, whole: Collection[int], positions: Any, relative: Any) -> nn.Module:
        """A copy as a module from images to a map, whose blocks `whole` attend over the whole image."""


def check_windowed(encoder: FeatureEncoder) -> WindowedEncoder | None:
    """The encoder where it gives maps, else None (raw pixels). Raises ValueError for a patch that 4 does not divide."""
    if not isinstance(encoder, WindowedEncoder) or not isinstance(encoder, nn.Module):
        return None
    if encoder.patch % 4:
        raise ValueError(
            f"the pyramid has maps of a quarter of a patch, and 4 does not divide the {encoder.patch} pixels of this"
            " encoder's; give an encoder with patches of 8 or 16"
        )
    return encoder


@dataclass(frozen=True)
class Heads:
    """The size of pyramid and heads, and how many boxes they look at; the defaults are the paper's and detectron2's.

    `width` is that of all maps and convolutions, `hidden` that of the box head's layer. `anchors` and `rois` are
    learned from in each image; `proposals` of training and of test go from the RPN to the heads,
    out of `candidates` a level.
    """

    width: int = 256
    hidden: int = 1024
    anchors: int = 256
    rois: int = 512
    candidates: tuple[int, int] = (2000, 1000)
    proposals: tuple[int, int] = (1000, 1000)
    cascade: bool = False


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of a map, at each place by itself."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        normed: Tensor = self.norm(x.movedim(1, -1)).movedim(-1, 1)
        return normed


class SimplePyramid(nn.Module):
    """Maps at four scales (4, 2, 1, 1/2 of the encoder's), each made from its last one, and one pooled to half of the
    coarsest (section 3 of the paper). Strides in pixels are a quarter to four patches.
    """

    def __init__(self, dim: int, width: int):
        super().__init__()
        quarter = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 2, 2, 2),
            ChannelNorm(dim // 2),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 2, dim // 4, 2, 2),
        )
        half = nn.ConvTranspose2d(dim, dim // 2, 2, 2)
        scales = [(quarter, dim // 4), (half, dim // 2), (nn.Identity(), dim), (nn.MaxPool2d(2, 2), dim)]
        self.levels = nn.ModuleList(
            nn.Sequential(
                scale,
                nn.Conv2d(channels, width, 1, bias=False),
                ChannelNorm(width),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                ChannelNorm(width),
            )
            for scale, channels in scales
        )

    def forward(self, x: Float[Tensor, "B D h w"]) -> dict[str, Float[Tensor, "B _ _ _"]]:
        maps = [level(x) for level in self.levels]
        maps.append(maps[-1][:, :, ::2, ::2])  # a pooling of one pixel
        return dict(zip(LEVELS, maps, strict=True))


class ProposalHead(nn.Module):
    """Two convolutions, then for each anchor whether it is an object and how its box lies off it."""

    def __init__(self, width: int, anchors: int):
        super().__init__()
        self.layers = nn.Sequential(*(layer for _ in range(2) for layer in _convolution(width)))
        self.cls_logits, self.bbox_pred = nn.Conv2d(width, anchors, 1), nn.Conv2d(width, 4 * anchors, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
        for output in (self.cls_logits, self.bbox_pred):
            nn.init.zeros_(cast("Tensor", output.bias))

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        hidden = [self.layers(x) for x in maps]
        return [self.cls_logits(x).float() for x in hidden], [self.bbox_pred(x).float() for x in hidden]


def _convolution(width: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return nn.Conv2d(width, width, 3, padding=1, bias=False), ChannelNorm(width), nn.ReLU()


class BoxHead(nn.Module):
    """Four convolutions and one layer, then the class of a box and how it lies off, for each class or for all alike."""

    def __init__(self, heads: Heads, num_classes: int):
        super().__init__()
        modules = detection_modules()
        self.num_classes, deltas = num_classes, 4 if heads.cascade else 4 * (num_classes + 1)
        sizes = (heads.width, 7, 7), [heads.width] * 4, [heads.hidden]
        self.layers = modules.faster_rcnn.FastRCNNConvFCHead(*sizes, norm_layer=ChannelNorm)
        self.cls_score, self.bbox_pred = nn.Linear(heads.hidden, num_classes + 1), nn.Linear(heads.hidden, deltas)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Float[Tensor, "R C 7 7"]) -> tuple[Float[Tensor, "R K"], Float[Tensor, "R D"]]:
        hidden = self.layers(x)
        deltas = self.bbox_pred(hidden).float()
        if deltas.shape[1] == 4:
            deltas = deltas.repeat(1, self.num_classes + 1)
        return self.cls_score(hidden).float(), deltas


def whole_blocks(depth: int) -> tuple[int, ...]:
    """The blocks, counted from 1, that attend over the whole image: the last of each quarter, all of four or less."""
    return tuple(sorted({max(1, round(depth * quarter / 4)) for quarter in range(1, 5)}))


class Detector(nn.Module):
    """A windowed encoder, its pyramid and its heads: images to losses, or to boxes, classes, scores and masks.

    `encoder` is the part that learns at rates by layer. Classes are counted from 1 inside; 0 is background. Where
    `has_masks` is false there is no mask head.
    """

    def __init__(self, encoder: nn.Module, heads: Heads, num_classes: int, has_masks: bool, seed: int, frozen: bool):
        super().__init__()
        modules = detection_modules()
        self.encoder, self.sizes, self.is_frozen = encoder, heads, frozen
        patch, dim = cast("Any", encoder).patch, cast("Any", encoder).dim
        device = next(encoder.parameters()).device
        self.num_classes = num_classes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.pyramid = SimplePyramid(dim, heads.width)
            strides = [patch // 4 * 2**level for level in range(5)]
            anchors = modules.anchor_utils.AnchorGenerator(
                tuple((8 * stride,) for stride in strides), ((0.5, 1.0, 2.0),) * 5
            )
            counts = [dict(zip(("training", "testing"), n, strict=True)) for n in (heads.candidates, heads.proposals)]
            self.rpn = modules.rpn.RegionProposalNetwork(
                anchors, ProposalHead(heads.width, 3), 0.7, 0.3, heads.anchors, 0.5, *counts, 0.7
            )
            stages = CASCADE if heads.cascade else CASCADE[:1]
            self.box_heads = nn.ModuleList(BoxHead(heads, num_classes) for _ in stages)
            self.mask_head: nn.Module | None = None
            if has_masks:
                mask_rcnn = modules.mask_rcnn
                self.mask_head = nn.Sequential(
                    mask_rcnn.MaskRCNNHeads(heads.width, [heads.width] * 4, 1, norm_layer=ChannelNorm),
                    mask_rcnn.MaskRCNNPredictor(heads.width, heads.width, num_classes + 1),
                )
        self.samplers = KeyedSampler(heads.anchors, 0.5, "anchors"), KeyedSampler(heads.rois, 0.25, "proposals")
        self.rpn.fg_bg_sampler = self.samplers[0]
        self.stages = []
        for threshold, weights in stages:
            stage = modules.roi_heads.RoIHeads(
                None, None, None, threshold, threshold, heads.rois, 0.25, weights, 0.05, 0.5, 100
            )
            stage.fg_bg_sampler = self.samplers[1]
            self.stages.append(stage)  # it has no parameters
        self.box_pool, self.mask_pool = (_pool(side, patch) for side in (7, 14))
        self.to(device).requires_grad_(True)
        self.encoder.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> Detector:
        """A frozen encoder stays in eval mode."""
        super().train(mode)
        if self.is_frozen:
            self.encoder.eval()
        return self

    def maps(self, images: Float[Tensor, "B C H W"]) -> dict[str, Float[Tensor, "B _ _ _"]]:
        """The pyramid of images in [0, 1]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen):
            last = self.encoder(images)
        maps: dict[str, Tensor] = self.pyramid(last)
        return maps

    def losses(self, images: Float[Tensor, "B C H W"], truths: list[Truth], keys: Int[Tensor, " B"]) -> Losses:
        """The loss of each image: anchors, their boxes, classes, boxes and masks, each the mean over its own boxes.

        It does not depend on what else is in the batch, as with one image on each device in the published training.
        """
        for sampler in self.samplers:
            sampler.keys = keys
        maps = self.maps(images)
        sizes = [(images.shape[-2], images.shape[-1])] * len(images)
        proposals, total = self._propose(maps, images, sizes, truths)
        proposals, matched, labels, targets = self.stages[0].select_training_samples(proposals, truths)
        first = proposals, matched, labels
        for k, (stage, head) in enumerate(zip(self.stages, self.box_heads, strict=True)):
            if k:
                proposals, labels, targets = self._matched(stage, proposals, truths)
            pooled = self.box_pool(maps, proposals, sizes)
            if len(self.stages) > 1 and pooled.requires_grad:
                pooled.register_hook(lambda gradient: gradient / len(self.stages))
            scores, deltas = head(pooled)
            total = total + _box_losses(scores, deltas, labels, targets)
            if k + 1 < len(self.stages):
                proposals = self._refined(stage, deltas, proposals, sizes)
        if self.mask_head is not None:
            total = total + self._mask_losses(maps, sizes, truths, *first)
        return total

    @torch.no_grad()
    def detect(self, images: Float[Tensor, "B C H W"], sizes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Boxes in pixels of each view, of which a part of a size is image; labels from 1, scores, masks N 1 28 28."""
        maps = self.maps(images)
        padded = [(images.shape[-2], images.shape[-1])] * len(images)
        proposals, _ = self._propose(maps, images, sizes, None)
        probabilities: Tensor | float = 0.0
        for k, (stage, head) in enumerate(zip(self.stages, self.box_heads, strict=True)):
            scores, deltas = head(self.box_pool(maps, proposals, padded))
            probabilities = probabilities + scores.softmax(1)
            if k + 1 < len(self.stages):
                proposals = self._refined(stage, deltas, proposals, sizes)
        assert isinstance(probabilities, Tensor)
        logits = (probabilities / len(self.stages)).log()  # of which the mean is the softmax
        boxes, scores, labels = stage.postprocess_detections(logits, deltas, proposals, sizes)
        found = [
            dict(zip(("boxes", "scores", "labels"), one, strict=True))
            for one in zip(boxes, scores, labels, strict=True)
        ]
        if self.mask_head is not None:
            masks = self.mask_head(self.mask_pool(maps, boxes, padded)).float().sigmoid()
            own = masks[torch.arange(len(masks), device=masks.device), torch.cat(labels)][:, None]
            for one, mask in zip(found, own.split([len(box) for box in boxes]), strict=True):
                one["masks"] = mask
        return found

    def _propose(
        self, maps: dict[str, Tensor], images: Tensor, sizes: list[tuple[int, int]], truths: list[Truth] | None
    ) -> tuple[list[Tensor], Losses]:
        """The proposals of each image, and where there are truths the losses of anchors and of their boxes."""
        modules, rpn = detection_modules(), self.rpn
        features = list(maps.values())
        objectness, deltas = rpn.head(features)
        anchors = rpn.anchor_generator(modules.image_list.ImageList(images, sizes), features)
        counts = [x[0].numel() for x in objectness]
        logits, offsets = modules.rpn.concat_box_prediction_layers(objectness, deltas)
        decoded = rpn.box_coder.decode(offsets.detach(), anchors).view(len(images), -1, 4)
        proposals, _ = rpn.filter_proposals(decoded, logits, sizes, counts)
        if truths is None:
            return proposals, logits.new_zeros(len(images))
        labels, matched = rpn.assign_targets_to_anchors(anchors, truths)
        targets = rpn.box_coder.encode(matched, anchors)
        losses = []
        chosen = zip(*rpn.fg_bg_sampler(labels), strict=True)
        own = zip(logits.view(len(images), -1), offsets.view(len(images), -1, 4), labels, targets, chosen, strict=True)
        for scores, boxes, kinds, wanted, (objects, background) in own:
            either = objects | background
            boxed = F.smooth_l1_loss(boxes[objects], wanted[objects], beta=BETA, reduction="sum")
            of_anchors = F.binary_cross_entropy_with_logits(scores[either], kinds[either])
            losses.append(of_anchors + boxed / either.sum().clamp_min(1))
        return proposals, torch.stack(losses)

    def _matched(
        self, stage: Any, proposals: list[Tensor], truths: list[Truth]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """The proposals of a later stage that have an area, with their classes and targets: all are learned from."""
        proposals = [one[(one[:, 2:] - one[:, :2] > 0).all(1)] for one in proposals]
        boxes = [truth["boxes"] for truth in truths]
        matched, labels = stage.assign_targets_to_proposals(proposals, boxes, [truth["labels"] for truth in truths])
        own = [(b if len(b) else b.new_zeros(1, 4))[m] for b, m in zip(boxes, matched, strict=True)]
        return proposals, labels, list(stage.box_coder.encode(own, proposals))

    def _refined(
        self, stage: Any, deltas: Tensor, proposals: list[Tensor], sizes: list[tuple[int, int]]
    ) -> list[Tensor]:
        """The boxes that a stage of a cascade predicts, from which no gradient passes."""
        modules = detection_modules()
        decoded = stage.box_coder.decode(deltas.detach(), proposals)[:, 0]
        parts = decoded.split([len(one) for one in proposals])
        return [
            modules.roi_heads.box_ops.clip_boxes_to_image(one, size) for one, size in zip(parts, sizes, strict=True)
        ]

    def _mask_losses(
        self,
        maps: dict[str, Tensor],
        sizes: list[tuple[int, int]],
        truths: list[Truth],
        proposals: list[Tensor],
        matched: list[Tensor],
        labels: list[Tensor],
    ) -> Losses:
        """The mean cross-entropy of the masks of an image's objects, on the grid of 28 x 28 of each box."""
        roi_align = detection_modules().roi_heads.roi_align
        assert self.mask_head is not None
        objects = [(own > 0).nonzero()[:, 0] for own in labels]
        boxes = [box[rows] for box, rows in zip(proposals, objects, strict=True)]
        logits = self.mask_head(self.mask_pool(maps, boxes, sizes)).float()
        losses = []
        for truth, box, rows, match, label, own in zip(
            truths, boxes, objects, matched, labels, logits.split([len(box) for box in boxes]), strict=True
        ):
            rois = torch.cat([match[rows][:, None].to(box), box], dim=1)
            if not len(rows):
                losses.append(own.sum() * 0)
                continue
            wanted = roi_align(truth["masks"][:, None].to(box), rois, own.shape[-2:], 1.0)[:, 0]
            losses.append(F.binary_cross_entropy_with_logits(own[torch.arange(len(rows)), label[rows]], wanted))
        return torch.stack(losses)


def _box_losses(scores: Tensor, deltas: Tensor, labels: list[Tensor], targets: Sequence[Tensor]) -> Losses:
    """The mean losses of classes and of boxes over the proposals of each image."""
    counts, losses = [len(own) for own in labels], []
    for logits, boxes, kinds, wanted in zip(scores.split(counts), deltas.split(counts), labels, targets, strict=True):
        rows = (kinds > 0).nonzero()[:, 0]
        predicted = boxes.view(len(boxes), -1, 4)[rows, kinds[rows]]
        boxed = F.smooth_l1_loss(predicted, wanted[rows], beta=BETA, reduction="sum")
        total = F.cross_entropy(logits, kinds, reduction="sum") + boxed
        losses.append(total / max(1, len(kinds)))
    return torch.stack(losses)


def _pool(side: int, patch: int) -> nn.Module:
    """RoIAlign on the level that fits a box's size, as feature pyramids choose it (Lin et al., 2017, equation 1)."""
    poolers = detection_modules().roi_heads.torchvision.ops.poolers
    pool = poolers.MultiScaleRoIAlign(LEVELS[:4], side, 0)
    pool.scales = [4 / patch / 2**level for level in range(4)]
    first = round(math.log2(patch / 4))
    pool.map_levels = poolers.initLevelMapper(first, first + 3)
    return cast("nn.Module", pool)
