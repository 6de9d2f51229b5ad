"""A run folder in, one self-contained HTML page out. Never imports a framework."""

from spile.reporting.page import write_report

__all__ = ["write_report"]
