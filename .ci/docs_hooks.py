"""The pages of the site that lie beside docs: README.md, CONTRIBUTING.md and SECURITY.md, with their links."""

from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
BESIDE = ("README.md", "CONTRIBUTING.md", "SECURITY.md")


def on_files(files, config):
    """Add the pages beside docs, whose links lead from the root."""
    for name in BESIDE:
        text = (ROOT / name).read_text().replace("](docs/", "](").replace("](LICENSE)", "](LICENSE.txt)")
        files.append(File.generated(config, name, content=text))
    files.append(File.generated(config, "LICENSE.txt", content=(ROOT / "LICENSE").read_text()))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links from docs to the pages beside it."""
    for name in BESIDE:
        markdown = markdown.replace(f"](../{name}", f"]({name}")
    return markdown
