"""The options of `unveil pretrain`: one list for Python, flags and files; old spellings; how often models are built."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

import unveil
from test_golden_curves import SHARED
from tiny_runs import TRAIN, Place, facts, journal, weights, write_images
from unveil.cli import main
from unveil.cli.flags import flags_of
from unveil.commands.option_types import RecipeOptions
from unveil.data.transforms import View
from unveil.modeling.encoder import SIZES
from unveil.recipes import cmtmae
from unveil.recipes.options import options_in
from unveil.recipes.recipe import Recipe
from unveil.recipes.registry import defaults_of, load_recipe
from unveil.runs.run_config import OLD_NAMES, OLD_VALUES
from unveil.training import setup
from unveil.training.config import OPTION_NAMES, PretrainConfig


class TestOneList:
    def test_every_option_has_a_meaning_and_is_a_flag_and_an_argument(self):
        own = {f.name: f for f in fields(PretrainConfig) if f.name != "recipe_options"}
        signature = inspect.signature(unveil.pretrain).parameters
        assert tuple(own) == OPTION_NAMES == tuple(name for name in signature if name in OPTION_NAMES)
        assert all(signature[name].default == f.default for name, f in own.items() if name != "recipe")
        others = signature.keys() - set(OPTION_NAMES)
        assert others == {"callbacks"} | RecipeOptions.__annotations__.keys()
        assert all(signature[name].kind is inspect.Parameter.KEYWORD_ONLY for name in others)
        flags = {flag.name: flag for flag in flags_of(unveil.pretrain)}
        for option in options_in(PretrainConfig, skip=("recipe_options",)):
            assert option.meaning, option.name
            assert f"    {option.name}: {option.meaning[:20]}" in str(unveil.pretrain.__doc__)
            assert replace(flags[option.name], kind=option.kind) == option
            assert flags[option.name].choices == option.choices

    def test_the_help_of_python_names_every_option(self, capsys: pytest.CaptureFixture[str]):
        help(unveil.pretrain)
        text = capsys.readouterr().out
        assert all(f"{name}: " in text and f"{name}:" in text for name in OPTION_NAMES)


class TestFiles:
    def test_a_runs_config_starts_the_same_run_again(self, place: Place):
        words = ["--init-from", str(place.path / "first"), "--val-every", "2", "--held-out", "last"]
        assert place.pretrain(*TRAIN, "--seed", "5", out="first") == 0
        assert place.pretrain(*TRAIN, *words) == 0
        again = place.path / "again"
        assert main(["pretrain", "--config", str(place.run / "config.yaml"), "--out", str(again)]) == 0
        one, other = facts(place.run), facts(again)
        for entry in ("recipe", "options", "data", "optim", "schedule", "seed", "settings"):
            assert one[entry] == other[entry], entry
        assert weights(again) == weights(place.run)
        assert other["changes"] == []
        # which is the same run also for a folder that was stopped
        (place.run / "run.json").write_text(json.dumps({**one, "status": "stopped"}))
        assert main(["pretrain", "--config", str(place.run / "config.yaml")]) == 0

    def test_flags_override_the_file_and_saving_does_not_train(self, place: Place):
        file, saved = place.path / "run.yaml", place.path / "saved.yaml"
        file.write_text(f"recipe: {place.recipe}\ndata: {place.data}\nepochs: 1e+0\nlr: 1e-2\nimage_size: 16\n")
        words = ["--config", str(file), "--batch-size", "10", "--lr", "0.05", "--device", "cpu"]
        assert main(["pretrain", *words, "--save-config", str(saved)]) == 0
        assert not list(place.path.glob("runs/*"))
        config = PretrainConfig.resolve(None, {"config": str(saved)})
        options = config.recipe_options
        assert (options["epochs"], options["lr"], options["batch_size"]) == (1.0, 0.05, 10)
        assert options["image_size"] == (16,)
        assert options.keys() == defaults_of(load_recipe(place.recipe)).keys()
        assert config.val_every is not None
        assert unveil.pretrain(config=str(saved), out=str(place.run)) == place.run
        stored = facts(place.run)["options"]
        assert stored == {n: list(v) if isinstance(v, tuple) else v for n, v in options.items()}

    def test_what_is_written_is_read_back(self, tmp_path: Path):
        options = {**defaults_of(cmtmae.recipe), "map_clip": 1e-4, "teacher": "off", "teacher_heads": (1, 2)}
        given: dict[str, Any] = {"data": "my photos", "compile": "off", "modalities": ("rgb",), "minutes": 1e-3}
        config = PretrainConfig("cmtmae", **given, recipe_options=options)
        config.save(tmp_path / "run.yaml")
        read = PretrainConfig.resolve(None, {"config": str(tmp_path / "run.yaml")})
        assert replace(read, config=None) == config

    @pytest.mark.parametrize(
        ("text", "parts"),
        [
            ("recipe: mae\nsede: 1", ["no option 'sede'", "did you mean seed?"]),
            ("recipe: mae\nseed: many", ["seed", "many", "a whole number"]),
            ("recipe: mae\nseed: 1.5", ["seed", "1.5", "a whole number"]),
            ("recipe: mae\nseed: [1, 2]", ["seed has one value"]),
            ("recipe: mae\nseed: {a: 1}", ["seed has one value"]),
            ("recipe: mae\npaper: maybe", ["paper", "maybe", "true or false"]),
            ("recipe: mae\nprecision: half", ["precision", "one of auto, float32, bf16"]),
            ("recipe: mae\nvisible: most", ["visible", "most", "a number"]),
            ("recipe: mae\nmaps: [1]", ["no option 'maps'"]),
            ("recipe: mae\nconfig: other.yaml", ["no option 'config'"]),
            ("recipe: mae\nseed: !!python/object/apply:os.system ['true']", ["seed has one value"]),
            ("recipe: mae\ndata: [", ["is no YAML file"]),
            ("- mae", ["holds no options"]),
            ("", ["holds no options"]),
            ("seed: 1", ["names no recipe"]),
        ],
    )
    def test_a_mistake_names_the_file_and_the_option(self, tmp_path: Path, capsys, text: str, parts: list[str]):
        file = tmp_path / "run.yaml"
        file.write_text(text)
        assert main(["pretrain", "--config", str(file)]) == 2
        message = capsys.readouterr().err
        assert message.count("error: ") == 1
        assert all(word in message for word in [*parts, "run.yaml"])
        assert "said by" not in message

    def test_a_file_that_is_not_there(self, tmp_path: Path, capsys):
        assert main(["pretrain", "mae", "--config", str(tmp_path / "no.yaml")]) == 2
        assert "there is no configuration file" in capsys.readouterr().err


class TestOldSpellings:
    def test_each_flag_of_release_0_1_is_accepted_with_a_note(self, place: Place, capsys):
        old = ["--signals-every", "2", "--keep_every=1", "--seed", "1"]
        assert place.pretrain(*TRAIN, *old) == 0
        message = capsys.readouterr().err
        assert "note: --signals-every is now --val-every\n" in message
        assert "note: --keep_every is now --save-every\n" in message
        assert facts(place.run)["settings"]["val_every"] == 2.0
        assert [line["epoch"] for line in journal(place.run, "signals")] == [0, 2, 3]
        assert len(list((place.run / "kept").iterdir())) == 3

    @pytest.mark.parametrize(("old", "new"), OLD_NAMES.items())
    def test_each_name_and_value_is_accepted_from_python_and_files(self, tmp_path: Path, capsys, old: str, new: str):
        value: Any = ("0",) if old == "init_bands" else 2.0
        file = tmp_path / "run.yaml"
        text = json.dumps({"recipe": "mae", "init_from": "x", old: value, "flip": "turns"})
        file.write_text(text)
        for given in ({"config": str(file)}, {"recipe": "mae", "init_from": "x", old: value, "flip": "turns"}):
            config = PretrainConfig.resolve(given.pop("recipe", None), given)
            assert getattr(config, new) == value
            assert config.recipe_options == {"flip": OLD_VALUES["flip"]["turns"]}
            assert f"note: {old} is now {new}" in capsys.readouterr().err

    def test_a_stored_run_with_old_names_is_the_same_run(self, place: Place, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setitem(SIZES, "nano", (8, 2, 2))
        given = {**SHARED, "decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2, "data": place.data}
        run = unveil.pretrain("mae", **{**given, "out": str(place.run)}, flip="d4", save_every=2.0)
        stored = facts(run)
        settings = {{n: o for o, n in OLD_NAMES.items()}.get(name, name): v for name, v in stored["settings"].items()}
        for entry in ("given", "options"):
            stored[entry]["flip"] = "turns"
        (run / "run.json").write_text(json.dumps({**stored, "settings": settings, "status": "stopped"}))
        assert unveil.pretrain("mae", **{**given, "out": str(place.run)}, flip="d4", save_every=2.0) == run
        assert facts(run)["settings"]["save_every"] == 2.0
        assert unveil.Run.open(run).recipe().view.flip == "d4"

    def test_a_recipe_file_of_that_time_flips_as_it_did(self):
        assert View((8, 8), flip="turns") == View((8, 8), flip="d4")  # type: ignore[arg-type]


class TestBuilds:
    """How often the recipe, and the model of each stage, are built in one run."""

    @pytest.fixture
    def builds(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
        counted: list[str] = []
        on_meta: list[bool] = []
        load = setup.load_recipe

        def load_counted(name: str) -> Callable[..., Recipe]:
            function = load(name)

            @functools.wraps(function)
            def recipe(**options: Any) -> Recipe:
                counted.append("recipe")
                built = function(**options)
                stages = []
                for number, stage in enumerate(built.stages):

                    def build(stage: Any = stage, number: int = number) -> Any:
                        counted.append(f"stage {number}")
                        model = stage.build()
                        on_meta.append(next(model.parameters()).is_meta)
                        return model

                    stages.append(replace(stage, build=build))
                return replace(built, stages=tuple(stages))

            return recipe

        monkeypatch.setattr(setup, "load_recipe", load_counted)
        monkeypatch.setitem(SIZES, "tiny", (8, 2, 2))
        yield counted
        stages = sum(kind != "recipe" for kind in {*counted})
        assert on_meta[-3 * stages :] == [True] * stages + [False] * 2 * stages

    @pytest.mark.parametrize("count", [40, 240])
    @pytest.mark.parametrize("more", [{}, {"paper": True, "epochs": 1.0}])
    def test_once_on_meta_once_to_time_and_once_to_train(
        self, tmp_path: Path, builds: list[str], count: int, more: dict[str, Any]
    ):
        given = {"teacher": "random", "stage1_epochs": 0.5, "epochs": 1.0, "decoder_depth": 1, "image_size": (32,)}
        given |= {"size": "tiny", "patch": 8, "batch_size": 16, "device": "cpu", "compile": "off", "workers": 1, **more}
        unveil.pretrain(
            "cmtmae", data=str(write_images(tmp_path / "images", count)), out=str(tmp_path / "run"), **given
        )
        assert {kind: builds.count(kind) for kind in builds} == {"recipe": 3, "stage 0": 3, "stage 1": 3}

    def test_weights_to_start_from_need_no_build_of_their_own(self, place: Place, builds: list[str]):
        assert place.pretrain(*TRAIN, out="first") == 0
        builds.clear()
        assert place.pretrain(*TRAIN, "--init-from", str(place.path / "first")) == 0
        assert {kind: builds.count(kind) for kind in builds} == {"recipe": 3, "stage 0": 3}


def test_a_recipe_is_needed():
    with pytest.raises(ValueError, match="pretrain needs a recipe, such as crossmae, or --config"):
        unveil.pretrain()
