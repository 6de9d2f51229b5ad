"""What the conformance suite asks of the values a tap gives."""

from __future__ import annotations

import numpy as np
import pytest

import spile
from spile.testing.networks import EVERY_NETWORK, Case, Networks


class ValueTests(Networks):
    """Every tensor is the one that was asked for."""

    @pytest.mark.parametrize("network", EVERY_NETWORK)
    def test_every_layer_at_once_equals_the_reference(self, network: str) -> None:
        """All points of a model in one pass, as whole tensors, and that are all there are."""
        case: Case = getattr(self, network)()
        batch = self.batch(case, 3)
        expected = self.wanted(case, batch)
        with spile.tap(case.model, "all", pool=None, example=batch) as tap:
            found = tap(batch)
            assert set(found) == set(expected)
            for name, value in found.items():
                self.same(value, expected[name])
            assert tap.verify(batch, rtol=self.rtol, atol=self.atol).points == len(expected)

    @pytest.mark.parametrize("network", EVERY_NETWORK)
    def test_every_layer_alone_equals_the_reference(self, network: str) -> None:
        """Each point in a pass that stops there."""
        case: Case = getattr(self, network)()
        batch = self.batch(case, 2)
        for name, expected in self.wanted(case, batch).items():
            with spile.tap(case.model, name, pool=None, example=batch) as tap:
                self.same(tap(batch)[name], expected)

    @pytest.mark.parametrize("network", ["branching", "looping"])
    def test_control_flow_on_values(self, network: str) -> None:
        """A model whose Python looks at the numbers."""
        case: Case = getattr(self, network)()
        x = np.ones((2, 4), "float32")
        expected = self.wanted(case, x)
        with spile.tap(case.model, "all", pool=None, example=x) as tap:
            for name, value in tap(x).items():
                self.same(value, expected[name])

    def test_with_output_gives_the_models_own_output(self) -> None:
        """The whole forward pass, and the activations of a layer in its middle."""
        case = self.normalised()
        x = self.batch(case, 3)
        expected = self.wanted(case, x)
        with spile.tap(case.model, "norm", pool=None, example=x) as tap:
            output, found = tap.with_output(x)
        self.same(output, expected["head"])
        self.same(found["norm"], expected["norm"])

    def test_inputs_and_the_model_itself(self) -> None:
        """``@in`` of a layer, and of the model."""
        case = self.chain()
        x = self.batch(case, 3)
        expected = self.wanted(case, x)
        with spile.tap(case.model, ["second@in", "@in", "@out"], pool=None, example=x) as tap:
            found = tap(x)
        self.same(found["second@in"], expected["act"])
        self.same(found["@in"], x)
        self.same(found["@out"], expected["head"])

    def test_several_inputs_of_a_layer(self) -> None:
        """Their items are numbered."""
        case = self.two_inputs()
        batch = self.batch(case, 3)
        with spile.tap(case.model, ["join@in:0", "join@in:1"], pool=None, example=batch) as tap:
            found = tap(batch)
        self.same(found["join@in:0"], batch["left"])
        self.same(found["join@in:1"], batch["right"])

    def test_calls_of_a_shared_encoder_differ(self) -> None:
        """The second call is not the first, inside the encoder neither."""
        case = self.shared()
        batch = self.batch(case, 3)
        expected = self.wanted(case, batch)
        places = [
            self.at(place) for place in ("encoder#1", "encoder#0", "encoder/dense#1", "encoder/dense#0")
        ]
        with spile.tap(case.model, places, pool=None, example=batch) as tap:
            found = tap(batch)
        for place in places:
            self.same(found[place], expected[place])
        assert not np.allclose(self.to_numpy(found["encoder#0"]), self.to_numpy(found["encoder#1"]))

    def test_gradients_flow(self) -> None:
        """With respect to the input, against differences of the reference."""
        case = self.chain()
        x = self.batch(case, 1)
        with spile.tap(case.model, "second", pool=None, example=x) as tap:
            found = self.gradient(lambda tensor: tap(tensor)["second"], x)
        step = 1e-2
        for axis in range(4):
            moved = np.zeros_like(x)
            moved[0, axis] = step
            up, down = (case.expected(x + sign * moved)["second"] for sign in (1, -1))
            slope = (self.to_numpy(up).sum() - self.to_numpy(down).sum()) / (2 * step)
            np.testing.assert_allclose(found[0, axis], slope, rtol=1e-2, atol=1e-2)
