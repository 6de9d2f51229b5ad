"""Saving what was chosen, and proving that what was saved does what was measured."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from spile.backend import backend_of
from spile.data import Batch
from spile.errors import AddressError, CaptureError, ModelError
from spile.interfaces import Tap
from spile.models import LoadedModel
from spile.preprocessing import ImagePreprocessing
from spile.probing import deployment
from spile.probing.features import joined
from spile.probing.preparing import example_of, images_of
from spile.probing.record import Verified
from spile.probing.result import ProbeResult
from spile.store import Store
from spile.taps import tap as make_tap

_TOLERANCE = 1e-4
"""How far the saved model's features may be off, as a share of the largest."""


def save_and_verify(
    folder: Path,
    loaded: LoadedModel,
    tap: Tap,
    result: ProbeResult,
    head: Any,
    few: Batch,
    store: Store,
) -> tuple[deployment.Deployed, Verified]:
    """Save the network up to the chosen points and the head; load them back and compare.

    A network that its reference does not give back is saved as a program.
    """
    by_name = {point.name: point for point in tap.points}
    chosen = [by_name[name] for name in result.points]
    example = example_of(loaded, few)
    about = {
        "input_size": loaded.input_size,
        "point": result.best.point,
        "fingerprint": store.fingerprint,
        "macs": max(point.macs for point in chosen),
        "params": max(point.params for point in chosen),
        "classes": None if result.classes is None else list(result.classes),
        "unit_rows": result.unit_rows,
    }
    wanted = make_tap(
        loaded,
        {point.name: point.address for point in chosen},
        pool={point.name: point.pool for point in chosen},
        example=example,
    )
    with closing(wanted):
        problem: ModelError | CaptureError | AddressError | None = None
        for exported in (False, True) if deployment.named(wanted) else (True,):
            try:
                deployment.save(
                    folder,
                    tap=wanted,
                    example=example,
                    head=head,
                    preprocessing=loaded.preprocessing,
                    about=about,
                    exported=exported,
                )
                return verified(folder, wanted, head, few, images_of(loaded), unit_rows=result.unit_rows)
            except (ModelError, CaptureError, AddressError) as error:
                problem = problem or error
                shutil.rmtree(folder, ignore_errors=True)
    assert problem is not None
    raise problem


def verified(
    folder: Path,
    tap: Tap,
    head: Any,
    few: Batch,
    images: ImagePreprocessing | None,
    *,
    unit_rows: bool = False,
) -> tuple[deployment.Deployed, Verified]:
    """The model as it is loaded back, and how far its features are off on a `few` samples.

    Raises `CaptureError` where it is another one than was measured.
    """
    engine = backend_of(tap.model).engine(tap, preprocessing=images, precision="float32")
    found, n = engine(few.inputs), len(few.records)
    parts = [np.asarray(found[point.name]).reshape(n, -1) for point in tap.points]
    before = joined(parts, unit_rows=unit_rows)
    where = " + ".join(point.name for point in tap.points)
    deployed = deployment.load(folder, trusted=deployment.untrusted_types(folder))
    after = deployed.batch_features(few)
    difference = float(np.abs(before - after).max()) if before.shape == after.shape else np.inf
    expected = head.predict(before)
    if difference > _TOLERANCE * max(1.0, float(np.abs(before).max())):
        raise CaptureError(
            f"the saved model gives other features at {where} than the one that was measured (off by "
            f"{difference:.3g}), so it was not kept: does its output depend on more than its input?"
        )
    if not np.array_equal(expected, deployed.head.predict(before)):
        raise CaptureError(
            f"the saved {type(head).__name__} predicts otherwise than the fitted one; not kept"
        )
    same = np.array_equal(expected, deployed.head.predict(after))
    labels = None if deployed.classes is None else bool(same)
    return deployed, Verified(point=where, max_abs_difference=difference, labels_identical=labels)
