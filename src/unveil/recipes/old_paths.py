"""Module paths of release 0.1, so that recipe and study files written for it go on working; each warns once.

A file of one's own imports from `unveil.parts`, whose names stay.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import operator
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def _table(text: str) -> dict[str, dict[str, str]]:
    """`owner: old=new ...`, over one line or several, as `{owner: {old: new}}`."""
    table: dict[str, dict[str, str]] = {}
    for word in text.split():
        if word.endswith(":"):
            names = table[word[:-1]] = {}
        else:
            old, _, new = word.partition("=")
            names[old] = new
    return table


MOVED = _table(  # old and new modules, all below `unveil`; what lies in a package that moved, moved with it
    """
    modules: adaptive=modeling.adaptive_budget analysis=evaluation.analysis augment.colour=data.augment
        augment.erasing=data.augment augment.geometry=data.augment augment.mixing=data.augment
        augment.randaugment=data.augment augment=data.augment benchmark=experiments.bench chance=modeling.rng
        checkpoint=runs.checkpoint data.aligned=data.aligned_folders data.aligned_inspection=data.inspection
        data.class_names=data.dense_layouts data.declaration=data.modality_config data.dense=data.dense_dataset
        data.hdf5=data.read_map data.hypersim=data.dense_layouts data.layouts=data.dense_layouts
        data.reading=data.read_map data.samples=data.sources data.scenes=experiments.scenes data.tiff=data.decode
        data.views=data.transforms decoder=modeling.decoder demonstration=experiments.demo embedding=commands.embed
        encoder=modeling.encoder foreign.addresses=modeling.public_vits.weight_files
        foreign.assembly=modeling.public_vits.families foreign.bands=modeling.public_vits.parameter_names
        foreign.clip=modeling.public_vits.families foreign.dino=modeling.public_vits.families
        foreign.encoder=modeling.public_vits foreign.files=modeling.public_vits
        foreign.keys=modeling.public_vits.weight_files foreign.mae=modeling.public_vits
        foreign.multimae=modeling.public_vits.families foreign.multimodal=modeling.public_vits.parameter_names
        foreign.names=modeling.public_vits.parameter_names foreign.own=modeling.public_vits.families
        foreign.plain=modeling.public_vits.families foreign.script=modeling.public_vits.torchscript
        foreign=modeling.public_vits layers=modeling.layers loading=commands.load losses=modeling.losses
        machine=runs.hardware masking.attention=modeling.masking.attention_guided
        masking.crossmodal=modeling.masking.by_modality masking.drawing=modeling.masking.attention_guided
        masking=modeling.masking model=modeling.masked_model objectives=modeling.objectives opening=training.data_setup
        optim=modeling.optim patches=modeling.patches pretrained=modeling.image_encoder pretraining=commands.pretrain
        progress=runs.console protocols=evaluation.protocols recipe=recipes.recipe recipe_files=recipes.registry
        recipes.modalities=recipes.multimodal records=modeling.types studies=experiments.studies
        study.presets=experiments.study.design study=experiments.study targets.classes=modeling.targets
        targets.features=modeling.targets targets.hog=modeling.targets targets.pixels=modeling.targets
        targets.target=modeling.targets targets=modeling.targets teachers.guidance=modeling.teachers.low_cost
        teachers.momentum=modeling.teachers.ema teachers=modeling.teachers
    """
)["modules"]
ALSO = {"data.samples": ("data.transforms", "data.loader")}  # further modules that names of an old one are in now
RENAMED = _table(  # names of release 0.1 and today's, by the new module (or its package) that has them
    """
    modeling.masked_model: Criterion=LossTerm Follower=AfterStep Imagined=ForwardOutput Timed=BeforeStep
    modeling.decoder: Answers=Outputs ask=modality_queries
    modeling.encoder: READING=FEATURE_SPEC
    modeling.image_encoder: Pretrained=ImageEncoder
    modeling.losses: Weighed=LossSums
    modeling.masking: Attention=TeacherAttention Block=Blockwise Collaborative=CollaborativeAttention
        Draw=Sampler Errors=LossMap Fusion=MapFusion Gaze=AttentionMap Guided=AttentionGuided
        IfSeen=IfObserved InverseBlock=InverseBlockwise Normalise=MapNorm Score=TokenScore
        Tasks=TaskSampling ask=modality_queries by_budget=score_by_budget units_of=unit_in_tokens
    modeling.objectives: Foreseen=FeatureLossPrediction Foretold=DecoderLossPrediction Looked=GateScore
        Uncertain=UncertaintyWeighted Whole=PromptingDecoder
    data.dense_dataset: Labels=LabelEncoding
    data.dense_layouts: Stored=StorageOptions
    modeling.public_vits.families: Spec=ViTConfig
    modeling.public_vits: ForeignEncoder=PublicViT Found=WeightFiles Spec=ViTConfig State=StateDict
        adapt_bands=adapt_channels find=find_weights fresh=untrained_vit is_foreign=is_public_vit
        translate=to_own_names with_bands=with_channels
    modeling.rng: Chance=SampleRng
    modeling.targets: Truth=TargetValues
    modeling.teachers: Average=ModelEma Coarse=LowResolutionTeacher ComplementaryErrors=MeasuredLossTeacher
        ForeseenErrors=PredictedLossTeacher Sometimes=EveryNSteps begin_averages=reset_emas
    modeling.types: Chance=SampleRng Reading=FeatureSpec unit=to_float
    experiments.study: Dials=Options
    recipes.multimodal: answers=make_decoders budgeted=make_budget loss_of=modality_loss
        targets=modality_targets
    recipes.recipe: check_words=check_choices
    """
)
ARGUMENTS = _table(  # keyword arguments, by class or function
    """
    modeling.decoder.SelfDecoder: answers=outputs
    modeling.decoder.CrossDecoder: answers=outputs
    modeling.decoder.PromptingDecoder: answers=outputs
    modeling.masking.AttentionGuided: draw=sampler gaze=attention_map
    modeling.masking.Masker: ask=predict_score
    modeling.teachers.EMATeacher: reading=spec
    modeling.teachers.FrozenTeacher: reading=spec
    modeling.teachers.OnlineTeacher: reading=spec
    modeling.teachers.load_teacher: reading=spec
    modeling.masking.Reversed: draw=sampler
    modeling.objectives.GateScore: gaze=attention_map
    experiments.study.Arm: dials=options
    experiments.study.Setting: dials=options
    experiments.study.Scale: dials=options
    """
)
ATTRIBUTES = _table(  # attributes and methods, by class
    """
    modeling.decoder.Decoder: answers=outputs asks=make_queries
    modeling.layers.Attention: seen=attention_to_patches
    modeling.masked_model.MaskedModel: imagine=encode_decode counts=count_samples
    modeling.masked_model.Objective: compared=prediction_and_target errors=token_losses truth=target_values
    modeling.masking.Masker: ask=predict_score
    modeling.types.Batch: chance=rng
    experiments.study.Arm: dials=options
    experiments.study.Setting: dials=options
    experiments.study.Scale: dials=options
    """
)


def moved_to(module: str) -> str | None:
    """The new path of an old module path, both with `unveil.` in front; None for a path that is not old."""
    package, _, rest = module.partition(".")
    if package != "unveil" or not rest:
        return None
    parts = rest.split(".")
    for end in range(len(parts), 0, -1):
        if new := MOVED.get(".".join(parts[:end])):
            return ".".join([package, new, *parts[end:]])
    return None


def renamed(module: str, name: str) -> str:
    """What a name of release 0.1 is called now in a module below `unveil`."""
    parts = module.split(".")
    packages = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return next((names[name] for package in packages if name in (names := RENAMED.get(package, {}))), name)


def _owner(path: str) -> tuple[Any, str]:
    """What holds the thing at a path: a module for a function, the class itself for its `__init__`."""
    module, _, name = path.rpartition(".")
    owner = importlib.import_module(f"unveil.{module}")
    return (getattr(owner, name), "__init__") if isinstance(getattr(owner, name), type) else (owner, name)


@functools.cache
def accept_old_names() -> None:
    """Let the classes that recipe files use take the arguments, attributes and overrides of release 0.1."""
    for path, names in ARGUMENTS.items():
        owner, name = _owner(path)
        setattr(owner, name, _accept_arguments(getattr(owner, name), names))
    for path, names in ATTRIBUTES.items():
        for old, new in names.items():
            setattr(_owner(path)[0], old, property(operator.attrgetter(new)))
    _accept_overrides(_owner("modeling.decoder.Decoder")[0], {"asks": "make_queries"})
    _accept_teachers(_owner("modeling.masked_model.MaskedModel")[0])


def _accept_arguments(call: Callable[..., Any], names: Mapping[str, str]) -> Callable[..., Any]:
    @functools.wraps(call)
    def accept(*args: Any, **kwargs: Any) -> Any:
        old = {names[name]: kwargs.pop(name) for name in names.keys() & kwargs.keys()}
        return call(*args, **{**kwargs, **old})  # the old ones last: dataclasses.replace gives the rest by new names

    return accept


def _accept_overrides(cls: Any, names: Mapping[str, str]) -> None:
    """A subclass that overrides a method by its old name overrides it."""

    def rename(subclass: type) -> None:
        for old in names.keys() & vars(subclass).keys():
            setattr(subclass, names[old], vars(subclass)[old])

    cls.__init_subclass__ = classmethod(rename)


def _accept_teachers(masked_model: Any) -> None:
    """A teacher whose `observe` takes no student is called without it."""
    init = masked_model.__init__

    @functools.wraps(init)
    def accept(*args: Any, **kwargs: Any) -> None:
        bound = inspect.signature(init).bind(*args, **kwargs).arguments
        for kind in {type(teacher) for teacher in (bound.get("teachers") or {}).values()}:
            observe: Callable[..., Any] = kind.observe
            if len(inspect.signature(observe).parameters) == 3:
                kind.observe = lambda self, batch, tokens, student, observe=observe: observe(self, batch, tokens)
        init(*args, **kwargs)

    masked_model.__init__ = accept


class OldPaths(MetaPathFinder, Loader):
    """Imports an old path as an alias of the new module; asked after all other finders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if moved_to(fullname) else None

    def create_module(self, spec: ModuleSpec) -> None:
        """None, by which Python creates an ordinary empty module."""

    def exec_module(self, module: ModuleType) -> None:
        """Look every name up in the new module."""
        new = moved_to(module.__name__)
        assert new
        importlib.import_module(new)  # an old path without a new one fails here
        accept_old_names()
        warnings.warn(
            f"{module.__name__} is now {new}; import what a recipe needs from unveil.parts", FutureWarning, stacklevel=2
        )

        def look_up(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            further = ALSO.get(module.__name__.removeprefix("unveil."), ())
            for place in (new.removeprefix("unveil."), *further):
                with suppress(AttributeError):
                    return getattr(importlib.import_module(f"unveil.{place}"), renamed(place, name))
            raise AttributeError(f"{new} has no {name!r}, nor has {module.__name__}")

        module.__getattr__ = look_up  # type: ignore[method-assign]


def install() -> None:
    """Make the module paths of release 0.1 importable."""
    if not any(isinstance(finder, OldPaths) for finder in sys.meta_path):
        sys.meta_path.append(OldPaths())
