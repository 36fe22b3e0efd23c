"""Studies: a question answered by runs over seeds. Records here; `unveil.experiments.study.command` runs them."""

from .design import Arm, RunOf, Scale, Setting, Share, Study, Times

__all__ = ["Arm", "RunOf", "Scale", "Setting", "Share", "Study", "Times"]
