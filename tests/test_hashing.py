"""A hash of many arrays."""

from __future__ import annotations

from spile.hashing import hash_of


def of(*parts: tuple[str, bytes]) -> str:
    return hash_of((name, lambda data=data: data) for name, data in parts)


def test_names_bytes_and_their_order_decide() -> None:
    found = of(("a", b"1"), ("b", b"2"))
    assert found == of(("a", b"1"), ("b", b"2")) and len(found) == 32
    assert found != of(("b", b"2"), ("a", b"1"))
    assert found != of(("a", b"1"), ("b", b"3"))
    assert found != of(("a", b"1"), ("c", b"2"))
    assert found != of(("a", b"1"))
    assert of() == of()


def test_where_a_name_ends_is_told() -> None:
    assert of(("a", b"b1")) != of(("ab", b"1"))
