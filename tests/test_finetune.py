"""Fine-tuning: rates, layers, schedules and one whole step against computations of their own; toys that are learned."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from measuring import on_images, score
from tiny_runs import write_images
from unveil.data.augment import Mix
from unveil.data.loader import Loader
from unveil.data.sources import open_source
from unveil.data.transforms import View
from unveil.evaluation.datasets import ImageSplit
from unveil.evaluation.features import RawPixels
from unveil.evaluation.finetuning import Classifier, FineTuner, FineTuning, StochasticDepth
from unveil.evaluation.fit import follow, update
from unveil.evaluation.protocols.attentive import Attentive
from unveil.evaluation.protocols.finetune import Finetune
from unveil.evaluation.registry import Repeated, choose, options_of, protocols
from unveil.evaluation.results import ResultCache, table
from unveil.evaluation.types import Context, TrainableEncoder
from unveil.modeling.encoder import Encoder
from unveil.modeling.image_encoder import ImageEncoder
from unveil.modeling.optim import layer_groups
from unveil.modeling.public_vits import load_encoder
from unveil.modeling.rng import SampleRng, sample_keys
from unveil.modeling.types import RGB, Batch

PLAIN = FineTuning(
    drop_path=0, randaugment=0, mixup=0, cutmix=0, smoothing=0, erasing=0, weight_decay=0.05, layer_decay=0.5
)
OPTIONS = {"epochs": 12, "batch_size": 16, "lr": 0.05, "randaugment": 0, "drop_path": 0, "smoothing": 0, "cutmix": 0}


def tiny(seed: int = 0, final_norm: bool = True) -> ImageEncoder:
    torch.manual_seed(seed)
    return ImageEncoder(Encoder([RGB], (8,), 4, dim=16, depth=2, heads=2, final_norm=final_norm))


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """A folder of two classes, red and blue, that any network learns; one file is broken."""
    folder = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)
    from PIL import Image

    for name, colour in {"blue": (60, 60, 160), "red": (160, 60, 60)}.items():
        (folder / name).mkdir()
        for i in range(30):
            pixels = np.clip(np.array(colour) + rng.integers(-40, 40, (10, 12, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:02}.png")
    (folder / "red" / "03.png").write_bytes(b"not an image")
    return folder


def data(folder) -> ImageSplit:
    return ImageSplit.of(open_source(folder))


def finetuned(folder, encoder=None, seed: int = 0, pool: str = "mean", **options):
    return score(Finetune(**{**OPTIONS, **options}), encoder or tiny(), data(folder), seed=seed, pool=pool)


def batch(count: int = 6) -> tuple[Batch, torch.Tensor]:
    images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    views = Batch({"rgb": images}, sample_keys(0, 0, range(count)), torch.zeros(()))
    return views, torch.arange(count) % 2


def test_our_encoders_can_be_trained_and_pixels_cannot():
    assert isinstance(tiny(), TrainableEncoder)
    assert not isinstance(RawPixels(RGB, (8, 8)), TrainableEncoder)


@pytest.mark.parametrize("final_norm", [True, False])
def test_maps_are_the_features_before_the_norm(final_norm):
    encoder = tiny(final_norm=final_norm)
    images = batch()[0].maps["rgb"]
    first, last = encoder.maps(images, [1, 2])
    assert first.shape == (6, 1 + 4, 16)
    normed = F.layer_norm(last, (16,), eps=1e-6)  # a norm that has not learned is one without parameters
    torch.testing.assert_close(normed[:, 0], encoder.features(images, "cls"))
    assert not torch.allclose(first, last)


def test_every_parameter_has_its_layer():
    encoder = tiny()
    layers = {name: encoder.layer_of(name) for name, _ in encoder.named_parameters()}
    assert {layer for name, layer in layers.items() if ".blocks." not in name and "norm" not in name} == {0}
    assert layers["encoder.blocks.1.mlp.0.weight"] == 2
    assert layers["encoder.norm.weight"] == 3
    assert set(layers.values()) == {0, 1, 2, 3}


def test_groups_scale_the_rate_by_layer_and_free_vectors_and_tokens():
    model = Classifier(tiny(), 2, "mean", torch.Generator())
    collected = {}
    for group in layer_groups(model, model.encoder, 0.5, 0.05):
        collected |= {id(p): (group["scale"], group["weight_decay"]) for p in group["params"]}
    by_name = {name: collected[id(p)] for name, p in model.named_parameters()}
    assert len(collected) == len(list(model.parameters()))
    assert by_name["encoder.encoder.prefix"] == (0.125, 0)
    assert by_name["encoder.encoder.adapters.rgb.proj.weight"] == (0.125, 0.05)
    assert by_name["encoder.encoder.blocks.0.attn.qkv.weight"] == (0.25, 0.05)
    assert by_name["encoder.encoder.blocks.1.attn.qkv.bias"] == (0.5, 0)
    assert by_name["norm.weight"] == (1, 0)
    assert by_name["head.weight"] == (1, 0.05)


def test_one_step_is_that_of_a_plain_computation(colours):
    """Mixup, label smoothing, erasing off, layer decay and weight decay, two micro-batches; AdamW written out."""
    settings = replace(PLAIN, smoothing=0.1)
    encoder, lr, own = tiny(1), 0.01, 0.7
    tuner = FineTuner(encoder, data(colours), settings, "mean", Context(micro_batch=4))
    torch.nn.init.normal_(tuner.model.head.weight)  # so that gradients are far above Adam's epsilon
    plain = copy.deepcopy(tuner.model)
    views, labels = batch()
    images = views.maps["rgb"]
    loss = update(tuner.optimizer, tuner.losses((views, labels, Mix(own))), lr)

    x = own * images + (1 - own) * images.flip(0)
    y = F.one_hot(labels, 2) * 0.9 + 0.05
    y = own * y + (1 - own) * y.flip(0)
    net = plain.encoder.encoder
    tokens = net.embed(Batch({"rgb": x}, views.key, torch.ones(()))).values
    tokens = torch.cat([net.prefix.expand(6, -1, -1), tokens], 1)
    for block in net.blocks:
        tokens = block(tokens)
    scores = plain.head(F.layer_norm(tokens[:, 1:].mean(1), (16,), eps=1e-6) * plain.norm.weight + plain.norm.bias)
    wanted = -(y * scores.log_softmax(1)).sum(1).mean()
    wanted.backward()
    torch.testing.assert_close(loss, wanted.detach())
    moved = 0
    for (name, new), (_, old) in zip(tuner.model.named_parameters(), plain.named_parameters(), strict=True):
        if old.grad is None:
            assert torch.equal(new, old)  # the encoder's own norm, which the mean does not pass
            continue
        layer = 3 if not name.startswith("encoder.") else 0
        if ".blocks." in name:
            layer = int(name.split(".blocks.")[1][0]) + 1
        rate = lr * 0.5 ** (3 - layer)
        decay = 0 if old.ndim == 1 or name.endswith("prefix") else 0.05
        step = old.grad / (old.grad.abs() + 1e-8)  # both moments, corrected, after the first step
        sure = old.grad.abs() > 1e-4  # a bias of the keys has no gradient but rounding
        torch.testing.assert_close(new[sure], (old * (1 - rate * decay) - rate * step)[sure], rtol=1e-4, atol=1e-6)
        moved += int(sure.sum())
    assert moved > 0.9 * sum(p.numel() for p in plain.parameters() if p.grad is not None)


def test_micro_batches_change_nothing_but_rounding(colours):
    settings = replace(FineTuning(), layer_decay=0.8, drop_path=0.5)
    weights = []
    for micro_batch in (2, 6):
        tuner = FineTuner(tiny(), data(colours), settings, "cls", Context(micro_batch=micro_batch))
        update(tuner.optimizer, tuner.losses((*batch(), Mix(0.5, (0, 4, 0, 4)))), 1e-3)
        weights.append(torch.cat([p.detach().flatten() for p in tuner.model.head.parameters()]))
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-7)


def test_stochastic_depth_leaves_branches_out_by_sample():
    encoder = copy.deepcopy(tiny()).train()
    images = batch(64)[0].maps["rgb"]
    whole = encoder.maps(images, [1, 2])
    depth = StochasticDepth(encoder.branches(), 0.5)
    assert depth.keep.tolist() == [1, 1, 0.5, 0.5]
    depth.draw(SampleRng(sample_keys(0, 0, range(64))))
    first, last = encoder.maps(images, [1, 2])
    torch.testing.assert_close(first, whole[0])  # the first block is never left out
    untouched = (last == first).flatten(1).all(1)
    assert 4 <= untouched.sum() <= 30  # a quarter loses both of its branches
    assert depth.factors is not None
    assert set(depth.factors[:, 2:].unique().tolist()) == {0.0, 2.0}
    torch.testing.assert_close(encoder.eval().maps(images, [2])[0], whole[1])


def test_the_average_of_the_weights_is_what_is_judged(colours):
    tuner = FineTuner(tiny(), data(colours), replace(PLAIN, ema=0.9, epochs=1, batch_size=12), "mean", Context())
    start = [p.detach().clone() for p in tuner.model.parameters()]
    average = [p.clone() for p in start]
    update(tuner.optimizer, tuner.losses((*batch(), Mix(1.0))), 0.01)
    follow(average, tuner.model, 0.9, 1)
    for first, now, mean in zip(start, tuner.model.parameters(), average, strict=True):
        torch.testing.assert_close(mean, first + (1 - 2 / 11) * (now - first))
    ends = []
    for ema in (0.0, 0.9):
        tuner = FineTuner(tiny(), data(colours), replace(PLAIN, ema=ema, epochs=1, batch_size=12), "mean", Context())
        tuner.train()
        ends.append([p.detach() for p in tuner.model.parameters()])
    shares = [
        ((mean - first).norm() / (last - first).norm()).item()
        for first, last, mean in zip(start, *ends, strict=True)
        if not torch.equal(first, last)
    ]
    assert max(shares) < 1, "averaged weights lag behind the last ones"


def test_views_are_pure_functions_and_carry_their_own_labels(colours):
    train = data(colours).train
    loader, classes = Loader(train, View((8, 8)), 16, seed=3, max_broken=None), torch.tensor(train.numbers)
    first, again = list(loader.numbered(2)), list(loader.numbered(2))
    assert len(first) == loader.steps_per_epoch == 3
    for (one, rows), (other, _) in zip(first, again, strict=True):
        images = one.maps["rgb"]
        assert torch.equal(images, other.maps["rgb"])
        red_over_blue = images[:, 0].float().mean((1, 2)) > images[:, 2].float().mean((1, 2))
        assert torch.equal(red_over_blue.long(), classes[rows])
    assert not torch.equal(next(loader.batches(3)).key, first[0][0].key)
    assert set(loader.unreadable) <= {"red/03.png"}


def test_a_toy_is_learned_and_twice_the_same(colours):
    encoder = tiny()
    first, again = (finetuned(colours, encoder, 5) for _ in range(2))
    assert first == again
    assert first is not None
    assert first.metrics["accuracy"] > 0.9
    assert first.settings["preset"] == "small"
    assert first.settings["epochs"] == 12
    assert "12 epochs with batches of 16 (preset small)" in first.card
    assert finetuned(colours, encoder, 6).metrics != first.metrics


def test_the_encoder_that_was_given_stays_as_it_was(colours):
    encoder = tiny()
    before = copy.deepcopy(encoder.state_dict())
    finetuned(colours, encoder, epochs=1, drop_path=0.3)
    assert all(torch.equal(before[name], now) for name, now in encoder.state_dict().items())
    assert not encoder.training
    assert not any(module._forward_hooks for module in encoder.modules())


def test_a_class_token_is_fine_tuned_under_the_norm_that_is_kept(colours, tmp_path):
    file = tmp_path / "teacher.safetensors"
    encoder = tiny()
    finetuned(colours, encoder, pool="cls", epochs=1, keep=str(file))
    assert not torch.equal(load_file(file)["encoder.norm.weight"], encoder.encoder.norm.weight)


def test_what_was_fine_tuned_is_kept_and_read_as_any_encoder(colours, tmp_path):
    file = tmp_path / "teacher.safetensors"
    encoder = tiny()
    assert finetuned(colours, encoder, epochs=1, keep=str(file))
    read = load_encoder(file)
    images = batch()[0].maps["rgb"]
    before = encoder.features(images, "mean")
    after = read.features(images, "mean")
    assert not torch.allclose(before, after, atol=1e-3), "it has learned"
    weights = load_file(file)
    again = tiny(seed=1)
    again.encoder.load_state_dict({name.removeprefix("encoder."): tensor for name, tensor in weights.items()})
    torch.testing.assert_close(again.features(images, "mean"), after, atol=1e-5, rtol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["teacher.safetensors"]
    with pytest.raises(ValueError, match=r"--keep is a new \.safetensors file"):
        finetuned(colours, encoder, keep=str(file))


def test_results_have_training_from_scratch_beside_them_and_no_pixels(colours):
    baselines = {"pixels": RawPixels(RGB, (8, 8)), "untrained": tiny(7)}
    notes = []
    (result,) = on_images(
        tiny(), ["finetune"], open_source(colours), pool="mean", baselines=baselines, options=OPTIONS, note=notes.append
    )
    assert set(result.baselines) == {"from scratch"}
    assert result.settings["layer_decay"] == 0.75
    assert set(notes) == {
        "finetune: preset small for 48 images: 12 epochs in batches of 16; --preset, --epochs, --updates and"
        " --batch-size say otherwise"
    }
    assert table([result]).splitlines()[0].split() == ["protocol", "from", "scratch", "this", "run"]


def test_a_stopped_evaluation_goes_on_after_what_it_has_measured(colours, tmp_path):
    def measured(tell, **options):
        cache = ResultCache(tmp_path / "unfinished")
        return cache, on_images(
            tiny(),
            ["finetune"],
            open_source(colours),
            baselines={"untrained": tiny(7)},
            options={**OPTIONS, "epochs": 2, **options},
            progress=tell,
            cache=cache,
        )

    first_calls = []

    def stop(what, done, total):
        first_calls.append(what)
        if what == "fine-tuning untrained":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(stop)
    assert "fine-tuning this run" in first_calls
    later_calls = []
    cache, results = measured(lambda what, done, total: later_calls.append(what))
    assert set(later_calls) == {"fine-tuning untrained"}
    cache.clear()
    assert not (tmp_path / "unfinished").exists()
    again = measured(lambda what, done, total: later_calls.append(what), lr=0.04)[1]
    assert "fine-tuning this run" in later_calls  # another rate is another measurement
    whole = on_images(
        tiny(),
        ["finetune"],
        open_source(colours),
        baselines={"untrained": tiny(7)},
        options={**OPTIONS, "epochs": 2},
    )
    assert (results[0].metrics, results[0].baselines) == (whole[0].metrics, whole[0].baselines)
    assert again[0].baselines != results[0].baselines


def test_the_attentive_probe_learns_and_is_the_same_twice(colours):
    encoder, protocol = tiny(), Attentive(epochs=30)
    result = score(protocol, encoder, data(colours))
    assert result is not None
    assert result.metrics["accuracy"] > 0.9
    assert score(protocol, encoder, data(colours)) == result
    assert score(protocol, RawPixels(RGB, (8, 8)), data(colours)) is None


def test_an_option_has_one_type_in_all_protocols():
    from unveil.cli.flags import flags_of

    kinds: dict[str, object] = {}
    for protocol in protocols().values():
        flags = {flag.name: flag for flag in flags_of(protocol)}
        assert list(flags) == [name for name in options_of(protocol) if name in flags]
        assert set(options_of(protocol)) == set(flags) or issubclass(protocol, Repeated)
        for option, flag in flags.items():
            assert flag.meaning, option
            kind = str if flag.choices else flag.kind  # a word goes to the protocols that list it
            assert kinds.setdefault(option, kind) == kind


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (
            ["knn"],
            {"epochs": 3},
            "knn has no option 'epochs'; attentive, .*finetune, .*transfer --by attentive have",
        ),
        (["knn", "linear"], {"nonsense": 3}, "knn and linear have no option 'nonsense'; no protocol has it"),
        (["finetun"], {}, "did you mean finetune"),
    ],
)
def test_an_option_that_no_chosen_protocol_has_is_refused(names, options, message):
    with pytest.raises(ValueError, match=message):
        choose(names, options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "at least 1; got 0"),
        ({"drop_path": 1.5}, "drop_path is a share from 0 to 1; got 1.5"),
        ({"erasing": -0.1}, "erasing is a share"),
        ({"randaugment": 11}, "magnitude from 0 to 10; got 11"),
        ({"lr": -1}, "lr is at least 0"),
        ({"lr": 1e30}, "diverged in epoch 1 .*lower --lr"),
    ],
)
def test_dials_that_make_no_sense_are_refused(colours, options, message):
    with pytest.raises(ValueError, match=message):
        finetuned(colours, **{"epochs": 2, **options})


def test_bad_data_is_refused(colours, tmp_path):
    def evaluate_on(train, test=None):
        names = ["finetune"]
        return on_images(tiny(), names, open_source(train), test and open_source(test), options=OPTIONS, pool="mean")

    flat = tmp_path / "flat"
    write_images(tmp_path / "two", 8)
    flat.mkdir()
    for file in (tmp_path / "two" / "even").iterdir():
        (flat / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="has no labels"):
        evaluate_on(flat)
    with pytest.raises(ValueError, match=r"2 classes that .* has not, e\.g\. 'even'"):
        evaluate_on(colours, tmp_path / "two")
    with pytest.raises(ValueError, match="give --pool cls or --pool mean"):
        finetuned(colours, pool="both")
    with pytest.raises(ValueError, match="gives features only"):
        on_images(RawPixels(RGB, (8, 8)), ["finetune"], open_source(colours))
    assert math.isfinite(PLAIN.rate(3))
