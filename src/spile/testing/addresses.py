"""What the conformance suite asks of addresses, points and the table of layers."""

from __future__ import annotations

import pytest

import spile
from spile.errors import AddressError
from spile.testing.networks import Networks


class AddressTests(Networks):
    """Every address names what it should, or says why not."""

    def test_a_layer_that_runs_twice_is_asked_for_by_call(self) -> None:
        """An exact path lists the calls; a call that is not there lists them too."""
        case = self.relu_twice()
        batch = self.batch(case, 2)
        with pytest.raises(AddressError, match=r"'relu' runs 2 times; say which call: relu#0, relu#1"):
            spile.tap(case.model, "relu", example=batch)
        with pytest.raises(AddressError, match=r"'relu' has no call 2; there is relu#0, relu#1"):
            spile.tap(case.model, "relu#2", example=batch)

    def test_several_tensors_are_asked_for_by_item(self) -> None:
        """An exact path lists the items of a tuple or dict."""
        for case, items in ((self.tuple_output(), "01"), (self.dict_output(), "ab")):
            listed = f"split:{items[0]}, split:{items[1]}"
            batch = self.batch(case, 2)
            with pytest.raises(AddressError, match=f"is not one tensor; say which item: {listed}"):
                spile.tap(case.model, "split", example=batch)
            with pytest.raises(AddressError, match=f"has no item 'z'; there is {listed}"):
                spile.tap(case.model, "split:z", example=batch)

    def test_nothing_matched_names_the_nearest(self) -> None:
        """For exact paths, patterns and types."""
        case = self.chain()
        batch = self.batch(case, 2)
        for wrong, near in (
            ("secnd", "'second'"),
            ("secon?x", "'second'"),
            (f"type:{self.dense}x", self.dense),
        ):
            with pytest.raises(AddressError, match=f"nearest: .*{near}"):
                spile.tap(case.model, wrong, example=batch)
        with pytest.raises(AddressError, match="no address given"):
            spile.tap(case.model, [], example=batch)

    def test_a_layer_that_never_runs_is_an_error(self) -> None:
        """An exact path says that it does not run; a pattern leaves it out."""
        case = self.idle_layer()
        batch = self.batch(case, 2)
        with pytest.raises(AddressError, match="'unused' never runs"):
            spile.tap(case.model, "unused", example=batch)
        assert self.names(case, "*used") == ["used"]

    def test_both_names_of_a_tied_layer(self) -> None:
        """They are one place."""
        case = self.tied()
        x = self.batch(case, 2)
        expected = self.wanted(case, x)["first"]
        with spile.tap(case.model, {"one": "first", "other": "second"}, pool=None, example=x) as tap:
            found = tap(x)
        self.same(found["one"], expected)
        self.same(found["other"], expected)

    def test_patterns_expand(self) -> None:
        """Globs, regexes, types, leaves, inputs; calls and items each become a point, in forward order."""
        inner = [self.at(f"outer/middle/inner{rest}") for rest in ("", "/act", "/dense")]
        assert sorted(self.names(self.nested(), self.at("outer/middle/inner/**"))) == inner
        assert sorted(self.names(self.nested(), self.at("outer/middle/inner/*"))) == inner[1:]
        assert self.names(self.chain(), "re:first|second") == ["first", "second"]
        assert self.names(self.chain(), f"type:{self.dense}") == ["first", "second", "head"]
        assert self.names(self.chain(), f"type:{self.dense}@in") == ["first@in", "second@in", "head@in"]
        assert self.names(self.chain(), "leaves") == ["first", "act", "second", "tripwire", "head"]
        assert self.names(self.relu_twice(), "rel?") == ["relu#0", "relu#1"]
        assert self.names(self.relu_twice(), "rel?#1") == ["relu#1"]
        assert self.names(self.tuple_output(), "s*") == ["split:0", "split:1"]
        assert self.names(self.dict_output(), "s*:b") == ["split:b"]

    def test_own_names(self) -> None:
        """A dict renames, and its order is kept."""
        case = self.chain()
        x = self.batch(case, 2)
        expected = self.wanted(case, x)
        with spile.tap(case.model, {"late": "second", "early": "first"}, example=x) as tap:
            found = tap(x)
        assert list(found) == ["late", "early"]
        self.same(found["late"], expected["second"])
        self.same(found["early"], expected["first"])

    def test_last_features(self) -> None:
        """What the final classifier reads."""
        case = self.chain()
        with spile.tap(case.model, "first", example=self.batch(case, 2)) as tap:
            assert tap.last_features == "head@in"

    def test_the_table_of_layers(self) -> None:
        """Addresses in forward order, shapes of one sample, parameters, multiply-accumulates and calls."""
        case = self.chain()
        rows = spile.layers(case.model, self.batch(case, 2))
        assert [row.address for row in rows] == ["first", "act", "second", "tripwire", "head"]
        assert [row.output for row in rows] == [(5,), (5,), (6,), (6,), (3,)]
        assert [row.params for row in rows] == [25, 0, 36, 0, 21]
        assert [row.macs for row in rows] == [20, 20, 50, 50, 68]
        assert {row.dtype for row in rows} == {"float32"}
        assert rows[0].type == self.dense
        shared = self.shared()
        calls = {row.address: row.calls for row in spile.layers(shared.model, self.batch(shared, 2))}
        assert calls == {"encoder": 2, self.at("encoder/dense"): 2, self.at("encoder/act"): 2, "head": 1}

    def test_strides_of_maps(self) -> None:
        """Input pixels a cell."""
        case = self.normalised()
        rows = spile.layers(case.model, self.batch(case, 2))
        strides = {row.address: row.stride for row in rows}
        assert (strides["conv"], strides["act"]) == (1, 1)
