"""Pods as processes, each in a network namespace of its own.

What a scheduler and a kubelet do, as far as the conformance suite looks: pods that are ready, their
logs, Secrets and ConfigMaps as files.
"""

from __future__ import annotations

import base64
import http.server
import json
import logging
import os
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from cluster.control_plane import ControlPlane
from engines.authority import Authority

__all__ = ["Pods"]

log = logging.getLogger(__name__)

_NODE, _BRIDGE, _ADDRESS, _PORT = "node-1", "akocore-conf", "10.77.0.1", 10250
Manifest = dict[str, Any]


def _ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=not check)


def _key(item: Manifest) -> tuple[str, str]:
    return item["metadata"]["namespace"], item["metadata"]["name"]


class Pods:
    """``echo``: the program that every image is, but for the one that answers DNS."""

    def __init__(self, plane: ControlPlane, home: Path, echo: Path) -> None:
        self._plane = plane
        self._home = home
        self._echo = echo
        self._running: dict[str, tuple[subprocess.Popen[bytes], str, str]] = {}  # by uid
        self._made = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        home.mkdir(parents=True)

    def start(self) -> None:
        _ip("link", "add", _BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{_ADDRESS}/16", "dev", _BRIDGE)
        _ip("link", "set", _BRIDGE, "up")
        self._serve_logs()
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": _NODE}}
        self._plane.kubectl("create", "-f", "-", stdin=json.dumps(node))
        self._patch(
            "node",
            _NODE,
            {
                "addresses": [{"type": "InternalIP", "address": _ADDRESS}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": _PORT}},
            },
        )
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        for uid in list(self._running):
            self._kill(uid)
        _ip("link", "del", _BRIDGE, check=False)

    def _patch(self, kind: str, name: str, status: Manifest, *more: str) -> None:
        words = ("patch", kind, name, "--subresource=status", "--type=merge", "-p")
        self._plane.kubectl(*more, *words, json.dumps({"status": status}))

    def _serve_logs(self) -> None:
        home = self._home

        class Logs(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = self.path.partition("?")[0].split("/")  # /containerLogs/NAMESPACE/POD/...
                file = home / f"{parts[2]}.{parts[3]}.log"
                data = file.read_bytes() if file.exists() else b""
                self.send_response(200)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None: ...

        pair = Authority(home / "pki").issue("kubelet", "kubelet", ips=[_ADDRESS])
        server = http.server.ThreadingHTTPServer((_ADDRESS, _PORT), Logs)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certificate, pair.key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()

    # ── the loop ────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self._once()
            except (RuntimeError, OSError, subprocess.CalledProcessError) as err:
                log.info("it is tried again: %s", err)  # something went away meanwhile
            self._ended.wait(0.3)

    def _once(self) -> None:
        pods: list[Manifest] = json.loads(self._plane.kubectl("get", "pods", "-A", "-o", "json"))[
            "items"
        ]
        for uid in self._running.keys() - {pod["metadata"]["uid"] for pod in pods}:
            self._kill(uid)
        for pod in pods:
            namespace, name = _key(pod)
            if "deletionTimestamp" in pod["metadata"]:
                now = ("--wait=false", "--grace-period=0", "--force")
                self._plane.kubectl("-n", namespace, "delete", "pod", name, *now)
            elif pod["metadata"]["uid"] not in self._running:
                self._start(pod)
            elif pod.get("status", {}).get("phase") != "Running":
                self._say_ready(pod)  # a turn later: by then it listens

    def _say_ready(self, pod: Manifest) -> None:
        namespace, name = _key(pod)
        address = self._running[pod["metadata"]["uid"]][1]
        ready = [{"type": kind, "status": "True"} for kind in ("Ready", "ContainersReady")]
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
        self._patch("pod", name, {**status, "conditions": ready}, "-n", namespace)

    # ── one pod ─────────────────────────────────────────────────────────────────────────────

    def _start(self, pod: Manifest) -> None:
        namespace, name = _key(pod)
        spec, uid = pod["spec"], pod["metadata"]["uid"]
        mounts = self._volumes(namespace, spec, self._home / uid)
        if not spec.get("nodeName"):
            binding = {
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": {"name": name, "namespace": namespace},
                "target": {"apiVersion": "v1", "kind": "Node", "name": _NODE},
            }
            path = f"/api/v1/namespaces/{namespace}/pods/{name}/binding"
            self._plane.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(binding))
        self._made += 1
        address = f"10.77.{1 + self._made // 250}.{1 + self._made % 250}"
        within, link = f"conf-{self._made}", f"conf-{self._made}"
        _ip("netns", "add", within)
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", within)
        _ip("link", "set", link, "master", _BRIDGE, "up")
        _ip("-n", within, "link", "set", "lo", "up")
        _ip("-n", within, "addr", "add", f"{address}/16", "dev", "eth0")
        _ip("-n", within, "link", "set", "eth0", "up")
        container = spec["containers"][0]
        environment = {"PATH": os.environ["PATH"]}
        known = {"metadata.name": name, "metadata.namespace": namespace}
        for one in container.get("env", ()):
            field = one.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath", "")
            value = one.get("value", known.get(field, ""))
            for path, directory in mounts.items():
                value = value.replace(path, str(directory))
            environment[one["name"]] = value
        program = [str(self._echo)]
        if "coredns" in container["image"]:
            program = [sys.executable, str(Path(__file__).with_name("dns.py"))]
        with (self._home / f"{namespace}.{name}.log").open("ab") as file:
            process = subprocess.Popen(
                ["ip", "netns", "exec", within, *program], env=environment, stdout=file, stderr=file
            )
        self._running[uid] = (process, address, within)

    def _volumes(self, namespace: str, spec: Manifest, home: Path) -> dict[str, Path]:
        """Path in the container → directory."""
        out: dict[str, Path] = {}
        mounts = spec["containers"][0].get("volumeMounts", ())
        for volume in spec.get("volumes", ()):
            kind = next((k for k in ("secret", "configMap") if k in volume), "")
            if not kind:
                continue
            source = volume[kind]
            name = source.get("secretName") or source.get("name")
            words = ("-n", namespace, "get", kind.lower(), name, "-o", "json")
            data: dict[str, str] = json.loads(self._plane.kubectl(*words)).get("data", {})
            directory = home / volume["name"]
            directory.mkdir(parents=True, exist_ok=True)
            for item in source.get("items") or [{"key": key, "path": key} for key in data]:
                text = data.get(item["key"], "")
                raw = base64.b64decode(text) if kind == "secret" else text.encode()
                (directory / item["path"]).write_bytes(raw)
            out |= {m["mountPath"]: directory for m in mounts if m["name"] == volume["name"]}
        return out

    def _kill(self, uid: str) -> None:
        process, _, within = self._running.pop(uid)
        process.kill()
        process.wait()
        _ip("netns", "del", within, check=False)
