"""What is held out of training: images spread over the source, its end, or whole groups; and which images are equal."""

from __future__ import annotations

import hashlib
import re
from itertools import islice

import numpy as np

from ..modeling.rng import SampleRng, sample_keys
from .file_names import Numbers, encode_names
from .sources import EncodedSource, SampleSource, Source, Subset, names_of, origin, presence

_MAX_HELD_OUT = 1000


def hold_out(
    source: Source, share: float, seed: int, *, last: bool = False, group_by: str | None = None
) -> tuple[Subset, Subset]:
    """The source in two, (train, held out); the same for the same seed.

    By default one image from each of many equal stretches is held out. With `last` it is the last contiguous part,
    for sources whose neighbours resemble one another, such as the frames of a video. With `group_by` no group has
    samples on both sides: whole groups are drawn by the hash of their names, or the last are taken, until the share
    is reached. Raises ValueError where that leaves nothing to train on.
    """
    if not last and group_by is None:
        return split(source, share, seed)
    if not 0 < share < 1:
        raise ValueError(f"a held-out share of {share} leaves one part empty; give a number between 0 and 1")
    n = len(source)
    groups = list(map(str, range(n))) if group_by is None else groups_of(source, group_by)
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    if len(members) < 2:
        group = f"one group by {group_by!r}, {groups[0]!r}"
        raise ValueError(f"{source.address} is {group}; to hold one out, at least 2 are needed")
    order = list(members)
    order = order[::-1] if last else sorted(order, key=lambda group: _hash(seed, group))
    chosen: set[int] = set()
    for group in order[:-1]:  # one is left to train on
        chosen.update(members[group])
        if len(chosen) >= share * n - 1e-6:
            break
    return _in_two(source, sorted(chosen))


def split(source: Source, fraction: float, seed: int) -> tuple[Subset, Subset]:
    """The source in two, (train, held out): one image at random from each of so many equal stretches is held out.

    That is `fraction` of the images, at least 1 and at most 1000; the same for the same seed.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"a held-out fraction of {fraction} leaves one part empty; give a number between 0 and 1")
    n = len(source)
    if n < 2:
        raise ValueError(f"{source.address} has {n} image; to hold one out, at least 2 are needed")
    count = min(max(1, round(fraction * n)), _MAX_HELD_OUT, n - 1)
    draws = SampleRng(sample_keys(seed, 0, range(count))).uniform("held out", 1)[:, 0].tolist()
    edges = [k * n // count for k in range(count + 1)]
    held_out = [low + int(u * (high - low)) for low, high, u in zip(edges, edges[1:], draws, strict=False)]
    return _in_two(source, held_out)


def _in_two(source: Source, held_out: list[int]) -> tuple[Subset, Subset]:
    """The others, in 4 bytes each, and those that are held out."""
    others = np.ones(len(source), np.bool_)
    others[held_out] = False
    return Subset(source, Numbers(np.flatnonzero(others).astype(np.int32))), Subset(source, held_out)


def groups_of(source: Source, group_by: str) -> list[str]:
    """The group of each sample, from its name: a level of its path (1 is the first folder), or a regex with one group.

    Raises ValueError for a regex that is none or fits no name, and for a path with too few levels.
    """
    names = names_of(source)
    if group_by.isdecimal():
        level = int(group_by)
        for name in names:
            if not 0 < level < len(name.split("/")):
                raise ValueError(f"--group-by {group_by}: {name!r} has no folder of that level; 1 is the first")
        return [name.split("/")[level - 1] for name in names]
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise ValueError(f"--group-by {group_by!r} is no regex: {error}") from error
    if pattern.groups != 1:
        raise ValueError(
            f"--group-by {group_by!r} has {pattern.groups} groups in brackets; one is needed, as in '^([^_]+)_',"
            " or a level of the path, as in 1"
        )
    groups = []
    for name in names:
        match = pattern.search(name)
        if match is None or match[1] is None:
            raise ValueError(f"--group-by {group_by!r} finds no group in {name!r}")
        groups.append(match[1])
    return groups


def _hash(seed: int, group: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{group}".encode(errors="surrogateescape"), digest_size=8).digest()


def locations(source: Source) -> list[str]:
    """What identifies each sample of a source, however its address was written.

    A source says so in a method `location(index)`: the resolved path of a sample's file, and the row in it; of a
    rendered one what it is rendered from. Of a source without it the address and the name are taken.
    """
    whole, numbers = origin(source)
    location = getattr(whole, "location", lambda i: f"{whole.address}: {whole.name(i)}")
    return [location(i) for i in numbers]


def names_digest(source: Source) -> str:
    """A digest of the names of all samples, in order: the same wherever the same files lie."""
    digest = hashlib.sha256()
    whole = origin(source)[0]
    if not (isinstance(whole, EncodedSource) or hasattr(whole, "content")):  # rendered: names leave out their size
        digest.update(source.address.encode())
    names = iter(names_of(source))
    while some := list(islice(names, 4096)):
        digest.update(encode_names(some))
    if column := getattr(getattr(whole, "named_columns", None), "image", None):
        digest.update(column.encode())
    if isinstance(whole, SampleSource):
        digest.update(presence(source).tobytes())
    return digest.hexdigest()[:16]
