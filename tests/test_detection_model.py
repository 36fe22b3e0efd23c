"""ViTDet's parts: operators by hand, the backbone against transformers, sizes against the paper."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

import ten_images
from unveil.data.detection.layouts import open_detection
from unveil.evaluation.detection import ops
from unveil.evaluation.detection.average_precision import Found, average_precision
from unveil.evaluation.detection.model import Detector, Heads
from unveil.evaluation.detection.presets import preset
from unveil.evaluation.detection.sampling import KeyedSampler
from unveil.evaluation.detection.training import whole_blocks
from unveil.evaluation.detection.views import DetectionView, truth_of
from unveil.modeling.encoder import Encoder, vit
from unveil.modeling.image_encoder import ImageEncoder
from unveil.modeling.public_vits.layouts import timm_weights
from unveil.modeling.rng import sample_keys
from unveil.modeling.types import RGB, to_float

needs_torchvision = pytest.mark.skipif(not importlib.util.find_spec("torchvision"), reason="torchvision is not there")
needs_coco = pytest.mark.skipif(
    not importlib.util.find_spec("faster_coco_eval"), reason="faster-coco-eval is not there"
)


def test_suppression_keeps_what_no_kept_box_covers():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [2, 0, 12, 10], [30, 30, 40, 40], [0, 0, 10, 10]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
    # 0 covers 1 (IoU 9/11), 1 would cover 2 (9/11) but is gone, 0 covers 2 (8/12) only below 2/3
    assert ops.nms(boxes, scores, 0.7).tolist() == [0, 2, 3]
    assert ops.nms(boxes, scores, 0.6).tolist() == [0, 3]
    assert ops.nms(boxes, scores.flip(0), 0.7).tolist() == [4, 3, 2]
    assert ops.nms(boxes[:0], scores[:0], 0.5).tolist() == []


def test_aligned_regions_are_means_of_bilinear_samples():
    ramp = torch.arange(8.0).repeat(8, 1)  # the value of a place is its column
    image = torch.stack([ramp, ramp.T])[None]
    rois = torch.tensor([[0.0, 1, 2, 5, 6]])
    out = ops.roi_align(image, rois, 1.0, 2, 2, 2, True)
    assert out[0, 0].tolist() == [[1.5, 3.5], [1.5, 3.5]]  # half a pixel less than the means of 1..3 and 3..5
    assert out[0, 1].tolist() == [[2.5, 2.5], [4.5, 4.5]]
    assert ops.roi_align(image, rois, 1.0, 2, 2, 2, False)[0, 0, 0].tolist() == [2, 4]
    given = torch.randn(1, 1, 6, 6, dtype=torch.float32, requires_grad=True)
    box = torch.tensor([[0.0, 0.5, 1, 4.5, 5]])
    ops.roi_align(given, box, 1.0, 3, 3, 0, True).sum().backward()
    assert given.grad is not None
    assert given.grad.sum().item() == pytest.approx(9, abs=1e-4)  # each mean has weights that add up to 1
    assert ops.roi_align(image, rois[:0], 1.0, 2, 2, 0, True).shape == (0, 2, 2, 2)


@pytest.mark.parametrize("aligned", [False, True])
@needs_torchvision
def test_both_operators_are_the_compiled_ones(aligned: bool):
    torchvision = pytest.importorskip("torchvision", exc_type=(ImportError, RuntimeError))
    if not hasattr(torch.ops.torchvision, "_roi_align_backward"):
        pytest.skip("this torchvision has no compiled operators")
    rng = torch.Generator().manual_seed(0)
    corners = torch.rand(600, 2, generator=rng) * 80 - 8
    boxes = torch.cat([corners, corners + torch.rand(600, 2, generator=rng) * 40], dim=1)
    scores = torch.rand(600, generator=rng)
    assert torch.equal(ops.nms(boxes, scores, 0.5), torchvision.ops.nms(boxes, scores, 0.5))
    rois = torch.cat([torch.randint(0, 2, (60, 1), generator=rng).float(), boxes[:60]], dim=1)
    for ratio in (0, 2):
        gradients = []
        for align in (
            lambda x, r=ratio: ops.roi_align(x, rois, 0.25, 7, 5, r, aligned),
            lambda x, r=ratio: torchvision.ops.roi_align(x, rois, (7, 5), 0.25, r, aligned),
        ):
            image = torch.randn(2, 3, 13, 17, generator=torch.Generator().manual_seed(1)).requires_grad_()
            out = align(image)
            (out * torch.arange(out.numel()).view_as(out).sin()).sum().backward()
            gradients.append((out.detach(), image.grad))
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def tiny(patch: int = 8, side: int = 32, depth: int = 4) -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder(Encoder((RGB,), (side,), patch, 24, depth, 2))


def test_blocks_that_attend_over_the_whole_image_are_the_last_of_each_quarter():
    assert whole_blocks(12) == (3, 6, 9, 12)  # 2, 5, 8, 11 of the paper, which counts from 0
    assert whole_blocks(24) == (6, 12, 18, 24)
    assert whole_blocks(6) == (2, 3, 4, 6)
    assert whole_blocks(2) == (1, 2)


@pytest.mark.parametrize("relative", [False, True])
def test_the_backbone_is_that_of_transformers_at_the_same_weights(relative: bool):
    transformers = pytest.importorskip("transformers")
    encoder = tiny(side=80)  # a grid of 10, which windows of 4 do not divide
    whole = (2, 4)
    model = encoder.windowed(4, whole, None, (10, 10) if relative else None).eval()
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        parameter.data.normal_(std=0.3 if "relative" in name else 0.15)
    config = transformers.VitDetConfig(
        hidden_size=24, num_hidden_layers=4, num_attention_heads=2, image_size=80, pretrain_image_size=80, patch_size=8,
        window_size=4, window_block_indices=[0, 2], residual_block_indices=[], drop_path_rate=0.0,
        use_relative_position_embeddings=relative, out_features=["stage4"], layer_norm_eps=1e-6,
    )  # fmt: skip
    other = transformers.VitDetBackbone(config).eval()
    own = timm_weights(model.encoder.encoder)
    state = {"embeddings.position_embeddings": own["pos_embed"]}
    state |= {f"embeddings.projection.{n}": own[f"patch_embed.proj.{n}"] for n in ("weight", "bias")}
    for k in range(4):
        state |= {
            f"encoder.layer.{k}.{name.removeprefix(f'blocks.{k}.').replace('attn.', 'attention.')}": tensor
            for name, tensor in own.items()
            if name.startswith(f"blocks.{k}.")
        }
        if relative:
            state[f"encoder.layer.{k}.attention.rel_pos_h"] = model.relative[k].rows
            state[f"encoder.layer.{k}.attention.rel_pos_w"] = model.relative[k].columns
    other.load_state_dict(state, strict=True)
    images = torch.rand(2, 3, 80, 80)
    mean, std = (torch.tensor(x)[:, None, None] for x in (RGB.mean, RGB.std))
    with torch.no_grad():
        expected = other((images - mean) / std).feature_maps[0]
        torch.testing.assert_close(model(images), expected, atol=1e-4, rtol=0)


def test_without_windows_it_is_the_encoder_without_its_class_token():
    encoder = tiny()
    images = torch.rand(2, 3, 32, 32)
    all_whole = encoder.windowed(4, (1, 2, 3, 4))  # of 4 tokens a side: every window is the image
    assert torch.equal(all_whole(images), encoder.windowed(4, ())(images))
    zero = encoder.windowed(4, (1, 2, 3, 4), None, (4, 4))
    torch.testing.assert_close(zero(images), all_whole(images))
    assert not torch.allclose(encoder.windowed(2, (4,))(images), all_whole(images), atol=1e-3)
    larger = torch.rand(1, 3, 64, 64)
    resized = [encoder.windowed(4, (4,), how)(larger) for how in ("interpolate", "extrapolate")]
    assert not torch.allclose(*resized, atol=1e-3)
    layers = {name: zero.layer_of(name) for name, _ in zero.named_parameters()}
    assert layers["relative.2.rows"] == layers["encoder.encoder.blocks.2.attn.qkv.weight"] == 3


@needs_torchvision
def test_a_base_sized_model_has_the_parameters_and_maps_of_the_paper():
    with torch.device("meta"):
        encoder = ImageEncoder(vit("base", 16, (224,)))
        trunk = encoder.windowed(14, whole_blocks(12), None, (64, 64))
        model = Detector(trunk, Heads(), 80, True, 0, False)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert 110e6 < count < 112e6  # 111 M: table 5 of the paper
    maps = model.pyramid(torch.zeros(1, 768, 64, 64, device="meta"))  # of 1024 x 1024 pixels
    assert [tuple(x.shape) for x in maps.values()] == [(1, 256, side, side) for side in (256, 128, 64, 32, 16)]


def test_what_is_learned_from_is_drawn_for_each_image_by_its_own_key():
    sampler = KeyedSampler(8, 0.25, "anchors")
    labels = [torch.tensor([1] * 10 + [0] * 30 + [-1] * 5), torch.tensor([0] * 4 + [1])]
    sampler.keys = sample_keys(0, 0, torch.arange(2))
    objects, background = sampler([one.clone() for one in labels])
    assert [int(x.sum()) for x in (*objects, *background)] == [2, 1, 6, 4]
    assert not (objects[0] | background[0])[40:].any()
    sampler.keys = sampler.keys.flip(0)
    swapped = sampler(labels[::-1])
    assert torch.equal(swapped[0][1], objects[0])
    assert torch.equal(swapped[1][1], background[0])


def test_a_view_and_its_objects_are_cut_alike(tmp_path):
    sets = open_detection(str(ten_images.write(tmp_path / "coco")))
    view = DetectionView((64, 64), (0.5, 2.0))
    samples = [sets.train.sample(n) for n in range(10)]
    modality = sets.train.declared[0].modality
    found = 0
    for epoch in range(3):
        keys = sample_keys(0, epoch, torch.arange(10))
        views = view(samples, [modality], keys)
        windows = view.windows(sets.train.sizes, keys)
        assert {one.mirrored for one in windows} == {True, False}
        for sample, window, objects in zip(views, windows, sets.train.objects, strict=True):
            truth = truth_of(objects, window, True, torch.device("cpu"))
            pixels = to_float(sample.maps["rgb"])
            for label, box, mask in zip(truth["labels"], truth["boxes"], truth["masks"], strict=True):
                channel = pixels[0 if label == 1 else 2][mask.bool()]
                assert channel.mean() > 0.65  # bright where the object is: its edge is blurred by resizing
                rows, columns = mask.nonzero().T
                edges = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                assert (edges - box).abs().max() <= 1
                found += 1
    assert found > 15
    whole, made = view.whole(samples[0], [modality])
    assert (made, tuple(whole.maps["rgb"].shape)) == ((53, 64), (3, 64, 64))


@needs_coco
def test_average_precision_is_that_worked_out_by_hand(tmp_path):
    labels = ten_images.content(2)
    labels["annotations"] = []
    boxes = [(0, 10, [2, 2, 10, 10]), (0, 11, [20, 2, 10, 10])]
    for number, image, box in boxes:
        x, y, w, h = box
        labels["annotations"].append(
            {"id": image, "image_id": image, "category_id": 3, "bbox": box, "area": w * h, "iscrowd": number,
             "segmentation": ten_images.polygon(x, y, w, h)}
        )  # fmt: skip
    test = open_detection(str(ten_images.write(tmp_path / "coco", labels))).test
    zero = np.zeros(1, int)
    right = Found(np.array([[2.0, 2, 12, 12]]), zero, np.array([0.9]))
    wrong_then_right = Found(np.array([[30.0, 20, 40, 30], [20, 2, 30, 12]]), np.zeros(2, int), np.array([0.8, 0.7]))
    own = average_precision(test, {0: right, 1: wrong_then_right}, "bbox")
    # precision is 1 up to a recall of .5 (51 of the 101 places), and 2/3 beyond
    expected = (51 + 50 * 2 / 3) / 101
    assert own.metrics == pytest.approx({"ap": expected, "ap_small": expected, "ap50": expected, "ap75": expected})
    assert own.per_class == pytest.approx({"ball": expected})
    assert own.curve[[0, 50, 51, 100]].tolist() == pytest.approx([1, 1, 2 / 3, 2 / 3])
    # the second box covers 70 of 130 pixels of the object: it counts at an overlap of .5 alone
    shifted = Found(np.array([[23.0, 2, 33, 12]]), zero, np.array([0.8]))
    own = average_precision(test, {0: right, 1: shifted}, "bbox")
    assert own.metrics["ap50"] == pytest.approx(1)
    assert own.metrics["ap"] == pytest.approx((1 + 9 * 51 / 101) / 10)
    nothing = Found(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
    assert average_precision(test, {0: nothing, 1: nothing}, "bbox").metrics["ap"] == 0


@needs_coco
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_ten_images_have_the_average_precision_that_the_file_itself_has(tmp_path, kind):
    """Read by the evaluator from the JSON: polygons, run lengths, crowds, and an image without objects."""
    import faster_coco_eval

    root = ten_images.write(tmp_path / "coco")
    test = open_detection(str(root)).test
    rng = np.random.default_rng(0)
    found, results = {}, []
    for n, one in enumerate(test.objects):
        boxes = np.repeat(one.boxes, 2, 0) + rng.normal(0, 1, (2 * len(one), 4))
        labels = np.where(rng.random(2 * len(one)) < 0.8, np.repeat(one.labels, 2), 0)
        scores = rng.random(2 * len(one))
        masks = []
        for box, label, score in zip(boxes, labels, scores, strict=True):
            x0, y0, x1, y1 = box.round().clip(0, [48, 40, 48, 40]).astype(int).tolist()
            pixels = np.zeros((40, 48), np.uint8, order="F")
            pixels[y0:y1, x0:x1] = 1
            masks.append(faster_coco_eval.mask.encode(pixels))
            entry = {"image_id": 10 + n, "category_id": (3, 7)[label], "score": score}
            shape = {"bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]}
            results.append(entry | (shape if kind == "bbox" else {"segmentation": masks[-1]}))
        found[n] = Found(boxes, labels, scores, masks)
    own = average_precision(test, found, kind)
    truth = faster_coco_eval.COCO(str(root / "annotations/instances_val2017.json"))
    evaluation = faster_coco_eval.COCOeval_faster(truth, truth.loadRes(results), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert 0.1 < own.metrics["ap"] < 0.95
    names = ("ap", "ap50", "ap75", "ap_small")
    assert [own.metrics[name] for name in names] == pytest.approx(evaluation.stats[:4].tolist(), abs=1e-9)


@needs_coco
def test_a_prediction_in_a_crowd_is_neither_right_nor_wrong(tmp_path):
    test = open_detection(str(ten_images.write(tmp_path / "coco"))).test
    truths = {n: Found(one.boxes[~one.crowd], one.labels[~one.crowd], np.ones(int((~one.crowd).sum())), None)
              for n, one in enumerate(test.objects)}  # fmt: skip
    assert average_precision(test, truths, "bbox").metrics["ap"] == pytest.approx(1)
    inside = np.array([[26.0, 6, 34, 14]])
    one = truths[4]
    more = Found(np.concatenate([one.boxes, inside]), np.append(one.labels, 0), np.append(one.scores, 2.0))
    assert average_precision(test, {**truths, 4: more}, "bbox").metrics["ap"] == pytest.approx(1)
    outside = Found(more.boxes, np.append(more.labels[:-1], 1), more.scores)  # another class than the crowd's
    assert average_precision(test, {**truths, 4: outside}, "bbox").metrics["ap"] < 0.99


def test_the_published_recipe_is_a_preset():
    base, large = (preset("vitdet", 118_000, dim, {}, False) for dim in (768, 1024))
    assert (base.epochs * (118_000 // base.batch_size), base.image_size, base.scales) == (184_300, 1024, (0.1, 2.0))
    assert [(own.layer_decay, own.drop_path, own.weight_decay) for own in (base, large)] == [
        (0.7, 0.1, 0.1),
        (0.8, 0.4, 0.1),
    ]
    steps = 1843
    assert base.rate(0, steps) == pytest.approx(1e-7)
    assert base.rate(125 / steps, steps) == pytest.approx(1e-4 * (1e-3 + 0.999 / 2))
    assert base.rate(50, steps) == pytest.approx(1e-4)
    assert [base.rate(epoch, steps) for epoch in (88.8, 89.0, 96.2, 96.4)] == pytest.approx([1e-4, 1e-5, 1e-5, 1e-6])
    with pytest.raises(ValueError, match="layer_decay is a share from 0 to 1"):
        preset("small", 100, 128, {"layer_decay": 3}, False)
