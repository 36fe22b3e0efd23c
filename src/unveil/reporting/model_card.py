"""The card of an exported encoder: what it was trained on and how, its scores, licence, citation, how to load it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from .comparisons import comparisons, in_order, numbers
from .run_record import Evaluation, RunRecord

_PAPERS = {  # of the recipes that have one: what their users cite
    "mae": "He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022, arXiv 2111.06377",
    "crossmae": "Fu et al., Rethinking Patch Dependence for Masked Autoencoders, TMLR 2025, arXiv 2401.14391",
    "cmtmae": "Mo, The Dynamic Duo of Collaborative Masking and Target, AAAI 2025, arXiv 2412.17566",
    "simmim": "Xie et al., SimMIM: A Simple Framework for Masked Image Modeling, CVPR 2022, arXiv 2111.09886",
    "attmask": "Kakogeorgiou et al., What to Hide from Your Students, ECCV 2022, arXiv 2203.12719",
    "milan": "Hou et al., MILAN: Masked Image Pretraining on Language Assisted Representation, 2022, arXiv 2208.06049",
    "maskfeat": "Wei et al., Masked Feature Prediction for Self-Supervised Pre-Training, CVPR 2022, arXiv 2112.09133",
    "hpm": "Wang et al., Hard Patches Mining for Masked Image Modeling, CVPR 2023, arXiv 2304.05919",
    "multimae": "Bachmann et al., MultiMAE: Multi-modal Multi-task Masked Autoencoders, ECCV 2022, arXiv 2204.01678",
}


def model_card(
    run: RunRecord, title: str, load: str, shape: Mapping[str, object], facts: Sequence[str], licence: str | None
) -> str:
    """A README.md with the hub's header. `load` is Python that loads the files, `shape` and `facts` are the encoder's.

    Where nothing is known, that is said: no licence is guessed.
    """
    recipe = run.text("recipe")
    header = [f"license: {licence}"] * bool(licence)
    header += ["library_name: unveil", "tags: [masked-image-modeling, vision-transformer, self-supervised]"]
    images, epochs = run.number("data", "train"), run.epochs_done
    length = f", {epochs:g} epochs" if math.isfinite(epochs) else ""
    of = f" of {int(images):,} images without labels" if math.isfinite(images) else ""
    trained = [
        f"Recipe `{recipe}` of unveil {run.text('unveil')}{length}{of}.",
        "",
        *_lines(f"{name}: {value}" for name, value in run.mapping("dials").items() if value not in (None, "", [])),
    ]
    scores = [f"- {numbers(group)}{_blocks(e)}" for e in in_order(run.evaluations) if (group := comparisons(e))]
    missing = "Nothing was measured. `unveil evaluate` compares features with raw pixels and the untrained encoder."
    paper = _PAPERS.get(recipe.replace("-attention", "").replace("_attention", ""))
    cite = f"Of the recipe: {paper}." if paper else "The recipe has no paper."
    sections = {
        "Load": f"```python\n{load.strip()}\n```",
        "Encoder": "\n".join([*_lines(f"{name}: {value}" for name, value in shape.items()), *_lines(facts)]),
        "Training": "\n".join(trained),
        "Scores": "\n".join(["± is half of the 95 % interval of the test sample.", "", *scores]) if scores else missing,
        "Licence": f"{licence}." if licence else "None was given: ask whoever made these weights.",
        "Citation": cite,
    }
    body = "\n\n".join(f"## {name}\n\n{text}" for name, text in sections.items())
    return "\n".join(["---", *header, "---", "", f"# {title}", "", body, ""])


def _blocks(evaluation: Evaluation) -> str:
    """Which blocks were read, where they are not the last."""
    layers = evaluation.settings.get("layers")
    return f", of blocks {' '.join(map(str, layers))}" if isinstance(layers, list) else ""


def _lines(texts: Iterable[str]) -> list[str]:
    return [f"- {text}" for text in texts]
