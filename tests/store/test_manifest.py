from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spile.errors import StoreError
from spile.store.manifest import ColumnSpec, Manifest, column_fields, describe, fingerprint, store_schema

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values), st.lists(st.text(min_size=1), unique=True, max_size=5))
def test_what_is_written_is_what_is_read(fields, names):
    names = [name for name in names if name not in {"id", "position", "label", "split", "group"}]
    columns = [ColumnSpec(name=name, shape=(2, 3), dtype="float16", info=fields) for name in names]
    manifest = Manifest(fingerprinted=fields, recorded=fields)
    read = describe(store_schema(columns, manifest), "here")
    assert read.manifest == manifest
    assert {name: column.spec for name, column in read.columns.items()} == {c.name: c for c in columns}
    assert read.fingerprint == describe(store_schema(columns, manifest), "there").fingerprint
    assert not read.complete


def test_the_fingerprint_does_not_depend_on_the_order_or_kind_of_mappings():
    a = fingerprint({"a": 1, "b": (1, {"c": 2, "d": 3})}, {})
    assert a == fingerprint(MappingProxyType({"b": [1, MappingProxyType({"d": 3, "c": 2})], "a": 1}), {})
    assert a != fingerprint({"a": 1, "b": [1, {"c": 2, "d": 4}]}, {})


@pytest.mark.parametrize("value", [float("nan"), np.float32(1), object()])
def test_what_is_not_json_is_refused(value):
    with pytest.raises(StoreError, match="must be JSON"):
        store_schema([], Manifest(fingerprinted={"a": value}))


def test_column_names_never_meet_in_the_file():
    columns = [ColumnSpec(name=name, shape=(1,), dtype="float32") for name in ("a.b", "a/b", "a`b", "a'b")]
    names = [field.name for field in column_fields(columns, taken=["a/b_"])]
    assert len({*names, "a/b_"}) == 5
    assert not any(c in name for name in names for c in ".`")


def test_arrow_types_are_flat_lists():
    assert ColumnSpec(name="x", shape=(2, 3), dtype="float16").arrow_type == pa.list_(pa.float16(), 6)
    tokens = ColumnSpec(name="x", shape=(None, 4, 2), dtype="float32").arrow_type
    assert tokens == pa.list_(pa.list_(pa.float32(), 8))
