"""What became of each test sample, kept beside a result."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..reporting.outcomes import BETWEEN
from ..reporting.outcomes import STANDARD_ERRORS as STANDARD_ERRORS
from ..reporting.outcomes import Difference as Difference
from ..reporting.outcomes import paired as paired
from ..reporting.outcomes import read_outcomes as read_outcomes  # the report reads it too
from ..reporting.outcomes import standard_error as standard_error
from ..runs.atomic import make_folder, write_bytes


def write_outcomes(run_dir: Path, protocol: str, outcomes: Mapping[str, Mapping[str, Any]], place: str = "") -> None:
    """Write what became of each test sample, by subject and metric, to `outcomes/<place>/<protocol>.npz` of a run.

    Where there is nothing to write an older file is removed.
    """
    file = run_dir / "outcomes" / place / f"{protocol}.npz"
    arrays = {f"{subject}{BETWEEN}{name}": v for subject, own in outcomes.items() for name, v in own.items()}
    if not arrays:
        file.unlink(missing_ok=True)
        return
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **{name: np.asarray(v, np.float32) for name, v in arrays.items()})
    make_folder(file.parent)
    write_bytes(file, content.getvalue())
