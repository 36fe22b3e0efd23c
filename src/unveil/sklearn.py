"""A pretrained encoder as a scikit-learn transformer: `make_pipeline(Encoder("runs/a"), LogisticRegression())`.

scikit-learn is needed, `pip install scikit-learn`; nothing else of unveil imports it for this.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from .commands.load import load
from .data.image_transform import ImageTransform, Picture
from .modeling.normalizer import Normalize
from .modeling.types import Combine, Pool
from .recipes.run import Run

Pictures = Sequence[Picture] | np.ndarray | torch.Tensor


class Encoder(TransformerMixin, BaseEstimator):
    """The frozen features of pictures, N x F float32, in pipelines, cross-validation and searches over its options.

    run: a run folder, a public ViT's weights, or a name on the hub, as `unveil.load` takes it
    pool, layer, combine, normalize: how features are read, as in `unveil.load`
    device: cpu, cuda, mps; auto takes the best
    batch_size: pictures in one forward pass

    X is a list of paths, Pillow images or arrays of any sizes, or one array N x H x W (x C) or tensor N x C x H x W.
    `fit` learns nothing: it loads the encoder. Raises what `unveil.load` and its encoder's `transform` raise.

    >>> from pathlib import Path
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from unveil.sklearn import Encoder
    >>> paths = sorted(Path("images").rglob("*.png"))
    >>> classes = [path.parent.name for path in paths]
    >>> pipeline = make_pipeline(Encoder("runs/a", pool="both"), LogisticRegression(max_iter=500)).fit(paths, classes)
    >>> pipeline.predict(paths[:2]).shape
    (2,)
    """

    def __init__(
        self,
        run: str | Path | Run,
        *,
        pool: Pool = "mean",
        layer: Sequence[int] = (),
        combine: Combine = "concat",
        normalize: Normalize = "none",
        device: str = "auto",
        batch_size: int = 64,
    ):
        self.run, self.pool, self.layer, self.combine, self.normalize = run, pool, layer, combine, normalize
        self.device, self.batch_size = device, batch_size

    def fit(self, X: Pictures, y: Any = None) -> Self:
        """Load the encoder; X and y have no influence."""
        self.encoder_ = load(
            self.run,
            pool=self.pool,
            layer=self.layer,
            combine=self.combine,
            normalize=self.normalize,
            device=self.device,
        )
        return self

    def transform(self, X: Pictures) -> Float[np.ndarray, "N F"]:
        """The features of pictures, in their order."""
        check_is_fitted(self)
        prepare = ImageTransform(self.encoder_.modalities[0], self.encoder_.image_size)
        if self.batch_size < 1:
            raise ValueError(f"batch_size is at least 1; got {self.batch_size}")
        features = []
        for start in range(0, len(X), self.batch_size):
            images = prepare.batch([X[i] for i in range(start, min(start + self.batch_size, len(X)))])
            with torch.inference_mode():
                features.append(self.encoder_(images).float().cpu().numpy())
        if not features:
            raise ValueError("there are no pictures to encode: X is empty")
        return np.concatenate(features)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names for tables: feature0, feature1, ..."""
        check_is_fitted(self)
        with torch.inference_mode():
            blank = torch.zeros(1, self.encoder_.channels, *self.encoder_.image_size)
            width = self.encoder_(blank).shape[1]
        return np.array([f"feature{i}" for i in range(width)], dtype=object)
