"""The store: activations on disk (a Lance dataset) or in memory (an Arrow table).

One row a sample, one column a point. It stores columns and knows nothing of models. `create` and `resume`
give a `Writer`; `open_store` gives a `Store`.
"""

from spile.store.adding import ColumnWriter
from spile.store.duplicates import Duplicates
from spile.store.manifest import ColumnSpec, Manifest
from spile.store.reading import Column, Store, has_store, open_store
from spile.store.search import Neighbors
from spile.store.writing import Writer, create, resume

__all__ = [
    "Column",
    "ColumnSpec",
    "ColumnWriter",
    "Duplicates",
    "Manifest",
    "Neighbors",
    "Store",
    "Writer",
    "create",
    "has_store",
    "open_store",
    "resume",
]
