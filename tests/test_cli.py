"""The command line as a user meets it: words in, one clear answer out. What it calls is replaced by what writes down
how it was called; the recipes are the real ones, or a user's file."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any, Literal

import pytest

from unveil.cli import main

RECIPE = '''
"""My paper."""
from typing import Literal

Flip = Literal["none", "h"]


def recipe(
    *,
    modality=None,
    size: str = "base",
    image_size: tuple[int, ...] = (224,),
    visible: float = 0.25,
    predicted: float | None = None,
    norm_pix: bool = True,
    ramped: bool = False,
    masking: Literal["uniform", "block"] = "uniform",
    area: tuple[float, float] = (0.1, 0.4),
    flip: Flip = "h",
    depth=8,
    batch_size: int = 4096,
    call=print,
):
    """Mine: hides what matters.

    size: how large
        the model is
    visible: share that is seen
    """
'''


class Calls(list[tuple[tuple[Any, ...], dict[str, Any]]]):
    """What the commands called, and with what."""

    @property
    def given(self) -> dict[str, Any]:
        assert len(self) == 1
        return self[0][1]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Stand-ins for the functions behind the commands, with the signatures that the flags are read from."""
    calls = Calls()

    def pretrain(
        recipe: str,
        *,
        data: str = "scenes",
        out: str | None = None,
        init_from: str | None = None,
        overwrite: bool = False,
        minutes: float | None = None,
        modalities: tuple[str, ...] = (),
        save_every: float | None = None,
        seed: int = 0,
        precision: Literal["auto", "float32", "bf16"] = "auto",
        **options: object,
    ) -> Path:
        calls.append(
            ((recipe,), {k: v for k, v in locals().items() if k not in ("recipe", "options", "calls")} | options)
        )
        return Path(out or "runs/made")

    def evaluate(run: str, *, data: str, protocol: tuple[str, ...] = ("knn", "linear"), seed: int = 0) -> None:
        calls.append(((run,), {"data": data, "protocol": protocol, "seed": seed}))

    def embed(run: str, *, data: str, out: str = "features.npz") -> Path:
        calls.append(((run,), {"data": data, "out": out}))
        return Path(out)

    for name, function in {"pretrain": pretrain, "evaluate": evaluate, "embed": embed}.items():
        module = types.ModuleType(f"unveil.commands.{name}")
        setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, f"unveil.commands.{name}", module)
    return calls


@pytest.fixture
def mine(tmp_path: Path) -> str:
    """A user's own recipe file."""
    file = tmp_path / "mine.py"
    file.write_text(RECIPE)
    return str(file)


@pytest.fixture
def mistake(capsys: pytest.CaptureFixture[str]):
    """Run words that hold a mistake; its message. One error, exit code 2, no traceback, nothing on stdout."""

    def run(*words: str) -> str:
        assert main(words) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("error: ")
        assert printed.err.count("error: ") == 1
        assert "Traceback" not in printed.err
        assert printed.out == ""
        return printed.err

    return run


class TestFlags:
    def test_given_dials_are_passed_on_and_no_others(self, calls: Calls, mine: str):
        assert main(["pretrain", mine, "--visible", "0.4", "--data", "photos"]) == 0
        assert calls[0][0] == (mine,)
        assert calls.given == {
            "data": "photos",
            "visible": 0.4,
            "out": None,
            "init_from": None,
            "overwrite": False,
            "minutes": None,
            "modalities": (),
            "save_every": None,
            "seed": 0,
            "precision": "auto",
        }

    @pytest.mark.parametrize(
        ("words", "name", "value"),
        [
            ("--image-size 160 224", "image_size", (160, 224)),
            ("--image-size 224", "image_size", (224,)),
            ("--image_size=96", "image_size", (96,)),
            ("--batch_size 64", "batch_size", 64),
            ("--no-norm-pix", "norm_pix", False),
            ("--no_norm_pix", "norm_pix", False),
            ("--ramped", "ramped", True),
            ("--predicted none", "predicted", None),
            ("--predicted 1e-1", "predicted", 0.1),
            ("--visible -0.5", "visible", -0.5),
            ("--masking block", "masking", "block"),
            ("--flip none", "flip", "none"),
            ("--area 0.2 0.3", "area", (0.2, 0.3)),
            ("--depth 12", "depth", 12),
            ("--minutes 2", "minutes", 2.0),
            ("--seed 3 --seed 4", "seed", 4),
        ],
    )
    def test_words_become_values(self, calls: Calls, mine: str, words: str, name: str, value: object):
        assert main(["pretrain", mine, *words.split()]) == 0
        assert calls.given[name] == value
        assert type(calls.given[name]) is type(value)

    def test_the_recipe_may_come_after_flags(self, calls: Calls, mine: str):
        assert main(["pretrain", "--data", "photos", "--image-size", "160", "224", mine]) == 0
        assert calls[0][0] == (mine,)
        assert calls.given["image_size"] == (160, 224)

    @pytest.mark.parametrize(
        ("words", "parts"),
        [
            ("--visble 0.3", ["--visble", "did you mean --visible 0.3?"]),
            ("--norm-pixx", ["did you mean --norm-pix or --no-norm-pix?"]),
            ("--qqq 1", ["there is no flag --qqq", "--help"]),
            ("--seed many", ["--seed many: expected a whole number", "for example --seed 0"]),
            ("--seed 1.5", ["--seed 1.5: expected a whole number"]),
            ("--visible half", ["expected a number", "--visible 0.25"]),
            ("--visible", ["--visible needs a value", "--visible 0.25"]),
            ("--visible --seed 1", ["--visible needs a value"]),
            ("--masking blok", ["expected one of uniform, block", "--masking block?"]),
            ("--precision fp16", ["expected one of auto, float32, bf16"]),
            ("--image-size 224 x", ["--image-size x: expected a whole number"]),
            ("--area 0.1", ["--area takes 2 values, got 1"]),
            ("--ramped=yes", ["--ramped takes no value"]),
            ("--visible 0.1 0.2", ["unexpected argument '0.2'"]),
            ("--call print", ["there is no flag --call"]),
            ("--modality rgb", ["there is no flag --modality"]),
            ("-x", ["there is no flag -x"]),
        ],
    )
    def test_mistakes_are_named(self, calls: Calls, mine: str, mistake, words: str, parts: list[str]):
        message = mistake("pretrain", mine, *words.split())
        for text in parts:
            assert text in message
        assert calls == []

    def test_a_required_flag_is_asked_for(self, calls: Calls, mistake):
        assert "--data is missing" in mistake("evaluate", "runs/a")
        assert "evaluate needs RUN" in mistake("evaluate", "--data", "x")
        assert "unexpected argument 'runs/b'" in mistake("evaluate", "runs/a", "runs/b", "--data", "x")

    def test_a_dial_with_the_name_of_a_flag_is_refused(self, calls: Calls, tmp_path: Path, mistake):
        file = tmp_path / "clash.py"
        file.write_text("def recipe(*, seed: int = 1): ...\n")
        assert "'seed'" in mistake("pretrain", str(file))

    def test_help_explains_every_dial(self, calls: Calls, mine: str, capsys: pytest.CaptureFixture[str]):
        assert main(["pretrain", mine, "--help"]) == 0
        stdout = " ".join(capsys.readouterr().out.split())
        assert "--size X how large the model is; default base" in stdout
        assert "--image-size X ..." in stdout
        assert "--norm-pix, --no-norm-pix" in stdout
        assert "one of uniform, block; default uniform" in stdout
        assert "--minutes X" in stdout
        assert "--call" not in stdout
        assert calls == []

    @pytest.mark.parametrize("name", ["mae", "crossmae", "simmim", "mim"])
    def test_every_dial_of_our_recipes_is_a_flag_with_a_meaning(self, name: str):

        from unveil.cli.flags import flags_of
        from unveil.recipes.registry import defaults_of, load_recipe

        recipe = load_recipe(name)
        flags = flags_of(recipe, skip=("modality",))
        assert {flag.name for flag in flags} == defaults_of(recipe).keys()
        for flag in flags:
            assert flag.meaning, flag.name
            assert flag.example


PASTED = """pretrain mae --model mae_vit_large_patch16 --mask_ratio 0.75 --norm_pix_loss --blr 1.5e-4
            --batch_size 64 --accum_iter 8 --epochs 400 --data_path /images --output_dir runs/x --pin_mem"""
OURS = "pretrain mae --batch_size 64 --warmup_epochs 2 --decoder_depth 4 --weight_decay 0"


class TestForeignFlags:
    def test_a_pasted_line_is_answered_with_the_whole_command_in_ours(self, calls: Calls, mistake):
        message = mistake(*PASTED.split())
        assert (
            "unveil pretrain mae --size large --patch 16 --visible 0.25 --lr 1.5e-4 --batch-size 512 --epochs 400"
            " --data /images --out runs/x\n" in message
        )
        assert "--no-norm-pix turns it off" in message
        assert "times the number of your GPUs" in message
        assert calls == []

    @pytest.mark.parametrize(
        ("recipe", "theirs", "ours"),
        [
            ("mae", "--mask_ratio 0.75", "--visible 0.25"),
            ("mae", "--mask-ratio=0.9", "--visible 0.1"),
            ("crossmae", "--kept_mask_ratio 0.25", "--predicted 0.25"),
            ("crossmae", "--weight_fm", "--blend linear"),
            ("crossmae", "--use_fm 0 5 11", "--maps 1 6 12"),
            ("crossmae", "--self_attn", "--self-attention"),
            ("crossmae", "--no_lr_scale", "--lr-scale none"),
            ("mae", "--input_size 448", "--image-size 448"),
            ("mae", "--accum_iter 2 --lr 1e-3 --batch_size 512", "--lr 0.00025 --batch-size 1024"),
            ("mae", "--num_encoded_tokens 49", "--visible 0.25"),
            ("simmim", "--mask_patch_size 32", "--mask-unit 32"),
            ("simmim", "--norm_pix_loss", "--norm-pix"),
            ("mae", "--resume old.pth", "--init-from old.pth"),
            ("mae", "--save_ckpt_freq 20 --world_size 8", "--save-every 20"),
            ("multimae", "--in_domains rgb-depth --out_domains rgb-depth", "--modalities rgb depth"),
            (
                "multimae",
                "--num_encoded_tokens 98 --in_domains rgb-depth-semseg",
                "--visible 0.166667 --modalities rgb depth semseg",
            ),
            ("multimae", "--alphas 0.5 --sample_tasks_uniformly", "--concentration 0.5 --tasks uniform"),
        ],
    )
    def test_each_flag_has_its_counterpart(self, calls: Calls, mistake, recipe: str, theirs: str, ours: str):
        assert mistake("pretrain", recipe, *theirs.split()).endswith(
            f"\nhint: the whole command: unveil pretrain {recipe} {ours}\n"
        )

    def test_what_this_recipe_has_not_is_said_and_left_out(self, calls: Calls, mistake):
        message = mistake("pretrain", "mae", "--self_attn", "--data", "x")
        assert "this command has no --self-attention" in message
        assert message.endswith("unveil pretrain mae --data x\n")

    def test_an_unreadable_value_is_no_traceback(self, calls: Calls, mistake):
        assert "could not be read" in mistake("pretrain", "mae", "--mask_ratio", "most")

    def test_the_corrected_command_is_accepted(self, calls: Calls, mistake):
        message = mistake("pretrain", "crossmae", "--mask_ratio", "0.75", "--kept_mask_ratio", "0.25", "--use_fm", "-1")
        words = message.partition("whole command: unveil ")[2].split()
        assert main(words) == 0
        assert calls.given["visible"] == calls.given["predicted"] == 0.25

    def test_our_own_spelling_with_underscores_is_no_foreign_flag(self, calls: Calls):
        assert main(OURS.split()) == 0
        assert calls.given["batch_size"] == 64


class TestRecipes:
    def test_no_recipe_lists_them(self, calls: Calls, mistake):
        message = mistake("pretrain")
        for name in ("mae", "crossmae", "simmim", "mim"):
            assert f"  {name} " in message

    def test_a_misspelt_recipe_meets_the_nearest(self, calls: Calls, mistake):
        assert "did you mean crossmae?" in mistake("pretrain", "crosmae", "--data", "x")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (None, "no recipe file"),
            ("x = 1\n", "no function `recipe`"),
            ("\nimport does_not_exist\n", "line 2: ModuleNotFoundError"),
            ("def recipe(:\n", "line 1: SyntaxError"),
        ],
    )
    def test_a_users_file_is_told_what_is_wrong_with_it(
        self, calls: Calls, tmp_path: Path, mistake, text: str | None, message: str
    ):
        file = tmp_path / "bad.py"
        if text is not None:
            file.write_text(text)
        assert message in mistake("pretrain", str(file))

    def test_recipes_shows_dials_with_defaults(self, capsys: pytest.CaptureFixture[str]):
        assert main(["recipes"]) == 0
        stdout = " ".join(capsys.readouterr().out.split())
        assert "MAE: hide three quarters" in stdout
        assert "image-size 224, epochs 800" in stdout
        assert "flip h, visible 0.25" in stdout


class TestEnds:
    @pytest.mark.parametrize(
        ("words", "step"),
        [
            ("pretrain mae --out runs/a", "unveil report runs/a"),
            ("evaluate runs/a --data x", "unveil report runs/a"),
            ("embed runs/a --data x --out f.npz", "python -c "),
        ],
    )
    def test_every_command_ends_with_the_next(
        self, calls: Calls, capsys, tmp_path: Path, monkeypatch, words: str, step: str
    ):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "runs").mkdir()  # or runs/a could be a name on the hub
        assert main(words.split()) == 0
        assert capsys.readouterr().out.splitlines()[-1].startswith(f"next: {step}")

    def test_after_a_dry_run_of_a_study_the_same_in_earnest(self):
        from unveil.cli.commands import _after_study

        words = ["recipes", "--data", "my photos", "--dry-run", "--jobs", "2"]
        assert _after_study(words, None) == "unveil study recipes --data 'my photos' --jobs 2"

    def test_after_a_report_what_is_not_measured_is_measured(self, tmp_path: Path):
        from unveil.cli.commands import _after_report

        measured, new = tmp_path / "a", tmp_path / "b c"
        (measured / "eval").mkdir(parents=True)
        (measured / "eval" / "knn.json").touch()
        assert _after_report([measured, new]).startswith(f"unveil evaluate '{new}' ")
        assert _after_report([measured]).startswith(f"unveil embed {measured} ")

    @pytest.mark.parametrize(
        ("error", "code", "parts"),
        [
            (FileNotFoundError(2, "No such file or directory", "/nowhere"), 2, ["error: /nowhere: No such file"]),
            (PermissionError("runs/a is read-only: choose another --out"), 2, ["error: runs/a is read-only"]),
            (ValueError("visible must be below 1"), 2, ["error: visible must be below 1", "said by"]),
            (KeyboardInterrupt(), 130, ["stopped"]),
            (RuntimeError("boom"), 1, ["Traceback", "boom", "please report it"]),
        ],
    )
    def test_what_goes_wrong_below_ends_in_one_clear_way(
        self, calls: Calls, monkeypatch, capsys, error: BaseException, code: int, parts: list[str]
    ):
        def fail(run: str, *, data: str = "x") -> None:
            raise error

        monkeypatch.setattr(sys.modules["unveil.commands.evaluate"], "evaluate", fail)
        assert main(["evaluate", "runs/a"]) == code
        stderr = capsys.readouterr().err
        for text in parts:
            assert text in stderr
        assert ("Traceback" in stderr) == (code == 1)

    def test_a_mistake_that_our_own_code_names_needs_no_address(self, calls: Calls, monkeypatch, mistake):
        from unveil.modeling.encoder import vit

        monkeypatch.setattr(sys.modules["unveil.commands.evaluate"], "evaluate", lambda run: vit("medium"))
        assert "said by" not in mistake("evaluate", "runs/a")

    def test_a_command_that_is_not_there_meets_the_nearest(self, mistake):
        assert "did you mean unveil pretrain?" in mistake("pretran")
        assert "there are demo" in mistake("xyzzy")
