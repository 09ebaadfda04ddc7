"""Best-fit-decreasing bin packing."""

from __future__ import annotations

from bisect import bisect_left, insort


def pack(lengths: list[int], capacity: int) -> list[list[int]]:
    """Indices of ``lengths`` grouped so that no group's sum exceeds ``capacity``.

    The longest first, each into the fullest bin that still has room. Bins wait in stacks by the room left, of which
    there are at most ``capacity`` kinds, so a placement costs a bisection of those kinds: O(n log capacity).
    Deterministic. Raises ValueError for a length over ``capacity``.
    """
    bins: list[list[int]] = []
    chosen: list[int]
    by_room: dict[int, list[list[int]]] = {}
    rooms: list[int] = []  # sorted keys of by_room
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        if length > capacity:
            raise ValueError(f"length {length} exceeds the capacity {capacity}")
        place = bisect_left(rooms, length)
        if place == len(rooms):
            room, chosen = capacity, []
            bins.append(chosen)
        else:
            room = rooms[place]
            chosen = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[place]
        chosen.append(index)
        left = room - length
        if left not in by_room:
            by_room[left] = []
            insort(rooms, left)
        by_room[left].append(chosen)
    return bins
