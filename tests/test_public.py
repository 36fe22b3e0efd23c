"""The public names are functions, whatever has been imported before."""

from __future__ import annotations

import subprocess
import sys

import pytest


def test_public_names_are_functions_however_often_they_are_used():
    code = (
        "import importlib, pkgutil, unveil\n"
        "for _ in range(2):\n"
        "    bad = [n for n in unveil.__all__ if n != '__version__' and not callable(getattr(unveil, n))]\n"
        "    assert not bad, bad\n"
        "    for room in pkgutil.iter_modules(unveil.__path__):\n"
        "        if room.name != '__main__':\n"
        "            importlib.import_module('unveil.' + room.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_is_answered_with_those_there_are():
    import unveil

    with pytest.raises(AttributeError, match="pretrain"):
        _ = unveil.pretrian


def test_a_list_of_names_has_the_public_ones_alone():
    import unveil

    assert dir(unveil) == sorted(unveil.__all__)
    assert {"Run", "load", "pretrain"} <= set(dir(unveil))
