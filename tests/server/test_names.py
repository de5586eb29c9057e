"""The names of instances on a Chroma server: each key has one, each is one key's, and Chroma takes all of them."""

from __future__ import annotations

import re

import pytest
from chroma_manager import InvalidKeyError
from chroma_manager.engine.server.names import Key, key_of, name_of
from hypothesis import given
from hypothesis import strategies as st

# What Chroma says that it takes, and takes (tests/server/test_instances.py).
TAKEN = re.compile(r"(?!.*\.\.)[a-zA-Z0-9][a-zA-Z0-9._-]{1,510}[a-zA-Z0-9]")

parts = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/\\"), min_size=1, max_size=40)
keys = st.builds(Key, parts, parts)
# Near to each other, and to names.
confusable = st.builds(Key, *[st.text("ab-_.2DE%é", min_size=1, max_size=6)] * 2)


@given(st.one_of(keys, confusable))
def test_a_name_is_the_key_s_again_and_chroma_takes_it(key: Key) -> None:
    name = name_of(key)
    assert TAKEN.fullmatch(name)
    assert key_of(name) == key


@given(confusable, confusable)
def test_two_keys_have_two_names(one: Key, other: Key) -> None:
    assert (name_of(one) == name_of(other)) == (one == other)


@given(st.text("abcm.-_0123456789DEFé", max_size=24))
def test_another_name_is_no_key_s(name: str) -> None:
    key = key_of(name)
    assert key is None or name_of(key) == name


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (Key("doc123", "azure"), "cm.doc123.azure"),
        (Key("Report 2024.pdf", "text-embedding-3"), "cm.Report_202024_2Epdf.text-embedding-3"),
        (Key("é", "a_b"), "cm._C3_A9.a_5Fb"),
        (Key("-", "-"), "cm._2D._2D"),
        (Key("--", "a-"), "cm.-_2D.a_2D"),
    ],
)
def test_names_are_those_of_the_documentation(key: Key, name: str) -> None:
    assert name_of(key) == name


@pytest.mark.parametrize("name", ["cm.a", "cm.a.b.c", "xm.a.b", "cm.a.b-", "cm.a._2d", "cm.a._61", "cm.a._FF", "cm..b"])
def test_a_name_that_is_not_written_so_is_no_instance_s(name: str) -> None:
    assert key_of(name) is None


def test_a_key_that_is_too_long_for_chroma_is_refused() -> None:
    assert len(name_of(Key("a" * 252, "b" * 252))) == 508
    with pytest.raises(InvalidKeyError, match=r"509 characters, and the limit is 508"):
        name_of(Key("a" * 253, "b" * 252))
