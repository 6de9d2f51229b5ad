"""Data: whatever a user has, as samples or batches that the rest of spile can read."""

from spile.data.images import apply, read_image
from spile.data.loading import batches
from spile.data.opening import open_source
from spile.data.samples import Samples, select
from spile.data.source import BadSample, Batch, Kind, Record, Skipped, Source, Stream

__all__ = [
    "BadSample",
    "Batch",
    "Kind",
    "Record",
    "Samples",
    "Skipped",
    "Source",
    "Stream",
    "apply",
    "batches",
    "open_source",
    "read_image",
    "select",
]
