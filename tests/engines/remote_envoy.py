"""A Service Engine that akocore doesn't run: an Envoy with what ``akocore se bootstrap`` prints."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

from akocore.engines.envoy.admin import Admin
from akocore.engines.envoy.process import find_envoy
from engines.authority import Pair


class RemoteEnvoy:
    """``controllers``: "host:port", of which it asks one."""

    def __init__(
        self,
        home: Path,
        name: str,
        controllers: Sequence[str],
        pair: Pair,
        ca: Path,
        *,
        group: str = "Default-Group",
        more: Sequence[str] = (),
    ) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.log = home / f"{name}.log"
        self.config = home / f"{name}.json"
        self._socket = home / f"{name}.sock"
        self._command = [
            *(sys.executable, "-m", "akocore", "se", "bootstrap", "--name", name),
            *("--group", group, "--controller", ",".join(controllers), "--ca", str(ca)),
            *("--cert", str(pair.certificate), "--key", str(pair.key)),
            *("--admin", str(self._socket), *more),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def write(self) -> Path:
        """The file of its bootstrap."""
        done = subprocess.run(self._command, capture_output=True, check=True)
        self.config.write_bytes(done.stdout)
        return self.config

    def start(self) -> None:
        self.write()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(find_envoy().path, "-c", self.config, "--disable-hot-restart"),
                    *("--concurrency", "1", "--log-level", "info"),
                    *("--drain-time-s", "1", "--drain-strategy", "immediate"),
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Also one that was told to wait."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    async def stats(self, pattern: str) -> dict[str, int]:
        return await Admin(self._socket).stats(pattern)

    def says(self, text: str) -> bool:
        """Whether its log has this; Envoy escapes nothing of what a controller says."""
        return text in urllib.parse.unquote(self.log.read_text())
