"""Video segmentation end to end: videos that move by whole patches, masks of every kind, the command and its files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unveil.cli import main
from unveil.data.label_palette import label_png
from unveil.data.video_folders import read_ids
from unveil.evaluation.features import RawPixels
from unveil.evaluation.protocols.vos import Vos
from unveil.evaluation.types import Context, Score
from unveil.evaluation.videos.data import VideoData
from unveil.evaluation.videos.frames import FrameFeatures, RawPatches, working_size
from unveil.experiments.study.command import check_videos, with_data
from unveil.experiments.study.jobs import expand, videos_of
from unveil.experiments.study.registry import load_study
from unveil.modeling.encoder import vit
from unveil.modeling.image_encoder import ImageEncoder
from unveil.modeling.layers import sincos_positions
from unveil.modeling.public_vits import untrained_vit
from unveil.modeling.public_vits.vit import ViTConfig
from unveil.modeling.resized_positions import position_choices, positions_resized
from unveil.modeling.types import RGB

PATCH, SIZE, FRAMES = 4, (32, 32), 6
PIXELS = RawPixels(RGB, (16, 16), patch=PATCH)
J = 60 / 64  # of a square of 2 x 2 cells: between cells labels are interpolated, which takes a pixel from each corner


def moving(objects: int = 2, frames: int = FRAMES) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pictures and masks: a ground of equal patches, over which squares of noise move by a patch a frame."""
    rng = np.random.default_rng(0)
    ground = np.tile(rng.integers(0, 256, (PATCH, PATCH, 3), np.uint8), (SIZE[0] // PATCH, SIZE[1] // PATCH, 1))
    squares = rng.integers(0, 256, (objects, 8, 8, 3), np.uint8)
    made = []
    for number in range(frames):
        picture, mask = ground.copy(), np.zeros(SIZE, np.uint8)
        for k, square in enumerate(squares):
            there = slice(12 * k + 4, 12 * k + 12), slice(PATCH * number, PATCH * number + 8)
            picture[there], mask[there] = square, k + 1
        made.append((picture, mask))
    return made


def write(root: Path, name: str = "a", frames: list[tuple[np.ndarray, np.ndarray]] | None = None) -> Path:
    for kind in ("JPEGImages", "Annotations"):
        (root / kind / "480p" / name).mkdir(parents=True)
    for number, (picture, mask) in enumerate(frames if frames is not None else moving()):
        Image.fromarray(picture).save(root / "JPEGImages/480p" / name / f"{number:05d}.png")
        (root / "Annotations/480p" / name / f"{number:05d}.png").write_bytes(label_png(mask))
    return root


def measured(root: Path, context: Context | None = None, **options: object) -> Score:
    score = Vos(**options).run(PIXELS, VideoData(str(root)), context or Context())  # type: ignore[arg-type]
    assert score is not None
    return score


def file_of(root: Path, kind: str, number: int, name: str = "a") -> Path:
    return root / kind / "480p" / name / f"{number:05d}.png"


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return write(tmp_path / "davis")


def test_what_moves_by_whole_patches_is_followed_without_an_error(videos):
    score = measured(videos)
    assert score.metrics == {
        **{"jf_mean": (1 + J) / 2, "j_mean": J, "j_recall": 1.0, "j_decay": 0.0},
        **{"f_mean": 1.0, "f_recall": 1.0, "f_decay": 0.0},
    }
    assert score.settings["objects"] == 2
    assert score.settings["frames"] == FRAMES
    assert score.settings["measured_frames"] == FRAMES - 2, "neither the first nor the last"
    assert score.settings["grids"] == ["8 x 8"]
    assert score.details == {"jf": {"a": (1 + J) / 2}}
    assert score.outcomes == {"jf_mean": [(1 + J) / 2]}
    # Copied, a square of 8 x 8 that has moved by 4, 8, 12 and 16 pixels shares half of itself once: 32 of 96.
    assert score.baselines["first mask"]["j_mean"] == pytest.approx((32 / 96) / 4)


def test_a_radius_that_is_too_small_loses_what_moves(videos):
    assert measured(videos, radius=0).metrics["j_mean"] < 0.5


def test_several_videos_are_summed_over_objects(tmp_path):
    root = write(tmp_path, "one", moving(1))
    write(root, "two", [(moving()[0][0], mask) for _, mask in moving()])  # a picture that does not move
    score = measured(root)
    still = score.details["jf"]["two"]
    assert score.details["jf"]["one"] == (1 + J) / 2
    assert still < 0.5
    assert score.metrics["jf_mean"] == pytest.approx(((1 + J) / 2 + 2 * still) / 3), "of three objects"
    assert np.mean(score.outcomes["jf_mean"]) == pytest.approx(score.metrics["jf_mean"])
    assert score.metrics["plus_minus_jf_mean"] > 0
    assert VideoData(str(root), limit=1).open(None).videos[0].name == "one"


def test_void_pixels_count_for_nothing(videos):
    for number, (_, mask) in enumerate(moving()):
        mask[(mask == 1) & (np.arange(SIZE[0])[:, None] < 6)] = 255  # a part of the first square
        mask[28:] = 255
        file_of(videos, "Annotations", number).write_bytes(label_png(mask))
    score = measured(videos, save_masks=str(videos.parent / "out"))
    assert score.metrics["j_mean"] == pytest.approx((46 / 48 + J) / 2), "two corners of the first are void"
    assert set(np.unique(np.array(Image.open(videos.parent / "out/a/00000.png")))) == {0, 1, 2}


def test_255_is_the_object_where_it_is_the_only_one(tmp_path):
    frames = [(picture, np.where(mask == 1, np.uint8(255), np.uint8(0))) for picture, mask in moving(1)]
    score = measured(write(tmp_path / "davis", frames=frames), save_masks=str(tmp_path / "out"))
    assert score.metrics["j_mean"] == pytest.approx(J)
    saved = read_ids((tmp_path / "out/a/00003.png").read_bytes())
    assert (saved != frames[3][1]).sum() == 4
    assert set(np.unique(saved)) == {0, 255}


def test_objects_that_come_later_are_ignored_or_given(videos):
    for number, (picture, mask) in enumerate(moving(1)[:2]):
        Image.fromarray(picture).save(file_of(videos, "JPEGImages", number))
        file_of(videos, "Annotations", number).write_bytes(label_png(mask))
    ignored = measured(videos)
    assert ignored.settings["objects"] == 1
    assert ignored.settings["late_objects"] == 1
    assert ignored.metrics["j_mean"] < J, "what nobody has seen before takes any label"
    given = measured(videos, late="give")
    assert given.settings["objects"] == 2
    assert given.metrics["j_mean"] == pytest.approx(J)
    assert given.settings["measured_frames"] == FRAMES - 2


def test_frames_of_another_size_are_read_like_the_first(videos):
    picture, mask = moving()[2]
    file_of(videos, "JPEGImages", 2).unlink()
    large = Image.fromarray(picture).resize((64, 64), Image.Resampling.NEAREST)
    large.save(file_of(videos, "JPEGImages", 2))
    assert measured(videos).metrics["j_mean"] == pytest.approx(J), "masks are compared at their own size"
    file_of(videos, "Annotations", 2).write_bytes(label_png(np.kron(mask, np.ones((2, 2), np.uint8))))
    assert measured(videos).metrics["j_mean"] == pytest.approx(J)
    file_of(videos, "Annotations", 2).write_bytes(label_png(mask[:, :20].copy()))
    with pytest.raises(ValueError, match="20 x 32 pixels, its frame 64 x 64: they are not of one picture"):
        measured(videos)


def test_unreadable_files_are_counted(videos):
    file_of(videos, "JPEGImages", 2).write_bytes(b"no picture")
    file_of(videos, "Annotations", 4).write_bytes(b"no mask")
    score = measured(videos, save_masks=str(videos.parent / "out"))
    assert score.settings["unreadable_files"] == 2
    assert [line.split(":")[0] for line in score.settings["unreadable"]] == ["a/00002.png", "a/00004.png"]  # type: ignore[union-attr]
    assert 0.5 < score.metrics["j_mean"] < J, "frame 2 has the masks of frame 1"
    assert len(list((videos.parent / "out/a").iterdir())) == FRAMES
    second, third = ((videos.parent / f"out/a/0000{n}.png").read_bytes() for n in (1, 2))
    assert second == third


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda root: file_of(root, "Annotations", 0).write_bytes(label_png(np.zeros(SIZE, np.uint8))), "no object"),
        (lambda root: file_of(root, "Annotations", 0).unlink(), "its first frame has no mask"),
        (lambda root: file_of(root, "Annotations", 0).write_bytes(b""), "cannot be read"),
        (lambda root: file_of(root, "JPEGImages", 0).write_bytes(b""), "cannot be read"),
    ],
)
def test_a_video_without_a_first_mask_is_left_out(videos, spoil, reason):
    spoil(videos)
    with pytest.raises(ValueError, match=f"none of the 1 videos .*{reason}"):
        measured(videos)
    write(videos, "b")
    score = measured(videos)
    assert score.settings["videos"] == 1
    assert reason in score.settings["left_out"]["a"]  # type: ignore[index]


def test_videos_with_the_first_mask_alone_are_segmented_for_the_server(videos):
    for number in range(1, FRAMES):
        file_of(videos, "Annotations", number).unlink()
    with pytest.raises(ValueError, match="--save-masks"):
        measured(videos)
    score = measured(videos, save_masks=str(videos.parent / "out"))
    assert score.metrics == {}
    for number, (_, mask) in enumerate(moving()):
        saved = Image.open(videos.parent / f"out/a/{number:05d}.png")
        assert saved.mode == "P"
        assert (np.array(saved) != mask).sum() == (8 if number else 0)
    with pytest.raises(ValueError, match="lies in"):
        measured(videos, save_masks=str(videos / "Annotations"))


def test_cells_of_half_a_patch_lie_between_those_of_patches():
    image = torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole, half = (FrameFeatures(RawPatches(PIXELS), stride, Context()) for stride in (4, 2))
    fine = half(image, SIZE)
    assert half.grid(SIZE) == fine.shape[:2] == (16, 16)
    # A cell of 2 pixels at row 2 is the patch around it, which begins a pixel before: so that of an image cut by 3.
    shifted = whole(image[:, 3:31, 3:31], (28, 28))
    torch.testing.assert_close(fine[2:14:2, 2:14:2], shifted[:6, :6])
    assert fine[0, 0].norm() == pytest.approx(1)


def test_the_working_size_is_that_of_dino():
    assert working_size(480, 854, 480, 16) == (480, 832)
    assert working_size(480, 854, 480, 8) == (480, 832)
    assert working_size(1080, 1920, 480, 16) == (480, 832)
    assert working_size(854, 480, 480, 16) == (832, 480)
    assert working_size(480, 854, 480, 14) == (476, 840), "a patch that does not divide 64"
    assert working_size(48, 80, 480, 8) == (48, 80), "nothing is enlarged"
    assert working_size(3, 50, 480, 8) == (8, 128), "but to one patch"


def test_positions_are_measured_in_both_ways(videos):
    torch.manual_seed(0)
    encoder = ImageEncoder(vit("nano", PATCH, (16,)))
    data = VideoData(str(videos))
    score = Vos().run(encoder, data, Context())
    assert score is not None
    assert score.settings["positions"] == ["interpolate", "extrapolate"]
    own = {way: Vos(positions=way).run(encoder, data, Context()) for way in ("interpolate", "extrapolate")}
    for way, suffix in (("interpolate", ""), ("extrapolate", "_extrapolate")):
        assert own[way].metrics["j_mean"] == score.metrics[f"j_mean{suffix}"]
    assert score.metrics["jf_mean"] != score.metrics["jf_mean_extrapolate"]
    assert encoder.resize_positions == "interpolate", "as it was"
    other = ImageEncoder(vit("nano", PATCH, (16,), resize_positions="extrapolate"))
    assert Vos(context=0)._ways(other) == ["extrapolate", "interpolate"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"stride": 3}, "no part of the patch of 4"), ({"stride": 0}, "--stride"), ({"split": "tests"}, "no list")],
)
def test_options_that_do_not_fit_are_refused(videos, options, reason):
    with pytest.raises(ValueError, match=reason):
        measured(videos, **options)


def test_the_command_writes_results_masks_and_clips(whole, tmp_path, capsys, monkeypatch):
    """Stopped while a baseline is measured, it goes on from there, and ends in the same figures."""
    root, run = write(tmp_path / "davis"), tmp_path / "run"
    shutil.copytree(whole("--epochs", "1", "--batch-size", "10", "--image-size", "16"), run)
    words = ["evaluate", str(run), "--protocol", "vos", "--data", str(root), "--save-masks", str(tmp_path / "out")]
    assert main([*words, "--no-baselines"]) == 0
    alone = json.loads((run / "eval/vos.json").read_text())
    (run / "eval/vos.json").unlink()
    calls: list[object] = []
    own = Vos.run

    def stopped(self, subject, data, context):
        calls.append(context.subject)
        if context.subject == "untrained" and "untrained" not in calls[:-1]:
            raise KeyboardInterrupt
        return own(self, subject, data, context)

    monkeypatch.setattr(Vos, "run", stopped)
    assert main(words) != 0
    assert not (run / "eval/vos.json").exists()
    assert main(words) == 0
    assert calls == ["this run", "pixels", "untrained", "untrained"]
    result = json.loads((run / "eval/vos.json").read_text())
    assert result["metrics"] == alone["metrics"]
    assert set(result["baselines"]) == {"first mask", "pixels", "untrained"}
    assert not (run / "eval/unfinished").exists()
    assert "J&F" in capsys.readouterr().out
    assert len(list((tmp_path / "out/a").glob("*.png"))) == FRAMES
    with Image.open(run / "pictures/videos/a.webp") as clip:
        assert clip.n_frames == FRAMES  # type: ignore[attr-defined]
        assert clip.size == (2 * SIZE[1], SIZE[0])
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "data:image/webp;base64," in page
    assert "video segmentation" in page
    (run / "pictures/videos/a.webp").write_bytes(b"no clip")
    assert main(["report", str(run)]) == 0
    assert "no clip" in (run / "report.html").read_text()
    assert main([*words, "--test-data", str(root)]) == 2
    assert main([*words, "--inputs", "depth"]) == 2


def test_a_study_measures_rendered_videos_or_those_that_are_named(videos, tmp_path):
    planned = load_study("cmtmae-davis")
    (setting,) = planned.scales["smoke"].settings
    check_videos(planned, "smoke")
    assert all(job.evaluate[0]["data"] == videos_of(setting, tmp_path) for job in expand(planned, "smoke", tmp_path))
    assert Path(videos_of(setting, tmp_path)).parent == tmp_path / "videos"
    with pytest.raises(ValueError, match="give --videos ImageNet-1K=DAVIS"):
        check_videos(planned, "paper")
    named = with_data(planned, "paper", videos=[str(videos)], data=[str(videos)])
    check_videos(named, "paper")
    assert {job.evaluate[0]["data"] for job in expand(named, "paper", tmp_path)} == {str(videos)}


def test_mutated_masks_end_in_an_answer_or_one_error(videos):
    rng = np.random.default_rng(0)
    files = [file_of(videos, kind, number) for kind in ("Annotations", "JPEGImages") for number in (0, 2)]
    endings, lines = set(), 1
    for _ in range(16):
        file = files[rng.integers(len(files))]
        before = file.read_bytes()
        data = bytearray(before)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            data[place] = rng.integers(256)
        file.write_bytes(bytes(data[: rng.integers(1, len(data) + 1)]) if rng.random() < 0.3 else bytes(data))
        try:
            endings.add(type(measured(videos)))
        except ValueError as error:
            endings.add(ValueError)
            lines = len(str(error).splitlines())
        assert lines == 1
        file.write_bytes(before)
    assert endings == {Score, ValueError}


def test_a_table_of_waves_is_extrapolated_and_a_learned_one_is_not():
    config = ViTConfig(width=32, depth=1, heads=2, patch=PATCH, hidden=32, grid=(4, 4))
    encoder = untrained_vit(config, 0)
    images = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    assert position_choices(encoder) == ("interpolate",)
    encoder.vit.table.data.copy_(sincos_positions((4, 4), 32).view(4, 4, 32))  # as MAE's files hold it
    assert position_choices(encoder) == ("interpolate", "extrapolate")
    before = encoder.patch_features(images)
    with positions_resized(encoder, "extrapolate"):
        assert torch.equal(encoder.vit.position_embedding((8, 8)), sincos_positions((8, 8), 32))
        assert not torch.allclose(encoder.patch_features(images), before)
    assert torch.equal(encoder.patch_features(images), before)
