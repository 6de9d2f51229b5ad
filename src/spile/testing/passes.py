"""What the conformance suite asks of a pass: it stops, leaves no trace, and tells what is missing."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

import spile
from spile.errors import CaptureError, ModelError
from spile.testing.networks import EVERY_NETWORK, Case, Networks


class PassTests(Networks):
    """A pass leaves the model as it was, and never gives a stale, partial or missing tensor."""

    @pytest.mark.parametrize("place", ["second", "tripwire@in"])
    def test_computing_stops_at_the_deepest_point(self, place: str) -> None:
        """A layer past it, which would raise, never runs; in extraction neither."""
        case = self.chain()
        x = self.batch(case, 5)
        expected = self.wanted(case, x)["second"]
        with spile.tap(case.model, ["first", place], pool=None, example=x) as tap:
            case.arm()
            self.same(tap(x)[place], expected)
            store = spile.extract(tap, x, dtype="float32", batch_size=2, progress=False)
            self.same(store[place].numpy(), expected)
            with pytest.raises(RuntimeError, match="tripped"):
                tap.with_output(x)

    @pytest.mark.parametrize("network", EVERY_NETWORK)
    def test_the_model_is_as_before_after_all(self, network: str) -> None:
        """After making a tap, after each kind of pass, and after closing it."""
        case: Case = getattr(self, network)()
        batch = self.batch(case, 3)
        before = self.state(case.model)
        tap = spile.tap(case.model, "all", pool=None, example=batch)
        tapped = self.state(case.model)
        tap(batch)
        assert self.state(case.model) == tapped
        tap.with_output(batch)
        assert self.state(case.model) == tapped
        tap.verify(batch, rtol=self.rtol, atol=self.atol)
        assert self.state(case.model) == tapped
        if isinstance(batch, np.ndarray):
            spile.extract(tap, batch, batch_size=2, progress=False)
            assert self.state(case.model) == tapped
        tap.close()
        assert self.state(case.model) == before
        spile.layers(case.model, batch)
        assert self.state(case.model) == before

    def test_the_model_is_as_before_after_an_exception(self) -> None:
        """One of the model's own, in a pass and in a dry pass; and the tap goes on working."""
        case = self.chain()
        x = self.batch(case, 3)
        expected = self.wanted(case, x)["second"]
        before = self.state(case.model)
        tap = spile.tap(case.model, "second", pool=None, example=x)
        tapped = self.state(case.model)
        case.arm()
        with pytest.raises(RuntimeError, match="tripped"):
            tap.with_output(x)
        assert self.state(case.model) == tapped
        self.same(tap(x)["second"], expected)
        tap.close()
        with pytest.raises((RuntimeError, ModelError), match="tripped"):
            spile.tap(case.model, "head", example=x)
        assert self.state(case.model) == before

    def test_nothing_stale(self) -> None:
        """Batches of other sizes each get their own values, and those of earlier batches stay."""
        case = self.normalised()
        with spile.tap(case.model, ["conv", "act"], pool=None, example=self.batch(case, 2)) as tap:
            batches = [self.batch(case, samples, seed=9) for samples in (3, 1, 5, 3)]
            found = [tap(batch) for batch in batches]
        for batch, values in zip(batches, found, strict=True):
            expected = self.wanted(case, batch)
            for name, value in values.items():
                self.same(value, expected[name])

    def test_one_row_alone_is_the_row_in_a_batch(self) -> None:
        """Nothing is normalised over the batch, also for a model left in training mode."""
        case = self.normalised()
        x = self.batch(case, 4)
        with spile.tap(case.model, "all", pool=None, example=x) as tap:
            together = tap(x)
            for name, value in tap(x[1:2]).items():
                self.same(value, self.to_numpy(together[name])[1:2])

    def test_new_weights_give_new_values(self) -> None:
        """A tap holds no copy of the weights, in extraction neither."""
        case = self.chain()
        x = self.batch(case, 4)
        with spile.tap(case.model, "second", pool=None, example=x) as tap:
            engine = self.backend(case).engine(tap, preprocessing=None, precision="float32")
            old = engine(x)["second"]
            self.scramble(case.model)
            expected = self.wanted(case, x)["second"]
            self.same(tap(x)["second"], expected)
            self.same(engine(x)["second"], expected)
        assert not np.allclose(old, expected)

    def test_a_layer_that_does_not_run_in_a_later_batch(self) -> None:
        """Is an error, in a call and in extraction; nothing of the batch before is given."""
        case = self.branching()
        positive = np.ones((2, 4), "float32")
        expected = self.wanted(case, positive)["up"]
        with spile.tap(case.model, ["stem", "up"], pool=None, example=positive) as tap:
            self.same(tap(positive)["up"], expected)
            with pytest.raises(CaptureError, match=r"did not run in this batch.*up"):
                tap(-positive)
            self.same(tap(positive)["up"], expected)
            with pytest.raises(CaptureError, match=r"did not run in this batch.*up"):
                spile.extract(tap, np.concatenate([positive, -positive]), batch_size=2, progress=False)

    def test_a_layer_that_runs_more_or_less_often_in_a_later_batch(self) -> None:
        """Is an error where it leaves open, or lacks, what was asked for."""
        case = self.looping()
        once, twice = np.ones((2, 4), "float32"), np.full((2, 4), 2, "float32")
        with spile.tap(case.model, "cell", pool=None, example=once) as tap:
            self.same(tap(once)["cell"], once)
            with pytest.raises(CaptureError, match=r"cell ran again in this batch.*'cell#0'"):
                tap(twice)
        with spile.tap(case.model, ["cell#0", "cell#1"], pool=None, example=twice) as tap:
            self.same(tap(twice)["cell#1"], twice)
            with pytest.raises(CaptureError, match=r"did not run in this batch.*cell#1"):
                tap(once)

    def test_verify_detects_a_tampered_capture(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """And names the points."""
        case = self.chain()
        batch = self.batch(case, 3)
        with spile.tap(case.model, ["first", "second"], pool=None, example=batch) as tap:
            assert tap.verify(batch, rtol=self.rtol, atol=self.atol).largest_difference <= self.atol
            self.tamper(monkeypatch)
            with pytest.raises(CaptureError, match=r"2 of 2 points differ from the reference.*second"):
                tap.verify(batch, rtol=self.rtol, atol=self.atol)

    def test_a_tap_without_an_example_learns_from_the_first_batch(self) -> None:
        """Until then it has no points, where the model does not tell its input."""
        twice = np.full((2, 4), 2, "float32")
        with spile.tap(self.looping().model, "c*", pool=None) as tap:
            with pytest.raises(CaptureError, match="learnt from the first batch"):
                _ = tap.points
            assert list(tap(twice)) == ["cell#0", "cell#1"]
            assert [point.shape for point in tap.points] == [(4,), (4,)]

    def test_an_example_may_be_a_shape(self) -> None:
        """Of a batch of any number of samples."""
        case = self.chain()
        x = self.batch(case, 3)
        with spile.tap(case.model, "first", pool=None, example=(1, 4)) as tap:
            self.same(tap(x)["first"], self.wanted(case, x)["first"])

    def test_a_closed_tap_says_so(self) -> None:
        """Whatever it is used for. Closing twice is fine."""
        case = self.chain()
        batch = self.batch(case, 2)
        with spile.tap(case.model, "first", example=batch) as tap:
            tap(batch)
        for use in (tap, tap.with_output, tap.verify):
            with pytest.raises(CaptureError, match="closed"):
                use(batch)
        tap.close()

    def test_an_unknown_mode_is_refused(self) -> None:
        """With the modes there are."""
        with pytest.raises(ModelError, match="unknown mode 'train': write 'eval'"):
            spile.tap(self.chain().model, "first", mode=cast(Any, "train"))

    def test_activations_are_read_only(self) -> None:
        """And know their shapes."""
        case = self.chain()
        batch = self.batch(case, 2)
        with spile.tap(case.model, "first", example=batch) as tap:
            found = tap(batch)
        with pytest.raises(TypeError, match="read-only"):
            found["first"] = batch
        assert repr(found) == "Activations({'first': (2, 5)})"
