"""The bench: who takes turns, on what, and what is made of the times. No test looks at how long anything took."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unveil.cli.flags import flags_of
from unveil.experiments.bench import bench
from unveil.experiments.bench import command as commands
from unveil.experiments.bench.chosen import choose_settings, mode_of
from unveil.experiments.bench.contenders import CONTENDERS, Ours, select_contenders
from unveil.experiments.bench.flops_and_memory import StepCost, count_flops
from unveil.experiments.bench.modes import How, split_names
from unveil.experiments.bench.products import SIDE, Rates, record_products, seconds_alone
from unveil.experiments.bench.timing import Stepper
from unveil.experiments.bench.work import Work
from unveil.modeling.decoder import CrossDecoder, SelfDecoder
from unveil.modeling.encoder import SIZES

CPU = torch.device("cpu")
SMALL = Work("tiny", 8, (32,), 2, 0)
BASE = Work("base", 16, (224,), 8, 0)
LADDER: tuple[str, ...] = ("mae", "cross-attention", "partial", "inter-block")
quick = {"size": "tiny", "patch": 8, "image_size": (32,), "batch_size": 2, "memory": False, "device": "cpu"}


class TestContenders:
    """Each is what its name says, and all do the same work."""

    @pytest.mark.parametrize(
        ("name", "decoder", "depth", "num_predicted", "reads"),
        [
            ("mae", SelfDecoder, 8, 147, ()),
            ("cross-attention", CrossDecoder, 12, 147, ()),
            ("partial", CrossDecoder, 12, 49, ()),
            ("inter-block", CrossDecoder, 12, 49, tuple(range(13))),
        ],
    )
    def test_the_ladder(self, name: str, decoder: type, depth: int, num_predicted: int, reads: tuple[int, ...]):
        with torch.device("meta"):
            built = CONTENDERS[name].build(BASE)
            assert isinstance(built, Ours)
            seen = built.model.encode_decode(replace(BASE, batch_size=1).batch("meta"))
        (found,) = built.model.decoders.values()
        assert type(found) is decoder
        assert len(found.blocks) == depth
        assert (seen.mask.visible.shape[1], seen.mask.predicted.shape[1]) == (49, num_predicted)
        assert found.reads == reads
        assert (found.blend is None) == (not reads)
        assert isinstance(built.model.encoder.norm, torch.nn.Identity) == bool(reads)

    def test_transformers_trains_the_same_network_on_the_same_terms(self):
        pytest.importorskip("transformers", reason="the comparison needs transformers")
        assert (
            count_flops(CONTENDERS["transformers"], BASE).parameters == count_flops(CONTENDERS["mae"], BASE).parameters
        )
        config = CONTENDERS["transformers"].build(SMALL).model.config
        assert (config.mask_ratio, config.norm_pix_loss, config._attn_implementation) == (0.75, True, "sdpa")

    def test_the_seed_alone_decides_images_and_weights(self):
        one, same = (CONTENDERS["mae"].build(SMALL) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
        assert torch.equal(SMALL.batch(CPU).maps["rgb"], SMALL.batch(CPU).maps["rgb"])
        assert not torch.equal(SMALL.batch(CPU).maps["rgb"], replace(SMALL, seed=1).batch(CPU).maps["rgb"])

    def test_our_models_have_the_optimizer_that_was_given(self):
        work = Work("nano", 8, (32,), 2, 0, "muon")
        stepper = Stepper(CONTENDERS["mae"].build(work), work.batch(CPU), CPU)
        assert stepper.step("float32").update > 0
        assert sum("momentum_buffer" in moments for moments in stepper.optimizer.state.values()) > 8
        with pytest.raises(ValueError, match="optimizer is one of"):
            Work("nano", 8, (32,), 2, 0, "lion")

    @pytest.mark.parametrize("name", ["attmask", "hpm", "maskfeat", "milan", "simmim"])
    def test_every_recipe_is_one(self, name: str):
        work = Work("nano", 8, (32,), 2, 0)
        stepper = Stepper(CONTENDERS[name].build(work), work.batch(CPU), CPU)
        assert stepper.step("float32").step > 0
        assert count_flops(CONTENDERS[name], work).flops > 0

    def test_without_transformers_the_others_run(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setitem(sys.modules, "transformers", None)
        found, absent = select_contenders(("transformers", "mae", "mae"), SMALL)
        assert [c.name for c in found] == ["mae"]
        assert "not installed" in absent["transformers"]
        assert "pip install" in absent["transformers"]
        with pytest.raises(ValueError, match="no contender is left"):
            select_contenders(("transformers",), SMALL)

    def test_images_that_transformers_cannot_read(self):
        pytest.importorskip("transformers", reason="the comparison needs transformers")
        found, absent = select_contenders(("mae", "transformers"), replace(SMALL, image_size=(32, 48)))
        assert [c.name for c in found] == ["mae"]
        assert "square" in absent["transformers"]
        CONTENDERS["mae"].build(replace(SMALL, image_size=(32, 48)))


def formula(name: str, work: Work) -> int:
    """Floating-point operations of a step, from the papers' shapes: a product of (a, b) and (b, c) is 2abc.

    A backward pass costs two forwards, but the images need no gradient.
    """
    dim, depth, _ = SIZES[work.size]
    height, width = work.sides
    tokens, values = (height // work.patch) * (width // work.patch), 3 * work.patch**2
    visible = tokens // 4
    hidden = tokens - visible
    read, narrow = 1 + visible, 512

    def block(n: int, d: int, asking: int | None = None) -> int:
        asking = n if asking is None else asking  # keys and values are of all tokens, what else there is of these
        return (10 * asking + 2 * n) * d**2 + 2 * asking * n * d

    def cross_block(n: int) -> int:
        return (2 + 8) * n * narrow**2 + 2 * read * dim * narrow + 2 * n * read * narrow

    total = depth * block(read, dim)
    if name in ("mae", "transformers"):
        answered = 1 + tokens if name == "transformers" else hidden  # theirs guess the visible patches too
        decoder = 7 * block(1 + tokens, narrow) + block(1 + tokens, narrow, answered)
        total += read * dim * narrow + decoder + answered * narrow * values
    else:
        asked = hidden if name == "cross-attention" else tokens // 4
        total += 12 * cross_block(asked) + asked * narrow * values
    if name == "inter-block":
        total += 12 * (depth + 1) * read * dim
    return 2 * work.batch_size * (3 * total + 2 * tokens * values * dim)


class TestFlops:
    @pytest.mark.parametrize("work", [SMALL, BASE], ids=lambda work: work.size)
    @pytest.mark.parametrize("name", LADDER)
    def test_counted_is_calculated(self, name: str, work: Work):
        assert count_flops(CONTENDERS[name], work).flops == formula(name, work)

    def test_transformers_counted_is_calculated(self):
        pytest.importorskip("transformers", reason="the comparison needs transformers")
        assert count_flops(CONTENDERS["transformers"], BASE).flops == formula("transformers", BASE)


class TestProducts:
    """The products of a step, and the rates at which they are computed alone."""

    def test_each_is_recorded_with_its_shapes(self):
        products = record_products(CONTENDERS["mae"], SMALL)
        dim, read = SIZES["tiny"][0], 2 * (1 + 4)
        shapes = {tuple(o.shape for o in product.operands[-2:]): n for product, n in products.items()}
        assert shapes[(read, dim), (dim, 3 * dim)] == 12, "queries, keys and values of every block"
        assert sum(product.flops * n for product, n in products.items()) == formula("mae", SMALL)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_their_time_alone_is_what_the_step_could_take(self, dtype: torch.dtype, monkeypatch):
        monkeypatch.setattr("unveil.experiments.bench.products.SIDE", 64)
        products = record_products(CONTENDERS["inter-block"], SMALL)
        types = set()
        rates = Rates(products, CPU, dtype)
        for product in rates.products:
            arguments = rates.arguments(product)
            assert [tuple(a.stride()) for a in arguments if isinstance(a, torch.Tensor)] == [
                o.stride for o in product.operands
            ]
            types |= {product.function(*arguments).dtype}
        assert types == {dtype}
        square, each = rates.measure()
        assert square > 0
        assert each.keys() == products.keys()
        assert seconds_alone(products, dict.fromkeys(products, 2.0)) == 2 * sum(products.values())

    def test_the_square_product_has_the_operations_that_it_is_counted_with(self):
        square = Rates((), CPU, torch.float32).square
        assert square.flops == 2 * SIDE**3
        assert [o.shape for o in square.operands] == [(SIDE, SIDE)] * 2


class TestModes:
    def test_behind_a_name_it_is_for_it_alone(self):
        names = split_names(("mae", "transformers:float32", "mae:auto", "mae:bf16"), ("float32", "bf16"))
        assert names == {"mae": ("float32", "bf16", "auto"), "transformers": ("float32",)}
        assert How.of("bf16+compile") == How("bf16", compile=True)
        assert How("float32", compile=True).mode == "float32+compile"

    def test_auto_is_what_pretrain_chooses(self, monkeypatch: pytest.MonkeyPatch):
        seen = {}

        def fastest(config, recipe, settings, modalities, planned):
            seen.update(stages=len(recipe.stages), batch=recipe.optim.batch_size, planned=planned)
            return replace(settings, precision="bf16", compile=True, micro_batch=1), 1.0

        monkeypatch.setattr("unveil.experiments.bench.chosen.choose_fastest", fastest)
        settings = choose_settings(CONTENDERS["cmtmae-stage2"], SMALL, CPU)
        assert mode_of(settings) == "bf16+compile"
        assert seen["stages"] == 1
        assert seen["batch"] == SMALL.batch_size
        assert seen["planned"] > 3600
        stepper = Stepper(CONTENDERS["mae"].build(SMALL), SMALL.batch(CPU), CPU)
        stepper.settings["auto"] = replace(settings, compile=False)
        sizes = []
        stepper.model.model.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
        assert stepper.step("auto").forward > 0
        assert sizes == [1, 1], "the micro-batches that it chose"

    def test_a_peer_is_as_it_comes(self):
        assert mode_of(choose_settings(CONTENDERS["transformers"], SMALL, CPU)) == "float32"

    @pytest.mark.parametrize("name", ["timm", "lightly"])
    def test_other_projects_do_the_same_work(self, name: str):
        if why := CONTENDERS[name].absent(SMALL):
            assert why.startswith("not installed")
            pytest.skip(why)
        flops = count_flops(CONTENDERS[name], BASE).flops
        assert flops == pytest.approx(count_flops(CONTENDERS["mae"], BASE).flops, rel=0.03)
        stepper = Stepper(CONTENDERS[name].build(SMALL), SMALL.batch(CPU), CPU)
        trained = {name: p for name, p in stepper.model.named_parameters() if p.requires_grad}
        before = {name: p.detach().clone() for name, p in trained.items()}
        stepper.step("float32")
        same = {name for name, p in trained.items() if torch.equal(before[name], p)}
        assert same <= {"model.encoder.mask_token"}, "lightly's encoder has one for other methods"


class TestPresets:
    def test_flags_beside_a_preset_override_it(self):
        given = {"size": None, "patch": None, "image_size": (), "batch_size": 3}
        assert commands.work_of("cifar", given, 5, CPU) == Work("tiny", 4, (32,), 3, 5)
        assert commands.work_of("base", given | {"batch_size": None}, 0, CPU) == Work("base", 16, (224,), 32, 0)
        assert commands.work_of(None, given | {"batch_size": None, "size": "small"}, 0, CPU).batch_size == 8


class TestGuidance:
    @pytest.mark.parametrize(
        ("other", "base", "times"),
        [
            # 2.2 and 1.86 beside an MAE whose last decoder block answers for visible patches too, as published
            ("cmtmae-stage2", "mae", 2.236),
            ("cmtmae-cross", "mae", 1.904),
            ("multimae-guided", "multimae", 2.57),
            ("guided-half", "multimae", 1.36),
            ("guided-layer4", "multimae", 1.43),  # 1.57 would be four blocks run; the fourth's attention needs three
            ("guided-every4", "multimae", 1.39),
            pytest.param("guided-fast", "multimae", 1.25, marks=pytest.mark.slow),  # of 16 steps
        ],
    )
    def test_its_arithmetic(self, other: str, base: str, times: float):
        found = count_flops(CONTENDERS[other], BASE).flops / count_flops(CONTENDERS[base], BASE).flops
        assert found == pytest.approx(times, rel=0.01)

    def test_of_a_period_all_steps_are_made_and_the_mean_is_told(self, monkeypatch: pytest.MonkeyPatch):
        contender = CONTENDERS["guided-every4"]
        model = contender.build(SMALL)
        looks: list[int] = []
        look = model.model.teachers["student"].teacher
        monkeypatch.setattr(look, "observe", lambda *seen, observe=look.observe: looks.append(1) or observe(*seen))
        stepper = Stepper(model, SMALL.batch(CPU), CPU, contender.period)
        assert stepper.step("float32").step > 0
        assert len(looks) == 1
        assert {int(state["step"]) for state in stepper.optimizer.state.values()} == {4}

    def test_an_average_moves_within_the_step(self):
        stepper = Stepper(CONTENDERS["cmtmae-stage2"].build(SMALL), SMALL.batch(CPU), CPU)
        before = [p.clone() for p in stepper.model.model.teachers["student"].parameters()]
        stepper.step("float32")
        after = list(stepper.model.model.teachers["student"].parameters())
        assert before
        assert any(not torch.equal(b, a) for b, a in zip(before, after, strict=True))


class TestCommand:
    def test_from_flags_to_file(self, tmp_path: Path, capsys, monkeypatch):
        monkeypatch.setattr("unveil.experiments.bench.products.SIDE", 64)
        seen = []

        class Watched(Stepper):
            def __init__(self, model, batch, *how):
                seen.append((batch, torch.get_num_threads()))
                super().__init__(model, batch, *how)

        monkeypatch.setattr(commands, "Stepper", Watched)
        monkeypatch.setattr(commands, "has_native_bf16", lambda device: False)
        threads = torch.get_num_threads()
        out = tmp_path / "bench.json"
        found = bench(**quick, contenders=("mae", "inter-block"), rounds=2, threads=1, out=str(out))
        assert len(seen) == 2
        assert seen[0][0] is seen[1][0], "all contenders are given the same batch"
        assert {used for _, used in seen} == {1}
        assert torch.get_num_threads() == threads

        kept = json.loads(out.read_text())
        assert kept == json.loads(json.dumps(found))
        assert kept["base"] == "mae"
        assert kept["work"] == {
            "size": "tiny",
            "patch": 8,
            "image_size": [32],
            "batch_size": 2,
            "seed": 0,
            "optimizer": "adamw",
        }
        assert {"command", "started", "git", "unveil", "threads", "busy_before", "goals", "memory_is"} <= set(kept)
        assert {"processor", "torch", "python", "cores", "transformers"} <= set(kept["machine"])
        times = {name: entry["seconds"]["float32"] for name, entry in kept["contenders"].items()}
        assert {name: len(t) for name, t in times.items()} == {"mae": 2, "inter-block": 2}
        assert set(times["mae"][0]) == {"forward", "backward", "update"}
        ratios = [sum(a.values()) / sum(b.values()) for a, b in zip(*times.values(), strict=True)]
        assert kept["ratios"]["float32"]["inter-block"]["speed"]["median"] == pytest.approx(sum(ratios) / 2)
        assert kept["ratios"]["float32"]["mae"]["speed"] == {"median": 1, "low": 1, "high": 1}
        assert kept["ratios"]["float32"]["mae"]["flops"] == 1
        peaks = kept["contenders"]["mae"]["peaks"]["float32"]
        shares = [p["alone"] / sum(t.values()) for p, t in zip(peaks, times["mae"], strict=True)]
        assert kept["ratios"]["float32"]["mae"]["of_shapes"]["median"] == pytest.approx(sum(shares) / 2)

        told = capsys.readouterr()
        assert "inter-block attention" in told.out
        assert "round 2 of 2" in told.err
        assert "bf16 is left out" in told.err
        assert "not timed: bf16" in told.out
        assert "of shapes" in told.out
        assert str(out) in told.err

    @pytest.mark.parametrize(
        ("asked", "native", "timed"),
        [
            ("both", True, ("float32", "bf16")),
            ("both", False, ("float32",)),
            ("float32", True, ("float32",)),
            ("bf16", False, ("bf16",)),
        ],
    )
    def test_bf16_is_timed_where_it_is_native_or_asked_for(self, asked, native, timed, monkeypatch):
        monkeypatch.setattr(commands, "has_native_bf16", lambda device: native)
        modes, refused = commands._modes(asked, CPU, False)
        assert modes == timed
        assert commands._modes(asked, CPU, True)[0] == tuple(f"{mode}+compile" for mode in timed)
        assert ("bf16" in refused) == (asked == "both" and not native)

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            ({"rounds": 0}, "rounds is a whole number, at least 1; got 0"),
            ({"threads": 0}, "threads is a whole number, at least 1; got 0"),
            ({"batch_size": 0}, "batch_size is a number of images"),
            ({"size": "medium"}, "size must be one of nano"),
            ({"preset": "imagenet"}, "preset is one of base, cifar; got imagenet"),
            ({"contenders": ("mae:fp8",)}, "mae:fp8: behind the colon one of float32, bf16"),
            ({"image_size": (30,)}, "does not divide"),
            ({"image_size": (32, 32, 32)}, "height and width"),
            ({"contenders": ("mae", "beit")}, "one or more of mae, .*; got beit"),
            ({"contenders": ()}, "got none"),
            ({"device": "abacus"}, "cannot be used here"),
            ({"out": "."}, "--out is a JSON file"),
            ({"out": "nowhere/bench.json"}, "a folder that exists"),
        ],
    )
    def test_a_mistake_is_found_before_anything_is_timed(self, flags, message, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(commands, "interleave", lambda *_: pytest.fail("it began to time"))
        with pytest.raises(ValueError, match=message):
            bench(**quick | flags)
        assert list(tmp_path.iterdir()) == []

    def test_an_unknown_contender_is_the_first_that_is_said(self, capsys):
        with pytest.raises(ValueError, match="got beit"):
            bench(contenders=("beit",))
        assert capsys.readouterr() == ("", "")

    def test_too_much_for_the_memory(self):
        costs = {"mae": StepCost(1, 10**9), "partial": StepCost(1, 10**9)}
        with pytest.raises(ValueError, match=r"needs about 26\.1 GB, .*fewer --contenders"):
            commands.check_room(costs, {}, CPU)
        commands.check_room({"mae": StepCost(1, 10**6)}, {"mae": {"float32": 20.0, "bf16": None}}, CPU)

    def test_every_argument_is_a_flag_with_a_meaning(self):
        flags = flags_of(bench)
        assert {f.name for f in flags} == set(bench.__annotations__) - {"return"}
        assert all(f.meaning for f in flags)
