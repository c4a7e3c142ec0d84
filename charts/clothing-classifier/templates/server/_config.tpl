{{- /* The files that the server's flags point at. The pod's checksum is of these alone: a chart's version isn't in them. */ -}}
{{- define "clothing-classifier.server.config" -}}
{{- if .Values.server.monitoring.enabled }}
monitoring.config: |
  prometheus_config {
    enable: true
    path: {{ .Values.server.monitoring.path | toJson }}
  }
{{- end }}
{{- with include "clothing-classifier.loadedVersions" . | fromJsonArray }}
models.config: |
  model_config_list {
    config {
      name: {{ $.Values.model.name | toJson }}
      base_path: "/models/{{ $.Values.model.name }}"
      model_platform: "tensorflow"
      model_version_policy {
        specific {
          {{- range . }}
          versions: {{ . }}
          {{- end }}
        }
      }
      {{- range $label, $version := $.Values.model.versionLabels }}
      version_labels {
        key: {{ $label | toJson }}
        value: {{ $version | toJson | trimAll "\"" }}
      }
      {{- end }}
    }
  }
{{- end }}
{{- end -}}

{{- define "clothing-classifier.server.args" -}}
- --port=8500
- --rest_api_port=8501
{{- if include "clothing-classifier.loadedVersions" . | fromJsonArray }}
- --model_config_file=/etc/clothing-classifier/models.config
{{- if .Values.model.versionLabels }}
- --allow_version_labels_for_unavailable_models=true
{{- end }}
{{- else }}
- --model_name={{ .Values.model.name }}
- --model_base_path=/models/{{ .Values.model.name }}
{{- end }}
{{- if .Values.server.monitoring.enabled }}
- --monitoring_config_file=/etc/clothing-classifier/monitoring.config
{{- end }}
{{- if include "clothing-classifier.server.tlsSecretName" . }}
- --ssl_config_file=/etc/clothing-classifier-tls/ssl.config
{{- end }}
{{- if .Values.server.grpcHealthCheck }}
- --enable_grpc_healthcheck_service=true
{{- end }}
{{- with .Values.server.maxConnectionAgeSeconds }}
- --grpc_channel_arguments=grpc.max_connection_age_ms={{ mul . 1000 }},grpc.max_connection_age_grace_ms={{ mul (ceil $.Values.gateway.requestTimeoutSeconds) 1000 }}
{{- end }}
{{- if and .Values.server.gpu.enabled (not (kindIs "invalid" .Values.server.gpu.memoryFraction)) }}
- --per_process_gpu_memory_fraction={{ .Values.server.gpu.memoryFraction }}
{{- end }}
{{- range $flag, $value := .Values.server.flags }}
{{- if not (kindIs "invalid" $value) }}
- --{{ $flag }}={{ toJson $value }}
{{- end }}
{{- end }}
{{- with .Values.server.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "clothing-classifier.server.resources" -}}
{{- $resources := deepCopy .Values.server.resources -}}
{{- if .Values.server.gpu.enabled -}}
{{- $gpu := dict .Values.server.gpu.resourceName .Values.server.gpu.count -}}
{{- $_ := set $resources "limits" (merge $gpu (default dict $resources.limits)) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{- /* The server's values with what its GPU adds to them. */ -}}
{{- define "clothing-classifier.server.scheduling" -}}
{{- $values := .Values.server -}}
{{- if .Values.server.gpu.enabled -}}
{{- $values = merge (dict
  "nodeSelector" (merge (dict) .Values.server.nodeSelector .Values.server.gpu.nodeSelector)
  "tolerations" (concat .Values.server.tolerations .Values.server.gpu.tolerations)) (omit .Values.server "nodeSelector" "tolerations") -}}
{{- end -}}
{{- include "clothing-classifier.scheduling" (dict "context" . "component" "server" "values" $values) -}}
{{- end -}}

{{- define "clothing-classifier.server.rolloutMode" -}}
{{- $replicas := include "clothing-classifier.minReplicas" .Values.server | int -}}
{{- if ne .Values.server.rollout.mode "auto" -}}
{{- .Values.server.rollout.mode -}}
{{- else if not .Values.server.gpu.enabled -}}
surge
{{- else if gt $replicas 1 -}}
inPlace
{{- else -}}
recreate
{{- end -}}
{{- end -}}

{{- /* Starting may take server.startup.maxSeconds, pulling the image five minutes more. */ -}}
{{- define "clothing-classifier.server.progressDeadlineSeconds" -}}
{{- add .Values.server.startup.maxSeconds (include "clothing-classifier.server.minReadySeconds" .) 300 -}}
{{- end -}}

{{- /* In a surge, the old server goes only when the gateways had time to find the new one: they look when a connection has reached its age,
       and cluster DNS may be some seconds behind. */ -}}
{{- define "clothing-classifier.server.minReadySeconds" -}}
{{- if eq (include "clothing-classifier.server.rolloutMode" .) "surge" -}}
{{- add .Values.server.maxConnectionAgeSeconds 5 -}}
{{- else -}}
0
{{- end -}}
{{- end -}}

{{- /* The kubelet's gRPC probes know no TLS. */ -}}
{{- define "clothing-classifier.server.alive" -}}
{{- if and .Values.server.grpcHealthCheck (not (include "clothing-classifier.server.tlsSecretName" .)) -}}
grpc:
  port: 8500
{{- else -}}
tcpSocket:
  port: grpc
{{- end -}}
{{- end -}}
