"""What the documents say is what the code does: every block runs, every table is the code's own."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import runpy
import shlex
import subprocess
import textwrap
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import unveil
from test_house import PACKAGES
from unveil.cli import COMMANDS, main
from unveil.cli.flags import flags_of
from unveil.commands.pretrain import pretrain
from unveil.modeling.encoder import SIZES
from unveil.modeling.layers import sincos_positions
from unveil.modeling.masked_model import MaskedModel
from unveil.recipes.options import spell
from unveil.recipes.registry import load_recipe, recipe_cards

ROOT = Path(__file__).resolve().parents[1]
RUN = ("README.md", "docs/recipes.md", "docs/tutorial.md")
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{p.relative_to(ROOT / 'docs')}" for p in (ROOT / "docs").rglob("*.md")),
)
SHORT = ["--minutes", "0.002"]  # for commands that train, so that a block takes seconds
FEWER = {"scenes:count=400": "scenes:count=20"}  # images that are rendered


def blocks(document: str) -> Iterator[tuple[str, str]]:
    """The fenced blocks of a document: language and text."""
    return iter(re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / document).read_text(), re.M | re.S))


def tables(document: str) -> list[list[list[str]]]:
    """The tables of a document, as rows of cells, the head first."""
    result = re.findall(r"(?:^\|.*\n)+", (ROOT / document).read_text(), re.M)
    rows = [[re.split(r"(?<!\\)\|", line.strip())[1:-1] for line in table.splitlines()] for table in result]
    return [[[cell.strip() for cell in row] for row in (table[0], *table[2:])] for table in rows]


def table(document: str, first: str) -> list[list[str]]:
    """The rows below the head of the one table whose first head is this word."""
    (result,) = [rows[1:] for rows in tables(document) if rows[0][0] == first]
    return result


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A home with photos, nested, and labelled images, a folder per class."""
    home = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(0)
    for name in (*(f"photos/{i % 2}/{i}" for i in range(12)), *(f"labelled/{c}/{i}" for c in "ab" for i in range(5))):
        file = home / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(file)
    return home


@pytest.mark.parametrize("document", RUN)
def test_every_block_runs(document, home, monkeypatch, capsys):
    """In order, in one home: `unveil` lines through the command's own entry, those that train for a moment only.

    What a block says does not depend on the depth of a ViT, so all have two blocks.
    """
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    for size, (dim, _, heads) in SIZES.items():
        monkeypatch.setitem(SIZES, size, (dim, 2, heads))  # blocks enough for every option
    monkeypatch.setattr(unveil, "pretrain", functools.partial(pretrain, minutes=0.002), raising=False)
    if "facebook/vit-mae-base" in (ROOT / document).read_text():
        write_vit_mae(home / "facebook" / "vit-mae-base")
    languages = []
    for language, text in blocks(document):
        languages.append(language)
        if language == "bash":
            for line in text.splitlines():
                run_line(line)
        elif language == "text":
            continue  # what a block shows, or a command that trains for long
        elif language == "yaml":
            (home / "run.yaml").write_text(text)
        elif re.search(r"^def recipe\(", text, re.M):
            (home / "my_recipe.py").write_text(text)
        else:
            assert language == "python"
            scope: dict[str, object] = {}
            exec(compile(text, document, "exec"), scope)
            assert tuple(scope["features"].shape) == (8, 128)  # type: ignore[attr-defined]
    assert {"bash", "python"} <= set(languages)


def write_vit_mae(folder: Path) -> None:
    """A small MAE of random weights as transformers saves it, where a name on the hub would be."""
    transformers = pytest.importorskip("transformers", reason="writes the layout that is on the hub")
    width, depth, heads = SIZES["nano"]
    shape = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
    }
    decoder = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 384}
    config = transformers.ViTMAEConfig(
        **shape, **{f"decoder_{name}": value for name, value in decoder.items()}, image_size=64, patch_size=8
    )
    model = transformers.ViTMAEForPreTraining(config)
    for table in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        table.data[0, 1:] = sincos_positions((8, 8), table.shape[-1])
    model.save_pretrained(folder)


def run_line(line: str) -> None:
    """One line of a bash block."""
    words = [FEWER.get(word, word) for word in shlex.split(line)]
    if line in ("./go test", "./go demo"):  # which is what runs this, and what test_demo.py runs
        assert line in subprocess.run([ROOT / "go"], capture_output=True, text=True, check=True).stdout
        return
    assert words[0] == "unveil", f"{line!r} is no command that a test runs"
    if words[1] == "pretrain" and "--help" not in words:
        words += SHORT
    assert main(words[1:]) == 0, line


def test_the_options_are_those_of_the_code():
    rows = table("docs/recipes.md", "option")
    for place, name in enumerate(("mae", "crossmae", "simmim", "mim"), start=1):
        written = {row[0].strip("`"): row[place] for row in rows if row[place]}
        defaults = {f.name: f.default for f in flags_of(load_recipe(name), skip=("modality",))}
        spelled = {n: ("no", "yes")[d] if isinstance(d, bool) else spell(d) for n, d in defaults.items()}
        assert written == {n.replace("_", "-"): text for n, text in spelled.items()}, name


def test_recipes_and_commands_are_those_of_the_code():
    named = [row[0].strip("`") for row in table("README.md", "recipe")]
    assert sorted(named[:-1]) == sorted(recipe_cards())
    assert sorted(row[0].strip("`") for row in table("docs/recipes.md", "recipe")) == sorted(recipe_cards())
    commands = [row[0].strip("`").split() for row in table("README.md", "command")]
    assert [words[1] for words in commands] == [*COMMANDS]


def test_the_packages_are_those_of_the_code_in_the_order_of_their_imports():
    assert [row[0].strip("`") for row in table("docs/design.md", "package")] == [*PACKAGES]


def test_the_forward_in_the_design_is_the_code():
    quoted = ast.parse(next(text for language, text in blocks("docs/design.md") if language == "python")).body
    methods = (MaskedModel.mask_input, MaskedModel.encode_decode)
    for quote, method in zip(quoted, methods, strict=True):
        source = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(method)))).body[0]
        assert isinstance(source, ast.FunctionDef)
        source.body = source.body[1:]  # without the docstring
        assert ast.dump(quote) == ast.dump(source)


EXPORT = ("onnx", "timm")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_names_that_blocks_import_exist(document):
    for language, text in blocks(document):
        if language == "python":
            nodes = [node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)]
            for node in nodes:
                roots = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                if not all(find_spec(root.partition(".")[0]) for root in roots if root in EXPORT):
                    continue  # what an encoder is exported to, and no dependency
                with warnings.catch_warnings():
                    warnings.simplefilter("error", FutureWarning)  # by which old module paths warn
                    exec(ast.unparse(node), {})


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / document).parent / path if path else ROOT / document
        assert file.exists(), f"{document} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings}, target


def test_the_figure_of_minutes_is_that_of_its_table():
    script = runpy.run_path(str(ROOT / "docs" / "images" / "minutes.py"))
    assert script["drawn"]() == (ROOT / "docs" / "images" / "minutes.svg").read_text(encoding="utf-8")


def test_pictures_are_small():
    pictures = [p for p in (ROOT / "docs" / "images").iterdir() if p.suffix in (".png", ".jpg")]
    assert pictures
    assert all(p.stat().st_size < 300_000 for p in pictures)


def test_the_badges_say_what_the_project_says():
    made = runpy.run_path(str(ROOT / "docs" / "images" / "badges.py"))
    for name, parts in made["texts"]().items():
        assert (ROOT / "docs" / "images" / f"badge-{name}.svg").read_text() == made["badge"](*parts)
        assert f"![{parts[0]}: {parts[1]}](docs/images/badge-{name}.svg)" in (ROOT / "README.md").read_text()
    assert (ROOT / "src" / "unveil" / "py.typed").is_file()
