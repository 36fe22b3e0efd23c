"""The pages of the site that lie beside docs: README.md, CONTRIBUTING.md and SECURITY.md, with their links; names."""

import re
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


def on_post_page(output, page, config):
    """The theme's search dialog has no name that a screen reader could say."""
    return on_post_template(output, page.file.src_uri, config)


def on_post_template(output, template_name, config):
    """The same of the page that stands for one that is not there."""
    unnamed = 'data-md-component="search" role="dialog"'
    return output.replace(unnamed, f'{unnamed} aria-label="Search"')


def on_page_content(html, page, config, files):
    """The corner of a table is no heading of a column."""
    return re.sub(r"<th( [^>]*)?></th>", r"<td\1></td>", html)
