"""What `unveil pretrain` refuses: each mistake is one clear error, and images that cannot be read are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import unveil
from test_runs import read_only
from tiny_runs import (
    STEPS,
    TRAIN,
    Place,
    at_steps,
    facts,
    journal,
    listing,
    write_images,
)

BAD = [
    ("--batch-size 10 --repeats 3", "--batch-size 9, or other --repeats"),
    ("--repeats 0", "--repeats 0: 1 view or more is needed"),
    ("--data nowhere", "no data at"),
    ("--data empty", "no images in"),
    ("--data tiny.py", "is a file"),
    ("--visble 0.3", "did you mean --visible 0.3"),
    ("--visible 1.7", "between 0 and 1; got 1.7"),
    ("--visible 0", "between 0 and 1; got 0"),
    ("--visible 1", "between 0 and 1; got 1"),
    ("--visible nan", "got nan"),
    ("--predicted 0.9", "at most the hidden share"),
    ("--patch 5 --image-size 16", "does not divide"),
    ("--patch 0", "patch"),
    ("--image-size 0", "image"),
    ("--decoder-heads 3", "3 heads do not divide"),
    ("--decoder-heads 0", "0 heads do not divide"),
    ("--epochs 0", "epochs"),
    ("--epochs -1", "epochs"),
    ("--epochs nan", "epochs"),
    ("--batch-size 0", "batch_size"),
    ("--lr nan", "lr"),
    ("--lr -1", "lr"),
    ("--warmup-epochs -1", "warmup_epochs"),
    ("--clip 0", "clip"),
    ("--minutes 0", "--minutes 0.0: a time above 0 is needed"),
    ("--minutes nan", "--minutes nan"),
    ("--micro-batch 0", "--micro-batch 0"),
    ("--workers 0", "--workers 0"),
    ("--seed -1", "--seed -1"),
    ("--save-minutes -1", "--save-minutes -1"),
    ("--val-every 0", "--val-every 0"),
    ("--max-broken 5", "--max-broken 5"),
    ("--paper --minutes 3", "give one of the two"),
    ("--device cuda", "cannot be used here"),
    ("--device toaster", "cannot be used here"),
    ("--precision nonsense", "expected one of auto, float32, bf16"),
    ("--compile maybe", "expected one of auto, on, off"),
    ("--out tiny.py", "is a file"),
    ("--out images/even/000.png/run", "is a file"),
    ("--out images/run", "would be taken for images"),
    ("--data .", "would be taken for images"),
]


class TestBadInput:
    @pytest.mark.parametrize(("words", "message"), BAD)
    def test_a_mistake_is_one_clear_error_and_leaves_nothing(
        self, place: Place, monkeypatch: pytest.MonkeyPatch, capsys, words: str, message: str
    ):
        if "--device cuda" in words and torch.cuda.is_available():
            pytest.skip("there is a GPU here")
        monkeypatch.chdir(place.path)
        (place.path / "empty").mkdir()
        before = listing(place.path)
        assert place.pretrain(*words.split()) == 2
        printed = capsys.readouterr()
        assert sum(line.startswith("error: ") for line in printed.err.splitlines()) == 1
        assert message in printed.err
        assert "Traceback" not in printed.err
        assert "said by" not in printed.err  # the message is our own
        assert listing(place.path) == before

    def test_a_place_that_cannot_be_written(self, place: Place, capsys):
        (place.path / "fixed").mkdir()
        assert place.pretrain("--out", str(read_only(place.path / "fixed"))) == 2
        assert "cannot be written" in capsys.readouterr().err

    def test_a_mistake_shows_before_all_of_many_images_are_read(self, place: Place, capsys):
        for words in ("--visible 1.7", "--decoder-heads 3", "--lr nan"):
            assert place.pretrain("--data", "scenes:count=201,size=32", *words.split()) == 2
            stderr = capsys.readouterr().err
            assert "inspecting" not in stderr
            assert stderr.startswith("error: ")

    def test_one_image_is_too_few(self, place: Place, capsys):
        write_images(place.path / "one", 1)
        assert place.pretrain("--data", str(place.path / "one")) == 2
        assert "at least 2 are needed" in capsys.readouterr().err

    def test_a_users_recipe_that_fails_is_told_in_its_own_terms(self, place: Place, capsys):
        source = Path(place.recipe).read_text()
        Path(place.recipe).write_text(source.replace("def first():", "def first():\n        1 / 0"))
        assert place.pretrain(*TRAIN) == 2
        stderr = capsys.readouterr().err
        assert "ZeroDivisionError" in stderr
        assert "tiny.py, line" in stderr
        assert not place.run.exists()

    def test_python_gets_the_same_errors(self, place: Place):
        with pytest.raises(ValueError, match=r"no option 'visble'; did you mean visible\?"):
            unveil.pretrain(place.recipe, data=place.data, out=str(place.run), visble=0.3)
        with pytest.raises(ValueError, match="--precision half"):
            unveil.pretrain(place.recipe, data=place.data, out=str(place.run), precision="half")  # type: ignore[arg-type]
        assert not place.run.exists()


class TestBrokenImages:
    def spoil(self, place: Place, count: int) -> list[str]:
        names = sorted(str(p.relative_to(place.data)) for p in Path(place.data).rglob("*.png"))[5 : 5 + count]
        for name in names:
            file = Path(place.data) / name
            file.write_bytes(file.read_bytes()[:100])
        return names

    def test_one_of_forty_is_listed_and_replaced(self, place: Place):
        (name,) = self.spoil(place, 1)
        assert place.pretrain(*TRAIN) == 0
        stored = json.loads((place.run / "broken.json").read_text())
        assert list(stored) == [name]
        assert stored[name]
        assert journal(place.run, "step")[-1]["step"] == STEPS

    def test_too_many_stop_it_before_it_begins(self, place: Place, capsys):
        names = self.spoil(place, 3)
        before = listing(place.path)
        assert place.pretrain(*TRAIN) == 2
        stderr = capsys.readouterr().err
        assert all(name in stderr for name in names)
        assert listing(place.path) == before
        assert place.pretrain(*TRAIN, "--max-broken", "0.2") == 0

    def test_images_that_break_while_it_trains_stop_it_with_a_word(self, place: Place, monkeypatch, capsys):
        at_steps(monkeypatch, [2], lambda: self.spoil(place, 30) and None)
        assert place.pretrain(*TRAIN, "--epochs", "30") in (0, 2)  # all may be in memory by then
        assert facts(place.run)["status"] in ("finished", "failed")
