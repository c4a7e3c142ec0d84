{{- /* The files that the server's flags point at. The pod's checksum is of these alone: a chart's version isn't in them. */ -}}
{{- define "clothing-classifier.server.config" -}}
{{- with include "clothing-classifier.server.startConfig" . | trim }}
{{ . }}
{{- end }}
{{- with include "clothing-classifier.server.modelsConfig" . | trim }}
models.config: |
  {{- . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* What is read at the start only. */ -}}
{{- define "clothing-classifier.server.startConfig" -}}
{{- if .Values.server.monitoring.enabled }}
monitoring.config: |
  prometheus_config {
    enable: true
    path: {{ .Values.server.monitoring.path | toJson }}
  }
{{- end }}
{{- with .Values.server.batching }}
{{- if and .enabled (not .perModel) }}
batching.config: |
  max_batch_size { value: {{ .maxBatchSize }} }
  batch_timeout_micros { value: {{ .timeoutMicros }} }
  max_enqueued_batches { value: {{ .maxEnqueuedBatches }} }
  {{- with default (include "clothing-classifier.server.cpus" $) .threads }}
  num_batch_threads { value: {{ . }} }
  {{- end }}
  {{- range .allowedBatchSizes }}
  allowed_batch_sizes: {{ . }}
  {{- end }}
  {{- if .padVariableLengthInputs }}
  pad_variable_length_inputs: true
  {{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* Which versions are loaded, and their labels. A server that reloads always has it, so that its flags don't change with it. */ -}}
{{- define "clothing-classifier.server.modelsConfig" -}}
{{- $versions := include "clothing-classifier.loadedVersions" . | fromJsonArray -}}
{{- if or $versions (include "clothing-classifier.server.hotReload" .) -}}
model_config_list {
  config {
    name: {{ .Values.model.name | toJson }}
    base_path: "/models/{{ .Values.model.name }}"
    model_platform: "tensorflow"
    {{- if $versions }}
    model_version_policy {
      specific {
        {{- range $versions }}
        versions: {{ . }}
        {{- end }}
      }
    }
    {{- end }}
    {{- range $label, $version := .Values.model.versionLabels }}
    version_labels {
      key: {{ $label | toJson }}
      value: {{ $version | toJson | trimAll "\"" }}
    }
    {{- end }}
  }
}
{{- end -}}
{{- end -}}

{{- define "clothing-classifier.server.args" -}}
- --port=8500
- --rest_api_port=8501
{{- if include "clothing-classifier.server.modelsConfig" . }}
- --model_config_file=/etc/clothing-classifier/models.config
{{- if or .Values.model.versionLabels (include "clothing-classifier.server.hotReload" .) }}
- --allow_version_labels_for_unavailable_models=true
{{- end }}
{{- else }}
- --model_name={{ .Values.model.name }}
- --model_base_path=/models/{{ .Values.model.name }}
{{- end }}
{{- if .Values.server.monitoring.enabled }}
- --monitoring_config_file=/etc/clothing-classifier/monitoring.config
{{- end }}
{{- with .Values.server.batching }}
{{- if .enabled }}
- --enable_batching=true
- {{ ternary "--enable_per_model_batching_parameters=true" "--batching_parameters_file=/etc/clothing-classifier/batching.config" .perModel }}
{{- end }}
{{- end }}
{{- if include "clothing-classifier.server.tlsSecretName" . }}
- --ssl_config_file=/etc/clothing-classifier-tls/ssl.config
{{- end }}
{{- if include "clothing-classifier.server.knowsGrpcHealth" . }}
- --enable_grpc_healthcheck_service=true
{{- end }}
{{- /* A gateway asks a silent connection every 5 seconds whether the server lives; without leave for it the server would hang up on it. */}}
{{- $arguments := list "grpc.http2.min_recv_ping_interval_without_data_ms=4000" }}
{{- with .Values.server.maxConnectionAgeSeconds }}
{{- $arguments = concat $arguments (list (printf "grpc.max_connection_age_ms=%d" (mul . 1000)) (printf "grpc.max_connection_age_grace_ms=%d" (mul (ceil $.Values.gateway.requestTimeoutSeconds) 1000))) }}
{{- end }}
- --grpc_channel_arguments={{ join "," $arguments }}
{{- if and .Values.server.gpu.enabled (not (kindIs "invalid" .Values.server.gpu.memoryFraction)) }}
- --per_process_gpu_memory_fraction={{ .Values.server.gpu.memoryFraction }}
{{- end }}
{{- range $flag, $value := include "clothing-classifier.server.flags" . | fromJson }}
- --{{ $flag }}={{ kindIs "string" $value | ternary $value (toJson $value) }}
{{- end }}
{{- with .Values.server.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* The flags that have a value, and those that follow from others: how often to look for changes, and threads by the CPU limit, which
       TensorFlow Serving doesn't see: it counts the node's CPUs. */ -}}
{{- define "clothing-classifier.server.flags" -}}
{{- $derived := dict "file_system_poll_wait_seconds" 0 -}}
{{- with include "clothing-classifier.server.cpus" . | int -}}
{{- $derived = merge $derived (dict "tensorflow_intra_op_parallelism" . "tensorflow_inter_op_parallelism" .
  "grpc_max_threads" (mul 4 .) "rest_api_num_threads" (mul 4 .)) -}}
{{- end -}}
{{- if include "clothing-classifier.server.hotReload" . -}}
{{- $poll := .Values.server.rollout.pollSeconds -}}
{{- $derived = merge (dict "file_system_poll_wait_seconds" $poll "model_config_file_poll_wait_seconds" $poll
  "num_load_threads" 1 "num_unload_threads" 1) $derived -}}
{{- end -}}
{{- $flags := dict -}}
{{- range $flag, $value := .Values.server.flags -}}
{{- if not (kindIs "invalid" $value) -}}
{{- $_ := set $flags $flag $value -}}
{{- end -}}
{{- end -}}
{{- merge $flags $derived | toJson -}}
{{- end -}}

{{- /* The CPU limit in whole CPUs, one at least; empty where there is no limit. */ -}}
{{- define "clothing-classifier.server.cpus" -}}
{{- with dig "limits" "cpu" "" .Values.server.resources | toString -}}
{{- $cpus := hasSuffix "m" . | ternary (divf (trimSuffix "m" . | float64) 1000) (float64 .) -}}
{{- max 1 (floor $cpus) -}}
{{- end -}}
{{- end -}}

{{- /* Whether new versions and labels come to running servers. */ -}}
{{- define "clothing-classifier.server.hotReload" -}}
{{- if eq .Values.server.rollout.mode "hotReload" -}}
true
{{- end -}}
{{- end -}}

{{- define "clothing-classifier.server.knowsGrpcHealth" -}}
{{- if semverCompare ">=2.15-0" .Values.server.version -}}
true
{{- end -}}
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

{{- /* How pods are replaced. A server that reloads is replaced, too, when its image or flags change. */ -}}
{{- define "clothing-classifier.server.rolloutMode" -}}
{{- $replicas := include "clothing-classifier.minReplicas" .Values.server | int -}}
{{- $mode := .Values.server.rollout.mode -}}
{{- if not (has $mode (list "auto" "hotReload")) -}}
{{- $mode -}}
{{- else if and (or (not .Values.server.gpu.enabled) .Values.server.gpu.spare) (not (include "clothing-classifier.model.oneNode" .)) -}}
surge
{{- else if gt $replicas 1 -}}
inPlace
{{- else -}}
recreate
{{- end -}}
{{- end -}}

{{- /* A gateway that finds no model leaves its Service, as another may find one. Where an upgrade takes all servers away, none does: the
       gateways stay for as long as the model may load, and answer 503 with Retry-After, where clients would find a closed port. */ -}}
{{- define "clothing-classifier.gateway.readinessFailures" -}}
{{- $mode := include "clothing-classifier.server.rolloutMode" . -}}
{{- if or (eq $mode "recreate") (and (eq $mode "inPlace") (eq (include "clothing-classifier.minReplicas" .Values.server | int) 1)) -}}
{{- max 2 (div (add .Values.server.startup.maxSeconds 2) 3) -}}
{{- else -}}
2
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
{{- if and (include "clothing-classifier.server.knowsGrpcHealth" .) (not (include "clothing-classifier.server.tlsSecretName" .)) -}}
grpc: {port: 8500}
{{- else -}}
tcpSocket: {port: grpc}
{{- end -}}
{{- end -}}

{{- /* The model's status is 200 whatever its state; its metadata is 404 unless the version can be called. A server that reloads is asked by
       label, or for any version, so that its pod doesn't change with the version. */ -}}
{{- define "clothing-classifier.server.metadataPath" -}}
/v1/models/{{ .Values.model.name }}
{{- if .Values.model.versionLabel -}}
/labels/{{ .Values.model.versionLabel }}
{{- else if not (include "clothing-classifier.server.hotReload" .) -}}
{{- with include "clothing-classifier.modelVersion" . -}}
/versions/{{ . }}
{{- end -}}
{{- end -}}
/metadata
{{- end -}}
