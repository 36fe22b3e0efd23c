"""The class of every patch from its frozen token: what the tokens know of where things are."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...data.dense_dataset import DenseSet
from ...data.dense_layouts import FolderLayout, StorageOptions
from ...data.loader import Loader
from ...data.modality_config import declare
from ...data.transforms import CenterView
from ...modeling.types import Batch, Modality
from ..datasets import unreadable_facts
from ..dense.data import DenseData
from ..dense.model import check_dense
from ..features import RawPixels
from ..types import Context, FeatureEncoder, FeatureSplit, Needs, Score
from .linear_lbfgs import LinearLBFGS

REACH = 1  # patches on every side that raw pixels are read of, beside the patch itself


@dataclass(frozen=True)
class Patches:
    """The class of every patch, the most frequent one of its pixels, from its frozen token by linear-lbfgs.

    Beside it the pixels of the patch and of its eight neighbours are read in the same way.

    layout: layout of images and labels, as for segment
    classes: the number of classes; by default from the layout, or counted in the labels
    ignore: the id of pixels without a class (void); the layout's own by default, 255 for folders
    first_class: the id of the first class; lower ones are no class
    inputs: the modalities to read, of those that the encoder knows; by default its first
    modalities: declarations of the maps of a folder: .toml files, and rgb, semseg; by default from the layout
    train_patches: about how many patches to learn from, all those of a part of the images
    """

    needs: ClassVar[Needs] = "dense"

    layout: FolderLayout = "auto"
    classes: int | None = None
    ignore: int | None = None
    first_class: int | None = None
    inputs: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    train_patches: int = 32_768

    def __post_init__(self) -> None:
        if self.train_patches < 1:
            raise ValueError(f"--train-patches is a number of at least 1; got {self.train_patches}")

    def run(self, subject: FeatureEncoder, data: DenseData, context: Context) -> Score | None:
        """The accuracy over all patches of all test images; None for an encoder without tokens."""
        encoder: Any = _Neighbourhoods(subject) if isinstance(subject, RawPixels) else check_dense(subject)
        if encoder is None or not encoder.patch:
            return None
        wanted = self.inputs
        if isinstance(encoder, _Neighbourhoods) and wanted:  # pictures are all that it reads
            wanted = tuple(m.name for m in encoder.modalities if m.name in wanted)
            if not wanted:
                return None
        stored = {"classes": self.classes, "ignore": self.ignore, "first_class": self.first_class}
        storage = StorageOptions(self.layout, declared=declare(self.modalities), **stored)
        sets, inputs = data.open(encoder, storage, wanted, "semseg", context.limit)
        names = sets.train.labels.names
        height, width = (side // encoder.patch for side in encoder.image_size)
        few = sets.train.limited(-(-self.train_patches // (height * width)))
        total = len(few) + len(sets.test)
        train = _read(encoder, few, inputs, len(names), context, 0, total)
        test = _read(encoder, sets.test, inputs, len(names), context, len(few), total)
        known = [part.classes >= 0 for part in (train, test)]
        if len(train.classes[known[0]].unique()) < 2 or not known[1].any():
            raise ValueError(f"the patches of {data.address} are of one class, or of none; look at the labels")
        split = FeatureSplit(
            train.tokens[known[0]], train.classes[known[0]], test.tokens[known[1]], test.classes[known[1]], len(names)
        )
        score = LinearLBFGS().run(subject, split, context)
        right = torch.zeros(test.classes.shape)
        right[known[1]] = torch.tensor(score.outcomes["accuracy"])
        counts = known[1].sum(1)
        shares = right.sum(1)[counts > 0] / counts[counts > 0]
        return replace(
            score,
            settings={
                **score.settings,
                "inputs": [m.name for m in inputs],
                "classes": list(names),
                "train_patches": len(split.train),
                "test_patches": len(split.test),
                "train_images": len(few),
                "test_images": len(sets.test),
                **unreadable_facts((*train.unreadable, *test.unreadable)),
            },
            card=(
                f"The class of each patch of {encoder.patch} x {encoder.patch} pixels, the most frequent one of those"
                " that have a class, from the token of the last block, the encoder frozen, on centre views. Raw pixels"
                f" are those of the patch and its neighbours, {2 * REACH + 1} x {2 * REACH + 1} patches. Errors are"
                f" over images, whose patches are not independent. {score.card}"
            ),
            outcomes={"accuracy": shares.tolist()},
            shown={"classes": {**score.shown["classes"], "names": list(names), "unit": "patches"}},
        )


class _Neighbourhoods:
    """Raw pixels as tokens: the pixels of each patch and of those around it, mirrored at the border."""

    num_prefix, depth = 0, 1

    def __init__(self, pixels: RawPixels):
        self.modalities, self.channels, self.patch = (pixels.modality,), pixels.channels, pixels.patch
        self.image_size, self.device = pixels.encoder_size, pixels.device

    def tokens(self, batch: Batch, blocks: Sequence[int]) -> list[Float[Tensor, "B N T"]]:
        reach = REACH * self.patch
        padded = F.pad(batch.marked(self.modalities[0].name).nan_to_num(0.0), (reach,) * 4, mode="reflect")
        return [F.unfold(padded, self.patch + 2 * reach, stride=self.patch).transpose(1, 2)]


class _Part(NamedTuple):
    """The tokens of a set and their classes, -1 for patches without one."""

    tokens: Float[Tensor, "B N D"]
    classes: Int[Tensor, "B N"]
    unreadable: tuple[str, ...]


def _read(
    encoder: Any, samples: DenseSet, inputs: Sequence[Modality], count: int, context: Context, before: int, total: int
) -> _Part:
    labels = Modality("semseg", 1, (0.0,), (1.0,), kind="categorical", num_classes=count)
    loader = Loader(
        samples,
        CenterView(encoder.image_size),
        context.micro_batch,
        max_broken=None,
        cache_bytes=0,
        modality=(*inputs, labels),
    )
    names = [m.name for m in inputs]
    tokens, classes, done = [], [], before
    with closing(loader.in_order()) as batches:
        for batch, _ in batches:
            read = Batch(
                {n: batch.maps[n] for n in names},
                batch.key,
                batch.progress,
                {n: batch.valid[n] for n in names if n in batch.valid},
            ).on(encoder.device)
            with torch.inference_mode(), context.autocast(encoder.device):
                outputs = encoder.tokens(read, [encoder.depth])[0][:, encoder.num_prefix :]
            tokens.append(rearrange(outputs.float().cpu(), "b (m n) d -> b n (m d)", m=len(names)))
            truth = batch.maps["semseg"].long()
            valid = (truth >= 0) & (truth < count)
            valid &= batch.valid.get("semseg", valid)
            classes.append(_majority(truth, valid, encoder.patch, count))
            done += len(batch)
            context.progress(f"tokens of {context.subject}", done, total)
    return _Part(torch.cat(tokens), torch.cat(classes), tuple(loader.unreadable))


def _majority(
    truth: Int[Tensor, "B 1 H W"], valid: Bool[Tensor, "B 1 H W"], patch: int, count: int
) -> Int[Tensor, "B N"]:
    """The most frequent class of the valid pixels of each patch; -1 where none is valid."""
    votes = F.one_hot(torch.where(valid, truth, 0)[:, 0], count) * valid[:, 0, :, :, None]
    votes = rearrange(votes, "b (h p) (w q) k -> b (h w) (p q) k", p=patch, q=patch).sum(2)
    return torch.where(votes.sum(2) > 0, votes.argmax(2), -1)
