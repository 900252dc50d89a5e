"""TOML."""

from __future__ import annotations

import json

from hypothesis import strategies as st

from edgecsi.results.reliability.damage.bytes import Draw, Way


def _toml_lines(good: bytes, draw: Draw) -> tuple[list[str], int]:
    lines = good.decode().splitlines()
    return lines, draw(st.sampled_from([i for i, line in enumerate(lines) if "=" in line]))


def _toml_missing(good: bytes, draw: Draw) -> bytes:
    lines, at = _toml_lines(good, draw)
    del lines[at]
    return "\n".join(lines).encode()


def _toml_value(good: bytes, draw: Draw) -> bytes:
    lines, at = _toml_lines(good, draw)
    value = draw(
        st.sampled_from(
            ["-1", "0", "1.5", "nan", "inf", "9223372036854775808", "1e400", "true", "[]", "{}", '"x"', '""', "[[1]]",
             '"../../etc/passwd"', '"\\u001b[2J"', '["\\n"]', "1979-05-27", '"' + "a" * 5000 + '"', '["a", 1]', '"rpi9"']
        )
        | st.integers(-(2**63), 2**63 - 1).map(str)
        | st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=12).map(json.dumps)
    )  # fmt: skip
    lines[at] = lines[at].split("=")[0] + f"= {value}"
    return "\n".join(lines).encode()


def _toml_unknown(good: bytes, draw: Draw) -> bytes:
    lines, at = _toml_lines(good, draw)
    key = draw(
        st.sampled_from(
            ["x", "sparsity", "extends", "alias", "detect", "cpu", "do", "steps", '"a b"', "a.b.c", '""']
        )
    )
    value = draw(st.sampled_from(["1", "[]", "{a = 1}", '"target.toml"']))
    lines.insert(at, f"{key} = {value}")
    return "\n".join(lines).encode()


def _toml_twice(good: bytes, draw: Draw) -> bytes:
    lines, at = _toml_lines(good, draw)
    return "\n".join([*lines[: at + 1], lines[at], *lines[at + 1 :]]).encode()


def _toml_many_tables(good: bytes, draw: Draw) -> bytes:
    table = draw(st.sampled_from(['[[steps]]\ndo = "prune"\n', "[[a]]\n", "[a.b.c]\n", "[steps]\n"]))
    return good + (table * draw(st.sampled_from([1, 2, 300, 5000]))).encode()


def _toml_deep(good: bytes, draw: Draw) -> bytes:
    depth = draw(st.sampled_from([50, 2_000, 20_000]))
    return good + b"x = " + b"[" * depth + b"]" * depth


TOML: dict[str, Way] = {
    "a key missing": _toml_missing, "a value out of place": _toml_value, "an unknown key": _toml_unknown,
    "a key twice": _toml_twice, "far too many tables": _toml_many_tables, "nested too deeply": _toml_deep,
}  # fmt: skip
