"""Every render against the strict schemas of each Kubernetes version, and of the custom resources of the chart."""

import json
import os
from typing import Any

import pytest
import yaml
from charts import CLASSIFIER, KUBERNETES, name, render, run, tool, values_files
from schemas import LOCATION, custom_kinds, strict, write_schemas

HTTP_ROUTE = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: photos}
spec:
  parentRefs: [{name: public}]
  rules: [{backendRefs: [{name: photos, port: 80}]}]
"""
SCALED_OBJECT = """
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: {name: photos}
spec:
  scaleTargetRef: {name: photos}
  triggers: [{type: prometheus, metadata: {query: up, threshold: "1", serverAddress: "http://prometheus"}}]
"""
POD_MONITOR = """
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata: {name: photos}
spec:
  selector: {matchLabels: {app: photos}}
  podMetricsEndpoints: [{port: admin}]
"""
CERTIFICATE = """
apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {name: photos}
spec: {secretName: photos, dnsNames: [photos], issuerRef: {name: own}}
"""

EVERYTHING = """
server:
  batching: {enabled: true}
  tls: {certManager: {enabled: true, issuerRef: {name: own}}}
  autoscaling:
    enabled: true
    behavior: {scaleDown: {stabilizationWindowSeconds: 600}}
    keda: {enabled: true, prometheusAddress: "http://p", targetCallsPerSecond: 20, targetQueueMilliseconds: 12.5}
  resources: {claims: [{name: gpu}]}
  resourceClaims: [{name: gpu, resourceClaimTemplateName: one-gpu}]
  <<: &parts
    annotations: {reloader.stakater.com/auto: "true"}
    extraEnvFrom: [{prefix: A_, secretRef: {name: a}}]
    extraVolumes: [{name: a, emptyDir: {}}]
    extraVolumeMounts: [{name: a, mountPath: /a}]
    extraInitContainers: [{name: a, image: "a:1", restartPolicy: Always}]
    extraContainers: [{name: b, image: "b:1", volumeMounts: [{name: a, mountPath: /a}]}]
    hostAliases: [{ip: 10.0.0.5, hostnames: [photos.internal]}]
    dnsConfig: {nameservers: [10.0.0.6], options: [{name: ndots, value: "1"}]}
gateway:
  <<: *parts
  service: {trafficDistribution: PreferClose, internalTrafficPolicy: Local, ipFamilyPolicy: PreferDualStack}
  ingress: {enabled: true, controller: nginx}
  httpRoute: {enabled: true, path: /photos, parentRefs: [{name: public, sectionName: https}], hostnames: [example.com]}
  serverTls: {mutual: true}
commonLabels: {team: vision}
commonAnnotations: {argocd.argoproj.io/sync-wave: "1"}
global: {imagePullSecrets: [regcred]}
helperResources: {limits: {cpu: 500m}}
extraObjects: [{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}]
networkPolicy:
  enabled: true
  ipFamilies: [IPv4, IPv6]
  metrics: {from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]}
monitoring: {podMonitor: {enabled: true}, rules: {enabled: true}, dashboard: {enabled: true}}
"""
# Kinds of other operators in the examples' extraObjects.
UNKNOWN = ["ExternalSecret"]


@pytest.fixture(params=KUBERNETES)
def version(request):
    return request.param


@pytest.fixture
def conform(version, tmp_path):
    """What kubeconform finds in the manifests: the invalid ones, and how many are valid."""
    schemas, rendered = tmp_path / "schemas", tmp_path / "rendered"
    schemas.mkdir()
    rendered.mkdir()
    write_schemas(version, schemas)

    def conform(texts: dict[str, str]) -> tuple[list[dict[str, str]], int]:
        for what, text in texts.items():
            (rendered / f"{what}.yaml").write_text(text)
        options = [
            f"-skip={','.join(UNKNOWN)}",
            "-strict",
            "-summary",
            "-output=json",
            f"-n={os.cpu_count()}",
            f"-kubernetes-version={version}",
        ]
        result = run(tool("kubeconform"), *options, f"-schema-location={schemas}/{LOCATION}", rendered)
        report = json.loads(result.stdout)
        return report["resources"], report["summary"]["valid"]

    return conform


def test_every_render_is_valid_kubernetes(version, conform):
    texts = {
        name((chart, file)): render(chart, "--values", file, "--kube-version", version)
        for chart, file in values_files()
    }
    expected = sum(
        len([one for one in yaml.load_all(text, yaml.CSafeLoader) if one and one["kind"] not in UNKNOWN])
        for text in texts.values()
    )
    assert conform(texts) == ([], expected)


@pytest.mark.parametrize("version", [KUBERNETES[-1]])
def test_optional_objects_are_valid_kubernetes(version, conform, tmp_path):
    values = tmp_path / "values.yaml"
    values.write_text(EVERYTHING)
    rendered = render(CLASSIFIER, "--values", values, "--kube-version", version)
    objects = [one for one in yaml.load_all(rendered, yaml.CSafeLoader) if one]
    kinds = {one["kind"] for one in objects}
    assert kinds >= {"HTTPRoute", "Certificate", "ScaledObject", "PodMonitor", "PrometheusRule", "NetworkPolicy"}
    assert conform({"everything": rendered}) == ([], len(objects))


@pytest.mark.parametrize("version", [KUBERNETES[-1]])
def test_service_monitors_are_valid_kubernetes(version, conform):
    monitor = "monitoring.serviceMonitor"
    options = (
        f"--set={monitor}.enabled=true,{monitor}.relabelings[0].targetLabel=a,{monitor}.relabelings[0].replacement=b"
    )
    rendered = render(CLASSIFIER, options, "--kube-version", version)
    objects = [one for one in yaml.load_all(rendered, yaml.CSafeLoader) if one]
    assert sum(one["kind"] == "ServiceMonitor" for one in objects) == 2
    assert conform({"monitored": rendered}) == ([], len(objects))


@pytest.mark.parametrize("version", [KUBERNETES[-1]])
def test_every_model_source_is_valid_kubernetes(version, conform):
    """Those that no example has: an image volume, and a claim that the chart makes."""
    image = "image.repository=models,model.source.imageVolume.image.tag=v1,model.source.imageVolume.subPath=models"
    texts = {
        "image": f"model.source.type=imageVolume,model.source.imageVolume.{image}",
        "claim": "model.source.type=pvc,model.source.pvc.storageClassName=fast",
    }
    texts = {what: render(CLASSIFIER, f"--set={text}", "--kube-version", version) for what, text in texts.items()}
    assert "kind: PersistentVolumeClaim" in texts["claim"]
    assert "reference:" in texts["image"]
    objects = sum(len([one for one in yaml.load_all(text, yaml.CSafeLoader) if one]) for text in texts.values())
    assert conform(texts) == ([], objects)


@pytest.mark.parametrize("version", [KUBERNETES[-1]])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("minReadySeconds:", "minReadySecond:"),  # no such field
        ("failureThreshold: 60", "failureThreshold: many"),  # another type
        ("apiVersion: apps/v1", "apiVersion: apps/v2"),  # no such kind
    ],
)
def test_invalid_manifest_is_detected(before, after, conform):
    rendered = render(CLASSIFIER)
    assert before in rendered
    problems, _ = conform({"mistake": rendered.replace(before, after)})
    assert problems


@pytest.mark.parametrize("version", [KUBERNETES[-1]])
@pytest.mark.parametrize(
    ("manifest", "before", "after"),
    [
        (HTTP_ROUTE, "parentRefs:", "parentRef:"),
        (HTTP_ROUTE, "port: 80", "port: http"),
        (SCALED_OBJECT, "triggers:", "trigger:"),
        (SCALED_OBJECT, 'threshold: "1"', "threshold: 1"),
        (POD_MONITOR, "podMetricsEndpoints:", "endpoints:"),
        (POD_MONITOR, "monitoring.coreos.com/v1", "monitoring.coreos.com/v2"),
        (CERTIFICATE, "dnsNames: [photos]", "dnsNames: photos"),
    ],
)
def test_invalid_custom_resource_is_detected(manifest, before, after, conform):
    assert conform({"right": manifest}) == ([], 1)
    assert before in manifest
    problems, _ = conform({"wrong": manifest.replace(before, after)})
    assert [problem["filename"].rsplit("/", 1)[1] for problem in problems] == ["wrong.yaml"]


def test_open_schema_fields_stay_open():
    node: dict[str, Any] = {
        "type": "object",
        "properties": {
            "closed": {"type": "object", "properties": {"port": {"x-kubernetes-int-or-string": True}}},
            "open": {"type": "object", "properties": {}, "x-kubernetes-preserve-unknown-fields": True},
            "map": {"type": "object", "additionalProperties": {"type": "string"}},
            "maybe": {"type": "string", "nullable": True},
        },
    }
    properties = strict(node)["properties"]
    assert properties["closed"] == {
        "type": "object",
        "properties": {"port": {"type": ["integer", "string"]}},
        "additionalProperties": False,
    }
    assert "additionalProperties" not in properties["open"]
    assert properties["map"]["additionalProperties"] == {"type": "string"}
    assert properties["maybe"]["type"] == ["string", "null"]


def test_custom_resource_definitions_match_the_chart():
    groups = {group for group, *_ in custom_kinds()}
    templates = "\n".join(file.read_text() for file in (CLASSIFIER / "templates").rglob("*.yaml"))
    assert {"gateway.networking.k8s.io", "keda.sh", "monitoring.coreos.com", "cert-manager.io"} == groups
    for line in templates.splitlines():
        if line.startswith("apiVersion:") and "." in line.partition("/")[0] and "k8s.io/v" not in line:
            assert line.split()[1].partition("/")[0] in groups, line
