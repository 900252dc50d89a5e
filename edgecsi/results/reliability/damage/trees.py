"""JSON, and whatever else is a tree of fields."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from hypothesis import strategies as st

from edgecsi.results.reliability.damage.bytes import Draw, Way

NUMBERS = st.sampled_from(
    [0, -1, 1, 2**31 - 1, 2**31, -(2**31), 2**53, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30, 1e308, -1e308, 5e-324]
) | st.integers(-300, 300)  # fmt: skip
TEXTS = st.sampled_from(
    [
        "",
        "\x00",
        "\x1b[2J",
        "../../../etc/passwd",
        "/dev/zero",
        "a" * 70_000,
        "é\u202e\u2028",
        "%s%n",
        "nan",
        "\n\n",
        "-",
    ]
) | st.text(max_size=20)
SCALARS = NUMBERS | TEXTS | st.booleans() | st.none() | st.floats()
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)


def _places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything in a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(place for key, value in items for place in _places(value, (*path, key)))]


def _at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _change(tree: Any, draw: Draw, change: Callable[[Any, Any], None]) -> Any:
    """Apply `change(container, key)` somewhere in the tree."""
    if places := [place for place in _places(tree) if place]:
        place = draw(st.sampled_from(places))
        change(_at(tree, place[:-1]), place[-1])
    return tree


def field_missing(tree: Any, draw: Draw) -> Any:
    return _change(tree, draw, lambda container, key: container.pop(key))


def field_replaced(tree: Any, draw: Draw) -> Any:
    value = draw(VALUES)
    return _change(tree, draw, lambda container, key: container.__setitem__(key, value))


def field_unknown(tree: Any, draw: Draw) -> Any:
    name, value = draw(TEXTS), draw(VALUES)
    maps = [place for place in _places(tree) if isinstance(_at(tree, place), dict)]
    if maps:
        _at(tree, draw(st.sampled_from(maps)))[name] = value
    return tree


def number_extreme(tree: Any, draw: Draw) -> Any:
    numbers = [p for p in _places(tree) if p and type(_at(tree, p)) in (int, float)]
    if numbers:
        place = draw(st.sampled_from(numbers))
        _at(tree, place[:-1])[place[-1]] = draw(NUMBERS | st.floats())
    return tree


def text_hostile(tree: Any, draw: Draw) -> Any:
    texts = [p for p in _places(tree) if p and isinstance(_at(tree, p), str)]
    if texts:
        place = draw(st.sampled_from(texts))
        _at(tree, place[:-1])[place[-1]] = draw(TEXTS)
    return tree


def list_huge(tree: Any, draw: Draw) -> Any:
    value = [draw(SCALARS)] * draw(st.sampled_from([100, 20_000]))
    return _change(tree, draw, lambda container, key: container.__setitem__(key, value))


TREES: dict[str, Callable[[Any, Draw], Any]] = {
    "a field missing": field_missing, "a field of another type": field_replaced, "an unknown field": field_unknown,
    "a number beyond its range": number_extreme, "a hostile text": text_hostile, "a list far too long": list_huge,
}  # fmt: skip


def _json(way: Callable[[Any, Draw], Any], good: bytes, draw: Draw) -> bytes:
    """The damaged tree in the canonical spelling that our own files have, its own digest made right again."""
    from edgecsi.bundle.manifest import canonical

    tree = way(json.loads(good), draw)
    if isinstance(tree, dict) and "digest" in tree:
        import hashlib

        with suppress(ValueError):
            tree["digest"] = hashlib.sha256(
                canonical({k: v for k, v in tree.items() if k != "digest"})
            ).hexdigest()
    try:
        return canonical(tree)
    except ValueError:  # NaN and lone surrogates, which our own writer refuses
        return json.dumps(tree, sort_keys=True, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _deep(good: bytes, draw: Draw) -> bytes:
    opening, closing = draw(st.sampled_from([(b"[", b"]"), (b'{"a":', b"}")]))
    depth = draw(st.sampled_from([50, 2_000, 200_000]))
    return bytes(opening * depth + b"1" + closing * depth)


def _twice(good: bytes, draw: Draw) -> bytes:
    """One key twice in one object."""
    return good.replace(b"{", b'{"schema":%d,"schema":1,' % draw(st.integers(-2, 99)), 1)


JSON: dict[str, Way] = {
    **{name: partial(_json, way) for name, way in TREES.items()},
    "nested too deeply": _deep, "a key twice": _twice,
}  # fmt: skip


def _jsonl(way: Callable[[Any, Draw], Any], good: bytes, draw: Draw) -> bytes:
    from edgecsi.kernels.records import checksum

    lines = [json.loads(line) for line in good.splitlines()]
    number = draw(st.integers(0, len(lines) - 1))
    lines[number] = way(lines[number], draw)
    if isinstance(lines[number], dict) and draw(st.booleans()):
        lines[number].pop("sum", None)
        with suppress(ValueError):
            lines[number]["sum"] = checksum(lines[number])
    return "".join(json.dumps(line) + "\n" for line in lines).encode("utf-8", "surrogatepass")


JSONL: dict[str, Way] = {name: partial(_jsonl, way) for name, way in TREES.items()}
