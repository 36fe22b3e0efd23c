"""`unveil evaluate`: protocols on a run, beside what raw pixels, no training and training from scratch give."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from ..evaluation.baselines import RawPixels
from ..evaluation.cache import Kept
from ..evaluation.dense import DenseTask
from ..evaluation.dense.reconstruction import RestoringTask
from ..evaluation.features import FeatureEncoder
from ..evaluation.registry import work_of
from ..evaluation.results import Result, parts_table, table, write_results
from ..evaluation.run_dense import run_dense, run_tasks
from ..evaluation.run_protocols import run_protocols
from ..evaluation.task import open_sets
from ..modeling.image_encoder import ImageEncoder, Pool
from ..modeling.public_vits import PublicViT, describe, is_public_vit, untrained_vit
from ..modeling.types import Modality
from ..recipes.run import Run
from ..runs.console import Progress, log
from .load import load
from .reconstruct import restoring_tasks


def evaluate(
    run: str,
    *,
    data: str,
    test_data: str | None = None,
    group_by: str | None = None,
    protocol: tuple[str, ...] = ("knn", "linear"),
    pool: Pool = "mean",
    baselines: bool = True,
    limit: int | None = None,
    micro_batch: int = 256,
    at_epoch: float | None = None,
    device: str = "auto",
    seed: int = 0,
    **dials: object,
) -> list[Result]:
    """Measure a run, or a public ViT, on labelled images; the results are printed and kept in the run's `eval/`.

    Those of a public ViT (a weight file, a folder, a name on the hub) are kept in `runs/<its name>/eval/`.
    Further arguments are dials of the protocols: each goes to every chosen protocol that has it.

    data: labelled images: a folder of class folders, or of train and val; a Parquet file with labels; scenes; of a
        folder of rgb, depth, ... the first that the run reads; for segment and depth such a folder, a well-known
        layout of one, or as --modalities declares
    test_data: the images to test on; by default those in data's own val or test, else a fifth of every class
    group_by: hold out whole groups, such as patients: a level of the path (1 is the first folder), or a regex with one
        group
    protocol: knn, knn-whitened, linear (as MAE probes), linear-lbfgs, attentive, finetune, lowshot, transfer; segment,
        depth; reconstruct, heldout (of the run's own decoders)
    pool: cls, mean, or both
    baselines: measure raw pixels and the untrained encoder too; where the encoder is trained, from scratch
    limit: use at most so many images of each source
    micro_batch: images in memory at once
    at_epoch: measure the weights that the run kept then (`pretrain --keep-every`); results go to `eval/epoch-<epoch>/`
    device: cpu, cuda, mps; auto takes the best
    seed: of splits, probes and fine-tuning
    """
    work, stored = work_of(protocol), None if is_public_vit(run) else Run.open(run)
    if work is RestoringTask and stored is None:
        raise ValueError(f"{', '.join(protocol)} needs a run with its decoders, and {run} is an encoder alone")
    folder = stored.path if stored else Path("runs", Path(run).stem)
    progress, kept = Progress(quiet=20.0), Kept(folder / "eval" / "unfinished")
    note = cache(progress.log)  # each message once

    def tell(task: str, done: int, total: int) -> None:
        progress.update(f"{task}: {done:,} of {total:,} images", done, total, task)

    try:
        if work is RestoringTask and stored:
            tasks = restoring_tasks(
                stored,
                data,
                test_data,
                baselines=baselines,
                limit=limit,
                micro_batch=micro_batch,
                at_epoch=at_epoch,
                device=device,
                seed=seed,
                tell=tell,
            )
            results = run_tasks(tasks, protocol, data, test_data, seed, dials)
        else:
            encoder = load(stored or run, pool=pool, device=device, at_epoch=at_epoch)
            others = _beside(stored or run, encoder, pool) if baselines else {}
            if work is DenseTask:
                results = run_dense(
                    encoder,
                    protocol,
                    data,
                    test_data,
                    others,
                    seed=seed,
                    micro_batch=micro_batch,
                    limit=limit,
                    dials=dials,
                    tell=tell,
                    note=note,
                    kept=kept,
                )
            else:
                results = run_protocols(
                    encoder,
                    protocol,
                    *open_sets(data, test_data, encoder.channels, group_by, seed, stored.declared if stored else ()),
                    pool,
                    others,
                    seed=seed,
                    micro_batch=micro_batch,
                    limit=limit,
                    dials=dials,
                    tell=tell,
                    note=note,
                    kept=kept,
                )
    except KeyboardInterrupt:
        if not kept.is_empty:
            note("what was measured is kept: the same command goes on from here")
        raise
    finally:
        progress.close()
    for file in write_results(folder, results, at_epoch):
        if stored is None:
            log(f"kept in {file}")
    kept.clear()
    print("\n\n".join(filter(None, (table(results), parts_table(results)))))
    return results


def _beside(run: str | Run, encoder: ImageEncoder | PublicViT, pool: Pool) -> dict[str, FeatureEncoder]:
    """What an encoder is measured beside: raw pixels, and an encoder of the same shape before training."""
    pixels = Modality("rgb", encoder.channels, *encoder.statistics)
    begun = (
        run.encoder(pool, trained=False) if isinstance(run, Run) else untrained_vit(describe(run), seed=0, pool=pool)
    )
    return {
        "pixels": RawPixels(pixels, encoder.image_size, encoder.device),
        "untrained": begun.to(encoder.device),
    }
