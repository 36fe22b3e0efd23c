"""A stored run, opened: its configuration, recipe, weights and data. `unveil.Run`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt64
from torch import Tensor

from ..data.aligned_folders import open_samples
from ..data.identity import UNKNOWN, shared
from ..data.image_transform import ImageTransform
from ..data.inspection import inspect_samples
from ..data.modality_config import BUILT_IN, Declared, declared_from, modality_from
from ..data.sources import Source, Subset, open_source, spread
from ..data.splits import hold_out, locations, names_digest
from ..modeling.image_encoder import ImageEncoder
from ..modeling.masked_model import MaskedModel
from ..modeling.masking import TokenScore
from ..modeling.public_vits import PublicViT, encoder_of, files_of_run, untrained_vit
from ..modeling.rng import seed_stage
from ..modeling.types import Modality, Pool
from ..runs.checkpoint import Checkpoint, read, read_newest_weights
from ..runs.checkpoint_state import all_weights, read_state, step_of, weights_by_step
from ..runs.console import log, user_path
from ..runs.folder import OWN_RECIPE, OWN_SCORE, RESULTS, read_trained_images
from ..runs.regular_files import check_links
from ..runs.run_config import RunConfig
from ..runs.trust import check_trusted, is_known
from .own_score import load_score, own_scores
from .recipe import ENCODER, Recipe
from .registry import build_recipe, load_stored_recipe
from .stored_encoder import StoredEncoder

_LOOKED_AT = 2000  # samples that tell whether a run was trained on some
_INSPECTED = 64  # samples that settle maps which the run itself does not read
_HEADLINE = ("size", "patch", "image_size", "visible", "batch_size", "lr", "teacher")


@dataclass(frozen=True)
class SavedWeights:
    """Weights of a run on disk: a checkpoint, or those that it kept at an epoch (`pretrain --save-every`)."""

    step: int
    epoch: float
    stage: int
    path: Path


class Run:
    """A run folder, opened to be read: `run = Run.open("runs/a")`. Each of its files is read once.

    Models and data are made when they are asked for, on the CPU, and are new objects each time. No code of the run is
    executed, except by `recipe` and `model` for a run of the user's own recipe file: where this user has run that
    before, or with `trust`.
    """

    def __init__(self, path: Path, config: RunConfig, trust: bool = False):
        self.path, self.config, self.trust = path, config, trust
        self._last_read: tuple[float | None, Checkpoint] | None = None
        self._has_warned = False  # of damaged weights, once

    def __fspath__(self) -> str:
        """Its folder, so that a run is accepted wherever its address is."""
        return str(self.path)

    @classmethod
    def open(cls, path: str | Path, trust: bool = False) -> Run:
        """The run in a folder; `trust` lets the code of its recipe be executed where it is needed.

        Raises FileNotFoundError where there is no `run.json`, ValueError where it is damaged, or where, without
        `trust`, a folder of results is a link that leads elsewhere.
        """
        folder = user_path(path)
        config = RunConfig.read(folder)
        if not trust:
            check_links(folder, RESULTS)
        return cls(folder, config, trust)

    def __repr__(self) -> str:
        c, newest = self.config, max(weights_by_step(self.path), default=None)
        if self.imported:
            kind = "an encoder" if c.recipe == ENCODER else c.recipe
            return f"<Run {self.path}: {kind} of {self.imported['source']}>"
        done = f"step {newest}" if newest is not None else "no checkpoint"
        epochs = "" if c.epochs is None else f", {c.epochs:.4g} epoch{'s' * (c.epochs != 1)}"
        images = f"{c.data.count:,} images of {c.data.address} ({c.data.held_out:,} held out)"
        headline = "".join(f", {name}={c.options[name]}" for name in _HEADLINE if c.options.get(name) is not None)
        return f"<Run {self.path}: {c.recipe}, {c.status} at {done}{epochs}, {images}{headline}>"

    @property
    def name(self) -> str:
        return self.path.absolute().name

    @property
    def imported(self) -> Mapping[str, Any]:
        """Source, licence and files of a checkpoint that `unveil import` made a run of; empty for one trained here."""
        stored: Mapping[str, Any] = self.config.content.get("imported", {})
        return stored

    @cached_property
    def declared(self) -> tuple[Declared, ...]:
        """The maps that the run reads, and how their files are read; empty for a run of plain images."""
        return tuple(map(declared_from, self.config.modalities))

    @cached_property
    def modalities(self) -> tuple[Modality, ...]:
        """The modalities of the run, in the order of its recipe."""
        return tuple(d.modality for d in self.declared) or (modality_from(self.config.image),)

    @cached_property
    def _make_recipe(self) -> Callable[..., Recipe]:
        return load_stored_recipe(self.config.recipe, self.path / OWN_RECIPE, self.trust, self.path)

    @cached_property
    def _own_scores(self) -> dict[str, TokenScore]:
        """The options that are scores of the user's own, from the file that the run keeps of them."""
        named = own_scores(self.config.options)
        if not named:
            return {}
        file = self.path / OWN_SCORE
        if not file.is_file():
            raise FileNotFoundError(f"{file} is gone, the source of masking={next(iter(named.values()))}")
        content = file.read_bytes()
        check_trusted(file, content, self.trust, f"this needs the masking of {self.path}")
        return {option: load_score(name, content, file) for option, name in named.items()}

    def recipe(self) -> Recipe:
        """The run's recipe with its options, initialised as the run began.

        Raises UntrustedCodeError, a ValueError, where that would execute code that this user has not run before, and
        ValueError for an imported encoder without a decoder.
        """
        if self.config.recipe == ENCODER:
            raise ValueError(
                f"{self.path} is the encoder of {self.imported.get('source')} without a decoder; `unveil pretrain mae"
                f" --init-from {self.path}` trains one"
            )
        seed_stage(self.config.seed, -1)
        return build_recipe(self._make_recipe, self.modalities, {**self.config.options, **self._own_scores})

    @cached_property
    def _states(self) -> dict[int, tuple[Path, dict[str, Any]]]:
        """The folder and the state of all weights whose state is whole; a warning says which is not."""
        states = {}
        for folder in reversed(all_weights(self.path)):  # of a step what was kept comes first
            if (step := step_of(folder)) not in states:
                try:
                    states[step] = folder, read_state(folder)
                except ValueError as error:
                    log(f"warning: {error}; these weights are left out")
        return dict(sorted(states.items()))

    def checkpoints(self) -> list[SavedWeights]:
        """All weights of the run, the oldest first; a warning says where a `state.json` is damaged.

        >>> import unveil
        >>> [weights.step for weights in unveil.Run("runs/a").checkpoints()]
        [2]
        """
        return [
            SavedWeights(step, state.get("kept_at", state["epoch"]), state["stage"], folder)
            for step, (folder, state) in self._states.items()
        ]

    def checkpoint(self, epoch: float | None = None) -> Checkpoint:
        """The newest whole weights, or those that the run has of an epoch; a line on stderr says why not the newest.

        Raises ValueError, with those there are, where there are none.
        """
        if self._last_read is None or self._last_read[0] != epoch:
            self._last_read = epoch, self._newest() if epoch is None else self._at(epoch)
        return self._last_read[1]

    def _newest(self) -> Checkpoint:
        newest = read_newest_weights(self.path, self.config.content.get("last_checkpoint"), warn=not self._has_warned)
        self._has_warned = True
        return newest

    def _at(self, epoch: float) -> Checkpoint:
        saved = self.checkpoints()
        near = min(saved, key=lambda weights: abs(weights.epoch - epoch), default=None)
        if near is None or abs(near.epoch - epoch) > 1e-6 * max(1.0, epoch):
            epochs = f"there are epochs {', '.join(f'{w.epoch:g}' for w in saved)}" if saved else "it has none yet"
            raise ValueError(
                f"{self.path} has no weights of epoch {epoch:g}: {epochs}; `unveil pretrain --save-every` keeps some"
            )
        return read(near.path, self._states[near.step][1])

    def model(self, stage: int | None = None, epoch: float | None = None, *, trained: bool = True) -> MaskedModel:
        """The masked model of a stage, counted from 0, in eval mode on the CPU; by default that of the weights.

        `epoch` picks weights as `checkpoint` does. With `trained=False` it is the model as it was before training, by
        default of the last stage. Raises ValueError where the weights belong to another stage, and as `recipe`.

        >>> import unveil
        >>> unveil.Run("runs/a").model().masker.visible
        0.25
        """
        saved = self.checkpoint(epoch) if trained else None
        recipe = self.recipe()
        if stage is None:
            stage = len(recipe.stages) - 1 if saved is None else saved.state["stage"]
        if saved is not None and saved.state["stage"] != stage:
            raise ValueError(
                f"the weights of {self.path} at epoch {saved.state['epoch']:g} are those of stage"
                f" {saved.state['stage']}, not {stage}; give an epoch of that stage"
            )
        seed_stage(self.config.seed, stage)
        model = recipe.stages[stage].build()
        if saved is not None:
            model.load_state_dict(saved.model)
        return model.eval()

    def encoder(
        self, pool: Pool = "mean", epoch: float | None = None, *, trained: bool = True
    ) -> ImageEncoder | PublicViT:
        """The encoder as a function of images, on the CPU; `epoch` and `trained` as in `model`.

        It is built as `run.json` describes it, without the recipe, except of an encoder of classes of the user's own,
        which nothing else can build. The untrained one is initialised as the library's encoders are. An imported one
        that the library has no module for is a PublicViT.

        >>> import unveil
        >>> unveil.Run("runs/a").encoder("both").depth
        6
        """
        made: ImageEncoder | PublicViT
        if "beside" in self.imported:
            files = files_of_run(str(self.path), self.checkpoint(epoch).model, self.config.content)
            made = encoder_of(files, pool, True, quiet=True)
            if not trained:
                made = untrained_vit(made.config, self.config.seed, pool)
            made.transform = ImageTransform(made.modalities[0], made.image_size)
            return made
        own = self._encoder_weights(epoch) if trained else {}
        described = self.described
        if described is not None and trained and not described.fits(own):
            raise ValueError(f"{self.path}: its weights are not of the encoder that its run.json describes")
        if described is None:
            encoder = self.recipe().encoder
        else:
            seed_stage(self.config.seed, -1)
            encoder = described.build()
        if trained:
            encoder.load_state_dict(own)
        made = ImageEncoder(encoder, pool)
        made.transform = ImageTransform(made.modalities[0], made.image_size)
        return made

    def own_encoder(self, epoch: float | None = None) -> ImageEncoder:
        """As `encoder`. Raises ValueError for an imported one that the library has no module for."""
        made = self.encoder("mean", epoch)
        if not isinstance(made, ImageEncoder):
            raise ValueError(
                f"{self.path} is the encoder of {self.imported['source']}, which none of the library's is: its features"
                " are evaluated and embedded, and `unveil pretrain --init-from` starts from it"
            )
        return made

    def _encoder_weights(self, epoch: float | None = None) -> dict[str, Tensor]:
        weights = self.checkpoint(epoch).model
        return {n.removeprefix("encoder."): tensor for n, tensor in weights.items() if n.startswith("encoder.")}

    @cached_property
    def described(self) -> StoredEncoder | None:
        """The encoder as data; None where the recipe has to build it.

        An older run does not describe its encoder. That of the user's own recipe is then told from its weights, unless
        the recipe may be executed.
        """
        if "encoder" in self.config.content:
            stored = self.config.content["encoder"]
            return None if stored is None else StoredEncoder.read(stored)
        own = self.path / OWN_RECIPE
        if self.trust or not own.is_file() or is_known(own.read_bytes()):
            return None
        if shown := StoredEncoder.of_weights(self._encoder_weights(), self.modalities, self.config.content):
            log(f"note: the encoder of {self.path} is built from its weights; --trust builds it by its {OWN_RECIPE}")
        return shown

    def train_images(self) -> Source:
        """The samples that the run was trained on. Raises FileNotFoundError where its data have moved."""
        return self.split()[0]

    def held_out(self, data: str | Source | None = None, extra_maps: tuple[Declared, ...] = ()) -> Source:
        """The samples at an address, or of a source, that the run was not trained on; by default of its own data.

        >>> import unveil
        >>> len(unveil.Run("runs/a").held_out()), len(unveil.Run("runs/a").train_images())
        (2, 38)
        """
        return self.split(data, extra_maps)[1]

    def split(self, data: str | Source | None = None, extra_maps: tuple[Declared, ...] = ()) -> tuple[Source, Source]:
        """The samples at an address, or of a source, in two: those that the run was trained on, and the others.

        A sample is known by its file, however the address is written; a source with the names of the run's data is
        those data, wherever it lies. `extra_maps` are read beside those of the run, such as labels. Raises ValueError
        where the run was trained on all of them, FileNotFoundError where there is nothing.
        """
        if data is None and self.imported:
            raise ValueError(f"{self.path} was imported, so it has no images of its own; give --data")
        address = self.config.data.address if data is None else data
        given = self.open_data(address) if isinstance(address, str) else address
        own = given if data is None or names_digest(given) == self.config.data.names else self._own_data()
        source = self.open_data(address, extra_maps) if extra_maps and isinstance(address, str) else given
        is_trained = self._known_by_path(source, own)
        if own is not given and (known := self._trained_images()) is not None:  # copies of them at another address
            is_trained = [by_path or copy for by_path, copy in zip(is_trained, shared(source, known), strict=True)]
        train = [i for i, known in enumerate(is_trained) if known]
        unseen = [i for i, known in enumerate(is_trained) if not known]
        if not unseen:
            raise ValueError(f"{self.path} was trained on all {len(source)} samples of {source.address}; give others")
        if train and data is not None:
            log(f"note: {self.path} was trained on {len(train):,} of the {len(source):,} samples of {source.address}")
        return Subset(source, train), Subset(source, unseen) if train else source

    def overlap(self, source: Source) -> str:
        """A sentence on the samples of a source, at most 2000 of them, that the run was trained on; empty if none.

        They are known by their content, wherever they lie; to a run of release 0.1, or one that has not looked at all
        its files (`--check`), by their paths too.
        """
        looked_at = Subset(source, spread(len(source), _LOOKED_AT))
        known = self._trained_images()
        is_trained = [False] * len(looked_at) if known is None else shared(looked_at, known)
        if known is None or UNKNOWN in known:
            by_path = self._known_by_path(looked_at, self._own_data())
            is_trained = [either or other for either, other in zip(is_trained, by_path, strict=True)]
        count = sum(is_trained)
        which = f"{count:,} of the {len(looked_at):,}" if count < len(looked_at) else f"All {count:,}"
        sampled = ", evenly spread," if len(looked_at) < len(source) else ""
        return f"{which} test images{sampled} are among those that {self.path} was pretrained on." if count else ""

    def _trained_images(self) -> UInt64[np.ndarray, " N"] | None:
        """The identities of the images that the run was trained on; None where it has not stored them."""
        return read_trained_images(self.path)

    def _own_data(self) -> Source | None:
        """The data that the run was trained on; None where they are not there any more, or never were."""
        if self.imported:
            return None
        try:
            return self.open_data(self.config.data.address)
        except (OSError, ValueError):
            return None

    def _known_by_path(self, source: Source, own: Source | None) -> list[bool]:
        """Of each sample, whether its file is one of the run's `own` data that it was trained on."""
        if own is None:
            return [False] * len(source)
        data = self.config.data
        if names_digest(own) != data.names:
            log(
                f"warning: {own.address} has changed since {self.path} was trained on {data.count} samples of it (now"
                f" {len(own)}); which of them it was trained on is not known, and some of those used may be"
            )
        split = hold_out(own, data.held_out_share, self.config.seed, last=data.held_out_last, group_by=data.group_by)
        trained = frozenset(locations(split[0]))
        return [location in trained for location in locations(source)]

    def open_data(self, address: str, extra_maps: tuple[Declared, ...] = ()) -> Source:
        """The samples at an address as the run reads them, with extra maps."""
        extra = tuple(d for d in extra_maps if d.name not in {own.name for own in self.declared})
        if not self.declared and not extra:
            own = address == self.config.data.address  # older runs read all splits, and the first of several columns
            return open_source(address, self.config.data.channels, as_recorded=own)
        source = open_samples(address, (*(self.declared or (BUILT_IN["rgb"],)), *extra))
        if extra:
            inspection = inspect_samples(source, _INSPECTED)
            source = source.settled(inspection.settle(source.declared))
        return source
