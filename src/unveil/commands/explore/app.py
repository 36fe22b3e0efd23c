"""The page of `unveil explore`: its files, and what it asks for, as a function of requests."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from torch import Tensor

from ...evaluation.visualize.panels import MapRenderer, renderers_of
from ...modeling.patches import validity
from ...modeling.types import Batch, Modality
from ...reporting.pictures import png
from ...reporting.server import Answer, Request
from ...reporting.style import LOGO, PALETTE
from ...runs.console import quoted
from .features import enlarged, overlay, pca_colours, similar_patches, similarity
from .images import Chosen, Gallery, Images, batch_of, open_gallery, thumbnail
from .masks import METHODS, OWN, make_mask, masker_of
from .models import Explored, Unmasked, attention, by_modality, open_explored, patch_features, predict, read_unmasked
from .neighbours import Indexer, describe, label_of, nearest
from .params import asked_mask, text, whole
from .predictions import MapPrediction, as_url, predictions
from .worker import Superseded, Worker

_FOLDER = Path(__file__).parent
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_KEPT = 12  # images whose passes are in memory
_NEAR = 8  # neighbours that are shown
_MOST_HEADS = 64


@dataclass
class Slot:
    """A place for a model: its address, and the model or why there is none."""

    address: str
    explored: Explored | None = None
    error: str = ""

    @property
    def name(self) -> str:
        return self.explored.name if self.explored else Path(self.address).name

    def model(self) -> Explored:
        """The model. Raises ValueError with the reason where there is none."""
        if self.explored is None:
            raise ValueError(self.error)
        return self.explored


def open_slot(address: str, device: str, trust: bool) -> Slot:
    """The model at an address, or the reason why it cannot be opened."""
    try:
        return Slot(address, open_explored(address, device, trust))
    except (OSError, ValueError) as error:
        return Slot(address, error=str(error))


class Explorer:
    """What the page asks: `explorer(request)` answers. Models compute in one thread, and images are read in those of
    the requests.

    `slots` are the runs, `guides` further models whose attention masks may follow.
    """

    def __init__(
        self, slots: list[Slot], guides: list[Slot], data: str | None, worker: Worker,
        most: int = 2000, device: str = "auto", trust: bool = False,
    ):  # fmt: skip
        self.slots, self.guides, self.data, self.worker = slots, guides, data, worker
        self.images = Images(self._gallery())
        self.indexer = Indexer(self.images, worker, most)
        self.device, self.trust, self.session = device, trust, secrets.token_hex(4)
        self._passes: OrderedDict[tuple[str, bool, str], Unmasked] = OrderedDict()
        self._lock = Lock()  # of opening models again
        self._assets = {f"/{name}": _asset(name) for name in ("page.css", "page.js")}
        self._page = _asset("page.html")
        self._routes: dict[tuple[str, str], Callable[[Request], Answer]] = {
            ("GET", "/state"): self._state,
            ("GET", "/images"): self._list,
            ("GET", "/thumbnail"): self._thumbnail,
            ("POST", "/upload"): self._upload,
            ("POST", "/reload"): self._reload,
            ("POST", "/mask"): self._computed(self._mask),
            ("POST", "/attention"): self._computed(self._attention),
            ("POST", "/features"): self._computed(self._features),
            ("POST", "/neighbours"): self._neighbours,
        }

    def __call__(self, request: Request) -> Answer:
        if request.path == "/":
            return self._page
        if request.path in self._assets:
            return self._assets[request.path]
        route = self._routes.get((request.method, request.path))
        return route(request) if route else Answer.error(f"there is no {request.method} {request.path}", 404)

    def close(self) -> None:
        """Let go of what is being computed in the background."""
        self.indexer.ended.set()
        self.worker.close()

    def _gallery(self) -> Gallery:
        opened = [slot.explored for slot in self.slots if slot.explored is not None]
        if not opened:
            return Gallery(None, note="No run is ready to be looked at.")
        return open_gallery(opened, self.data)

    def _slot(self, params: Mapping[str, Any]) -> Slot:
        return self.slots[whole(params, "run", 0, len(self.slots) - 1, 0)]

    def _computed(
        self, job: Callable[[Mapping[str, Any], Callable[[], None]], dict[str, Any]]
    ) -> Callable[[Request], Answer]:
        """A route whose requests are computed one after another, of each place of a page the newest alone."""

        def answer(request: Request) -> Answer:
            params = request.json()
            lane, number = text(params, "lane"), whole(params, "number", 0, 2**53, 0)
            chosen = self.images.get(text(params, "image"))  # read by this thread, not by the one that computes
            try:
                content = self.worker.run(lambda check: job({**params, "chosen": chosen}, check), lane, number)
            except Superseded:
                return Answer.error("superseded", 409)
            return Answer.json(content)

        return answer

    def _unmasked(self, explored: Explored, chosen: Chosen) -> Unmasked:
        key = explored.identity, explored.model is not None, chosen.id  # an encoder alone has no tokens to mask
        if key not in self._passes:
            self._passes[key] = read_unmasked(explored, batch_of(chosen, explored))
            while len(self._passes) > _KEPT:
                self._passes.popitem(last=False)
        self._passes.move_to_end(key)
        return self._passes[key]

    def _guide(self, explored: Explored, unmasked: Unmasked, chosen: Chosen, which: str) -> dict[str, Tensor]:
        """The attention of a model to each modality: `self`, `run:N`, `guide:N`, or `teacher:NAME` of this run."""
        kind, _, name = which.partition(":")
        if kind == "teacher":
            observed = unmasked.observations.get(name)
            if observed is None or observed.attention is None:
                raise ValueError(f"this run has no teacher {name!r} whose attention is read")
            return dict(by_modality(observed.layout, observed.attention[0].float().mean(dim=0)))
        if kind in ("run", "guide"):
            slots = self.slots if kind == "run" else self.guides
            explored = slots[whole({"guide": name}, "guide", 0, len(slots) - 1)].model()
            unmasked = self._unmasked(explored, chosen)
        elif kind != "self":
            raise ValueError(f"whose attention is {which!r}? There are {', '.join(g['id'] for g in self._guides())}")
        values = attention(explored, unmasked.blocks, explored.extractor.depth)
        return dict(by_modality(unmasked.blocks.layout, values.float().mean(dim=0)))

    def _guides(self) -> list[dict[str, Any]]:
        """The models whose attention a mask may follow; `run` says for which run alone."""
        listed: list[dict[str, Any]] = [{"id": "self", "label": "the run itself"}]
        for i, slot in enumerate(self.slots):
            if len(self.slots) > 1:
                listed.append({"id": f"run:{i}", "label": slot.name})
            model = slot.explored.model if slot.explored else None
            listed += [
                {"id": f"teacher:{name}", "label": f"teacher {name}", "run": i}
                for name in (model.teachers if model else ())
            ]
        return listed + [{"id": f"guide:{i}", "label": slot.name} for i, slot in enumerate(self.guides)]

    def _state(self, request: Request) -> Answer:
        gallery = self.images.gallery
        return Answer.json(
            {
                "session": self.session,
                "runs": [_described(slot) for slot in self.slots],
                "guides": self._guides(),
                "methods": [{"id": name, "label": label} for name, label in METHODS.items()],
                "images": {"count": len(gallery), "note": gallery.note, "first": gallery.first},
            }
        )

    def _list(self, request: Request) -> Answer:
        """The names of some images of the gallery."""
        source = self.images.gallery.source
        start, count = whole(request.query, "start", 0, 2**53, 0), whole(request.query, "count", 1, 100, 12)
        rows = range(start, min(start + count, len(self.images.gallery)))
        names = [] if source is None else [{"id": f"s:{row}", "name": quoted(source.name(row))} for row in rows]
        return Answer.json({"images": names})

    def _thumbnail(self, request: Request) -> Answer:
        picture = thumbnail(self.images.get(text(request.query, "image")))
        return Answer(png(picture), "image/png", seconds=3600)

    def _upload(self, request: Request) -> Answer:
        query = request.query
        modality = text(query, "modality") or self.images.gallery.first
        name = quoted(text(query, "name", "upload")[-100:])
        chosen = self.images.upload(request.body, name, modality, text(query, "onto"))
        return Answer.json({"id": chosen.id, "name": chosen.name, "maps": list(chosen.sample.maps)})

    def _reload(self, request: Request) -> Answer:
        """Open a run again, with the newest weights that it has by now."""
        index = whole(request.json(), "run", 0, len(self.slots) - 1)
        with self._lock:
            slot = open_slot(self.slots[index].address, self.device, self.trust)
            if slot.explored is None and self.slots[index].explored is not None:
                raise ValueError(slot.error)
            self.slots[index] = slot
            if self.images.gallery.source is None:
                self.images.gallery = self._gallery()
        return self._state(request)

    def _mask(self, params: Mapping[str, Any], check: Callable[[], None]) -> dict[str, Any]:
        """The mask that is asked for, and what a run predicts under it."""
        explored, chosen, asked = self._slot(params).model(), params["chosen"], asked_mask(params)
        unmasked = self._unmasked(explored, chosen)
        check()
        batch, model, layout = unmasked.batch, explored.model, unmasked.blocks.layout
        is_guided = asked.drawn is None and asked.method not in (OWN, "uniform", "block", "inverse-block", "grid")
        guide = self._guide(explored, unmasked, chosen, text(params, "guide", "self")) if is_guided else {}
        shown = guide or self._guide(explored, unmasked, chosen, "self")
        lacking = {name for name, there in batch.present.items() if not bool(there.all())}
        spans = {name: span for name, span in layout.spans.items() if name not in lacking}
        whole_mask = make_mask(asked, layout, batch, model, unmasked, guide)
        visible = {name: cells if name in spans else [] for name, cells in whole_mask.items()}
        if not any(visible.values()):
            first = next(iter(spans))
            visible[first] = [layout.num_cells // 2]
        check()
        predicts = model is not None and bool(model.decoders)
        output = predict(model, unmasked, masker_of(visible, layout)) if model is not None and predicts else None
        check()
        renderers = renderers_of(explored.modalities, explored.declared, batch)
        predicted = predictions(model, batch, output, renderers) if model is not None and output is not None else {}
        maps = []
        for m in explored.modalities:
            entry: dict[str, Any] = {"modality": m.name, "title": renderers[m.name].title, "missing": m.name in lacking}
            if m.name not in lacking:
                own = predicted.get(m.name, MapPrediction()).to_json()
                image = _original(batch, m, renderers[m.name])
                own["pictures"]["original"] = as_url(image)
                if m.name in shown:
                    own["pictures"]["attention"] = as_url(overlay(image, shown[m.name]))
                key = renderers[m.name].key
                entry |= own | {"key": key.to_dict() if key else None, "note": renderers[m.name].note}
            maps.append(entry)
        return {"grid": list(layout.grid), "visible": visible, "maps": maps, "predicts": predicts}

    def _attention(self, params: Mapping[str, Any], check: Callable[[], None]) -> dict[str, Any]:
        """The attention of a block: of the mean of its heads and of each, from the class token or a patch."""
        explored, chosen = self._slot(params).model(), params["chosen"]
        unmasked = self._unmasked(explored, chosen)
        check()
        layer = whole(params, "layer", 1, explored.extractor.depth, explored.extractor.depth)
        tokens = unmasked.blocks.layout.num_tokens
        query = None if params.get("patch") is None else whole(params, "patch", 0, tokens - 1)
        heads = attention(explored, unmasked.blocks, layer, query).float()
        m = self._first(explored, unmasked)
        image = _original(unmasked.batch, m, renderers_of([m], explored.declared, unmasked.batch)[m.name])
        span, grid = unmasked.blocks.layout.spans[m.name], unmasked.blocks.layout.grid
        check()
        small = [as_url(overlay(image, h[span].unflatten(0, grid), small=True)) for h in heads[:_MOST_HEADS]]
        return {
            "mean": as_url(overlay(image, heads.mean(dim=0)[span].unflatten(0, grid))),
            "heads": small,
            "grid": list(grid),
            "share": [float(h[span].sum()) for h in heads[:_MOST_HEADS]],
            "query": "a patch"
            if query is not None
            else "the class token"
            if explored.extractor.has_class_token
            else "all patches",
            "modality": m.name,
        }

    def _features(self, params: Mapping[str, Any], check: Callable[[], None]) -> dict[str, Any]:
        """The principal components of the patches of a block, and their similarity to one of them."""
        explored, chosen = self._slot(params).model(), params["chosen"]
        unmasked = self._unmasked(explored, chosen)
        check()
        layer = whole(params, "layer", 1, explored.extractor.depth, explored.extractor.depth)
        m = self._first(explored, unmasked)
        span, grid = unmasked.blocks.layout.spans[m.name], unmasked.blocks.layout.grid
        features = patch_features(explored, unmasked.blocks, layer)[span]
        image = _original(unmasked.batch, m, renderers_of([m], explored.declared, unmasked.batch)[m.name])
        patch = whole(params, "patch", 0, grid[0] * grid[1] - 1, grid[1] * (grid[0] // 2) + grid[1] // 2)
        near = similarity(features, patch)
        check()
        return {
            "original": as_url(image),
            "pca": as_url(enlarged(pca_colours(features, grid), (image.shape[0], image.shape[1]))),
            "similarity": as_url(similar_patches(image, near.unflatten(0, grid))),
            "lowest": float(near.min()),
            "patch": patch,
            "grid": list(grid),
            "modality": m.name,
        }

    def _neighbours(self, request: Request) -> Answer:
        """The nearest images, or how far the index is."""
        params = request.json()
        explored, chosen = self._slot(params).model(), self.images.get(text(params, "image"))
        index = self.indexer.of(explored)
        if index.error:
            return Answer.error(index.error)
        progress = {"done": index.done, "total": index.total, "of": len(self.images.gallery)}
        if not index.is_ready:
            return Answer.json(progress)
        features, colours = self.worker.run(lambda _: describe(explored, [batch_of(chosen, explored)]))
        near = nearest(index, features, colours, _NEAR, chosen.id)
        rows = {
            name: [
                {"id": f"s:{row}", "name": quoted(label_of(self.images.get(f"s:{row}"))), "cosine": cosine}
                for row, cosine in pairs
            ]
            for name, pairs in near.items()
        }
        return Answer.json({**progress, **rows})

    def _first(self, explored: Explored, unmasked: Unmasked) -> Modality:
        """The modality whose patches are shown: the first that is there."""
        lacking = {name for name, there in unmasked.batch.present.items() if not bool(there.all())}
        return next(m for m in explored.extractor.modalities if m.name in unmasked.batch.maps and m.name not in lacking)


def _original(batch: Batch, modality: Modality, renderer: MapRenderer) -> Any:
    return renderer(batch.maps[modality.name][0], validity(batch, modality)[0])


def _described(slot: Slot) -> dict[str, Any]:
    """What the page has to know of a run."""
    explored = slot.explored
    if explored is None:
        return {"name": slot.name, "address": slot.address, "error": slot.error}
    extractor, model = explored.extractor, explored.model
    share = 0.25 if model is None else model.masker.visible
    return {
        "name": explored.name,
        "address": slot.address,
        "error": "",
        "notes": list(explored.notes),
        "epoch": explored.epoch,
        "status": explored.run.config.status if explored.run else "",
        "recipe": explored.run.config.recipe if explored.run else "a public ViT",
        "newer": explored.newer,
        "grid": list(explored.grid),
        "size": list(extractor.image_size),
        "depth": extractor.depth,
        "heads": extractor.blocks[0].attn.heads,
        "visible": share,
        "own": model is not None,
        "predicts": model is not None and bool(model.decoders),
        "inputs": list(explored.inputs),
        "modalities": [m.name for m in explored.modalities],
    }


def _asset(name: str) -> Answer:
    path = _FOLDER / name
    content = path.read_text(encoding="utf-8").replace("/* PALETTE */", PALETTE).replace("<!-- LOGO -->", LOGO)
    return Answer(content.encode(), f"{_TYPES[path.suffix]}; charset=utf-8")
