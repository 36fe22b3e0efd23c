"""CMT-MAE and its relatives: every choice trains, stages hand over what they should, a stop changes no bit."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tiny import OPTIONS, batch, check_options, modality
from tiny_runs import write_images
from unveil.data.loader import Loader
from unveil.data.sources import open_source
from unveil.modeling.encoder import SIZES
from unveil.modeling.masked_model import MaskedModel, mean_loss
from unveil.modeling.optim import warmup_cosine
from unveil.modeling.rng import seed_stage
from unveil.recipes import attmask, cmtmae, hpm, maskfeat, milan
from unveil.recipes.recipe import Recipe
from unveil.recipes.registry import build_recipe, defaults_of
from unveil.runs.checkpoint import read_latest
from unveil.runs.folder import RunFolder
from unveil.training.loop import Loop
from unveil.training.trainer import Settings, Trainer

CPU = Settings("cpu", "float32", micro_batch=64, compile=False, save_minutes=10, val_every=100)
RELATIVES: dict[str, tuple[Any, dict[str, Any]]] = {
    "attmask": (attmask, {}),
    "attmask-hint": (attmask, {"masking": "hint", "hint_shown": 0.1}),
    "attmask-low": (attmask, {"masking": "low"}),
    "milan": (milan, {"teacher": "random"}),
    "milan-predicted": (milan, {"teacher": "random", "positions": "predicted"}),
    "maskfeat": (maskfeat, {}),
    "hpm": (hpm, {}),
}
LADDER = {
    "random masks": {"masking": "uniform", "targets": "teacher"},
    "pixel targets": {"masking": "teacher", "targets": "pixels"},
    "teacher only": {"masking": "teacher", "targets": "teacher"},
    "+ collaborative masking": {"masking": "collaborative", "targets": "teacher"},
    "+ collaborative targets": {"masking": "teacher", "targets": "collaborative"},
    "both": {},
}
CHOICES: list[dict[str, Any]] = [
    *LADDER.values(),
    *({"draw": draw} for draw in ("hard", "noisy", "hint", "low", "keep")),
    *(
        {"fusion": fusion}
        for fusion in (
            *("attention-weighted", "geometric", "maximum", "product", "mean-rank", "entropy-gated"),
            "learned",
        )
    ),
    {"map_norm": "minmax", "map_clip": 0.95, "query": "mean", "layer": 0},
    {"map_norm": "rank", "query": "all", "teacher_heads": (1,), "student_heads": (0,)},
    {"student": "online", "student_features": 2, "teacher_features": 2},
    {"loss": "cosine", "target_norm": "none"},
    {"loss": "l2", "target_norm": "l2", "target_student_weight": 0.6},
    {"loss": "l1", "momentum_schedule": "constant"},
    {"positions": "all"},
    {"positions": "all", "decoder": "cross"},
    {"decoder": "cross", "blend": "linear", "predicted": 0.25},
    {"blend": "softmax", "hog": 0.5, "pixels": 0.1},
]


def make(recipe: Any = cmtmae, **options: Any) -> Recipe:
    """A recipe on an encoder of two blocks that is 24 wide."""
    known = defaults_of(recipe.recipe)
    given = {**OPTIONS, "visible": 0.5, "teacher": "random", "modality": modality(3), **options}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", (24, 2, 2))
        return build_recipe(
            recipe.recipe, [given.pop("modality")], {name: given[name] for name in given if name in known}
        )


def build(recipe: Any = cmtmae, stage: int = -1, **options: Any) -> MaskedModel:
    return make(recipe, **options).stages[stage].build()


def name(options: Any) -> str:
    return "-".join(map(str, options.values())) if isinstance(options, dict) else str(options)


def untrained(model: MaskedModel) -> list[str]:
    return [
        n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    ]


class TestEveryChoice:
    @pytest.mark.parametrize("options", CHOICES, ids=name)
    def test_a_step_of_each_stage_trains_every_parameter(self, options: dict):
        for stage in make(**options).stages:
            model = stage.build()
            loss = mean_loss(model(batch()))
            loss.backward()
            assert loss.isfinite()
            assert not untrained(model)

    @pytest.mark.parametrize("name", RELATIVES)
    def test_and_of_each_relative(self, name: str):
        recipe, options = RELATIVES[name]
        model = build(recipe, **options)
        mean_loss(model(batch())).backward()
        assert not untrained(model)

    @pytest.mark.parametrize(
        ("recipe", "options"),
        [*((cmtmae, options) for options in LADDER.values()), *RELATIVES.values()],
        ids=[*LADDER, *RELATIVES],
    )
    def test_a_short_run_learns(self, recipe: Any, options: dict):
        """On fresh masks, the loss falls to well below where it was."""
        made = make(recipe, **options)
        trainer = Trainer(made.stages[-1].build(), replace(made.optim, clip=None), CPU)
        on = batch(8)
        losses = []
        for step in range(15):
            now = replace(batch(8, epoch=step), maps=on.maps, progress=torch.tensor(step / 15))
            losses.append(trainer.update(now, 5e-3).losses)
        for objective in losses[0]:
            first, last = (torch.stack([x[objective] for x in ends]).mean() for ends in (losses[:3], losses[-3:]))
            # what the student itself makes is a truth that grows while it learns; a ranking starts at log 2
            assert last < first * {"student": 1.0, "errors": 1.0}.get(objective, 0.95), objective

    @pytest.mark.parametrize(
        "shape", [{"image_size": (32, 16), "patch": 8}, {"image_size": (28,), "patch": 14}], ids=name
    )
    @pytest.mark.parametrize("channels", [1, 5])
    @pytest.mark.parametrize("recipe", [cmtmae, attmask, milan, maskfeat, hpm], ids=lambda r: r.__name__)
    def test_any_size_patch_and_channels(self, recipe: Any, channels: int, shape: dict):
        more = {"hog": 1.0, "pixels": 1.0} if recipe is cmtmae else {}
        model = build(recipe, **more, **shape, modality=modality(channels))
        size = (shape["image_size"][0], shape["image_size"][-1])
        assert mean_loss(model(batch(2, channels, size))).isfinite()


class TestCompiled:
    CASES = (
        {},
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in (
                {"fusion": "learned", "draw": "hint", "map_norm": "rank"},
                {"decoder": "cross", "blend": "linear", "predicted": 0.25, "student": "online"},
                {"positions": "all", "hog": 1.0, "query": "all", "map_clip": 0.9, "fusion": "mean-rank"},
                {"masking": "uniform", "draw": "noisy", "loss": "cosine", "fusion": "entropy-gated"},
            )
        ),
    )

    @pytest.mark.parametrize("options", CASES, ids=name)
    def test_stage_two_is_one_graph(self, options: dict):
        self.compare(build(decoder_depth=1, **options))

    @pytest.mark.slow
    @pytest.mark.parametrize("name", RELATIVES)
    def test_the_relatives_are_one_graph(self, name: str):
        recipe, options = RELATIVES[name]
        self.compare(build(recipe, **options))

    def compare(self, model: MaskedModel) -> None:
        on = replace(batch(), progress=torch.tensor(0.5))
        torch._dynamo.reset()
        step = torch.compile(lambda batch: mean_loss(model(batch)), fullgraph=True, backend="eager")
        assert step(on).item() == pytest.approx(mean_loss(model(on)).item(), rel=1e-5)


class TestWhoGuides:
    def test_each_stage_has_the_teachers_that_it_reads_and_no_other(self):
        assert set(build(stage=0).teachers) == {"teacher"}
        assert set(build().teachers) == {"teacher", "student"}
        assert set(build(masking="teacher", targets="teacher").teachers) == {"teacher"}
        assert set(build(masking="uniform", targets="pixels").teachers) == set()
        assert set(build(student_weight=1.0).teachers) == {"student"}

    def test_only_what_is_asked_for_is_computed(self):
        def readings(**options: Any) -> dict[str, tuple[Any, int]]:
            teachers = build(**options).teachers
            return {who: (t.spec.attention, t.spec.features) for who, t in teachers.items()}  # type: ignore[attr-defined]

        assert readings() == {"teacher": ("cls", 1), "student": ("cls", 1)}
        assert readings(masking="uniform") == {"teacher": (None, 1), "student": (None, 1)}
        assert readings(targets="pixels") == {"teacher": ("cls", 0), "student": ("cls", 0)}
        assert readings(targets="teacher", teacher_features=2) == {"teacher": ("cls", 2), "student": ("cls", 0)}
        assert readings(student_weight=1.0, target_student_weight=0.0) == {"teacher": (None, 1), "student": ("cls", 0)}

    def test_a_student_weight_of_1_does_not_load_the_teacher(self, monkeypatch: pytest.MonkeyPatch):
        def refused(*args: Any, **kwargs: Any) -> Any:
            raise AssertionError("the teacher was loaded")

        recipe = make(student_weight=1.0)
        monkeypatch.setattr(cmtmae, "load_teacher", refused)
        with pytest.raises(AssertionError):
            recipe.stages[0].build()
        recipe.stages[1].build()
        (single,) = make(student_weight=1.0, stage1_epochs=0.0).stages
        single.build()

    def test_a_recipe_is_made_without_its_teacher(self):
        """`unveil.load` calls it for the encoder alone, perhaps where the teacher is not."""
        recipe = make(teacher="nowhere/near.safetensors")
        assert recipe.encoder.dim == 24
        with pytest.raises((FileNotFoundError, OSError, ValueError), match="near"):
            recipe.stages[0].build()

    def test_weights_are_the_shares(self):
        weights = {o.name: o.weight for o in build(alpha=0.2, pixels=0.5).objectives}  # type: ignore[attr-defined]
        assert weights == {"teacher": pytest.approx(0.8), "student": pytest.approx(0.2), "pixels": 0.5}
        model = build(student_weight=0.3, target_student_weight=0.9)
        assert {o.name: round(o.weight, 3) for o in model.objectives} == {"teacher": 0.1, "student": 0.9}  # type: ignore[attr-defined]
        assert model.masker.score.attention_map.student_weight == 0.3  # type: ignore[attr-defined]

    def test_the_average_starts_from_what_stage_one_left(self):
        recipe = make()
        recipe.stages[0].build()
        with torch.no_grad():
            recipe.encoder.prefix.add_(1.0)
        student = recipe.stages[1].build().teachers["student"]
        assert torch.equal(student.encoder.prefix, recipe.encoder.prefix)  # type: ignore[attr-defined]

    def test_stages_share_decoder_and_heads_whichever_is_built_first(self):
        def head(recipe: Recipe, stage: int) -> Tensor:
            return recipe.stages[stage].build().objectives[0].head.weight  # type: ignore[attr-defined]

        seed_stage(0, -1)
        one = make()
        assert head(one, 0) is head(one, 1)
        assert one.stages[0].build().decoders["patches"] is one.stages[1].build().decoders["patches"]
        seed_stage(0, -1)
        other = make()
        seed_stage(0, 5)
        assert torch.equal(head(other, 1), head(one, 0))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"student_weight": 1.2}, "student_weight is the student's share, from 0 to 1; got 1.2"),
            ({"alpha": -0.1}, "student_weight .* got -0.1"),
            ({"stage1_epochs": 900.0}, "a part of the 800 epochs, from 0 to all; got 900"),
            ({"fusion": "sum"}, "fusion must be one of linear, attention-weighted"),
            ({"draw": "topk"}, "draw must be one of gumbel, hard"),
            ({"teacher_features": 0}, "teacher_features .* at least 1; got 0"),
            ({"beta": -1.0}, "beta .* at least 0; got -1"),
            ({"hog": -1.0}, "hog .* at least 0; got -1"),
        ],
        ids=name,
    )
    def test_an_illegal_choice_gets_one_clear_error(self, options: dict, message: str):
        with pytest.raises(ValueError, match=message):
            make(**options)


SHORT = {"image_size": (16,), "epochs": 4.0, "stage1_epochs": 2.0, "batch_size": 5, "warmup_epochs": 1.0, "lr": 0.05}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), 10)


def loop_of(run: Path, images: Path, recipe: Any = cmtmae, **options: Any) -> Loop:
    """A run of 8 steps, of which each stage has 4 unless options say otherwise."""
    run.mkdir(exist_ok=True)
    seed_stage(0, -1)
    made = make(recipe, **{**SHORT, **options})
    loader = Loader(open_source(images), made.view, made.optim.batch_size, seed=0, workers=1)
    return Loop(RunFolder(run), made, loader, CPU, 0, lambda *_: None, {})


def train(loop: Loop) -> dict[str, Tensor]:
    return loop.train(threading.Event(), lambda model: None).state_dict()


def stopped_at(run: Path, images: Path, step: int, **options: Any) -> None:
    """A run that is asked to stop in the middle of a step."""
    stop, update, count = threading.Event(), Trainer.update, 0

    def counted(self: Trainer, *args: Any) -> Any:
        nonlocal count
        count += 1
        if count == step:
            stop.set()
        return update(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "update", counted)
        with pytest.raises(KeyboardInterrupt):
            loop_of(run, images, **options).train(stop, lambda model: None)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


class TestStages:
    @pytest.mark.parametrize("fusion", ["linear", pytest.param("learned", marks=pytest.mark.slow)])
    def test_a_run_that_was_stopped_ends_with_the_same_bits(self, tmp_path: Path, images: Path, fusion: str):
        """Before the boundary (step 4), at it, after it."""
        whole = train(loop_of(tmp_path / "whole", images, fusion=fusion))
        assert any(n.startswith("teachers.student.") for n in whole), "the average is in the checkpoint"
        assert not any(n.startswith("teachers.teacher.") for n in whole), "what is frozen is not"
        for step in (3, 4, 6):
            stopped_at(tmp_path / f"at-{step}", images, step, fusion=fusion)
            latest, _ = read_latest(tmp_path / f"at-{step}")
            assert latest
            assert latest.state["step"] == step
            loop = loop_of(tmp_path / f"at-{step}", images, fusion=fusion)
            again = loop.train(threading.Event(), lambda model: None, latest)
            assert same(again.state_dict(), whole), step

    @pytest.mark.parametrize("recipe", [attmask, hpm], ids=lambda r: r.__name__)
    def test_so_does_a_relative_with_an_average(self, tmp_path: Path, images: Path, recipe: Any):
        whole = train(loop_of(tmp_path / "whole", images, recipe))
        stopped_at(tmp_path / "run", images, 5, recipe=recipe)
        latest, _ = read_latest(tmp_path / "run")
        again = loop_of(tmp_path / "run", images, recipe).train(threading.Event(), lambda model: None, latest)
        assert same(again.state_dict(), whole)

    def test_a_student_weight_of_0_is_the_teacher_alone_bit_for_bit(self, tmp_path: Path, images: Path):
        alone = train(loop_of(tmp_path / "alone", images, stage1_epochs=4.0))
        assert same(train(loop_of(tmp_path / "none", images, student_weight=0.0)), alone)
        assert same(train(loop_of(tmp_path / "words", images, masking="teacher", targets="teacher")), alone)
        assert not same(train(loop_of(tmp_path / "both", images)), alone)

    def test_the_lengths_of_the_stages(self):
        def lengths(**options: Any) -> list[float]:
            return [stage.epochs for stage in make(**options).stages]

        assert lengths() == [100, 700]
        assert lengths(epochs=16.0) == [2, 14]
        assert lengths(stage1_epochs=0.0) == lengths(stage1_epochs=800.0) == [800]

    @pytest.mark.parametrize("restart", [False, True])
    def test_one_schedule_spans_the_stages_unless_it_restarts(
        self, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, restart: bool
    ):
        rates = []
        update = Trainer.update

        def noted(self: Trainer, batch: Any, lr: float) -> Any:
            rates.append(lr)
            return update(self, batch, lr)

        monkeypatch.setattr(Trainer, "update", noted)
        train(loop_of(tmp_path / "run", images, restart=restart))
        peak = 0.05 * 5 / 256
        stage_rates = [peak * warmup_cosine(step, 4, 2) for step in range(4)]
        assert rates == pytest.approx(stage_rates * 2 if restart else [peak * warmup_cosine(s, 8, 2) for s in range(8)])

    def test_weights_that_a_run_starts_from_reach_the_average(self, tmp_path: Path, images: Path):
        loop = loop_of(tmp_path / "run", images, attmask, lr=0.0)
        other = build(attmask, image_size=(16,)).encoder.state_dict()

        def start(model: MaskedModel) -> None:
            model.encoder.load_state_dict(other)

        model = loop.train(threading.Event(), start)
        average = model.teachers["student"].encoder  # type: ignore[attr-defined]
        torch.testing.assert_close(average.blocks[0].attn.qkv.weight, other["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize("recipe", [cmtmae, attmask, milan, maskfeat, hpm], ids=lambda r: r.__name__)
def test_every_dial_is_a_keyword_with_a_default_and_a_line_of_help(recipe: Any):
    check_options(recipe.recipe)


def test_the_papers_numbers():
    with torch.device("meta"):
        built = maskfeat.recipe()
        model = built.stages[0].build()
        epochs = [r.recipe().epochs for r in (cmtmae, attmask, milan, hpm)]
    assert model.objectives[0].head.out_features == 108  # type: ignore[attr-defined]
    assert (built.epochs, built.optim.clip, built.optim.peak_lr) == (300, 0.02, pytest.approx(1.6e-3))
    assert model.masker.visible == 0.6
    assert epochs == [800, 800, 400, 800]
