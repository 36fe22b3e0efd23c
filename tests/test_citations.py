"""What the repository cites: identifiers, titles and authors by one table, published numbers by another."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from test_readme import ROOT
from unveil.experiments.study.registry import studies
from unveil.recipes.registry import recipe_cards

ID = re.compile(r"(?<![\d.])\d{4}\.\d{5}(?!\d)")
FILES = [
    *sorted((ROOT / "src").rglob("*.py")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs").glob("*.py")),
    ROOT / "README.md",
]


@dataclass(frozen=True)
class Paper:
    """The words by which text names it, its first author and its title."""

    names: tuple[str, ...]
    author: str
    title: str = ""


PAPERS = {
    "1705.07115": Paper((), "Kendall"),
    "1903.06059": Paper((), "Kool"),
    "1905.00414": Paper((), "Kornblith"),
    "2002.05202": Paper(("SwiGLU",), "Shazeer"),
    "2006.14613": Paper(("STC",), "Jabri"),
    "2006.07733": Paper(("BYOL",), "Grill"),
    "2010.11929": Paper(("ViT",), "Dosovitskiy"),
    "2103.17239": Paper(("CaiT",), "Touvron"),
    "2104.14294": Paper(("DINO",), "Caron"),
    "2106.08254": Paper(("BEiT",), "Bao"),
    "2111.06377": Paper(("MAE",), "He", "Masked Autoencoders Are Scalable Vision Learners"),
    "2111.09886": Paper(("SimMIM",), "Xie", "SimMIM: A Simple Framework for Masked Image Modeling"),
    "2112.09133": Paper(("MaskFeat",), "Wei", "Masked Feature Prediction for Self-Supervised Visual Pre-Training"),
    "2202.03555": Paper(("data2vec",), "Baevski"),
    "2203.12719": Paper(
        ("AttMask",), "Kakogeorgiou", "What to Hide from Your Students: Attention-Guided Masked Image Modeling"
    ),
    "2204.01678": Paper(("MultiMAE",), "Bachmann", "MultiMAE: Multi-modal Multi-task Masked Autoencoders"),
    "2208.06049": Paper(("MILAN",), "Hou", "MILAN: Masked Image Pretraining on Language Assisted Representation"),
    "2210.10615": Paper(("MaskDistill",), "Peng"),
    "2203.16527": Paper(("ViTDet", "Li et al."), "Li"),
    "2212.06138": Paper(("FT-CLIP",), "Dong"),
    "2303.11331": Paper(("EVA-02",), "Fang"),
    "2304.05919": Paper(("HPM",), "Wang", "Hard Patches Mining for Masked Image Modeling"),
    "2401.14391": Paper(("CrossMAE",), "Fu", "Rethinking Patch Dependence for Masked Autoencoders"),
    "2502.16982": Paper(("Muon",), "Liu"),
    "2412.17566": Paper(
        ("CMT-MAE",),
        "Mo",
        "The Dynamic Duo of Collaborative Masking and Target for Advanced Masked Autoencoder Learning",
    ),
    "2502.08769": Paper(("CAPI",), "Darcet"),
    "2504.13181": Paper(("Perception Encoder",), "Bolya"),
}

# By study: the table of the paper and its numbers, in the order of the study's note.
PUBLISHED: dict[str, tuple[str, list[str]]] = {
    "crossmae-self-attention": ("table 3a", ["83.0", "83.3", "83.3"]),
    "crossmae-mask-ratio": ("table 3b", ["83.5", "83.3", "83.3"]),
    "crossmae-prediction-ratio": ("table 3c", ["83.1", "83.2", "83.3"]),
    "crossmae-maps": ("table 3d", ["82.9", "83.3", "83.5", "83.3"]),
    "crossmae-decoder-depth": ("table 3e", ["83.0", "83.1", "83.1", "83.3"]),
    "crossmae-resolution": ("table 3f", ["83.2", "84.6", "84.8"]),
    "crossmae-ladder": ("table 5", ["9.35", "7.38", "6.32", "8.41"]),
    "crossmae-decoder-attention": ("table 6", ["1.42", "0.39", "0.65"]),
    "crossmae-mae-blend": ("table 7", ["83.0", "83.0", "83.2", "83.3"]),
    "crossmae-coco": ("table 2", ["51.2", "54.6", "52.1", "54.9", "45.5", "48.6", "46.3", "48.8"]),
    "crossmae-blend": ("tables 8 and 9", ["83.2", "83.2", "83.3", "83.5"]),
    "crossmae-decoder-blocks": ("appendix D", []),
    "multimae-continue": ("", ["83.5", "83.4", "83.3"]),
    "multimae-masks": ("", ["83.3", "83.5", "83.3"]),
}
NUMBER = re.compile(r"(?<![\d.])\d+\.\d+(?![\d.])")


def cited() -> Iterator[tuple[Path, int, str, str]]:
    """Each identifier with its file, its line, and the lines around it."""
    for file in FILES:
        lines = file.read_text().splitlines()
        for at, line in enumerate(lines):
            for identifier in ID.findall(line):
                yield file, at + 1, identifier, "\n".join(lines[max(0, at - 3) : at + 2])


def test_an_identifier_stands_beside_the_paper_that_it_is_of() -> None:
    wrong = []
    for file, line, identifier, around in cited():
        paper = PAPERS.get(identifier)
        names = (*paper.names, paper.author) if paper else ()
        if not any(re.search(rf"(?<![\w-]){re.escape(name)}(?![a-z])", around) for name in names):
            wrong.append(f"{file.relative_to(ROOT)}:{line} {identifier}")
    assert not wrong
    assert {identifier for *_, identifier, _ in cited()} == set(PAPERS)


def test_titles_and_first_authors_are_those_of_the_papers() -> None:
    entries = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("- ") and "*" in line]
    listed = {ID.findall(line)[0]: line for line in entries if ID.search(line)}
    titled = {identifier: paper for identifier, paper in PAPERS.items() if paper.title}
    assert listed.keys() == titled.keys()
    for identifier, paper in titled.items():
        first = re.match(r"- (?:[A-Z]\.[- ]?)+ ?([\w-]+)", listed[identifier])
        assert first is not None
        assert first[1] == paper.author
        assert f"*{paper.title}.*" in listed[identifier]
        assert set(ID.findall(listed[identifier])) == {identifier}


@pytest.mark.parametrize(
    "name", [name for name in recipe_cards() if name not in ("mim", "multimae-attention", "unveil")]
)
def test_a_recipe_is_headed_by_its_paper(name: str) -> None:
    text = " ".join((importlib.import_module(f"unveil.recipes.{name.replace('-', '_')}").__doc__ or "").split())
    (identifier,) = set(ID.findall(text))
    paper = PAPERS[identifier]
    assert paper.title in text
    assert re.search(rf"\({paper.author}\b", text)


def test_studies_quote_the_published_numbers_and_name_their_tables() -> None:
    quoting = {name for name, study in studies().items() if re.search(r"[Tt]able \d|[Aa]ppendix|reports", study.note)}
    assert quoting <= PUBLISHED.keys()
    for name, (table, numbers) in PUBLISHED.items():
        note = studies()[name].note
        assert NUMBER.findall(note) == numbers, name
        for number in re.findall(r"\d\w?|appendix \w", table if name != "crossmae-decoder-attention" else ""):
            assert re.search(rf"\b{number}\b", note, re.IGNORECASE), name


def test_the_page_of_papers_has_the_same_numbers() -> None:
    pages = [*(ROOT / "docs").glob("paper-*.md"), ROOT / "docs/papers.md"]
    rows = [line for page in pages for line in page.read_text().splitlines() if line.startswith("|")]
    for name, (table, numbers) in PUBLISHED.items():
        (row,) = [line for line in rows if f"`unveil study {name}`" in line and table and table[-2:] in line] or [""]
        if row:
            assert set(NUMBER.findall(re.sub(r"`[^`]*`", "", row))) <= set(numbers), name
    tables = [table for table, _ in PUBLISHED.values() if table.startswith("table")]
    for number in {number for table in tables for number in re.findall(r"\d\w?", table)}:
        assert any(re.search(rf"tables?.*\b{number}\b", row) for row in rows), number
