"""A real kube-apiserver with its etcd: built once into a cache, started in some 3 s."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

ADMIN, CONTROLLER = "akocore-admin", "akocore-controller"  # tokens of this throw-away server
_BUILD = Path(__file__).with_name("build")


def programs() -> Path:
    """The directory with etcd, kube-apiserver and kubectl: $KUBEBUILDER_ASSETS, else built."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and all((Path(assets) / p).exists() for p in ("etcd", "kube-apiserver", "kubectl")):
        return Path(assets)
    done = subprocess.run([_BUILD], stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.split()[-1])


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as sockets:
        made = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in made]


class ControlPlane:
    """etcd and kube-apiserver in ``home``, on loopback.

    ``kubeconfig`` is an administrator's; ``controllers_kubeconfig`` has the rights that
    ``akocore install`` gives, once they are bound (`bind_controller`).
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.kubeconfig = home / "kubeconfig"
        self.controllers_kubeconfig = home / "controllers-kubeconfig"
        self._kinds = home / "kinds"
        self.programs = programs()
        self._etcd_port, self._peer_port, self.port = _free_ports(3)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        home.mkdir(parents=True, exist_ok=True)
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        (home / "sa.key").write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        )
        self._write_tokens(CONTROLLER)
        for file, token in ((self.kubeconfig, ADMIN), (self.controllers_kubeconfig, CONTROLLER)):
            self._write_kubeconfig(file, {"token": token})

    def _write_tokens(self, controllers: str) -> None:
        (self.home / "tokens").write_text(
            f'{ADMIN},admin,admin,"system:masters"\n{controllers},akocore,akocore,""\n'
        )

    def _write_kubeconfig(self, file: Path, user: dict[str, Any]) -> None:
        cluster = {"server": f"https://127.0.0.1:{self.port}", "insecure-skip-tls-verify": True}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "me"}}],
            "users": [{"name": "me", "user": user}],
            "clusters": [{"name": "test", "cluster": cluster}],
        }
        file.write_text(json.dumps(config))

    def exec_kubeconfig(self, file: Path, command: Path) -> Path:
        """A kubeconfig whose token ``command`` gives, as an exec plugin."""
        plugin = {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": str(command),
            "interactiveMode": "Never",
        }
        self._write_kubeconfig(file, {"exec": plugin})
        return file

    @contextlib.contextmanager
    def other_token(self, token: str) -> Iterator[None]:
        """For a while the controller's user has another token; the API server starts anew."""
        self._restart_with(token)
        try:
            yield
        finally:
            self._restart_with(CONTROLLER)

    def _restart_with(self, token: str) -> None:
        self._write_tokens(token)
        self.kill("kube-apiserver")
        self.start()

    def start(self) -> None:
        """Start what isn't running, and wait until it is ready."""
        self._start(
            "etcd",
            *("--data-dir", str(self.home / "etcd"), "--log-level", "error", "--unsafe-no-fsync"),
            *("--listen-client-urls", f"http://127.0.0.1:{self._etcd_port}"),
            *("--advertise-client-urls", f"http://127.0.0.1:{self._etcd_port}"),
            *("--listen-peer-urls", f"http://127.0.0.1:{self._peer_port}"),
        )
        self._start(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            f"--secure-port={self.port}",
            "--bind-address=127.0.0.1",
            "--advertise-address=192.0.2.1",  # nobody calls it; else it wants a default route
            f"--cert-dir={self.home / 'certificates'}",
            f"--service-account-key-file={self.home / 'sa.key'}",
            f"--service-account-signing-key-file={self.home / 'sa.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--token-auth-file={self.home / 'tokens'}",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--disable-admission-plugins=ServiceAccount",
        )
        deadline = time.monotonic() + 60
        while not self._ready():
            for name, process in self._running.items():
                if process.poll() is not None:
                    text = (self.home / f"{name}.log").read_text()[-2000:]
                    raise RuntimeError(f"{name} ended: {text}")
            if time.monotonic() > deadline:
                raise TimeoutError("kube-apiserver isn't ready after 60 s")
            time.sleep(0.05)

    def start_namespace_controller(self, *more: str) -> None:
        """kube-controller-manager, of it what empties a namespace that is terminated, and more."""
        self._start(
            "kube-controller-manager",
            *("--kubeconfig", str(self.kubeconfig)),
            f"--controllers={','.join(('namespace-controller', *more))}",
            *("--leader-elect=false", "--secure-port=0"),
        )

    def _ready(self) -> bool:
        done = subprocess.run(
            [self.programs / "kubectl", "--kubeconfig", self.kubeconfig, "get", "--raw", "/readyz"],
            capture_output=True,
            check=False,
        )
        return done.stdout == b"ok"

    def _start(self, name: str, *arguments: str) -> None:
        running = self._running.get(name)
        if running is not None and running.poll() is None:
            return
        with (self.home / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [self.programs / name, *arguments], stdout=log, stderr=log, start_new_session=True
            )

    def bind_controller(self) -> None:
        """Let user akocore do what the roles akocore allow, and nothing else."""
        group = "rbac.authorization.k8s.io"
        who = {"apiGroup": group, "kind": "User", "name": "akocore"}
        items: list[dict[str, Any]] = [
            {
                "apiVersion": f"{group}/v1",
                "kind": f"{kind}Binding",
                "metadata": {"name": "akocore-test", **where},
                "roleRef": {"apiGroup": group, "kind": kind, "name": "akocore"},
                "subjects": [who],
            }
            for kind, where in (("ClusterRole", {}), ("Role", {"namespace": "akocore-system"}))
        ]
        both = {"apiVersion": "v1", "kind": "List", "items": items}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(both))

    def empty(self) -> None:
        """Take away what tests make: applications, settings, mirrors, the Lease."""
        # All but Service kubernetes, which the API server would make again, at any moment.
        users = ("-l", "component!=apiserver", "--wait=false")
        self.kubectl("delete", *users, "ingress,service,endpointslice,secret,event")
        gateways = "gateways.networking.x-k8s.io,gatewayclasses.networking.x-k8s.io"
        self.kubectl("delete", "--all", "--wait=false", gateways)
        own = "ais,networks,serviceenginegroups,vsvips,virtualservices,serviceengines,replicas"
        self.kubectl("delete", "--all", "--wait=false", own)
        system = ("-n", "akocore-system", "--ignore-not-found", "--wait=false")
        self.kubectl("delete", *system, "lease/akocore", "configmap/akocore-accepted")
        classes = self.kubectl("get", "ingressclass", "-o", "name").split()
        if others := [one for one in classes if not one.endswith("/avi-lb")]:
            self.kubectl("delete", *others)

    def compact(self) -> None:
        """Forget all of etcd's history: a watch that was away must list again."""
        raw = self._etcd("/v3/kv/range", {"key": "Lw==", "limit": 1})
        self._etcd("/v3/kv/compaction", {"revision": raw["header"]["revision"], "physical": True})

    def _etcd(self, path: str, question: dict[str, object]) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._etcd_port}{path}", json.dumps(question).encode()
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def kill(self, name: str) -> None:
        """kill -9 one of them; `start` brings it back."""
        process = self._running[name]
        process.send_signal(signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        for process in reversed(self._running.values()):
            process.kill()
            process.wait()

    def forget_kinds(self) -> None:
        """kubectl asks anew what a short name like ``gateway`` means."""
        shutil.rmtree(self._kinds, ignore_errors=True)

    def kubectl(self, *arguments: str, stdin: str | bytes = "") -> str:
        """What kubectl prints.  Raises with what it says when it fails."""
        own = ("--kubeconfig", self.kubeconfig, "--cache-dir", self._kinds)
        done = subprocess.run(
            [self.programs / "kubectl", *own, *arguments],
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            check=False,
            timeout=120,
        )
        if done.returncode:
            raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr.decode()}")
        return done.stdout.decode()
