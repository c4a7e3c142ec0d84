{{- /* Prefix of all names: at most 47 characters, so that the longest suffix (-server-headless) fits into the 63 of a DNS label. */ -}}
{{- define "clothing-classifier.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 47 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 47 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 47 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* Selector of a component's pods. It must never change: selectors are immutable.
       Usage: include "clothing-classifier.selectorLabels" (dict "context" . "component" "server") */ -}}
{{- define "clothing-classifier.selectorLabels" -}}
app.kubernetes.io/name: {{ default .context.Chart.Name .context.Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .context.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{- /* Name, labels and annotations of an object; the name ends in the component, unless "suffix" is another end.
       Usage: include "clothing-classifier.metadata" (dict "context" . "component" "gateway" "labels" (dict) "annotations" (dict)) */ -}}
{{- define "clothing-classifier.metadata" -}}
name: {{ include "clothing-classifier.fullname" .context }}{{ with default .component .suffix }}-{{ . }}{{ end }}
{{- $own := dict
  "helm.sh/chart" (printf "%s-%s" .context.Chart.Name .context.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-")
  "app.kubernetes.io/managed-by" .context.Release.Service
  "app.kubernetes.io/version" .context.Chart.AppVersion }}
{{- $selector := include "clothing-classifier.selectorLabels" . | fromYaml }}
labels:
  {{- merge $own $selector (default dict .labels) (default dict .context.Values.commonLabels) | toYaml | nindent 2 }}
{{- with merge (dict) (default dict .annotations) (default dict .context.Values.commonAnnotations) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* Labels of a component's pods: a chart's version in them would restart every pod at each upgrade. */ -}}
{{- define "clothing-classifier.podLabels" -}}
{{- merge (include "clothing-classifier.selectorLabels" . | fromYaml) (default dict .values.podLabels) (default dict .context.Values.commonLabels) | toYaml -}}
{{- end -}}

{{- /* Usage: include "clothing-classifier.image" (dict "context" . "image" .Values.gateway.image "tag" "1.0.0"), tag being the default */ -}}
{{- define "clothing-classifier.image" -}}
{{- $registry := default .image.registry .context.Values.global.imageRegistry -}}
{{- $repository := ternary (printf "%s/%s" $registry .image.repository) .image.repository (not (empty $registry)) -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default .tag .image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "clothing-classifier.gateway.image" -}}
{{- include "clothing-classifier.image" (dict "context" . "image" .Values.gateway.image "tag" .Chart.AppVersion) -}}
{{- end -}}

{{- define "clothing-classifier.server.image" -}}
{{- $tag := ternary (printf "%s-gpu" .Chart.AppVersion) .Chart.AppVersion .Values.server.gpu.enabled -}}
{{- include "clothing-classifier.image" (dict "context" . "image" .Values.server.image "tag" $tag) -}}
{{- end -}}

{{- /* As JSON, because Go prints a long number (20261122) as 2.0261122e+07; null, as from a parent chart, is none. */ -}}
{{- define "clothing-classifier.modelVersion" -}}
{{- .Values.model.version | toJson | trimAll "\"" | replace "null" "" -}}
{{- end -}}

{{- define "clothing-classifier.serviceAccountName" -}}
{{- $own := ternary (printf "%s-%s" (include "clothing-classifier.fullname" .context) .component) "default" .values.serviceAccount.create -}}
{{- default $own .values.serviceAccount.name -}}
{{- end -}}

{{- /* What both tiers' pods have besides containers and volumes.
       Usage: include "clothing-classifier.pod" (dict "context" . "component" "gateway" "values" .Values.gateway) */ -}}
{{- define "clothing-classifier.pod" -}}
serviceAccountName: {{ include "clothing-classifier.serviceAccountName" . }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- if not (kindIs "invalid" .context.Values.hostUsers) }}
hostUsers: {{ .context.Values.hostUsers }}
{{- end }}
{{- with .context.Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  {{- list (ternary (dict "name" .) . (kindIs "string" .)) | toYaml | nindent 2 }}
  {{- end }}
{{- end }}
{{- with .values.hostAliases }}
hostAliases:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.resourceClaims }}
resourceClaims:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- $selector := include "clothing-classifier.selectorLabels" $ | fromYaml }}
  {{- range . }}
  {{- $constraint := ternary . (set (deepCopy .) "labelSelector" (dict "matchLabels" $selector)) (hasKey . "labelSelector") }}
  {{- list $constraint | toYaml | nindent 2 }}
  {{- end }}
{{- end }}
{{- end -}}

{{- /* Resources of a container that runs for seconds: the chart's, with the operator's over them.
       Usage: include "clothing-classifier.helperResources" (dict "context" . "own" (dict "limits" (dict "memory" "64Mi"))) */ -}}
{{- define "clothing-classifier.helperResources" -}}
{{- merge (default dict .context.Values.helperResources | deepCopy) .own | toYaml -}}
{{- end -}}

{{- /* Replicas that there are at least and at most, autoscaled or not. */ -}}
{{- define "clothing-classifier.minReplicas" -}}
{{- ternary .autoscaling.minReplicas .replicas .autoscaling.enabled | int64 -}}
{{- end -}}

{{- define "clothing-classifier.maxReplicas" -}}
{{- ternary .autoscaling.maxReplicas .replicas .autoscaling.enabled | int64 -}}
{{- end -}}

{{- /* Selects a component's series by the labels that a PodMonitor gives them, as other scrapers do by habit.
       Usage: include "clothing-classifier.series" (dict "context" . "component" "gateway") */ -}}
{{- define "clothing-classifier.series" -}}
namespace="{{ .context.Release.Namespace }}",pod=~"{{ include "clothing-classifier.fullname" .context }}-{{ .component }}-[a-z0-9]+(-[a-z0-9]+)?"
{{- end -}}

{{- /* The endpoint of a PodMonitor or ServiceMonitor. Probes are dropped: the kubelet's of a gateway are on the admin port and not counted, those of a
       load balancer on /ping; a server's readiness probe is a REST request, and its request_count doesn't tell it from others.
       Usage: include "clothing-classifier.endpoint" (dict "component" "gateway" "port" "admin" "monitor" .Values.monitoring.podMonitor) */ -}}
{{- define "clothing-classifier.endpoint" -}}
- port: {{ .port }}
  path: {{ ternary "/metrics" "/monitoring/prometheus/metrics" (eq .component "gateway") }}
  {{- with .monitor.interval }}
  interval: {{ . }}
  {{- end }}
  {{- with .monitor.scrapeTimeout }}
  scrapeTimeout: {{ . }}
  {{- end }}
  {{- with .monitor.relabelings }}
  relabelings:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  metricRelabelings:
    {{- if eq .component "gateway" }}
    - action: drop
      sourceLabels: [__name__, route]
      regex: gateway_request_duration_seconds_.+;/ping
    {{- else }}
    - action: drop
      sourceLabels: [__name__, API, entrypoint]
      regex: :tensorflow:serving:request_latency_.+;;REST
    - action: drop
      sourceLabels: [__name__]
      regex: :tensorflow:serving:request_count
    {{- end }}
{{- end -}}

{{- define "clothing-classifier.hpaMetrics" -}}
{{- with .targetCPUUtilizationPercentage }}
- type: Resource
  resource:
    name: cpu
    target:
      type: Utilization
      averageUtilization: {{ int64 . }}
{{- end }}
{{- with .targetMemoryUtilizationPercentage }}
- type: Resource
  resource:
    name: memory
    target:
      type: Utilization
      averageUtilization: {{ int64 . }}
{{- end }}
{{- with .metrics }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* The rule of a PodDisruptionBudget. A pod that isn't ready may always be evicted: it serves nothing, and would block the drain. */ -}}
{{- define "clothing-classifier.pdbRule" -}}
{{- if kindIs "invalid" .minAvailable }}
maxUnavailable: {{ toJson .maxUnavailable }}
{{- else }}
minAvailable: {{ toJson .minAvailable }}
{{- end }}
unhealthyPodEvictionPolicy: AlwaysAllow
{{- end -}}
