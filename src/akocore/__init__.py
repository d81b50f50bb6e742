"""akocore: an open load-balancer controller for Kubernetes.

This is the shop window of the compiled kernels; the rooms (``akocore.kube``, ``akocore.translate``,
...) are imported by their own names, so that ``import akocore`` stays light.
"""

try:
    from akocore._fast.diff import Diff, diff_fingerprints, fingerprint
    from akocore._fast.ecmp import (
        EcmpGroup,
        Flows,
        MaglevGroup,
        ModuloGroup,
        RendezvousGroup,
        ResilientGroup,
    )
    from akocore._fast.shard import fnv1a32, jump_hosts, rendezvous_hosts, shard_hosts
except ImportError as error:  # there is no slow fallback, on purpose
    if not (error.name or "").startswith("akocore._fast"):
        raise
    raise ImportError(
        f"the compiled part {error.name} is missing: build it with `make venv` in a checkout "
        "(or `python -m pip install --editable .`), or install a wheel",
        name=error.name,
        path=error.path,
    ) from error

__version__ = "0.1.0"

__all__ = [
    "Diff",
    "EcmpGroup",
    "Flows",
    "MaglevGroup",
    "ModuloGroup",
    "RendezvousGroup",
    "ResilientGroup",
    "__version__",
    "diff_fingerprints",
    "fingerprint",
    "fnv1a32",
    "jump_hosts",
    "rendezvous_hosts",
    "shard_hosts",
]
