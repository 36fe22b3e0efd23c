"""`evaluate --protocol detect`: ten images to boxes, masks and AP; frozen, cascaded, killed, cut, in two processes."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import ten_images
from unveil.cli import main
from unveil.data.detection.layouts import open_detection
from unveil.evaluation import fit
from unveil.evaluation.detection.data import DetectionData
from unveil.evaluation.detection.model import Heads
from unveil.evaluation.detection.presets import DetectionTraining, preset
from unveil.evaluation.detection.training import DetectionTrainer
from unveil.evaluation.protocols import detect
from unveil.evaluation.protocols.detect import Detect
from unveil.evaluation.results import ResultCache
from unveil.evaluation.types import Context
from unveil.modeling.encoder import Encoder
from unveil.modeling.image_encoder import ImageEncoder
from unveil.modeling.types import RGB

for library in ("torchvision", "faster_coco_eval"):
    if not importlib.util.find_spec(library):
        pytest.skip(f"{library} is not there: pip install 'unveil[detect]'", allow_module_level=True)

FLOAT32 = Context(precision="float32")
THIN = Heads(16, 16, anchors=16, rois=16, candidates=(60, 60), proposals=(30, 30))


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ten_images.write(tmp_path_factory.mktemp("ten") / "coco")


def tiny() -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder(Encoder((RGB,), (32,), 8, 16, 2, 2))


def settings(epochs: int = 1, **changes: object) -> DetectionTraining:
    own = preset("small", 10, 16, {"epochs": epochs, "batch_size": 4, "window": 2, **changes}, False)
    return replace(own, heads=THIN)


def trainer(
    coco: Path, context: Context = FLOAT32, epochs: int = 1, frozen: bool = False, **changes: object
) -> DetectionTrainer:
    own = settings(epochs, **changes)
    return DetectionTrainer(tiny(), open_detection(str(coco)), own, frozen, None, False, context)


def weights(of: DetectionTrainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in of.model.state_dict().items()}


@pytest.fixture
def thin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The preset `small` with heads of 16 channels."""

    def made(name: str, num_images: int, dim: int, given: dict[str, object], cascade: bool) -> DetectionTraining:
        return replace(preset("small", num_images, dim, given, cascade), heads=replace(THIN, cascade=cascade))

    monkeypatch.setattr(detect, "preset", made)


def test_the_protocol_measures_boxes_and_masks_and_says_all(coco: Path, thin: None):
    options = Detect(epochs=4, batch_size=5, lr=4e-3, layer_decay=1.0, window=4, relative_positions=True)
    score = options.run(tiny(), DetectionData(str(coco)), FLOAT32)
    assert score is not None
    assert {"box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50"} <= score.metrics.keys()
    assert all(0 <= value <= 1 for value in score.metrics.values())
    assert score.details.keys() == {"box_ap", "mask_ap"}
    assert set(score.details["box_ap"]) == {"ball", "block"}
    assert score.trains_encoder
    assert (score.settings["whole_blocks"], score.settings["masks"]) == ([1, 2], True)
    assert len(score.shown["curves"]["mask"]) == 101
    first = score.shown["images"][0]
    picture = Image.open(io.BytesIO(base64.b64decode(first["found"])))
    assert (picture.size, first["name"]) == ((256, 213), "00.png")
    assert "relative positions from zero" in score.card
    json.dumps(score.shown)
    assert options.run(None, DetectionData(str(coco)), FLOAT32) is None


@pytest.mark.slow
def test_ten_images_are_learned(coco: Path):
    options = Detect(epochs=60, batch_size=2, lr=2e-3, layer_decay=1.0, window=4)
    score = options.run(tiny(), DetectionData(str(coco)), FLOAT32)
    assert score is not None
    assert min(score.metrics["box_ap50"], score.metrics["mask_ap50"]) > 0.5


def test_boxes_alone_are_measured_where_not_every_object_has_a_mask(tmp_path: Path, thin: None):
    labels = ten_images.content(4)
    labels["annotations"][0]["segmentation"] = []
    notes: list[str] = []
    data = DetectionData(str(ten_images.write(tmp_path / "coco", labels)))
    score = Detect(frozen=True, epochs=1, cascade=True, window=2).run(tiny(), data, replace(FLOAT32, note=notes.append))
    assert score is not None
    assert {name.partition("_")[0] for name in score.metrics} == {"box"}
    assert not score.trains_encoder
    assert "there is no mask AP" in score.card
    assert "Cascade Faster R-CNN" in score.card
    assert notes == ["not every object has a mask, so boxes alone are learned and measured"]


def test_a_frozen_encoder_stays_as_it_was_and_heads_do_not(coco: Path):
    own = trainer(coco, frozen=True)
    before = weights(own)
    own.train()
    after = weights(own)
    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"pyramid", "rpn", "box_heads", "mask_head"}
    learning = trainer(coco)
    learning.train()
    assert any(not torch.equal(before[n], t) for n, t in weights(learning).items() if n.startswith("encoder."))


def gradients(of: DetectionTrainer) -> dict[str, torch.Tensor]:
    """Those of the first batch."""
    loader = of._loader(of.sets.train)
    with closing(loader.numbered(0)) as numbered:
        for loss in of.losses(next(numbered)):
            loss.backward()
    return {name: p.grad for name, p in of.model.named_parameters() if p.grad is not None}


def test_the_cut_into_micro_batches_changes_nothing_beyond_rounding(coco: Path):
    whole, cut = gradients(trainer(coco)), gradients(trainer(coco, replace(FLOAT32, micro_batch=1)))
    assert whole.keys() == cut.keys()
    assert sum(gradient.abs().sum() for gradient in whole.values()) > 1
    for name, gradient in cut.items():
        torch.testing.assert_close(gradient, whole[name], atol=1e-5, rtol=1e-4, msg=name)


def test_a_killed_training_continues_to_the_same_bits(coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fit, "SAVE_EVERY", 0.0)
    context = replace(FLOAT32, cache=ResultCache(tmp_path / "unfinished"))
    through = trainer(coco, epochs=3, ema=0.9, drop_path=0.2)
    through.train()
    killed = trainer(coco, context, 3, ema=0.9, drop_path=0.2)

    def stop(what: str, done: int, total: int) -> None:
        if done > 16:  # of 24 images: in the third epoch
            raise KeyboardInterrupt

    monkeypatch.setattr(type(killed.context), "progress", staticmethod(stop), raising=False)
    object.__setattr__(killed.context, "progress", stop)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    assert len(list((tmp_path / "unfinished").glob("*.safetensors"))) == 1
    continued = trainer(coco, replace(FLOAT32, cache=ResultCache(tmp_path / "unfinished")), 3, ema=0.9, drop_path=0.2)
    steps: list[int] = []
    object.__setattr__(continued.context, "progress", lambda what, done, total: steps.append(done))
    continued.train()
    assert steps[0] == 20  # the third epoch alone
    assert all(torch.equal(tensor, weights(through)[name]) for name, tensor in weights(continued).items())


def test_a_diverging_training_says_what_to_do(coco: Path):
    own = trainer(coco, epochs=2, lr=1e30)
    with pytest.raises(ValueError, match=r"training this run diverged in epoch \d .* give a lower --lr than 1e\+30"):
        own.train()


def test_patches_that_the_pyramid_cannot_quarter_are_refused(coco: Path):
    encoder = ImageEncoder(Encoder((RGB,), (30,), 6, 16, 2, 2))
    with pytest.raises(ValueError, match="4 does not divide the 6 pixels of this encoder's"):
        Detect().run(encoder, DetectionData(str(coco)), FLOAT32)
    with pytest.raises(ValueError, match="an image size is a multiple of two patches, 16 pixels; got 40, near is"):
        Detect(image_size=40).run(tiny(), DetectionData(str(coco)), FLOAT32)


def test_annotations_and_images_that_are_left_out_are_told(tmp_path: Path, thin: None):
    labels = ten_images.content(6)
    labels["annotations"][0]["bbox"][2] = 0
    root = ten_images.write(tmp_path / "coco", labels)
    (root / "train2017" / "01.png").unlink()
    (root / "val2017" / "02.png").write_bytes(b"no picture")
    notes: list[str] = []
    score = Detect(epochs=1, window=2).run(tiny(), DetectionData(str(root)), replace(FLOAT32, note=notes.append))
    assert score is not None
    told = "1 boxes without an area"
    assert sum(told in note for note in notes) == 2
    assert any("1 images missing or unreadable, e.g. 01.png" in note for note in notes)
    facts = [score.settings[name] for name in ("train_images", "test_images", "missing_images", "unreadable")]
    assert facts == [5, 5, 1, 1]


def pretrained(coco: Path, run: Path) -> Path:
    words = ["--data", str(coco / "train2017"), "--size", "nano", "--patch", "8", "--image-size", "32", "--epochs", "1"]
    assert main(["pretrain", "mae", *words, "--batch-size", "5", "--device", "cpu", "--out", str(run)]) == 0
    return run


EVERY_EPOCH = """
import signal, sys
from unveil.cli import main
from unveil.evaluation import fit
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores
fit.SAVE_EVERY = 0.0
raise SystemExit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_killed_command_goes_on_to_the_same_bits(coco: Path, tmp_path: Path):
    """In the training of the run by SIGKILL, then in that from scratch by SIGINT."""
    run = pretrained(coco, tmp_path / "through")
    shutil.copytree(run, tmp_path / "stopped")
    words = ["--protocol", "detect", "--data", str(coco), "--epochs", "4", "--batch-size", "4", "--keep"]
    words += ["--drop-path", "0.2", "--ema", "0.9", "--precision", "float32", "--device", "cpu"]
    assert main(["evaluate", str(run), *words]) == 0
    assert not (run / "eval" / "unfinished").exists()
    command = [sys.executable, "-c", EVERY_EPOCH, "evaluate", str(tmp_path / "stopped"), *words]
    unfinished = tmp_path / "stopped" / "eval" / "unfinished"
    seen: set[str] = set()
    for number, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            for _ in range(6000):  # until a training that was not seen before has stored an epoch
                there = {file.name for file in unfinished.glob("*.safetensors")} - seen
                if there or process.poll() is not None:
                    break
                time.sleep(0.05)
            process.send_signal(number)
            printed, _ = process.communicate(timeout=300)
        assert process.returncode == status, printed
        seen |= there
    assert "what was measured is kept: the same command goes on from here" in printed
    assert len(seen) == 2, "each subject has a training of its own"
    assert main(["evaluate", str(tmp_path / "stopped"), *words]) == 0
    heads = [(tmp_path / name / "heads/detect.safetensors").read_bytes() for name in ("through", "stopped")]
    assert heads[0] == heads[1]
    scores = [json.loads((tmp_path / name / "eval/detect.json").read_text()) for name in ("through", "stopped")]
    for entry in ("metrics", "baselines", "details"):
        assert scores[0][entry] == scores[1][entry]
    assert set(scores[0]["baselines"]) == {"from scratch"}


@pytest.mark.slow
def test_two_processes_of_torchrun_agree_with_one(coco: Path, tmp_path: Path):
    """One that cuts its batches alike: else sums are rounded otherwise, which AdamW enlarges."""
    pretrained(coco, tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = ["--protocol", "detect", "--data", str(coco), "--epochs", "3", "--batch-size", "4", "--micro-batch", "2"]
    words += ["--precision", "float32", "--no-baselines", "--keep", "--device", "cpu"]
    for name, launcher in (("one", []), ("two", several)):
        command = [sys.executable, *launcher, "-m", "unveil", "evaluate", str(tmp_path / name), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / name / "heads/detect.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=0, msg=name)
    scores = [json.loads((tmp_path / name / "eval/detect.json").read_text()) for name in ("one", "two")]
    assert scores[0]["metrics"] == pytest.approx(scores[1]["metrics"], abs=1e-5)
    assert scores[0]["settings"]["test_images"] == scores[1]["settings"]["test_images"] == 10
