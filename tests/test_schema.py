"""The one reader of JSON and TOML: what it refuses, and how it says so."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecsi.errors import DataError
from edgecsi.schema import (
    Count,
    Name,
    Sha256,
    between,
    convert,
    decode_json,
    decode_toml,
    matching,
    read_bytes,
    to_tree,
)


@dataclass(frozen=True)
class Part:
    bits: Annotated[int, between(0, 64)]
    share: float = 1.0


@dataclass(frozen=True)
class Whole:
    name: Name
    parts: tuple[Part, ...] = ()
    kind: Literal["a", "b"] = "a"
    named: Mapping[Name, Part] | None = None
    knobs: Mapping[str, bool | int | float | str] | None = None
    digest: Sha256 | None = None
    count: Count | None = None
    code: Annotated[str, matching("[a-z]+", "small letters")] = "x"


def decode(text: str | bytes) -> Whole:
    data = text if isinstance(text, bytes) else text.encode()
    return decode_json(data, Whole, what="it", error=DataError, max_bytes=10_000)


def test_what_fits_is_taken() -> None:
    text = '{"name":"a","parts":[{"bits":3,"share":1}],"named":{"x":{"bits":0}},"knobs":{"a":true,"b":1.5}}'
    whole = decode(text)
    assert whole.parts == (Part(3, 1.0),)
    assert whole.named == {"x": Part(0)}
    assert whole.knobs == {"a": True, "b": 1.5}
    assert decode(json.dumps(to_tree(whole))) == whole


@pytest.mark.parametrize(
    ("text", "what", "why"),
    [
        ("{}", "it: name is not valid", "expected this field, found nothing"),
        ("[]", "it: the top level is not valid", "expected an object, found []"),
        ('{"name":"a b"}', "it: name", "a name of letters"),
        ('{"name":"a\\n"}', "it: name", "a name of letters"),
        ('{"name":"a","code":"ab\\n"}', "it: code", "expected small letters"),
        ('{"name":"a","kind":"c"}', "it: kind", "expected 'a' or 'b', found c"),
        ('{"name":"a","parts":{}}', "it: parts", "expected a list"),
        (
            '{"name":"a","parts":[{"bits":65}]}',
            "it: parts[0].bits",
            "expected a whole number from 0 to 64, found 65",
        ),
        ('{"name":"a","parts":[{"bits":true}]}', "it: parts[0].bits", "a whole number"),
        ('{"name":"a","parts":[{"bits":1.0}]}', "it: parts[0].bits", "a whole number"),
        ('{"name":"a","parts":[{"bits":"1"}]}', "it: parts[0].bits", "a whole number"),
        ('{"name":"a","parts":[{"bits":' + "9" * 30 + "}]}", "it: parts[0].bits", "a whole number"),
        ('{"name":"a","parts":[{"bits":1,"share":"1"}]}', "it: parts[0].share", "a number"),
        ('{"name":"a","parts":[{"bits":1,"shar":1}]}', "it: parts[0].shar", "did you mean share?"),
        ('{"name":"a","named":{"ok":{"bits":1},"bad":{"bits":-1}}}', "it: named.bad.bits", "found -1"),
        ('{"name":"a","named":{"a/b":{"bits":1}}}', "it: named.a/b", "a name of letters"),
        ('{"name":"a","knobs":{"ok":1,"bad":[1]}}', "it: knobs.bad", "found [1]"),
        ('{"name":"a","digest":"0"}', "it: digest", "64 hexadecimal digits"),
        ('{"name":"a","count":-1}', "it: count", "from 0 to 9,007,199,254,740,992"),
        ('{"name":"a","":1}', "it: the top level", "no such field"),
        ('{"name":"a","name":"a"}', "it is not valid JSON", "'name' appears twice"),
        ('{"name":NaN}', "it is not valid JSON", "NaN"),
        ('{"name":"a","parts":[{"bits":1,"share":1e999}]}', "it is not valid JSON", "1e999"),
        ('{"name":' + "1" * 5000 + "}", "it is not valid JSON", "digits"),
        ('{"name":"\\ud800"}', "it is not valid JSON", "surrogates"),
        ("[" * 65 + "]" * 65, "it is not valid JSON", "nested too deeply"),
        ("[" * 5000, "it is not valid JSON", "nested too deeply"),
        (b'"\xff"', "it is not valid JSON", "utf-8"),
        ("", "it is not valid JSON", "Expecting value"),
        (b" " * 10_001, "it is too large", "9 KiB"),
    ],
)
def test_what_does_not_is_refused_by_its_place(text: str | bytes, what: str, why: str) -> None:
    with pytest.raises(DataError) as caught:
        decode(text)
    assert caught.value.what.startswith(what)
    assert why in caught.value.why
    assert str(caught.value).count("\n") == 2
    assert str(caught.value).replace("\n", "").isprintable()
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('name = "a"\nname = "b"', "overwrite"),
        ('name = "a"\nparts = [{bits = 1, share = nan}]', "nan is no finite number"),
        ('name = "a"\nparts = [{bits = 1, share = inf}]', "inf is no finite number"),
        ("name = 1979-05-27", "a name of letters"),
        ("name = " + "[" * 3000, "deeply"),
        ('name = "a"\nnam = 1', "no such field"),
    ],
)
def test_toml_too(text: str, why: str) -> None:
    with pytest.raises(DataError) as caught:
        decode_toml(text.encode(), Whole, what="it", error=DataError)
    assert why in caught.value.why


def test_all_fields_can_be_asked_for() -> None:
    with pytest.raises(DataError, match="share is not valid"):
        convert({"bits": 1}, Part, what="it", error=DataError, may_lack=())
    assert convert({"bits": 1}, Part, what="it", error=DataError, may_lack=("share",)) == Part(1)


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    with pytest.raises(DataError, match="cannot be read"):
        read_bytes(file, error=DataError)
    file.write_bytes(b"12345")
    assert read_bytes(file, error=DataError, max_bytes=5) == b"12345"
    with pytest.raises(DataError, match="too large"):
        read_bytes(file, error=DataError, max_bytes=4)
    with pytest.raises(DataError, match="cannot be read"):
        read_bytes(tmp_path, error=DataError)


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "parts", "bits", "share", "named", "knobs", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(TREES)
def test_whatever_comes_is_taken_or_refused(tree: object) -> None:
    with contextlib.suppress(DataError):
        decode(json.dumps(tree))
