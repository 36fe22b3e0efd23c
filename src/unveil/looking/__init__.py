"""The verbs `look` and `analyze`: a run folder becomes pictures and numbers of what goes on in the model."""

from .look import look

__all__ = ["look"]
