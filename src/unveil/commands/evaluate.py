"""`unveil evaluate`: protocols on a run and on its baselines: raw pixels, no training, training from scratch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack

import torch
from torch import nn

from ..data.columns import with_columns
from ..data.given_types import Data
from ..data.kept_views import KeptViews
from ..data.modality_config import BUILT_IN, Declared
from ..data.sources import Source
from ..evaluation.choice import CARD, Auto, Reading, alike, settle, take
from ..evaluation.datasets import ImageSplit, open_sets
from ..evaluation.dense.data import DenseData
from ..evaluation.detection.data import DetectionData
from ..evaluation.features import RawPixels
from ..evaluation.given_module import check_module, check_reading, module_encoder, reading_of, untrained_like
from ..evaluation.kept_heads import KeptHead
from ..evaluation.normalizers import FittedOn
from ..evaluation.reconstructors import open_reconstructors
from ..evaluation.registry import choose, data_for
from ..evaluation.results import Result, ResultCache, details_table, table, write_results
from ..evaluation.run import UNTRAINED, run_protocols
from ..evaluation.types import THIS_RUN, Context, EvaluationProtocol, FeatureEncoder
from ..evaluation.videos.data import VideoData
from ..modeling.image_encoder import ImageEncoder
from ..modeling.normalizer import Normalize
from ..modeling.public_vits import PublicViT, describe, is_public_vit, untrained_vit
from ..modeling.types import Combine, Modality, Pool
from ..recipes.options import accept_python_values, as_text, as_tuple
from ..recipes.run import Run, SavedWeights
from ..reporting.lamps import features, lamps
from ..reporting.run_record import read_evaluations, read_run
from ..runs.console import Progress, log
from ..runs.hardware import choose_device, choose_precision
from ..runs.launcher import is_rank_zero
from ..runs.run_config import Precision
from ..runs.threads import use_threads
from .load import load_plain, weights_of
from .option_types import ProtocolOptions
from .over_processes import over_processes


def _inputs(encoder: ImageEncoder | PublicViT, stored: Run | None, names: tuple[str, ...]) -> tuple[Declared, ...]:
    """The declared maps of these names, in the encoder's order. Raises ValueError for one that it does not read."""
    known = [m.name for m in encoder.modalities]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"this encoder reads {', '.join(known)}, not {', '.join(unknown)}; give other --inputs")
    declared = BUILT_IN | {d.name: d for d in (stored.declared if stored else ())}
    return tuple(declared[name] for name in known if name in names)


def _check_reading(kind: str, protocols: Mapping[str, EvaluationProtocol], is_plain: bool) -> None:
    """Raise ValueError where protocols do not read the features that --layer, --normalize and --pool auto are of."""
    others = [n for n, own in protocols.items() if kind != "labelled images" or getattr(own, "reads_tokens", False)]
    if others and not is_plain:
        raise ValueError(
            f"{', '.join(others)} reads tokens, and --layer, --normalize and --pool auto are of one feature an image;"
            " leave them out, or choose among knn, knn-whitened, linear, linear-lbfgs, lowshot and transfer by these"
        )


def _check_keeping(protocols: Mapping[str, EvaluationProtocol], inputs: tuple[str, ...]) -> None:
    """Raise ValueError where --keep asks for a head of protocols that train none, or several."""
    others = [name for name, own in protocols.items() if not getattr(own, "keeps_head", False)]
    if others:
        raise ValueError(
            f"--keep is for protocols that train one head, and {', '.join(others)} {_does(others)} not; evaluate with"
            " finetune, linear, linear-lbfgs, attentive, segment, depth or detect"
        )
    if inputs:
        raise ValueError("--keep is of heads that read images, or maps of segment and depth; leave --inputs out")


def _does(names: Sequence[str]) -> str:
    return "does" if len(names) == 1 else "do"


def _trains_together(*args: object, protocol: str | Sequence[str] = (), **kwargs: object) -> bool:
    """Whether every process runs the command: detectors are trained by all, each with its share of a batch."""
    try:
        return data_for((protocol,) if isinstance(protocol, str) else protocol) == "images with boxes"
    except ValueError:  # which rank zero will say
        return False


@over_processes(list[Result], _trains_together)
@accept_python_values
def evaluate(
    run: str | PathLike[str] | Run | nn.Module,
    *,
    data: Data,
    test_data: Data | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    group_by: str | None = None,
    protocol: str | Sequence[str] = ("linear", "knn", "knn-whitened"),
    pool: Pool | Auto | None = None,
    layer: int | Auto | Sequence[int | Auto] = (),
    combine: Combine = "concat",
    normalize: Normalize | Auto = "none",
    inputs: str | Sequence[str] = (),
    baselines: bool = True,
    cache: bool = True,
    limit: int | None = None,
    micro_batch: int = 256,
    at_epoch: float | None = None,
    over_training: bool = False,
    keep: bool | str = False,
    device: str = "auto",
    precision: Precision = "auto",
    threads: int | None = None,
    seed: int = 0,
    trust: bool = False,
    **options: Unpack[ProtocolOptions],
) -> list[Result]:
    """Measure a run, or a public ViT, on labelled images; the results are printed and kept in the run's `eval/`.

    Those of a public ViT (a weight file, a folder, a name on the hub) are kept in `runs/<its name>/eval/`, those of a
    module, which is in memory alone, are returned.
    Further arguments are options of the protocols: each goes to every chosen protocol that has it.

    run: a run folder, or an `unveil.Run`; a public ViT's weights, or its name on the hub; in Python also a module, of
        `unveil.load` or of other code: images in [0, 1] to features, with the attribute image_size
    data: labelled images: folders of classes, or of train and val; Parquet files or shards with labels; scenes; of a
        folder of rgb, depth, ... the first that the run reads; for segment and depth such a folder, a well-known
        layout of one, or as --modalities declares; for detect images with boxes as COCO, YOLO or Pascal VOC have them;
        for vos videos in the layout of DAVIS
    test_data: the images to test on; by default those in data's own val or test, else a fifth of every class
    image_column: the column of a Parquet file that holds the images, where there are several
    label_column: the column of a Parquet file that holds the classes, whatever its name
    group_by: hold out whole groups, such as patients: a level of the path (1 is the first folder), or a regex with one
        group
    protocol: linear (as MAE probes), linear-lbfgs, knn, knn-whitened, attentive, finetune, lowshot, transfer; segment,
        depth; detect; vos; reconstruct, heldout (of the run's own decoders); or a file with a protocol of your own,
        my_protocol.py
    pool: the class token (cls), the mean of the patches, both, mean-std with their standard deviation, cls-mean-std, or
        auto, chosen on the run's training images without labels; by default mean, and cls where MAE's linear probe
        reads it
    layer: the blocks that features are read from, counted from 1, or from the end (-1), or auto; by default the last
    combine: what becomes of several blocks: side by side (concat), or their mean
    normalize: features as they are (none), standardize, whiten, l2 or auto, by statistics of the run's training images,
        which its folder keeps, and of the baselines in the same way; of a public ViT by those of the images of --data
    inputs: the maps to read of aligned folders, of those that the encoder knows, such as rgb, depth or both; by
        default the first
    baselines: measure raw pixels and the untrained encoder too; where the encoder is trained, from scratch
    cache: take scores of baselines on the same images from an earlier command, and keep them in ~/.cache/unveil
    limit: use at most so many images of each source, or so many videos
    micro_batch: images in memory at once
    at_epoch: measure the weights that the run saved then (`pretrain --save-every`); results go to `eval/epoch-<epoch>/`
    over_training: measure all weights that the run kept on its way too, by protocols on features: the verdict then says
        how long this machine would take to pass the baselines; results go to `eval/epoch-<epoch>/`
    keep: keep the head that finetune, linear, linear-lbfgs, attentive, segment, depth or detect has trained in the
        run's `heads/`, for `unveil predict` and `unveil.load(run, head=...)`; with a new .safetensors file, of
        finetune, the encoder without its head goes there: a teacher for cmtmae
    device: cpu, cuda, mps; auto takes the best
    precision: of the encoders: float32 or bf16; auto takes bf16 where the device has it in hardware
    threads: threads that compute on a CPU; by default all, or one while other programs keep the cores busy
    seed: of splits, probes and fine-tuning
    trust: execute the run's own recipe file where you have not run it before: reconstruct and heldout need it, and an
        encoder of classes of its own

    >>> import unveil
    >>> (result,) = unveil.evaluate("runs/a", data="images", protocol="knn", device="cpu")
    protocol ...
    >>> sorted(result.baselines), 0 <= result.metrics["accuracy"] <= 1
    (['pixels', 'untrained'], True)
    """
    protocol, layer, inputs = as_tuple(protocol), as_tuple(layer), as_tuple(inputs)
    module = run if isinstance(run, nn.Module) else None
    run = type(module).__name__ if module is not None else as_text(run)
    data = with_columns(as_text(data), image_column, label_column)
    test_data = None if test_data is None else with_columns(as_text(test_data), image_column, label_column)
    kind = data_for(protocol)
    of_protocols: dict[str, object] = {**options}
    if inputs and kind != "labelled images":
        of_protocols["inputs"] = inputs
    if isinstance(keep, str):
        of_protocols["keep"] = keep
    protocols = choose(protocol, of_protocols)
    if keep is True:
        _check_keeping(protocols, inputs if kind == "labelled images" else ())
    if over_training and (others := [name for name, own in protocols.items() if own.needs != "features"]):
        raise ValueError(f"--over-training measures frozen features (knn, linear, ...), not {', '.join(others)}")
    stored = None if module is not None or is_public_vit(run) else Run.open(run, trust)
    if over_training and (stored is None or at_epoch is not None):
        raise ValueError("--over-training measures all weights of a run; give a run, and no --at-epoch")
    computing = ExitStack()
    if module is not None:
        check_module(kind, bool(inputs) or bool(keep) or at_epoch is not None)
        folder = Path(computing.enter_context(TemporaryDirectory(prefix="unveil-module-")))
    else:
        folder = stored.path if stored else Path("runs", Path(run).stem)
    line, results_so_far = Progress(quiet=20.0), ResultCache(folder / "eval" / "unfinished")

    def progress(task: str, done: int, total: int) -> None:
        line.update(f"{task}: {done:,} of {total:,} images", done, total, task)

    note = functools.cache(line.log)  # each message once
    overlaps: dict[str, str] = {}  # by the address of test images

    def check_test(test: Source) -> None:
        if stored and test.address not in overlaps:
            overlaps[test.address] = stored.overlap(test)
            if overlaps[test.address]:
                note(f"warning: {overlaps[test.address]}")

    def keep_head(name: str, head: KeptHead) -> None:
        if not is_rank_zero():
            return
        of = {"protocol": name, "data": data, "weights": weights, "at_epoch": at_epoch}
        classes = images.class_names if isinstance(images, ImageSplit) else ()
        file = head.of(classes, of).write(folder, name)
        note(f"the head is kept in {file}; unveil predict {stored.path if stored else run} --head {name} --data FOLDER")

    is_plain = not layer and normalize == "none" and pool != "auto"
    _check_reading(kind, protocols, is_plain)
    read: Pool = "mean" if pool is None or pool == "auto" else pool
    if threads is not None and threads < 1:
        raise ValueError(f"--threads is a number of at least 1; got {threads}")
    on = choose_device(device)
    if kind != "samples for a run's decoders" and precision == "auto" and choose_precision(precision, on) == "bf16":
        log("encoders compute in bf16; --precision float32 takes longer, and features agree within rounding")
    try:
        computing.enter_context(use_threads(threads))
        is_fixed = on.type != "cpu" or threads is not None or precision == "float32"
        context = Context(
            seed=seed,
            limit=limit,
            micro_batch=micro_batch,
            precision=precision,
            threads=0 if is_fixed else torch.get_num_threads(),
            pool=read,
            pool_is_chosen=pool is not None or not is_plain,
            views=KeptViews() if over_training else None,
            cache=results_so_far,
            pictures=None if at_epoch is not None else folder / "pictures",
            progress=progress,
            note=note,
        )
        if kind == "samples for a run's decoders":
            if stored is None:
                raise ValueError(f"{', '.join(protocol)} needs a run with its decoders, and {run} is an encoder alone")
            models, samples = open_reconstructors(
                stored,
                data,
                test_data,
                context,
                baselines=baselines,
                by_place=any(getattr(own, "by_place", False) for own in protocols.values()),
                at_epoch=at_epoch,
                device=device,
            )
            weights = stored.checkpoint(at_epoch).identity
            results = run_protocols(protocols, models, samples, context)
        else:
            encoder: Any
            if module is not None:
                encoder = computing.enter_context(module_encoder(module, on))
                is_plain = is_plain and pool is None
                check_reading(encoder, is_plain)
            else:
                encoder, _ = load_plain(stored or run, device, at_epoch)
            weights = weights_of(encoder, stored, at_epoch)
            encoders: dict[str, FeatureEncoder] = {THIS_RUN: encoder}
            chosen = _inputs(encoder, stored, inputs) if kind == "labelled images" and inputs else ()
            trained = [name for name, own in protocols.items() if own.needs == "images"]
            if chosen and trained:
                raise ValueError(
                    f"{', '.join(trained)} with these options reads images alone (its augmentations are of images);"
                    " --inputs goes with knn, knn-whitened, linear, linear-lbfgs, lowshot by these, segment and depth"
                )
            if baselines:
                pixels = Modality("rgb", encoder.channels, *encoder.statistics)
                if not chosen or chosen[0].name == encoder.modalities[0].name:
                    encoders["pixels"] = RawPixels(pixels, encoder.image_size, encoder.device, encoder.patch)
                untrained = _untrained(encoder, stored, run, read)
                encoders |= {} if untrained is None else {UNTRAINED: untrained.to(encoder.device)}
            images: DenseData | DetectionData | VideoData | ImageSplit
            if kind == "images with boxes":
                images = DetectionData(data, test_data, lambda test: check_test(test.as_source()))
            elif kind == "images with a label per pixel":
                images = DenseData(data, test_data, check_test)
            elif kind == "videos with masks of objects":
                if test_data is not None:
                    raise ValueError("vos trains nothing: give the videos by --data alone, and a list by --split")
                images = VideoData(data, limit)
            else:
                declared = stored.declared if stored else ()
                sources = open_sets(data, test_data, encoder.channels, group_by, seed, declared, chosen)
                images = ImageSplit.of(*sources, limit, seed, tuple(d.name for d in chosen))
                check_test(images.test)
                has_own = stored is not None and not stored.imported
                on_these = None if has_own else images.train
                fitted_on = FittedOn(
                    stored.train_images if stored and has_own else lambda: images.train,
                    images.inputs,
                    micro_batch,
                    precision,
                    lambda done, total: progress("features of training images", done, total),
                    KeptViews() if baselines else None,
                )
                request = (read if pool is None else pool, layer, combine, normalize)
                if module is not None and is_plain:
                    reading = reading_of(encoder)  # which it keeps
                    context = replace(context, pool_is_chosen=reading != Reading())
                else:
                    reading = settle(encoder, fitted_on, folder, *request, note, on_these)
                    take(encoder, reading, fitted_on, folder, on_these)
                context = replace(context, pool=reading.pool)
                encoders |= {n: alike(e, reading, fitted_on) for n, e in encoders.items() if n != THIS_RUN}
            results = run_protocols(protocols, encoders, images, context, cache, keep_head if keep is True else None)
            if over_training and stored:
                assert isinstance(images, ImageSplit)

                def earlier(saved: SavedWeights) -> FeatureEncoder:
                    return alike(load_plain(stored or run, device, saved.epoch)[0], reading, fitted_on)

                _over_training(stored, protocols, images, context, earlier)
    except KeyboardInterrupt:
        if not results_so_far.is_empty:
            note("what was measured is kept: the same command goes on from here")
        raise
    finally:
        computing.close()
        line.close()
    if not is_rank_zero():
        return results
    if module is not None:
        print("\n\n".join(filter(None, (table(results), details_table(results)))))
        return results
    if stored and data != stored.config.data.address:  # else the card's data are the run's
        results = [replace(r, card=" ".join(filter(None, (r.card, *overlaps.values())))) for r in results]
    given = {"pool": pool, "layer": layer, "normalize": normalize}
    if automatic := [name for name, value in given.items() if value in ("auto", ("auto",))]:
        results = [replace(r, card=f"{r.card} {CARD}", settings={**r.settings, "chosen": automatic}) for r in results]
    results = [replace(result, weights=weights) for result in results]
    step = weights["step"] if at_epoch is not None else None
    for file in write_results(folder, results, at_epoch, step):
        if stored is None:
            log(f"kept in {file}")
    results_so_far.clear()
    said = "" if at_epoch is not None else _verdict(folder, stored, weights)
    print("\n\n".join(filter(None, (table(results), details_table(results), said))))
    return results


def _untrained(encoder: Any, stored: Run | None, run: str, pool: Pool) -> Any:
    """The encoder with first weights; None where nobody knows these."""
    if stored:
        return stored.encoder(pool, trained=False)
    return untrained_vit(describe(run), 0, pool) if is_public_vit(run) else untrained_like(encoder, pool)


def _over_training(
    stored: Run,
    protocols: Mapping[str, EvaluationProtocol],
    images: ImageSplit,
    context: Context,
    encoder_of: Callable[[SavedWeights], FeatureEncoder],
) -> None:
    """Measure the weights of a run but the newest, and write the results of each."""
    *kept, newest = stored.checkpoints()
    for place, saved in enumerate(earlier := [saved for saved in kept if saved.step < newest.step]):
        context.note(f"weights of epoch {saved.epoch:g} ({place + 1} of {len(earlier)})")
        try:
            weights = stored.checkpoint(saved.epoch).identity
        except ValueError as error:
            log(f"warning: {error}; these weights are left out")
            continue
        results = run_protocols(protocols, {THIS_RUN: encoder_of(saved)}, images, context)
        write_results(stored.path, [replace(r, weights=weights) for r in results], saved.epoch, saved.step)


def _verdict(folder: Path, run: Run | None, weights: Mapping[str, Any]) -> str:
    """The lamps of a run with all its results; of a public ViT that of its features."""
    if run is None:
        return str(features(read_evaluations(folder / "eval", [])))
    return "\n".join(map(str, lamps(read_run(folder, run.config.content, weights))))
