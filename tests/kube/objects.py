"""Objects as a real cluster shows them, in content and in size: speed and memory are measured on them."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from typing import Any

from tests.kube.store import Obj, now


def pod(
    name: str,
    namespace: str = "default",
    *,
    node: str = "node-1",
    uid: str | None = None,
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    phase: str = "Running",
    host_network: bool = False,
    owner: Obj | None = None,
) -> Obj:
    """A pod with one container, about 5 KB of JSON; its owner is another object."""
    runs = phase == "Running"
    number = int(hashlib.sha256(f"{namespace}/{name}".encode()).hexdigest()[:4], 16)
    host_ip = "10.0.0.11"
    ip = host_ip if host_network else f"10.42.{number // 256}.{number % 256}"
    meta = _meta(name, namespace, uid, labels, annotations)
    meta |= {
        "managedFields": [
            _managed("kube-controller-manager", {"f:metadata": _METADATA, "f:spec": _POD_SPEC}),
            _managed("kubelet", {"f:status": _POD_STATUS}, "status"),
        ]
    }
    if owner is not None:
        meta["generateName"] = f"{owner['metadata']['name']}-"
        meta["ownerReferences"] = [_owner(owner)]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": meta,
        "spec": {
            **_template_spec("registry.example.com/team/web:1.27.4", f"kube-api-access-{number:05x}"),
            "enableServiceLinks": True,
            "nodeName": node,
            "preemptionPolicy": "PreemptLowerPriority",
            "priority": 0,
            "serviceAccount": "default",
            "serviceAccountName": "default",
            "tolerations": [
                {"effect": "NoExecute", "key": f"node.kubernetes.io/{key}", "operator": "Exists"}
                | {"tolerationSeconds": 300}
                for key in ("not-ready", "unreachable")
            ],
        }
        | ({"hostNetwork": True} if host_network else {}),
        "status": {
            "phase": phase,
            "conditions": [
                {
                    "lastProbeTime": None,
                    "lastTransitionTime": now(),
                    "status": "True" if runs or condition == "PodScheduled" else "False",
                    "type": condition,
                }
                for condition in (
                    "PodReadyToStartContainers",
                    "Initialized",
                    "Ready",
                    "ContainersReady",
                    "PodScheduled",
                )
            ],
            "containerStatuses": [
                {
                    "containerID": f"containerd://{hashlib.sha256(name.encode()).hexdigest()}",
                    "image": "registry.example.com/team/web:1.27.4",
                    "imageID": f"registry.example.com/team/web@sha256:{hashlib.sha256(b'web').hexdigest()}",
                    "lastState": {},
                    "name": "web",
                    "ready": runs,
                    "restartCount": 0,
                    "started": runs,
                    "state": {"running": {"startedAt": now()}} if runs else {"waiting": {"reason": phase}},
                }
            ],
            "hostIP": host_ip,
            "hostIPs": [{"ip": host_ip}],
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "qosClass": "Burstable",
            "startTime": now(),
        },
    }


def service(
    name: str,
    namespace: str = "default",
    *,
    selector: dict[str, str] | None = None,
    uid: str | None = None,
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    created: str | None = None,
) -> Obj:
    """A ClusterIP service; without a selector given, of the pods with the label app=NAME; {} selects none."""
    meta = _meta(name, namespace, uid, labels, annotations)
    if created is not None:
        meta["creationTimestamp"] = created
    ports: Obj = {
        'k:{"port":80,"protocol":"TCP"}': {".": {}, "f:port": {}, "f:protocol": {}, "f:targetPort": {}}
    }
    spec = {"f:ports": {".": {}, **ports}, "f:selector": {}, "f:sessionAffinity": {}, "f:type": {}}
    meta["managedFields"] = [_managed("kubectl-client-side-apply", {"f:metadata": _METADATA, "f:spec": spec})]
    number = int(hashlib.sha256(f"{namespace}/{name}".encode()).hexdigest()[:4], 16)
    ip = f"10.43.{number // 256}.{number % 256}"
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta,
        "spec": {
            "clusterIP": ip,
            "clusterIPs": [ip],
            "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
            "sessionAffinity": "None",
            "type": "ClusterIP",
            # A service without a selector has no such field.
            **({"selector": {"app": name} if selector is None else selector} if selector != {} else {}),
        },
        "status": {"loadBalancer": {}},
    }


def endpoint_slice(
    service: str,
    namespace: str = "default",
    *,
    addresses: Sequence[str] = (),
    ports: Sequence[Obj] = ({"name": "http", "port": 8080, "protocol": "TCP"},),
    suffix: str = "a1b2c",
    ready: bool = True,
) -> Obj:
    """Endpoints of a service, of the family of the first address, as its controller makes them."""
    labels = {
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        "kubernetes.io/service-name": service,
    }
    conditions = {"ready": ready, "serving": ready, "terminating": False}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": _meta(f"{service}-{suffix}", namespace, None, labels, None),
        "addressType": "IPv6" if any(":" in address for address in addresses) else "IPv4",
        "endpoints": [
            {
                "addresses": [address],
                "conditions": conditions,
                "nodeName": "node-1",
                "targetRef": {"kind": "Pod", "name": f"{service}-{number}", "namespace": namespace},
            }
            for number, address in enumerate(addresses)
        ],
        "ports": list(ports),
    }


def namespace(name: str, *, annotations: dict[str, str] | None = None, phase: str = "Active") -> Obj:
    meta = _meta(name, None, None, {"kubernetes.io/metadata.name": name}, annotations)
    spec = {"finalizers": ["kubernetes"]}
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": meta,
        "spec": spec,
        "status": {"phase": phase},
    }


def node(name: str, *, boot_id: str = "", machine_id: str = "", address: str = "10.0.0.11") -> Obj:
    """A node; of its machine it says, as kubelet does, what is given."""
    meta = _meta(name, None, None, {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}, None)
    sizes = {"cpu": "4", "ephemeral-storage": "98831908Ki", "memory": "16384256Ki", "pods": "110"}
    addresses = [{"address": address, "type": "InternalIP"}, {"address": name, "type": "Hostname"}]
    ready = {
        "lastHeartbeatTime": now(),
        "lastTransitionTime": now(),
        "reason": "KubeletReady",
        "status": "True",
    }
    info = {
        "bootID": boot_id,
        "machineID": machine_id,
        "systemUUID": machine_id,
        "architecture": "amd64",
        "containerRuntimeVersion": "containerd://2.1.0",
        "kernelVersion": "6.12.0",
        "kubeProxyVersion": "v1.36.0",
        "kubeletVersion": "v1.36.0",
        "operatingSystem": "linux",
        "osImage": "Debian GNU/Linux 13 (trixie)",
    }
    status: Obj = {"addresses": addresses, "allocatable": sizes, "capacity": sizes, "nodeInfo": info}
    status |= {"conditions": [ready | {"type": "Ready", "message": "kubelet is posting ready status"}]}
    return {"apiVersion": "v1", "kind": "Node", "metadata": meta, "spec": {}, "status": status}


def deployment(
    name: str,
    namespace: str = "default",
    *,
    kind: str = "Deployment",
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    replicas: int = 1,
    owner: Obj | None = None,
) -> Obj:
    """A deployment of pods with these labels (default app=NAME), or a like kind of apps/v1."""
    chosen = labels or {"app": name}
    meta = _meta(name, namespace, str(uuid.uuid4()), chosen, annotations)
    if owner is not None:
        meta["ownerReferences"] = [_owner(owner)]
    template = {
        "metadata": {"labels": chosen},
        "spec": _template_spec("registry.example.com/team/web:1.27.4"),
    }
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": meta | {"generation": 1},
        "spec": {"replicas": replicas, "selector": {"matchLabels": chosen}, "template": template},
        "status": {"availableReplicas": replicas, "readyReplicas": replicas, "replicas": replicas},
    }


def _meta(
    name: str,
    namespace: str | None,
    uid: str | None,
    labels: dict[str, str] | None,
    annotations: dict[str, str] | None,
) -> Obj:
    meta: Obj = {"name": name}
    meta |= {"namespace": namespace} if namespace else {}
    meta |= {"uid": uid} if uid else {}
    meta |= {"labels": labels} if labels else {}
    return meta | ({"annotations": annotations} if annotations else {})


def _owner(owner: Obj) -> Obj:
    uid = owner["metadata"].get("uid") or str(uuid.uuid4())
    identity = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"]}
    return identity | {"uid": uid, "controller": True, "blockOwnerDeletion": True}


def _template_spec(image: str, token_volume: str | None = None) -> Obj:
    """What pods and templates have in common; the token is mounted when a pod is made."""
    mounts: list[Obj] = [{"mountPath": "/var/cache/web", "name": "cache"}]
    volumes: list[Obj] = [{"emptyDir": {}, "name": "cache"}]
    if token_volume is not None:
        path = "/var/run/secrets/kubernetes.io/serviceaccount"
        mounts.append({"mountPath": path, "name": token_volume, "readOnly": True})
        volumes.append({"name": token_volume, "projected": {"defaultMode": 420, "sources": _TOKEN_SOURCES}})
    probe = {"failureThreshold": 3, "periodSeconds": 10, "successThreshold": 1, "timeoutSeconds": 1}
    http = {"httpGet": {"path": "/healthz", "port": 8080, "scheme": "HTTP"}}
    container = {
        "name": "web",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "env": [
            {"name": "LISTEN", "value": "0.0.0.0:8080"},
            {
                "name": "POD_NAME",
                "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}},
            },
        ],
        "ports": [{"containerPort": 8080, "name": "http", "protocol": "TCP"}],
        "livenessProbe": http | probe,
        "readinessProbe": http | probe,
        "resources": {"limits": {"memory": "128Mi"}, "requests": {"cpu": "100m", "memory": "64Mi"}},
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "volumeMounts": mounts,
    }
    return {
        "containers": [container],
        "dnsPolicy": "ClusterFirst",
        "restartPolicy": "Always",
        "schedulerName": "default-scheduler",
        "securityContext": {},
        "terminationGracePeriodSeconds": 30,
        "volumes": volumes,
    }


def _managed(manager: str, fields: Obj, subresource: str | None = None) -> Obj:
    entry = {"apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": fields}
    entry |= {"manager": manager, "operation": "Update", "time": now()}
    return entry | ({"subresource": subresource} if subresource else {})


def _fields(*names: str) -> dict[str, Any]:
    return {".": {}} | {f"f:{name}": {} for name in names}


_TOKEN_SOURCES: list[Obj] = [
    {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
    {"configMap": {"items": [{"key": "ca.crt", "path": "ca.crt"}], "name": "kube-root-ca.crt"}},
]
_METADATA: Obj = {"f:annotations": _fields("bandwidth"), "f:labels": _fields("app", "pod-template-hash")}
_PROBE = _fields("failureThreshold", "httpGet", "periodSeconds", "successThreshold", "timeoutSeconds")
_POD_SPEC: Obj = {
    "f:containers": {
        'k:{"name":"web"}': _fields("env", "image", "imagePullPolicy", "name", "ports", "resources")
        | {"f:livenessProbe": _PROBE, "f:readinessProbe": _PROBE}
        | _fields("terminationMessagePath", "terminationMessagePolicy", "volumeMounts")
    },
    **_fields("dnsPolicy", "enableServiceLinks", "restartPolicy", "schedulerName", "securityContext"),
    "f:terminationGracePeriodSeconds": {},
    "f:volumes": {'k:{"name":"cache"}': _fields("emptyDir", "name")},
}
_POD_STATUS: Obj = {
    "f:conditions": {
        f'k:{{"type":"{condition}"}}': _fields("lastProbeTime", "lastTransitionTime", "status", "type")
        for condition in ("ContainersReady", "Initialized", "PodReadyToStartContainers", "Ready")
    },
    **_fields("containerStatuses", "hostIP", "hostIPs", "phase", "podIP", "podIPs", "startTime"),
}
