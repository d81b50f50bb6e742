"""``make fuzz``: made-up objects for a time, and the four figures that must be nothing.

    make fuzz SEED=7 SECONDS=1800

Half of the time to either release of the Gateway API.  In that, one process sends objects to real
Envoys, and another has many more of them translated.  Exit code 1: something came up.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

from fuzz.run import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        out = run(Path(scratch), options.seed, options.seconds, said=True)
    for name in ("exceptions", "nacks", "unread", "good", "asked", "answers", "visited"):
        print(f"{name}: {json.dumps(dict(getattr(out, name).most_common(40)), indent=1)}")
    print(f"silent: {json.dumps(out.silent[:20], indent=1)}")
    return 0 if out.clean else 1


if __name__ == "__main__":
    sys.exit(main())
