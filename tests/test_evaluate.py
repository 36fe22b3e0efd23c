"""Features from sources, whole runs on real files, what is written and shown, and what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import pytest
import torch
from PIL import Image

from measuring import on_images
from unveil.data.sources import Unreadable, open_source
from unveil.evaluation.features import RawPixels, extract, feature_std, rankme
from unveil.evaluation.outcomes import read_outcomes
from unveil.evaluation.registry import protocols
from unveil.evaluation.results import Result, table, write_results
from unveil.modeling.types import RGB, Modality

COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (200, 60, 50)}
PIXELS = RawPixels(RGB, (8, 8))


@dataclass(frozen=True)
class Patches:
    """A stand-in for a ViT: mean colours of four patches; the class token is their maximum."""

    channels: int = 3
    image_size: tuple[int, int] = (8, 8)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def features(self, images, pool):
        assert images.dtype == torch.float32
        assert 0 <= images.min() <= images.max() <= 1
        patches = torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(2)  # B C N
        mean, cls = patches.mean(2), patches.amax(2)
        return {"cls": cls, "mean": mean, "both": torch.cat([cls, mean], 1)}[pool]


@dataclass(frozen=True)
class Memory:
    """A source in memory. An image that is None is broken."""

    images: list
    labels: list[int] | None
    classes: list[str] | None = None
    channels: int = 3
    address: str = "memory"

    def __len__(self):
        return len(self.images)

    def image(self, index):
        if self.images[index] is None:
            raise Unreadable(self.name(index), "it is broken")
        return self.images[index]

    def name(self, index):
        return f"image {index}"


def coloured(count: int, seed: int = 0) -> Memory:
    rng = torch.Generator().manual_seed(seed)
    labels = [i % 3 for i in range(count)]
    noise = torch.randint(-30, 30, (count, 3, 12, 12), generator=rng)
    colours = torch.tensor(list(COLOURS.values()))[labels][:, :, None, None]
    return Memory(list((colours + noise).clamp(0, 255).to(torch.uint8)), labels, list(COLOURS))


@pytest.fixture
def folder(tmp_path):
    """Class folders of PNG files, one of them broken."""
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(15):
            pixels = np.clip(np.array(colour) + rng.integers(-30, 30, (10, 14, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i:02}.png")
    (tmp_path / "data" / "red" / "03.png").write_bytes(b"not an image")
    return tmp_path / "data"


@pytest.mark.parametrize(("pool", "dim"), [("cls", 3), ("mean", 3), ("both", 6)])
def test_features_have_the_shape_of_the_pool(pool, dim):
    result = extract(Patches(), coloured(10), pool, batch_size=4)
    assert result.values.shape == (10, dim)
    assert result.values.dtype == torch.float32
    assert result.labels.tolist() == coloured(10).labels
    assert result.names == tuple(f"image {i}" for i in range(10))


def test_features_do_not_depend_on_the_batch_size():
    whole = extract(Patches(), coloured(23), "both", batch_size=23)
    for batch_size in (1, 4, 22, 100):
        assert torch.equal(extract(Patches(), coloured(23), "both", batch_size).values, whole.values)


def test_broken_images_are_left_out_and_named():
    source = coloured(12)
    holes = replace(source, images=[None if i in (0, 5, 6, 7) else x for i, x in enumerate(source.images)])
    result, whole = extract(Patches(), holes, "cls", batch_size=2), extract(Patches(), source, "cls")
    assert result.unreadable == ("image 0", "image 5", "image 6", "image 7")
    readable = [1, 2, 3, 4, 8, 9, 10, 11]
    assert torch.equal(result.values, whole.values[readable])
    assert result.labels.tolist() == [source.labels[i] for i in readable]
    assert result.names == tuple(f"image {i}" for i in readable)


def test_an_error_of_the_source_is_not_swallowed():
    class Failing(Memory):
        def image(self, index):
            raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        extract(Patches(), Failing([None] * 9, None), "cls", batch_size=2)


def test_bytes_and_floats_of_one_source_mean_the_same():
    source = coloured(6)
    mixed = replace(source, images=[x / 255 if i % 2 else x for i, x in enumerate(source.images)])
    both = [extract(Patches(), s, "mean").values for s in (source, mixed)]
    torch.testing.assert_close(both[0], both[1], atol=0.01, rtol=0)  # bytes are rounded after the resize


def test_a_limit_is_spread_over_the_source():
    calls = []
    result = extract(Patches(), coloured(30), "cls", batch_size=4, limit=10, progress=lambda *p: calls.append(p))
    assert result.names == tuple(f"image {i}" for i in range(0, 30, 3))
    assert calls == [(4, 10), (8, 10), (10, 10)]


def test_features_can_be_trained_on():
    result = extract(Patches(), coloured(4), "cls").values
    weight = torch.zeros(3, requires_grad=True)
    (result @ weight).sum().backward()
    assert weight.grad.abs().sum() > 0


def test_raw_pixels_are_normalised_and_at_most_32_wide():
    assert RawPixels(RGB, (224, 224)).image_size == (32, 32)
    assert RawPixels(RGB, (160, 224)).image_size == (22, 32)
    assert RawPixels(RGB, (16, 24)).image_size == (16, 24)
    mean = torch.tensor(RGB.mean)[None, :, None, None].expand(2, 3, 8, 8)
    assert PIXELS.features(mean, "cls").shape == (2, 192)
    assert PIXELS.features(mean, "cls").abs().max() < 1e-6


def test_a_folder_end_to_end(folder, tmp_path):
    call = lambda: on_images(  # noqa: E731
        Patches(), ["knn", "linear-lbfgs"], open_source(folder), pool="mean", baselines={"pixels": PIXELS}, seed=4
    )
    results = call()
    again = call()
    for one, other in zip(results, again, strict=True):
        assert (one.metrics, one.baselines) == (other.metrics, other.baselines)
    paths = write_results(tmp_path / "run", results)
    assert [p.name for p in paths] == ["knn.json", "linear-lbfgs.json"]
    written = json.loads(paths[0].read_text())
    assert set(written) == {
        "weights",
        *("protocol", "data", "test_data", "pool", "metrics", "baselines", "settings", "card", "seconds", "date"),
        *("details", "shown"),
    }
    content = asdict(results[0])
    outcomes = {subject: own["accuracy"] for subject, own in content.pop("outcomes").items()}
    assert set(content["shown"]) == {"classes"}, "pictures are of some protocols alone"
    assert written == json.loads(json.dumps(content))
    kept = read_outcomes(tmp_path / "run", "knn")
    assert {subject: own["accuracy"].tolist() for subject, own in kept.items()} == outcomes
    assert np.mean(outcomes["pixels"]) == pytest.approx(written["baselines"]["pixels"]["accuracy"])
    assert written["data"] == str(folder)
    assert written["test_data"] is None
    assert "held out" in written["card"]
    assert written["metrics"]["accuracy"] == 1
    assert set(written["baselines"]) == {"pixels"}
    assert (written["settings"]["train_images"], written["settings"]["test_images"]) == (
        35,
        9,
    )  # 12 of 15 each, but one
    assert written["settings"]["unreadable_names"] == ["red/03.png"]


def test_every_protocol_runs_and_is_found_by_its_users_name():
    assert {"knn", "linear", "linear-lbfgs", "finetune"} <= set(protocols())
    results = on_images(Patches(), ["knn", "linear", "linear-lbfgs"], coloured(60), coloured(30, seed=1))
    assert [r.metrics["accuracy"] for r in results] == [1, 1, 1]
    assert all(r.test_data == "memory" and "held out" not in r.card for r in results)


def test_features_are_extracted_once_per_encoder():
    calls = []

    class Counted(Patches):
        def features(self, images, pool):
            calls.append(len(images))
            return super().features(images, pool)

    on_images(Counted(), ["knn", "linear-lbfgs"], coloured(30), coloured(12, seed=1))
    assert calls == [30, 12]


def test_test_classes_are_matched_by_name():
    test = coloured(30, seed=1)
    turned = replace(test, labels=[(label + 1) % 3 for label in test.labels], classes=["red", "blue", "green"])
    assert on_images(Patches(), ["knn"], coloured(60), turned)[0].metrics["accuracy"] == 1


def test_results_of_other_protocols_stay_and_a_failed_write_changes_nothing(tmp_path):
    (result,) = on_images(Patches(), ["knn"], coloured(30))
    write_results(tmp_path, [result, replace(result, protocol="linear")])
    write_results(tmp_path, [replace(result, metrics={"accuracy": 0.5})])
    assert json.loads((tmp_path / "eval" / "linear.json").read_text())["metrics"] == result.metrics
    with pytest.raises(TypeError):
        write_results(tmp_path, [replace(result, settings={"not": object()})])
    assert json.loads((tmp_path / "eval" / "knn.json").read_text())["metrics"] == {"accuracy": 0.5}
    assert sorted(p.name for p in (tmp_path / "eval").iterdir()) == ["knn.json", "linear.json"]


def test_a_result_on_other_data_is_kept_and_one_that_was_repeated_is_replaced(tmp_path, capsys):
    result = Result("knn", "a", None, "cls", {"accuracy": 0.5}, {}, {"k": 20}, "", 0.0, "2026-11-29T07:05:55+00:00")
    write_results(tmp_path, [result])
    write_results(tmp_path, [replace(result, metrics={"accuracy": 0.6}, date="2026-11-29T08:00:00+00:00")])
    assert not (tmp_path / "eval" / "earlier").exists()
    write_results(tmp_path, [replace(result, data="b", metrics={"accuracy": 0.9})])
    (kept,) = (tmp_path / "eval" / "earlier").iterdir()
    assert kept.name == "knn-20261129T080000.json"
    assert json.loads(kept.read_text())["metrics"] == {"accuracy": 0.6}
    assert json.loads((tmp_path / "eval" / "knn.json").read_text())["data"] == "b"
    assert "the earlier result of knn on a is kept as eval/earlier/knn-20261129T080000.json" in capsys.readouterr().err
    (tmp_path / "eval" / "knn.json").write_text("damaged")
    write_results(tmp_path, [result])
    assert json.loads((tmp_path / "eval" / "knn.json").read_text())["data"] == "a"


def test_the_table_lines_up():
    def result(name: str, own: float, **baselines: float) -> Result:
        metrics = {who: {"accuracy": accuracy} for who, accuracy in baselines.items()}
        return Result(name, "d", None, "cls", {"accuracy": own}, metrics, {}, "", 0.0, "")

    assert table([result("knn", 0.4567, pixels=0.355, untrained=0.31), result("linear-lbfgs", 1, pixels=0.4)]) == (
        "protocol      pixels  untrained  this run\n"
        "knn           35.5 %     31.0 %    45.7 %\n"
        "linear-lbfgs  40.0 %          -   100.0 %"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ["kn"]}, "no protocol 'kn'; did you mean knn\\?"),
        ({"names": ["nonesuch"]}, "no protocol 'nonesuch'; there are .*knn.*linear-lbfgs"),
        ({"train": replace(coloured(9), labels=None)}, "memory has no labels.*folder of its own name.*label column"),
        ({"train": replace(coloured(9), labels=[-1] * 2 + [0] * 3 + [1] * 4)}, "2 of the 9 images .* have no label"),
        ({"train": replace(coloured(9), labels=[1] * 9)}, "one class \\('green'\\)"),
        ({"train": replace(coloured(9), labels=[0] * 8 + [2]), "test": None}, "single image, e.g. 'red'"),
        ({"test": replace(coloured(9), labels=None)}, "memory has no labels"),
        ({"test": replace(coloured(9), classes=["blue", "green", "pink"])}, "1 classes .* has not, e.g. 'pink'"),
        ({"test": replace(coloured(9), channels=4)}, "images of 4 channels, the encoder reads 3"),
        ({"encoder": Patches(channels=1)}, "images of 3 channels, the encoder reads 1"),
        ({"baselines": {"pixels": RawPixels(Modality("grey", 1, (0.5,), (0.2,)), (8, 8))}}, "encoder reads 1"),
    ],
)
def test_bad_input_is_refused_before_an_image_is_read(change, message):
    class Unread(Memory):
        def image(self, index):
            raise AssertionError("read")

    call = {"encoder": Patches(), "names": ["knn"], "train": coloured(9), "test": coloured(9), **change}
    for name in ("train", "test"):
        if (s := call[name]) is not None:
            call[name] = Unread(s.images, s.labels, s.classes, s.channels)
    with pytest.raises(ValueError, match=message):
        on_images(**call)


def test_sets_without_a_readable_image_and_broken_encoders_are_named():
    with pytest.raises(ValueError, match=r"none of the 3 images of memory can be read.*image 0"):
        extract(Patches(), Memory([None] * 3, None), "cls")

    class Diverged(Patches):
        def features(self, images, pool):
            return super().features(images, pool) / 0

    with pytest.raises(ValueError, match="not finite"):
        extract(Diverged(), coloured(3), "cls")


def test_rankme_counts_directions():
    rng = torch.Generator().manual_seed(0)
    isotropic = torch.randn(4000, 32, generator=rng)
    assert 31 < rankme(isotropic) <= 32.001
    assert rankme(torch.outer(isotropic[:, 0], isotropic[0])) == pytest.approx(1, abs=1e-3)
    basis = torch.linalg.qr(torch.randn(32, 5, generator=rng))[0]
    assert rankme(torch.randn(4000, 5, generator=rng) @ basis.T) == pytest.approx(5, abs=0.1)
    wide = torch.randn(10, 400, generator=rng)
    sizes = torch.linalg.svdvals(wide) / torch.linalg.svdvals(wide).sum()
    assert rankme(wide) == pytest.approx((-(sizes * sizes.log()).sum()).exp().item(), rel=1e-4)
    assert rankme(7 * isotropic) == pytest.approx(rankme(isotropic))


def test_feature_std_tells_spread_from_collapse():
    rng = torch.Generator().manual_seed(0)
    isotropic = torch.randn(4000, 32, generator=rng)
    assert feature_std(isotropic) == pytest.approx(1, abs=0.01)
    assert feature_std(torch.ones(100, 32)) == pytest.approx(0, abs=1e-6)
    assert feature_std(isotropic + 10) < 0.2
    assert feature_std(5 * isotropic) == pytest.approx(feature_std(isotropic))
