"""A tap as a `.keras` file: the layers that its point needs, loadable without the user's own code."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import keras
import numpy as np

from spile.errors import AddressError, CaptureError, ModelError, PoolError
from spile.interfaces import Exported
from spile.keras.taps import Tap

FILE = "network.keras"
_TOLERANCE = 1e-5
"""How far a value may be off in the model that is read back, as a share of the largest."""


def export_tap(tap: Tap, example: Any, folder: Path, *, dry: bool = False) -> Exported:
    """Save the model of a tap, cut to what its points need where it is Functional.

    The file is read back in Keras' safe mode, which runs no code from it, and compared on `example`, a batch
    as the model takes it. With `dry` nothing is written, and the tap may have any number of points: the
    layers they need are only built again from their configuration. Raises `ModelError` where the file
    cannot be written or read, or gives other values.
    """
    network = tap.pruned()
    if dry:
        _rebuild(network)
        return Exported(FILE, (), ())
    save_model(network, folder / FILE)
    addresses, pools = zip(*((point.address, str(point.pool)) for point in tap.points), strict=True)
    exported = Exported(FILE, addresses, pools)
    _compare(tap, _read(folder / FILE, network), exported, example)
    return exported


def save_model(network: keras.Model, path: Path) -> None:
    """Save a model without optimizer and losses. Raises `ModelError` where Keras cannot, or not read it back.

    What cannot be read back is written all the same.
    """
    _save(network, path)
    if getattr(network, "compiled", False):
        # The optimizer and the losses were saved too; the model that is read back has none.
        _save(_read(path, network), path)


def _rebuild(network: keras.Model) -> None:
    try:
        config = keras.saving.serialize_keras_object(network)
        keras.saving.deserialize_keras_object({**config, "compile_config": None}, safe_mode=True)
    except Exception as error:  # the user's own layers: anything may come out
        raise _unsaveable(network, error) from error


def _save(network: keras.Model, path: Path) -> None:
    try:
        network.save(path)
    except OSError as error:
        raise ModelError(f"the model cannot be saved to {path}: {first_sentence(error)}") from error
    except Exception as error:  # as above
        raise _unsaveable(network, error) from error


def read_back(path: Path) -> keras.Model:
    """The model in a file, in Keras' safe mode."""
    return keras.saving.load_model(path, compile=False, safe_mode=True)


def _read(path: Path, network: keras.Model) -> keras.Model:
    try:
        return read_back(path)
    except Exception as error:  # as above
        raise _unsaveable(network, error) from error


def _compare(tap: Tap, read: keras.Model, exported: Exported, example: Any) -> None:
    wanted = dict(zip((point.name for point in tap.points), exported.addresses, strict=True))
    pools = {
        name: None if pool == "none" else pool for name, pool in zip(wanted, exported.pools, strict=True)
    }
    try:
        with closing(Tap(read, wanted, pool=pools, example=example)) as again:
            found = again(example)
    except (AddressError, PoolError, CaptureError) as error:
        raise ModelError(
            f"{type(tap.model).__name__} was saved, but what is read back has no {', '.join(wanted)} as it "
            f"was measured ({error}): pass a reference such as 'keras:ResNet50' in place of the model object"
        ) from error
    for name, value in tap(example).items():
        before, after = (keras.ops.convert_to_numpy(tensor) for tensor in (value, found[name]))
        largest = max(1.0, float(np.abs(before).max(initial=0.0)))
        if before.shape != after.shape or not np.allclose(before, after, rtol=0, atol=_TOLERANCE * largest):
            raise ModelError(
                f"{type(tap.model).__name__} gives other values at {name!r} after it was saved and read "
                "back: does a layer hold state outside its weights, or leave options out of get_config()?"
            )


def _unsaveable(network: keras.Model, error: Exception) -> ModelError:
    return ModelError(
        f"{type(network).__name__} cannot be saved so that it loads without running code from the file "
        f"({first_sentence(error)}): decorate your own classes and functions with "
        "@keras.saving.register_keras_serializable(), give layers with options a get_config(), put such a "
        "layer in the place of a Lambda, and import their module before spile.load(...)"
    )


def first_sentence(error: Exception) -> str:
    """The first sentence of Keras' messages, which go on to print whole configurations."""
    return " ".join(str(error).split()).partition(". ")[0].rstrip(".") or type(error).__name__
