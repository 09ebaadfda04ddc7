"""Best-fit-decreasing bin packing."""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


def pack(lengths: npt.ArrayLike, capacity: int) -> tuple[Integers, Integers]:
    """``lengths`` [n] grouped so that no group's sum exceeds ``capacity``: indices [n], group after group in the order
    in which they were placed, and where each group ends in them [groups].

    The longest first, each into the fullest bin that still has room. Bins wait in stacks by the room left, of which
    there are at most ``capacity`` kinds, so a placement costs a bisection of those kinds: O(n log capacity).
    Deterministic. Raises ValueError for a length over ``capacity``.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if len(sizes) and sizes.max() > capacity:
        raise ValueError(f"length {sizes.max()} exceeds the capacity {capacity}")
    order = np.argsort(-sizes, kind="stable")
    bins = _place(array("q", sizes[order].tobytes()), capacity)
    # Stable: within a bin the order of placement stays.
    return order[np.argsort(bins, kind="stable")], np.cumsum(np.bincount(bins), dtype=np.int64)


def _place(falling: array[int], capacity: int) -> Integers:
    """The bin of each length; ``falling``: the longest first."""
    bins = array("q")
    by_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # sorted keys of by_room
    opened = 0
    for length in falling:
        place = bisect_left(rooms, length)
        if place == len(rooms):
            room, chosen = capacity, opened
            opened += 1
        else:
            room = rooms[place]
            chosen = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[place]
        bins.append(chosen)
        left = room - length
        if left not in by_room:
            by_room[left] = []
            insort(rooms, left)
        by_room[left].append(chosen)
    return np.frombuffer(bins, dtype=np.int64)


def alone(count: int) -> tuple[Integers, Integers]:
    """As ``pack``, but a group for each."""
    return np.arange(count), np.arange(1, count + 1)
