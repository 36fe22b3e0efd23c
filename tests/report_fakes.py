"""Run folders as a training run would leave them, made up for the tests of the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unveil.reporting.pictures import (
    MapImage,
    Near,
    NearRow,
    PatchImage,
    Probe,
    attention_overlay,
    hide_patches,
    paste,
    write_map,
    write_neighbours,
    write_patches,
    write_probes,
)

NAMES = ("dog", "кот", "鳥", "قطة", "बिल्ली")  # of classes, in several scripts
_SHOWN = {
    "classes": {
        "count": [2000, 2000, 2000, 2000, 2000],
        "right": [1500, 900, 800, 610, 500],
        "confused": [[1, 0, 700], [2, 0, 500], [3, 1, 400], [4, 0, 350], [0, 1, 210]],
        "names": list(NAMES),
    }
}


def fake_images(count: int, size: tuple[int, int] = (64, 64), seed: int = 0) -> list[np.ndarray]:
    """Soft blobs of colour on a gradient."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]] / max(size)
    images = []
    for _ in range(count):
        image = np.stack([x, y, 1 - x], -1) * rng.random(3)
        for _ in range(4):
            (cx, cy), radius = rng.random(2), 0.1 + 0.2 * rng.random()
            image = np.where(((x - cx) ** 2 + (y - cy) ** 2 < radius**2)[..., None], rng.random(3), image)
        images.append((image * 255).astype(np.uint8))
    return images


def fake_run(
    folder: Path,
    *,
    seed: int = 0,
    epochs: int = 30,
    steps_per_epoch: int = 40,
    start: float = 1.05,
    floor: float = 0.42,
    images: Sequence[np.ndarray] | None = None,
    picture_epochs: int = 5,
    grid: tuple[int, int] = (8, 8),
    accuracy: float = 0.431,
    **info: object,
) -> Path:
    """Write a whole run folder; keyword arguments beyond the named replace keys of run.json."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    rate = 260 + 60 * seed
    metadata = {
        "unveil": "0.1.0",
        "recipe": "crossmae",
        "options": {
            "size": "tiny",
            "patch": 4,
            "visible": 0.25,
            "predicted": 0.25,
            "epochs": epochs,
            "batch_size": 256,
        },
        "changes": [
            {"option": "batch_size", "paper": 4096, "used": 256, "why": "1,800 images give 7 steps an epoch at 256"},
            {"option": "epochs", "paper": 800, "used": epochs, "why": "fits 15 minutes on this machine"},
        ],
        "data": {"address": "~/photos", "count": 2000, "held_out": 200, "image_size": [64, 64], "channels": 3},
        "settings": {"device": "cpu", "precision": "bf16", "micro_batch": 64, "accumulation": 4, "workers": 2},
        "model": {
            "parameters": {"encoder": 5_500_000, "decoder": 2_100_000},
            "num_tokens": 64,
            "num_visible": 16,
            "num_predicted": 16,
            "norm_pix": True,
        },
        "optim": {"lr": 1.5e-4, "weight_decay": 0.05, "betas": [0.9, 0.95]},
        "seed": seed,
        "command": f"unveil pretrain crossmae --data ~/photos --out {folder.name} --size tiny --seed {seed}",
        "versions": {"python": "3.12.3", "torch": "2.13.0", "platform": "Linux x86_64"},
        "git": "7b115ff",
        "started": "2026-03-01T10:02:11",
        "finished": "2026-03-01T10:17:40",
        "status": "finished",
        "error": None,
        "seconds": 929.0,
    }
    (folder / "run.json").write_text(json.dumps(metadata | info))
    total = epochs * steps_per_epoch
    lines = []
    for step in range(1, total + 1):
        done = step / total
        if step % 4 == 0:
            loss = floor + (start - floor) * np.exp(-7 * done) + 0.012 * rng.standard_normal()
            lines.append(
                {
                    "kind": "step", "step": step, "epoch": step / steps_per_epoch, "time": 929 * done,
                    "loss": loss, "losses": {"pixels": loss},
                    "lr": 1e-3 * min(done / 0.1, 0.5 * (1 + np.cos(np.pi * max(0, done - 0.1) / 0.9))),
                    "grad_norm": 0.4 + 3 * np.exp(-8 * done) + 0.08 * rng.random(),
                    "images_per_second": rate * (1 + 0.04 * rng.standard_normal()) * (0.4 if step < 10 else 1),
                    "data_wait": 0.04 + 0.02 * rng.random(), "memory_mb": 1400, "skipped": 0,
                }
            )  # fmt: skip
        if step % (3 * steps_per_epoch) == 0:
            lines.append(
                {
                    "kind": "signals", "step": step, "epoch": step / steps_per_epoch, "time": 929 * done,
                    "heldout_loss": floor + 0.02 + (start - floor) * np.exp(-7 * done),
                    "rankme": 12 + 70 * (1 - np.exp(-4 * done)) + rng.standard_normal(), "feature_dim": 192,
                    "feature_std": 0.2 + 0.5 * done,
                }
            )  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _fake_pictures(folder, list(images or fake_images(4, seed=7)), picture_epochs, epochs, steps_per_epoch, grid)
    (folder / "eval").mkdir()
    for protocol, gain in (("knn", 0.0), ("linear", 0.1)):
        evaluation = {
            "protocol": protocol,
            "data": "cifar10.parquet",
            "metrics": {"accuracy": accuracy + gain},
            "baselines": {"untrained": {"accuracy": 0.31 + gain}, "pixels": {"accuracy": 0.35}},
            "settings": {"k": 20, "test_images": 10_000},
            "card": "Frozen mean features, 50,000 training and 10,000 test images.",
            "seconds": 31.2,
            "date": "2026-03-01T10:19:00",
            **({"shown": _SHOWN} if protocol == "knn" else {}),
        }
        (folder / "eval" / f"{protocol}.json").write_text(json.dumps(evaluation))
    (folder / "broken.json").write_text(json.dumps({"IMG_0042.jpg": "truncated after 1,024 bytes"}))
    return folder


def _fake_pictures(
    folder: Path, images: list[np.ndarray], count: int, epochs: int, steps_per_epoch: int, grid: tuple[int, int]
) -> None:
    from PIL import Image

    for at in np.linspace(1, epochs, count):
        items = []
        for i, image in enumerate(images):
            rng = np.random.default_rng(i)
            hidden = rng.permutation(grid[0] * grid[1])[: grid[0] * grid[1] * 3 // 4]
            height, width = image.shape[:2]
            coarse = max(2, round(3 + 20 * at / epochs))
            blurred = Image.fromarray(image).resize((coarse, coarse), Image.Resampling.BOX)
            guess = np.asarray(blurred.resize((width, height), Image.Resampling.BICUBIC))
            y, x = np.mgrid[: grid[0], : grid[1]] / max(grid)
            attention = np.exp(-(((x - 0.5) ** 2 + (y - 0.5) ** 2) * 12 * at / epochs)) + 0.4 * rng.random(grid)
            pictures = {
                "original": image,
                "hidden": hide_patches(image, hidden, grid),
                "reconstructed": paste(image, guess, hidden, grid),
                "attention": attention_overlay(image, attention),
                "unaided": paste(image, guess // 2 + 64, hidden, grid),
                "interpolated": paste(image, np.full_like(image, 128), hidden, grid),
            }
            if i == 0:
                pictures |= {"mask 2": pictures["hidden"], "predicted 2": pictures["unaided"]}
            errors = {"reconstructed": 0.1, "unaided": 0.2 / at, "interpolated": 0.15}
            items.append(Probe(f"image {i + 1}", pictures, errors, hidden.tolist(), grid))
        write_probes(folder, float(round(at)), round(at) * steps_per_epoch, items, norm_pix=True)
    rows = [
        NearRow(
            Near(image, label="dog"),
            [Near(images[(q + n) % len(images)], 0.1 * n, "dog" if n % 2 else "cat", n - 1) for n in range(1, 7)],
            [Near(images[q], 0.5, "cat")],
        )
        for q, image in enumerate(images)
    ]
    write_neighbours(folder, rows)
    rng = np.random.default_rng(0)
    mapped = [
        MapImage(f"image {i}", images[i % len(images)], (float(x), float(y)), ("cat", "dog")[i % 2])
        for i, (x, y) in enumerate(rng.random((12, 2)))
    ]
    write_map(folder, "t-SNE", mapped, [(0, 4, 0.99)], [(7, 2.5)])
    codes = rng.integers(-127, 128, (grid[0] * grid[1], 4), np.int8)
    write_patches(folder, [PatchImage("image 1", images[0], images[0], images[0], codes, grid)])
