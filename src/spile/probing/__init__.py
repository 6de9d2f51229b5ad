"""Which layer to use: a cheap, leak-free downstream model on every point of a store."""

from spile.probing.deployment import Deployed, load
from spile.probing.result import Control, Nested, OutOfFold, ProbeResult, ProbeRow
from spile.probing.ridge import Moments, RidgeFit, fit_moments, fit_ridge
from spile.probing.search import probe
from spile.probing.transferring import TransferRun, transfer

__all__ = [
    "Control",
    "Deployed",
    "Moments",
    "Nested",
    "OutOfFold",
    "ProbeResult",
    "ProbeRow",
    "RidgeFit",
    "TransferRun",
    "fit_moments",
    "fit_ridge",
    "load",
    "probe",
    "transfer",
]
