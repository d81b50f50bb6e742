"""The lab's tests use what those of FRR use."""

from frr.conftest import directory, frr, lab

__all__ = ["directory", "frr", "lab"]
