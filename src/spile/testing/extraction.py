"""What the conformance suite asks of extraction, weights and hashes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spile
from spile.interfaces import EngineName
from spile.testing.networks import EVERY_NETWORK, Case, Networks


class ExtractionTests(Networks):
    """Extraction gives what calls give; weights come back; hashes tell models apart."""

    @pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "disk"])
    @pytest.mark.parametrize("network", ["chain", "nested", "relu_twice", "normalised", "tokens"])
    def test_extracting_equals_calling(self, network: str, on_disk: bool, tmp_path: Path) -> None:
        """Two and a half batches, with the ids and labels of the data."""
        case: Case = getattr(self, network)()
        x = self.batch(case, 10)
        path = tmp_path / "store.lance" if on_disk else None
        with spile.tap(case.model, "all", example=x) as tap:
            expected = {name: self.to_numpy(value) for name, value in tap(x).items()}
            options: dict[str, Any] = {"dtype": "float32", "batch_size": 4, "progress": False}
            store = spile.extract(tap, (x, list(range(10))), path, **options)
        store = spile.open(path) if path else store
        assert list(store.points) == list(expected)
        assert np.asarray(store.labels).tolist() == list(range(10))
        assert len(set(store.ids.tolist())) == 10
        for name, value in expected.items():
            self.same(store[name].numpy(), value)

    @pytest.mark.parametrize("network", EVERY_NETWORK)
    @pytest.mark.parametrize("engine", ["eager", pytest.param("compile", marks=pytest.mark.zoo), "openvino"])
    def test_every_engine_gives_the_values_of_the_tap(self, engine: EngineName, network: str) -> None:
        """All points at once, pooled, of a full batch and of a last odd one; the model is as before."""
        if engine not in self.engines:
            pytest.skip(f"this backend has no engine {engine!r}")
        case: Case = getattr(self, network)()
        batches = [self.batch(case, samples) for samples in (4, 4, 1)]
        state = self.state(case.model)
        with spile.tap(case.model, "all", pool=None, example=batches[0]) as tap:
            run = self.backend(case).engine(tap, preprocessing=None, precision="float32", name=engine)
            for batch in batches:
                found, expected = run(batch), tap(batch)
                assert set(found) == set(expected)
                for name, value in expected.items():
                    self.same(found[name], value)
            assert run.name == engine
        assert self.state(case.model) == state

    def test_extracting_with_two_inputs(self) -> None:
        """Batches are dicts by the names of the inputs."""
        case = self.shared()
        batches = [self.batch(case, samples) for samples in (4, 4, 2)]
        whole = {name: np.concatenate([batch[name] for batch in batches]) for name in case.inputs}
        expected = self.wanted(case, whole)
        with spile.tap(case.model, ["encoder#0", "encoder#1"], pool=None, example=batches[0]) as tap:
            data = _Batches([(batch, None) for batch in batches])
            store = spile.extract(tap, data, dtype="float32", progress=False)
        for name in store.points:
            self.same(store[name].numpy(), expected[name])

    def test_extracting_control_flow_on_values(self) -> None:
        """What cannot be compiled is run as it is."""
        case = self.branching()
        x = np.ones((5, 4), "float32")
        with spile.tap(case.model, ["stem", "up"], pool=None, example=x) as tap:
            store = spile.extract(tap, x, dtype="float32", batch_size=2, progress=False)
        self.same(store["up"].numpy(), self.wanted(case, x)["up"])

    def test_weights_that_a_tap_reaches_are_saved_and_loaded(self, tmp_path: Path) -> None:
        """Into a network of other weights, whose layers past the tap keep what they have."""
        for network, place in (("chain", "second"), ("nested", "outer/middle"), ("normalised", "norm")):
            case, other = getattr(self, network)(), getattr(self, network)()
            batch = self.batch(case, 3)
            self.scramble(other.model)
            place, path = self.at(place), tmp_path / f"{network}.safetensors"
            with spile.tap(case.model, place, pool=None, example=batch) as tap:
                self.backend(case).save_reached(tap, batch, path)
            expected, before = self.wanted(case, batch), self.wanted(other, batch)
            self.backend(other).load_reached(other.model, path)
            after = self.wanted(other, batch)
            self.same(after[place], expected[place])
            assert not np.allclose(before[place], expected[place])
            assert not np.allclose(after["head"], expected["head"])

    @pytest.mark.parametrize("network", ["chain", "nested", "normalised"])
    def test_the_hash_of_the_weights_changes_with_each(self, network: str) -> None:
        """With any number of any weight or statistic; and it is the same for the same weights."""
        case: Case = getattr(self, network)()
        digest = self.backend(case).weights_hash
        original = digest(case.model)
        changed = {name: digest(case.model) for name in self.perturbed(case.model)}
        assert len(changed) >= 6
        assert len({original, *changed.values()}) == len(changed) + 1
        assert digest(case.model) == original == digest(getattr(self, network)().model)

    def test_the_hash_of_the_architecture(self) -> None:
        """Is that of the layers, whatever their weights."""
        case, again, other = self.chain(), self.chain(), self.nested()
        self.scramble(again.model)
        digest = self.backend(case).architecture_hash
        assert digest(case.model) == digest(again.model) != digest(other.model)

    def test_versions(self) -> None:
        """Say what can change a value."""
        versions = self.backend(self.chain()).versions(self.chain().model)
        assert "machine" in versions
        assert all(versions.values())


@dataclass
class _Batches:
    """A user's loader: batches, as often as asked for."""

    batches: Sequence[Any]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)
