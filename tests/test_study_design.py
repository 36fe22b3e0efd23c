"""What a study may be: arms that build on one another, the built-in ones at every scale, images of one's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unveil.experiments.study import Arm, RunOf, Scale, Setting, Share, Study
from unveil.experiments.study.command import check_weights, with_data, with_overrides
from unveil.experiments.study.cost_estimate import build, flops_and_epochs
from unveil.experiments.study.jobs import expand, settled
from unveil.experiments.study.registry import check, load_study, studies
from unveil.training.run_metadata import layout_of


def test_arms_build_on_runs_of_others_in_the_same_setting_and_seed(tmp_path: Path):
    planned = Study(
        "?",
        (
            Arm("second", "cmtmae", {"teacher": RunOf("first"), "stage1_epochs": Share(0.25)}),
            Arm("first", "mae"),
        ),
        "first",
        {"cpu": Scale((Setting("x", "scenes"), Setting("y", "scenes")), (0, 1), {}, {"epochs": 8, "draw": "hard"})},
    )  # fmt: skip
    check(planned, "cpu")
    jobs = {(job.arm, job.setting, job.seed): job for job in expand(planned, "cpu", tmp_path)}
    assert len({job.name for job in jobs.values()}) == 8
    for (arm, setting, seed), job in jobs.items():
        if arm == "second":
            assert job.needs == [jobs["first", setting, seed].name]
            assert job.pretrain["teacher"] == str(tmp_path / "runs" / job.needs[0])
            assert (job.pretrain["stage1_epochs"], job.pretrain["draw"]) == (2.0, "hard")
        else:
            assert "draw" not in job.pretrain  # mae has none


def test_weights_on_the_way_are_measured_as_often_as_they_are_kept(tmp_path: Path):
    planned = load_study("cmtmae-attention")
    check(planned, "cpu")
    job = next(job for job in expand(planned, "cpu", tmp_path) if job.arm == "CMT-MAE")
    assert job.pretrain["save_every"] == 4
    assert [e["at_epoch"] for e in job.evaluate if "at_epoch" in e] == [4 * k for k in range(1, 9)]
    assert [e["protocol"] for e in job.evaluate if "at_epoch" not in e] == [["knn", "linear"]]
    with_none = replace(planned.scales["cpu"], options={"epochs": 8}, along={"knn": {"nonsense": 1}})
    with pytest.raises(ValueError, match="there is no option 'nonsense'"):
        check(replace(planned, scales={"cpu": with_none}), "cpu")


def test_a_study_can_be_done_without_the_arms_that_its_shared_options_are_for(tmp_path: Path):
    planned = with_overrides(load_study("recipes"), "cpu", arms=["MAE", "CrossMAE"])
    assert "teacher" in planned.scales["cpu"].options
    check(planned, "cpu")
    some, every = expand(planned, "cpu", tmp_path), expand(load_study("recipes"), "cpu", tmp_path)
    assert len(some) == 6
    assert {job.name for job in some} < {job.name for job in every}


NAMES = sorted(studies())


def test_runs_are_validated_at_the_same_epochs_on_any_machine(tmp_path: Path):
    given = expand(load_study("crossmae-mask-ratio"), "cpu", tmp_path)
    assert {job.pretrain["val_every"] for job in given} == {2.5}
    planned = load_study("crossmae-mask-ratio")
    own = replace(planned.scales["cpu"], options={**planned.scales["cpu"].options, "val_every": 5})
    assert {j.pretrain["val_every"] for j in expand(replace(planned, scales={"cpu": own}), "cpu", tmp_path)} == {5}


@pytest.mark.parametrize("name", NAMES)
def test_a_built_in_study_is_possible_at_every_scale(name: str, tmp_path: Path):
    planned = load_study(name)
    assert planned.question
    assert set(planned.scales) == {"smoke", "cpu", "gpu", "paper"}
    for scale, at in planned.scales.items():
        check(planned, scale)
        given = with_data(planned, scale, data=[f"{s.name}=scenes" for s in at.settings if s.data is None])
        jobs = expand(given, scale, tmp_path)
        assert len({job.name for job in jobs}) == len(jobs)
        assert len(jobs) == len(planned.arms_at(scale)) * len(at.settings) * len(at.seeds)
    assert len(expand(planned, "cpu", tmp_path)) <= 12


@pytest.mark.parametrize("name", NAMES)
def test_a_built_in_study_gives_its_arms_equal_epochs_or_equal_time_at_every_scale(name: str):
    """Arms that continue another training are compared with one another; what they start from is none of them."""
    study = load_study(name)
    for scale, at in study.scales.items():
        assert at.minutes is not None or all("epochs" in {**at.options, **s.options} for s in at.settings)
        for setting in at.settings:
            options = {arm.name: settled(arm, at, setting) for arm in study.arms_at(scale)}
            lengths = {(bool(given.get("init_from")), given["epochs"]) for given in options.values()}
            assert len(lengths) == len({is_continued for is_continued, _ in lengths}), (scale, lengths)
            for arm in study.arms_at(scale):
                warmup = options[arm.name].get("warmup_epochs", 0.0)
                resumes = options[arm.name].get("continue_schedule") in (
                    "tail",
                    "x10",
                )  # beyond the warm-up of what it continues
                assert resumes or warmup < options[arm.name]["epochs"]


@pytest.mark.parametrize("name", NAMES)
def test_every_run_of_a_smoke_test_is_updated_after_its_warm_up(name: str):
    """Its 38 images to train on are a few updates; that of step 0 of a new schedule has a rate of 0."""
    study = load_study(name)
    at = study.scales["smoke"]
    for arm in study.arms_at("smoke"):
        given = settled(arm, at, at.settings[0])
        per_epoch = 38 // given["batch_size"]
        steps = max(1, round(given["epochs"] * per_epoch))
        is_resumed = given.get("continue_schedule") in ("tail", "x10")
        assert is_resumed or given["warmup_epochs"] * per_epoch < steps - 1, arm.name


def test_arms_of_unequal_length_are_an_error_unless_they_set_it(capsys):
    setting, paper = Setting("x", "scenes"), {"paper": True}
    arms = (Arm("random", "multimae"), Arm("guided", "multimae-attention"))
    study = Study("?", arms, "random", {"cpu": Scale((setting,), options=paper)})
    with pytest.raises(ValueError, match="different epochs: random 1600, guided 400; give the scale options"):
        check(study, "cpu")
    check(replace(study, scales={"cpu": Scale((setting,), options={**paper, "epochs": 400})}), "cpu")
    check(replace(study, scales={"cpu": Scale((setting,), options={"epochs": 1}, minutes=5)}), "cpu")
    assert "note" not in capsys.readouterr().err
    longer = replace(study, arms=(arms[0], Arm("longer", "multimae", {"epochs": 3200})))
    check(longer, "cpu")
    assert "different epochs" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("multimae")])
def test_studies_of_multimae_fine_tune_with_its_published_settings(name: str):
    published = load_study(name).scales["paper"].protocols
    assert published.get("finetune", {"preset": "multimae"}) == {"preset": "multimae"}
    few = published.get("lowshot", {"by": "finetune", "preset": "multimae"})
    assert (few["by"], few["preset"]) == ("finetune", "multimae")


def test_crossmae_s_tables_are_studied_with_their_published_settings():
    """CrossMAE, tables 3 and 9: rows that were published with all hidden patches predicted, and 3f with a quarter."""
    for name in ("mask-ratio", "decoder-depth", "maps", "self-attention"):
        study = load_study(f"crossmae-{name}")
        for arm in study.arms:
            assert arm.recipe == "mae" or arm.options["predicted"] == 1 - arm.options.get("visible", 0.25)
    blend = {arm.name: arm.options for arm in load_study("crossmae-blend").arms}
    assert blend["linear, all predicted"]["predicted"] == blend["projected, all predicted"]["predicted"] == 0.75
    resolution = load_study("crossmae-resolution")
    for scale, sides in (("paper", ((224,), (448,))), ("cpu", ((32,), (64,)))):
        at = resolution.scales[scale]
        options = [settled(arm, at, at.settings[0]) for arm in resolution.arms]
        assert tuple(given.get("image_size", (224,)) for given in options) == sides
        assert not any("predicted" in given for given in options)  # the recipe's own: a quarter


def test_the_continued_study_starts_from_the_public_file_at_the_published_scale(tmp_path: Path):
    study = with_data(load_study("multimae-continue"), "paper", data=[str(tmp_path)])
    jobs = expand(study, "paper", tmp_path)
    assert {(job.pretrain["epochs"], job.needs == []) for job in jobs} == {(100, True)}
    with pytest.raises(FileNotFoundError, match=r"1600e_multivit.* is not here; give its --init-from FILE"):
        check_weights(study, "paper")
    file = tmp_path / "public.pth"
    file.touch()
    begun = with_overrides(study, "paper", init_from=str(file))
    check_weights(begun, "paper")
    jobs = expand(begun, "paper", tmp_path)
    resumed = {job.arm: (job.pretrain.get("init_epoch"), job.pretrain.get("warmup_epochs")) for job in jobs}
    assert resumed["guided, tail"] == (1600, None)
    assert resumed["guided, restart"] == (None, 20)
    on_cpu = expand(with_overrides(study, "cpu", init_from=str(file)), "cpu", tmp_path)
    lengths = {job.arm: (job.pretrain.get("init_epoch"), job.pretrain["epochs"], job.needs) for job in on_cpu}
    assert lengths["guided, tail"] == (25, 25 / 16, []), "a sixteenth more, at every scale"
    with pytest.raises(FileNotFoundError, match="--init-from nowhere: there is no such file"):
        with_overrides(study, "paper", init_from="nowhere")


@pytest.mark.parametrize("name", NAMES)
def test_the_arms_of_a_built_in_study_are_legal(name: str):
    planned = load_study(name)
    at = planned.scales["smoke"]
    for arm in planned.arms_at("smoke"):
        with torch.device("meta"):  # the shapes alone
            for stage in build(arm, at, at.settings[0]).stages:
                model = stage.build()
                assert min(model.masker.counts(layout_of(model.encoder))) > 0, arm.name


def test_operations_are_counted_over_the_stages_as_they_are_long():
    planned = load_study("cmtmae-ladder")
    at = planned.scales["smoke"]
    flops = {arm.name: flops_and_epochs(arm, at, at.settings[0])[0] for arm in planned.arms[:2]}
    assert flops["MAE"] > 1e6
    assert flops["random masks, teacher targets"] > 1.3 * flops["MAE"]  # the teacher looks at the whole image


def test_what_is_not_there_is_told_with_what_is():
    with pytest.raises(ValueError, match=r"did you mean .*crossmae-mask-ratio"):
        load_study("crossmae-mask-rate")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_study("nowhere.py")
    with pytest.raises(ValueError, match="ImageNet-1K has no images; give --data"):
        expand(load_study("crossmae-mask-ratio"), "paper", Path("x"))
    with pytest.raises(ValueError, match="no scale 'huge'"):
        check(load_study("crossmae-mask-ratio"), "huge")  # type: ignore[arg-type]
    circle = (Arm("a", "mae", {"init_from": RunOf("b")}), Arm("b", "mae", {"init_from": RunOf("a")}))
    with pytest.raises(ValueError, match="starts from its own"):
        check(Study("?", circle, "a", {"cpu": Scale((Setting("x", "scenes"),), options={"epochs": 1})}), "cpu")


def test_data_of_ones_own_takes_the_place_of_a_setting():
    planned = load_study("cmtmae-student-weight")
    given = with_data(planned, "gpu", data=["photographs base=scenes:seed=3"])
    assert [s.data for s in given.scales["gpu"].settings if s.name.startswith("photographs")] == ["scenes:seed=3"]
    with pytest.raises(ValueError, match="no setting 'photos'"):
        with_data(planned, "gpu", data=["photos=x"])


def test_images_of_ones_own_name_the_setting_of_scenes_that_they_replace(tmp_path: Path):
    planned = load_study("cmtmae-ladder")
    (tmp_path / "sets").mkdir()
    file = tmp_path / "sets" / "birds.parquet"
    file.touch()
    for address, name in ((file, "sets/birds"), (file.parent, "sets"), ("scenes:seed=3", "scenes")):
        assert [s.name for s in with_data(planned, "cpu", data=[str(address)]).scales["cpu"].settings] == [name]


def test_measurements_are_limited_on_demand(tmp_path: Path):
    planned = with_overrides(load_study("multimae-masks"), "smoke", limit=30)
    assert {e["limit"] for job in expand(planned, "smoke", tmp_path) for e in job.evaluate} == {30}


def test_a_share_of_the_epochs_is_that_of_the_run():
    at = Scale((Setting("x", "scenes"),), options={"epochs": 32})
    arm = Arm("a", "cmtmae", {"epochs": Share(0.5), "stage1_epochs": Share(0.25)})
    result = settled(arm, at, at.settings[0])
    assert (result["epochs"], result["stage1_epochs"]) == (16, 4)
