"""An HTML document that needs no network: one style, one script, and a policy that forbids everything else."""

from __future__ import annotations

import base64
import hashlib

from .markup import Markup, join, tag
from .style import LOGO, SCRIPT, STYLE


def document(kind: str, name: str, heading: object, under: object, *main: object) -> str:
    """A page as text: `kind` and `heading` at its top, `under` the line below them, `name` in the browser's title."""
    script_hash = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script_hash}'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{name} · unveil"),
        tag("style", Markup(STYLE)),
    )
    titles = tag("div", tag("p", kind, class_="kind"), tag("h1", heading), tag("p", under, class_="under"))
    header = tag("header", Markup(LOGO), titles)
    body = tag("body", header, tag("main", *main), tag("script", Markup(SCRIPT)))
    return join([Markup("<!doctype html>\n"), tag("html", head, body, lang="en")])
