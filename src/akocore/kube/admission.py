"""A ValidatingAdmissionPolicy: what the controller may make in its own namespace, and nothing else.

The namespace of the Service Engines is privileged (they have their node's network), and a
StatefulSet is all that it takes to run something there.  So whoever got hold of the controller's
token could be root on the nodes, if an API server let it make any StatefulSet.  Under this policy
it makes the pods of Service Engines: their image, their command, their few capabilities, none of
the node's files, no Secret and no token of the API server.  What a pod may have is listed, so all
else is denied, also what Kubernetes has yet to invent.  (KEP-3488; in Kubernetes since 1.30.)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from akocore.kube.authority import AUDIENCE, CA_CONFIG_MAP

__all__ = ["CAPABILITIES", "admission_policy"]

CAPABILITIES: Final = (
    *("NET_ADMIN", "NET_RAW", "NET_BIND_SERVICE"),
    *("CHOWN", "KILL", "SETGID", "SETUID"),
)
"""What the container of a Service Engine adds.

The first three are FRR's and the agent's; with the others the agent makes Envoy another user, who
has just NET_BIND_SERVICE, and ends it.
"""

_POD = "object.spec.template.spec"
_MAIN = "variables.pod.containers[0]"
_PROBE = (
    *("httpGet", "initialDelaySeconds", "periodSeconds", "timeoutSeconds"),
    *("successThreshold", "failureThreshold", "terminationGracePeriodSeconds"),
)
_ARGS = (
    *("se", "run", "--name=$(POD_NAME)", "--address=$(POD_IP)", "--state=/run/akocore"),
    *("--ca=/etc/akocore/ca/ca.crt", "--token=/etc/akocore/token/token"),
    *("--metrics-listen=[$(POD_IP)]:9811", "--log-format=json"),
)
_ENV = {"POD_NAME": "metadata.name", "POD_IP": "status.podIP"}
_MOUNTS = {
    "ca": "/etc/akocore/ca",
    "token": "/etc/akocore/token",
    "run": "/run/akocore",
    "tmp": "/tmp",
}


def _rule(expression: str, message: str) -> dict[str, str]:
    return {"expression": expression, "message": message}


def _list(words: Iterable[str]) -> str:
    quoted = ", ".join(f"'{word}'" for word in words)
    return f"[{quoted}]"


def _only(what: str, *keys: str) -> str:
    """That ``what``, an object which is there, has no other fields.

    A field that a later Kubernetes invents is thus denied before anybody here has heard of it.
    ``dyn``: else the API server warns that it has no list of fields.
    """
    return f"dyn({what}).all(k, k in {_list(keys)})"


def _if_there(what: str, then: str) -> str:
    return f"(!has({what}) || {then})"


def _probe(name: str) -> str:
    probe = f"{_MAIN}.{name}"
    asked = f"{probe}.httpGet"
    return _if_there(
        probe,
        f"({_only(probe, *_PROBE)} && has({asked}) && {_only(asked, 'path', 'port', 'scheme')}"
        f" && {asked}.path in ['/healthz', '/readyz'] && int({asked}.port) == 9811)",
    )


def _template() -> list[dict[str, str]]:
    """What holds for the pod, apart from its container and volumes."""
    meta = "object.spec.template.metadata"
    return [
        _rule(
            "size(variables.pod.containers) == 1 && !has(object.spec.volumeClaimTemplates) && "
            + _only(
                "variables.pod",
                *("affinity", "automountServiceAccountToken", "containers", "dnsPolicy"),
                *("enableServiceLinks", "hostNetwork", "imagePullSecrets", "nodeSelector"),
                *("priorityClassName", "restartPolicy", "schedulerName", "securityContext"),
                *("serviceAccount", "serviceAccountName", "terminationGracePeriodSeconds"),
                *("tolerations", "topologySpreadConstraints", "volumes"),
            )
            + f" && {_if_there('variables.pod.securityContext', _only(_POD + '.securityContext'))}",
            "A Service Engine is one container, without volumes of its own: of its node it has the"
            " network alone.",
        ),
        _rule(
            "has(variables.pod.automountServiceAccountToken)"
            " && !variables.pod.automountServiceAccountToken"
            " && (!has(variables.pod.serviceAccountName)"
            " || variables.pod.serviceAccountName in ['', 'default'])"
            " && (!has(variables.pod.serviceAccount)"
            " || variables.pod.serviceAccount in ['', 'default'])",
            "It has no token of the API server.",
        ),
        _rule(
            _if_there(
                f"{meta}.annotations",
                _only(f"{meta}.annotations", "kubectl.kubernetes.io/restartedAt"),
            )
            + " && "
            + _if_there(
                f"{meta}.labels",
                f"dyn({meta}.labels).all(k, k.startsWith('app.kubernetes.io/')"
                " || k.startsWith('akocore.io/'))",
            ),
            "Annotations and labels ask runtimes and webhooks for more: it has akocore's own.",
        ),
    ]


def _container(image: str) -> list[dict[str, str]]:
    """What holds for its container."""
    security = f"{_MAIN}.securityContext"
    env = " || ".join(
        f"(e.name == '{name}' && e.valueFrom.fieldRef.fieldPath == '{path}')"
        for name, path in _ENV.items()
    )
    mounts = " || ".join(
        f"(m.name == '{name}' && m.mountPath == '{path}')" for name, path in _MOUNTS.items()
    )
    return [
        _rule(
            _only(
                _MAIN,
                *("args", "env", "image", "imagePullPolicy", "livenessProbe", "name", "ports"),
                *("readinessProbe", "resources", "securityContext", "terminationMessagePath"),
                *("terminationMessagePolicy", "volumeMounts"),
            )
            + f" && {_MAIN}.image == '{image}'"
            + f" && size({_MAIN}.args) > 1 && {_MAIN}.args[0] == 'se' && {_MAIN}.args[1] == 'run'"
            + f" && {_MAIN}.args.all(a, a in {_list(_ARGS)} || a.startsWith('--group=')"
            " || a.startsWith('--controller=') || a.startsWith('--certificates=')"
            " || a.matches('^--flows=[0-9]+$'))"
            + f" && {_if_there(f'{_MAIN}.env', f'{_MAIN}.env.all(e, {env})')}"
            + f" && {_probe('livenessProbe')} && {_probe('readinessProbe')}"
            + " && "
            + _if_there(
                f"{_MAIN}.terminationMessagePath",
                f"{_MAIN}.terminationMessagePath == '/dev/termination-log'",
            ),
            f"It runs `akocore se run` of {image}, with no other word, variable or probe.",
        ),
        _rule(
            _only(
                security,
                *("allowPrivilegeEscalation", "capabilities", "privileged"),
                *("readOnlyRootFilesystem", "seccompProfile"),
            )
            + f" && has({security}.allowPrivilegeEscalation)"
            f" && !{security}.allowPrivilegeEscalation"
            f" && (!has({security}.privileged) || !{security}.privileged)"
            f" && has({security}.readOnlyRootFilesystem) && {security}.readOnlyRootFilesystem"
            f" && {security}.seccompProfile.type == 'RuntimeDefault'"
            f" && {security}.capabilities.drop == ['ALL']"
            f" && {security}.capabilities.add.all(c, c in {_list(CAPABILITIES)})",
            f"Of capabilities it has at most {', '.join(CAPABILITIES)}, and its runtime's seccomp.",
        ),
        _rule(
            f"{_MAIN}.volumeMounts.all(m, ({mounts})"
            f" && {_only('m', 'name', 'mountPath', 'readOnly', 'recursiveReadOnly')})",
            f"It mounts {', '.join(_MOUNTS.values())} and nothing else.",
        ),
    ]


def _volumes() -> list[dict[str, str]]:
    ours = (
        "(has(s.serviceAccountToken) && has(s.serviceAccountToken.audience)"
        f" && s.serviceAccountToken.audience == '{AUDIENCE}')"
    )
    return [
        _rule(
            "variables.pod.volumes.all(v, "
            f"(v.name in ['run', 'tmp'] && has(v.emptyDir) && {_only('v', 'name', 'emptyDir')})"
            f" || (v.name == 'ca' && has(v.configMap) && v.configMap.name == '{CA_CONFIG_MAP}'"
            f" && {_only('v', 'name', 'configMap')})"
            " || (v.name == 'token' && has(v.projected) && size(v.projected.sources) == 1"
            f" && {_only('v', 'name', 'projected')}"
            f" && v.projected.sources.all(s, {ours})))",
            "It has no file of its node and no Secret: the certificate of the CA, and a token for"
            f" {AUDIENCE}.",
        ),
    ]


def _engines(image: str) -> list[dict[str, str]]:
    """What holds for every StatefulSet that the controller writes: what is named, no more."""
    return [*_template(), *_container(image), *_volumes()]


def _policy(
    name: str,
    account: str,
    group: str,
    resource: str,
    validations: list[dict[str, str]],
    variables: dict[str, str],
    namespace: str,
) -> list[dict[str, Any]]:
    """A policy for what one account writes of one resource, and its binding to a namespace."""
    kind = "admissionregistration.k8s.io/v1"
    here = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    rule = {
        "apiGroups": [group],
        "apiVersions": ["*"],
        "operations": ["CREATE", "UPDATE"],
        "resources": [resource],
    }
    return [
        {
            "apiVersion": kind,
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": name},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {"resourceRules": [rule]},
                "matchConditions": [
                    {
                        "name": "by-the-controller",
                        "expression": f"request.userInfo.username == '{account}'",
                    }
                ],
                "variables": [{"name": n, "expression": e} for n, e in variables.items()],
                "validations": validations,
            },
        },
        {
            "apiVersion": kind,
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": name},
            "spec": {
                "policyName": name,
                "validationActions": ["Deny"],
                "matchResources": {"namespaceSelector": here},
            },
        },
    ]


def admission_policy(namespace: str, image: str) -> list[dict[str, Any]]:
    """The policies and their bindings, for controllers in ``namespace`` whose engines are
    ``image``.  A Secret of theirs is plain data: the API server would put a token of any account
    of the namespace into one of another type.
    """
    account = f"system:serviceaccount:{namespace}:akocore"
    plain = _rule(
        "!has(object.type) || object.type in ['', 'Opaque']", "A controller's Secrets are Opaque."
    )
    return [
        *_policy(
            "akocore-service-engines",
            account,
            "apps",
            "statefulsets",
            _engines(image),
            {"pod": _POD},
            namespace,
        ),
        *_policy("akocore-secrets", account, "", "secrets", [plain], {}, namespace),
    ]
