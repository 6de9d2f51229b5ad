"""The conformance suite that a new backend must pass. Needs pytest, which nothing else in spile does.

    pytest.register_assert_rewrite("spile.testing")
    from spile.testing import BackendTests, Case

    class TestTorch(BackendTests):
        separator, map_layout, dense = ".", "BCYX", "Linear"

        def chain(self) -> Case: ...

A backend says how the small networks of `Networks` are built, and what each of their layers should give,
found without spile, e.g. by calling the layers by hand. The tests are the same for every framework. They
write places with ``/`` between the parts; `Networks.separator` is what the backend writes there.
"""

from __future__ import annotations

from spile.testing.addresses import AddressTests
from spile.testing.extraction import ExtractionTests
from spile.testing.networks import Array, Case, Networks
from spile.testing.passes import PassTests
from spile.testing.pools import PoolTests
from spile.testing.values import ValueTests

__all__ = ["Array", "BackendTests", "Case", "Networks"]


class BackendTests(ValueTests, AddressTests, PoolTests, PassTests, ExtractionTests):
    """Every promise of a tap, on any framework. Subclass it, and let pytest run the subclass."""
