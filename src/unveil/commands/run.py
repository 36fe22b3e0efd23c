"""`unveil.Run`: a stored run that shows itself in a notebook, and what it makes of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.given import pictures_given
from ..data.image_transform import Picture
from ..data.sources import Source, class_of
from ..evaluation.analysis.attention import collect_attention_maps, hidden_tokens, masks_by_sampler
from ..evaluation.visualize.drawn import Guidance, Neighbours, Reconstruction
from ..evaluation.visualize.given_masks import masked_parts
from ..evaluation.visualize.panels import map_renderers, sample_pictures, sheet_of
from ..evaluation.visualize.reconstructions import reconstructions
from ..evaluation.visualize.samples import SampleViews, load_samples
from ..modeling.masked_model import MaskedModel
from ..modeling.patches import validity
from ..modeling.types import Batch, Layout
from ..recipes.run import Run as StoredRun
from ..reporting.figures import Panel, PanelBlock, Sheet
from ..reporting.lamps import headline, lamps
from ..reporting.run_card import run_card
from ..reporting.run_record import read_run
from ..runs.console import user_path
from ..runs.hardware import choose_device
from ..runs.run_config import RunConfig
from ..training.monitor import features_of
from .look import notes_on
from .subject import Subject

Given = Picture | Sequence[Picture] | Mapping[str, Any]  # pictures, or such for each modality
_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
_SEARCHED = 1000  # images among which neighbours are looked for


class Run(StoredRun):
    """A run folder, opened to be read: `run = unveil.Run("runs/a")`. A notebook shows its verdict, curve and pictures.

    A run is accepted wherever its address is, and `str(run)` is its folder. Models and data are made when they are
    asked for. No code of the run is executed, except its recipe's, of the user's own recipe file, where this user has
    run that before, or with `trust`. Raises FileNotFoundError where there is no `run.json`, ValueError where it is
    damaged.

    >>> import unveil
    >>> run = unveil.Run("runs/a")
    >>> run.config.recipe
    'mae'
    """

    def __init__(self, path: str | Path, config: RunConfig | None = None, trust: bool = False):
        opened = StoredRun.open(path, trust) if config is None else None
        super().__init__(user_path(path), opened.config if opened else config or RunConfig.read(Path(path)), trust)
        self._model_of: tuple[str, MaskedModel] | None = None

    @classmethod
    def open(cls, path: str | Path, trust: bool = False) -> Self:
        return cls(path, None, trust)

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str | Path) -> Path:
        """A file in its folder, as of a path: `run / "report.html"`."""
        return self.path / name

    def __eq__(self, other: object) -> bool:
        return Path(other) == self.path if isinstance(other, (Path, StoredRun)) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.path)

    def __repr__(self) -> str:
        if self.imported:  # which has not trained here
            return super().__repr__()
        return f"{super().__repr__()[:-1]}. {headline(lamps(read_run(self.path))).sentence[:-1]}>"

    def _repr_html_(self) -> str:
        return run_card(read_run(self.path))

    def curves(self) -> Any:
        """The numbers that the run has logged, a row for each logged step and each validation, in their order.

        A `pandas.DataFrame` where pandas is installed, else a dict of lists by the same names: step, epoch, seconds,
        loss, lr, grad_norm, images_per_second, heldout_loss, rankme, feature_std, and `loss NAME` of each objective
        where there are several. NaN where a step has no such number.

        >>> import unveil
        >>> curves = unveil.Run("runs/a").curves()
        >>> list(curves)[:4]
        ['step', 'epoch', 'seconds', 'loss']
        """
        record = read_run(self.path)
        rows: dict[int, dict[str, float]] = {}
        for step in record.steps:
            names = ("loss", "lr", "grad_norm", "images_per_second")
            several = {f"loss {n}": value for n, value in step.losses.items() if len(step.losses) > 1}
            own = {"epoch": step.epoch, "seconds": step.time} | {n: getattr(step, n) for n in names} | several
            rows.setdefault(step.step, {}).update(own)
        for signals in record.signals:
            measured = {n: getattr(signals, n) for n in ("heldout_loss", "rankme", "feature_std")}
            rows.setdefault(signals.step, {}).update({"epoch": signals.epoch, **measured})
        first = ("epoch", "seconds", "loss", "lr", "grad_norm", "images_per_second", "heldout_loss", "rankme")
        columns = list(dict.fromkeys([*first, "feature_std", *(name for row in rows.values() for name in row)]))
        steps = sorted(rows)
        table: dict[str, list[float]] = {"step": [*map(float, steps)]}
        table |= {name: [rows[step].get(name, float("nan")) for step in steps] for name in columns}
        if find_spec("pandas") is None:
            return table
        import pandas

        return pandas.DataFrame(table).astype({"step": int})

    def reconstruct(
        self, images: Given | None = None, mask: Any = None, *, count: int = 4, device: str = "auto"
    ) -> Reconstruction:
        """Hide patches of images and predict them: tensors, with `.image()` and `.figure()`.

        images: tensors (C H W), arrays (H W C), Pillow images or paths, one or a list; of several modalities a mapping
            with such for each, of which some may be left out; an address; by default samples that the run held out
        mask: what is hidden: by default the run's own masks; a share from 0 to 1, uniformly; uniform, block,
            inverse-block or grid; a boolean array h w or B h w of patches, True for hidden; a mapping from modalities
            to such arrays, or to True (all of it) or False
        count: how many of the held-out samples, or of those at an address
        device: cpu, cuda, mps; auto takes the best

        Raises ValueError for images that cannot be read, and masks that do not fit or leave nothing to see or predict.

        >>> import unveil
        >>> result = unveil.Run("runs/a").reconstruct(mask=0.5)
        >>> tuple(result.predicted["rgb"].shape), tuple(result.hidden["rgb"].shape)
        ((2, 3, 16, 16), (2, 4, 4))
        """
        subject, views, batch = self._subject(images, count, device)
        model, modalities = subject.model, subject.modalities
        layout = model.encoder.embed(batch).layout
        maskers = masked_parts(model, mask, layout, batch)
        with torch.no_grad():
            outputs = [model.encode_decode(one, masker) for one, masker in maskers]
            parts = [reconstructions(model, one, o) for (one, _), o in zip(maskers, outputs, strict=True)]
        hidden = torch.cat([hidden_tokens(o.mask.visible, layout.num_tokens) for o in outputs])
        renderers = map_renderers(modalities, subject.samples, batch)
        names = iter(views.names)
        pictures = [
            rows
            for (one, _), output in zip(maskers, outputs, strict=True)
            for rows in sample_pictures(
                model, one, [next(names) for _ in range(len(one))], modalities, renderers, output
            )
        ]
        notes = [*filter(None, (r.note for r in renderers.values())), *notes_on(subject, pictures[0])]
        return Reconstruction(
            views.names,
            sheet_of(subject.title, pictures, renderers, notes),
            {m.name: batch.maps[m.name].cpu() for m in modalities},
            {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]},
            {name: _grid(hidden, layout, name) for name in layout.spans},
        )

    def guidance(self, images: Given | None = None, *, count: int = 4, device: str = "auto") -> Guidance:
        """What guides the masks of the run on images: attention of student and teacher, their blend, the masks.

        images, count, device: as in `reconstruct`

        >>> import unveil
        >>> tuple(unveil.Run("runs/a").guidance().student["rgb"].shape)
        (2, 4, 4)
        """
        subject, views, batch = self._subject(images, count, device)
        model = subject.model
        with torch.no_grad():
            output = model.encode_decode(batch, model.masker.predict_all())
            maps = collect_attention_maps(model, batch, output)
        layout = output.latents.tokens.layout
        is_single = len(layout.spans) == 1
        guide = maps.guide if maps.guide is not None and maps.guide.shape[1] == layout.num_tokens else None
        masks = masks_by_sampler(model, batch, maps.guide) if is_single and maps.guide is not None else {}
        hidden = hidden_tokens(output.mask.visible, layout.num_tokens)
        renderers = map_renderers(subject.modalities, subject.samples, batch)
        pictures = sample_pictures(model, batch, views.names, subject.modalities, renderers, output)
        teacher = {name: values for name in layout.spans if (values := maps.teacher_map(name)) is not None}
        first = next(iter(layout.spans))
        return Guidance(
            views.names,
            sheet_of(subject.title, pictures, renderers, notes_on(subject, pictures[0])),
            {name: _grid(maps.student, layout, name) for name in layout.spans},
            {name: values.reshape(-1, *layout.grid).cpu() for name, values in teacher.items()},
            {} if guide is None else {name: _grid(guide, layout, name) for name in layout.spans},
            {name: _grid(hidden, layout, name) for name in layout.spans},
            {sampler: _grid(mask, layout, first) for sampler, mask in masks.items()},
        )

    def neighbours(
        self,
        images: Given | None = None,
        k: int = 6,
        *,
        among: str | Source | None = None,
        count: int = 5,
        device: str = "auto",
    ) -> Neighbours:
        """The images nearest to others by the cosine of features, the mean of the patches.

        images, count, device: as in `reconstruct`; a run of several modalities compares its first input
        k: how many
        among: the images to look among, at most 1000, evenly spread; by default those that the run was trained on

        >>> import unveil
        >>> unveil.Run("runs/a").neighbours("images/even/000.png", k=3, among="images").neighbours[0][0]
        'even/000.png'
        """
        if k < 1:
            raise ValueError(f"k is a number of neighbours, 1 or more; got {k}")
        subject, views, _ = self._subject(images, count, device)
        model, first = subject.model, next(m for m in subject.modalities if m.role != "output")
        if first.kind == "categorical":
            raise ValueError(f"{self} reads {first.name} first, class ids, which are not compared as images are")
        source = self.train_images() if among is None else self.open_data(among) if isinstance(among, str) else among
        others = load_samples(source, subject.modalities, model.encoder.image_size, _SEARCHED)
        if not len(others):
            raise ValueError(f"no image of {source.address} can be read; see `unveil inspect`")
        with torch.no_grad():
            own, known = (F.normalize(features_of(model, v.views.maps[first.name]), dim=1) for v in (views, others))
        near = (own @ known.T).topk(min(k, len(others)), dim=1)
        viewer = map_renderers(subject.modalities, subject.samples, views.views)[first.name]

        def picture(of: SampleViews, place: int, caption: str) -> Panel:
            image = of.views.maps[first.name][place]
            return Panel(caption, viewer(image, validity(of.views, first)[place]))

        blocks = []
        for row, (places, cosines) in enumerate(zip(near.indices.tolist(), near.values.tolist(), strict=True)):
            labels = [class_of(source, others.places[i]) for i in places]
            captions = [f"{cosine:.2f} {label or ''}".strip() for cosine, label in zip(cosines, labels, strict=True)]
            panels = [picture(others, i, caption) for i, caption in zip(places, captions, strict=True)]
            blocks.append(PanelBlock(views.names[row], [[picture(views, row, "image"), *panels]]))
        notes = [f"The nearest of {len(others):,} images of {source.address}; numbers are cosines of features."]
        indices = torch.tensor(others.places)[near.indices]
        names = [[others.names[i] for i in places] for places in near.indices.tolist()]
        return Neighbours(views.names, Sheet(subject.title, blocks, notes=notes), indices, near.values, names)

    def _subject(self, images: Any, count: int, device: str) -> tuple[Subject, SampleViews, Batch]:
        """The model and samples to look at, with their views and the batch of them on its device."""
        if count < 1:
            raise ValueError(f"count is a number of samples, 1 or more; got {count}")
        if images is None or (isinstance(images, (str, Path)) and not _is_picture(images)):
            samples = self.held_out(None if images is None else str(images))
        else:
            samples = pictures_given(images, self.declared, self.modalities[0].channels)
            count = len(samples)
        where = str(choose_device(device))
        if self._model_of is None or self._model_of[0] != where:
            self._model_of = where, self.model().to(where)
        epoch = self.checkpoint().state["epoch"]
        subject = Subject(self.name, self._model_of[1], self.modalities, samples, epoch)
        return subject, *subject.load(count)


def _is_picture(address: str | Path) -> bool:
    return str(address).lower().endswith(_EXTENSIONS)


def _grid(values: Tensor, layout: Layout, modality: str) -> Tensor:
    """The values of the tokens of one modality, in their places."""
    return values[:, layout.spans[modality]].reshape(-1, *layout.grid).cpu()
