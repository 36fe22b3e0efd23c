"""Nearest neighbours of whitened features: every direction counts alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..normalizers import SHRINKAGE, whitening
from ..types import Context, FeatureEncoder, FeatureSplit, Needs, Score
from .knn import Knn


@dataclass(frozen=True)
class KnnWhitened:
    """Weighted k-NN by cosine similarity of features that are centred and whitened by the training set."""

    needs: ClassVar[Needs] = "features"

    def run(self, encoder: FeatureEncoder, data: FeatureSplit, context: Context) -> Score:
        mean, directions = whitening(data.train)
        white = replace(data, train=(data.train - mean) @ directions, test=(data.test - mean) @ directions)
        score = Knn().run(encoder, white, context)
        return replace(
            score,
            settings={**score.settings, "shrinkage": SHRINKAGE},
            card=(
                f"{score.card} Before it the features are centred and whitened by the training set, without its"
                f" labels: each principal direction is divided by its standard deviation ({SHRINKAGE:g} of the mean"
                " variance added to each variance). What masked image modelling learns lies in many directions of"
                " which a few are far longer than the others and decide a cosine alone; a linear probe undoes that,"
                " plain k-NN does not."
            ),
        )
