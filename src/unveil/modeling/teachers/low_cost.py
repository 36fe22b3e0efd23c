"""Teachers that cost less than a whole pass in every step, and teachers of losses instead of attention."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..decoder import Decoder
from ..encoder import Encoder
from ..layers import EPS
from ..masked_model import ForwardOutput, Hide, Objective, Teacher, drop
from ..patches import validity
from ..types import Batch, FeatureSpec, Layout, Mask, Modality, Observation, Tokens

MOMENTS = 0.2  # weight of the last observation in the moments of a prediction of attention
RIDGE = 1e-2  # added to the second moments of features, whose mean square is 1 before centring
TINY = 1e-12  # attention whose logarithm is taken, at least


class EveryNSteps(nn.Module):
    """A teacher that observes in every n-th step only, and not before a share `after` of the training.

    In the other steps its observation is empty. In eval mode it always observes, so that held-out losses compare.
    """

    def __init__(self, teacher: Teacher, every: int = 1, after: float = 0.0):
        super().__init__()
        if every < 1 or not 0 <= after < 1:
            raise ValueError(f"a teacher observes every 1 or more steps, after a share below 1; got {every}, {after}")
        self.teacher, self.every, self.after = teacher, every, after
        self.observes = True

    def before_step(self, step: int, progress: float) -> None:
        # the step is no tensor, so a compiled forward becomes two graphs, one for each case
        self.observes = progress >= self.after and step % self.every == 0

    def observe(self, batch: Batch, tokens: Tokens, student: Encoder) -> Observation:
        if self.observes or not self.training:
            return self.teacher.observe(batch, tokens, student)
        return Observation(tokens.layout)


class LowResolutionTeacher(nn.Module):
    """A teacher that observes the batch at half the height and width, a quarter of the tokens.

    Its attention is resized to the student's grid, bilinearly. Raises ValueError for a grid that cannot be halved.
    """

    def __init__(self, teacher: Teacher, encoder: Encoder):
        super().__init__()
        if encoder.grid[0] % 2 or encoder.grid[1] % 2:
            raise ValueError(f"half the resolution needs an even grid of tokens; this one is {encoder.grid}")
        self.teacher = teacher

    @torch.no_grad()
    def observe(self, batch: Batch, tokens: Tokens, student: Encoder) -> Observation:
        small = halved(batch, student.modalities)
        observation = self.teacher.observe(small, student.embed(small), student)
        assert observation.attention is not None
        return Observation(tokens.layout, resized(observation.attention, observation.layout, tokens.layout.grid))


def halved(batch: Batch, modalities: Sequence[Modality]) -> Batch:
    """Maps of half the height and width: of every four pixels the mean of the valid ones, or one pixel's class."""
    maps: dict[str, Tensor] = {}
    valid: dict[str, Tensor] = {}
    for modality in (m for m in modalities if m.name in batch.maps):
        name, known = modality.name, validity(batch, modality)
        if modality.kind == "categorical":
            maps[name], valid[name] = batch.maps[name][..., ::2, ::2], known[..., ::2, ::2]
            continue
        share = F.avg_pool2d(known.float(), 2)
        maps[name] = F.avg_pool2d(torch.where(known, batch.maps[name], 0), 2) / share.clamp_min(0.25)
        valid[name] = share > 0
    return replace(batch, maps=maps, valid=valid)


def resized(attention: Float[Tensor, "B H N"], layout: Layout, grid: tuple[int, int]) -> Float[Tensor, "B H M"]:
    """Attention over the tokens of one grid, bilinearly resized to another, modality by modality."""
    heads, count = attention.shape[1], len(layout.spans)
    maps = attention.reshape(len(attention), heads * count, *layout.grid)
    return F.interpolate(maps, size=grid, mode="bilinear").reshape(len(attention), heads, -1)


class DistilledAttention(nn.Module):
    """A teacher that observes in every n-th step; in the others its attention is predicted from an early block.

    It also observes in the first n steps. Where `EveryNSteps` asks it in every `stride`-th step and not before a share
    `after` of the training, these are the steps that count.

    The prediction is a ridge regression for each modality: of the logarithm of the attention, averaged over heads, on
    the student's features after `block` blocks, layer-normalised without parameters, and on their squares. Both sides
    are less their means over an image, since masks follow the order of its tokens alone; the mean over images is added.
    It is solved after each observation, from moments that are averaged over the last of them. In eval mode the teacher
    always observes.
    Raises ValueError for a block that the encoder does not have, or steps below 1.
    """

    gram: Tensor
    cross: Tensor
    level: Tensor
    weight: Tensor
    sums: Tensor
    totals: Tensor

    def __init__(
        self,
        teacher: Teacher,
        encoder: Encoder,
        block: int | None = None,
        every: int = 16,
        stride: int = 1,
        after: float = 0.0,
    ):
        super().__init__()
        block = max(1, encoder.depth // 8) if block is None else block
        if not 1 <= block <= encoder.depth or every < 1:
            raise ValueError(
                f"attention is predicted after 1 to {encoder.depth} blocks, every 1 or more steps; got {block}, {every}"
            )
        self.teacher, self.block, self.every, self.stride, self.after = teacher, block, every, stride, after
        self.observes = True
        names = [m.name for m in encoder.modalities]
        self.places = {name: place for place, name in enumerate(names)}
        width = 2 * encoder.dim
        self.register_buffer("gram", torch.zeros(len(names), width, width))
        self.register_buffer("cross", torch.zeros(len(names), width))
        self.register_buffer("level", torch.zeros(len(names)))
        self.register_buffer("weight", torch.zeros(len(names), width))
        # of this step: products of features and, in the last column, with the target; numbers of tokens and levels
        self.register_buffer("sums", torch.zeros(len(names), width, width + 1), persistent=False)
        self.register_buffer("totals", torch.zeros(len(names), 2), persistent=False)

    def before_step(self, step: int, progress: float) -> None:
        # the step is no tensor, so a compiled forward becomes two graphs, one for each case
        first = math.ceil(self.after * step / progress - 1e-6) if progress > 0 else 0
        count = max(0, step - first) // self.stride
        self.observes = count % self.every == 0 or count < self.every

    @torch.no_grad()
    def observe(self, batch: Batch, tokens: Tokens, student: Encoder) -> Observation:
        if self.training and not self.observes:
            return self.predict(tokens, student)
        observation = self.teacher.observe(batch, tokens, student)
        assert observation.attention is not None
        if self.training:
            target = observation.attention.float().mean(dim=1).clamp_min(TINY).log()
            known = torch.ones_like(target) if tokens.missing is None else (~tokens.missing).float()
            features = self._features(tokens, student)
            for name, span in tokens.layout.spans.items():
                place, x, y, weight = self.places[name], features[:, span], target[:, span], known[:, span]
                rows = torch.cat([x, (y - y.mean(dim=1, keepdim=True))[..., None]], dim=-1) * weight[..., None]
                self.sums[place] += torch.einsum("bnd,bne->de", x, rows)
                self.totals[place] += torch.stack([weight.sum(), (y * weight).sum()])
        return observation

    @torch.no_grad()
    def predict(self, tokens: Tokens, student: Encoder) -> Observation:
        """The attention, of one head, that the features of an early block foretell."""
        x, spans = self._features(tokens, student), tokens.layout.spans
        places = [(self.places[name], span) for name, span in spans.items()]
        attention = torch.cat([x[:, span] @ self.weight[i] + self.level[i] for i, span in places], dim=1).exp()
        if tokens.missing is not None:
            attention = attention.masked_fill(tokens.missing, 0)
        return Observation(tokens.layout, attention[:, None])

    def _features(self, tokens: Tokens, student: Encoder) -> Float[Tensor, "B N D"]:
        """Normalised features and their squares in float32, less their means over the tokens of a modality."""
        x, keys = student.first_input(replace(tokens, values=tokens.values.detach()))
        for block in student.blocks[: self.block]:
            x = block(x, keys)
        x = x[:, len(student.prefix) :].float()
        x = F.layer_norm(x, x.shape[-1:], eps=EPS)
        maps = torch.cat([x, x.square()], dim=-1).unflatten(1, (len(tokens.layout.spans), -1))
        return (maps - maps.mean(dim=2, keepdim=True)).flatten(1, 2)

    @torch.no_grad()
    def after_step(self, losses: Mapping[str, Float[Tensor, ""]], updated: Bool[Tensor, ""]) -> None:
        if not self.observes:
            return
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.sums)
            dist.all_reduce(self.totals)
        count = self.totals[:, 0]
        is_new = updated & (count > 0) & self.sums.isfinite().all()
        mean = torch.where(is_new[:, None, None], self.sums / count.clamp_min(1)[:, None, None], 0)
        level = torch.where(is_new, self.totals[:, 1] / count.clamp_min(1), 0)
        first = self.gram.diagonal(dim1=1, dim2=2).sum(dim=1) == 0
        step = torch.where(first, 1.0, MOMENTS) * is_new  # the first observation counts whole
        self.gram.lerp_(mean[..., :-1], step[:, None, None])
        self.cross.lerp_(mean[..., -1], step[:, None])
        self.level.lerp_(level, step)
        self.sums.zero_()
        self.totals.zero_()
        ridge = RIDGE * torch.eye(self.gram.shape[-1], device=self.gram.device)
        # without the check of `solve`, for which the host would wait for a GPU: the ridge keeps it solvable
        self.weight.copy_(torch.linalg.solve_ex(self.gram + ridge, self.cross).result)


class PredictedLossTeacher(nn.Module):
    """The loss that one linear head per modality predicts for each token from the student's features; 0 without a head.

    The features are the student's last layer on the whole input, layer-normalised without parameters, and are in the
    observation, too: the heads are trained on them, by `objectives.Ranking`, which registers them.
    """

    def __init__(self, heads: Mapping[str, nn.Linear]):
        super().__init__()
        self.heads = (dict(heads),)  # in a tuple, so that they are saved only with the objective that trains them

    @torch.no_grad()
    def observe(self, batch: Batch, tokens: Tokens, student: Encoder) -> Observation:
        observation = student.observe(replace(tokens, values=tokens.values.detach()), FeatureSpec(attention=None))
        assert observation.features is not None
        features = F.layer_norm(observation.features, observation.features.shape[-1:], eps=EPS)
        error = torch.zeros(tokens.ids.shape, device=features.device)
        for name, head in self.heads[0].items():
            if name in tokens.layout.spans:
                span = tokens.layout.spans[name]
                error[:, span] = F.softplus(head(features[:, span]).float()[..., 0])
        return Observation(tokens.layout, features=features, error=error)


class MeasuredLossTeacher(nn.Module):
    """The loss of each token under the student's current weights, measured with two complementary random masks.

    Each half of the tokens is predicted from the other (uncertainty-guided masking, future work of the
    attention-guided MultiMAE). A token's loss is the weighted sum of the objectives of its modality.
    """

    def __init__(self, decoders: Mapping[str, Decoder], objectives: Collection[Objective], hide: Hide = drop):
        super().__init__()
        self.model = (dict(decoders), tuple(objectives), hide)  # in a tuple: they are registered by the masked model

    @torch.no_grad()
    def observe(self, batch: Batch, tokens: Tokens, student: Encoder) -> Observation:
        decoders, objectives, hide = self.model
        objectives = tuple(o for o in objectives if decoders[o.decoder].modality in tokens.layout.spans)
        decoders = {o.decoder: decoders[o.decoder] for o in objectives}
        keep = sorted({m for decoder in decoders.values() for m in decoder.reads})
        order = batch.rng.uniform("halves", tokens.ids.shape[1]).argsort(dim=1)
        first, second = order.tensor_split(2, dim=1)
        error = torch.zeros(tokens.ids.shape, device=order.device)
        for mask in (Mask(first, second), Mask(second, first)):
            latents = student(tokens.take(mask.visible) if hide is drop else hide(tokens, mask), keep)
            queries = {name: decoder.make_queries(mask, tokens.layout) for name, decoder in decoders.items()}
            decoded = {name: decoder(latents, queries[name]) for name, decoder in decoders.items()}
            output = ForwardOutput({}, mask, latents, queries, decoded)
            for objective in objectives:
                losses, known = objective.token_losses(output, batch)
                error = error.scatter_add(1, queries[objective.decoder].ids, objective.weight * losses * known)
        return Observation(tokens.layout, error=error)
