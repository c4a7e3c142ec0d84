{{- /* The content of the server's ConfigMap. The pod's checksum is of this alone, which holds no version of the chart. */ -}}
{{- define "clothing-classifier.server.config" -}}
{{- with include "clothing-classifier.server.startConfig" . | trim }}
{{ . }}
{{- end }}
{{- with include "clothing-classifier.server.modelsConfig" . | trim }}
models.config: |
  {{- . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* The files that are read at start only. Numbers pass through int64: Go prints 1000000 of a values file as 1e+06, which ends the server. */ -}}
{{- define "clothing-classifier.server.startConfig" -}}
{{- if .Values.server.monitoring.enabled }}
monitoring.config: |
  prometheus_config {
    enable: true
    path: "/monitoring/prometheus/metrics"
  }
{{- end }}
{{- with .Values.server.batching }}
{{- if .enabled }}
batching.config: |
  num_batch_threads { value: {{ include "clothing-classifier.server.batchThreads" $ }} }
  {{- /* Of this file, a model with parameters of its own takes the threads, which all models share, and nothing else. */}}
  {{- if not .perModel }}
  max_batch_size { value: {{ int64 .maxBatchSize }} }
  batch_timeout_micros { value: {{ int64 .timeoutMicros }} }
  max_enqueued_batches { value: {{ int64 .maxEnqueuedBatches }} }
  {{- range .allowedBatchSizes }}
  allowed_batch_sizes: {{ int64 . }}
  {{- end }}
  {{- if .padVariableLengthInputs }}
  pad_variable_length_inputs: true
  {{- end }}
  {{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* Which versions are loaded, and their labels. With hotReload it is always there, so that the flags don't change with it. */ -}}
{{- define "clothing-classifier.server.modelsConfig" -}}
{{- $versions := include "clothing-classifier.server.versions" . | fromJsonArray -}}
{{- if or $versions (eq .Values.server.rollout.mode "hotReload") -}}
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

{{- /* Versions to load, as a JSON list: model.versions, else each version that another value names; empty loads the newest. */ -}}
{{- define "clothing-classifier.server.versions" -}}
{{- $versions := list -}}
{{- with .Values.model -}}
{{- range default (concat (list .version .canary.version) (values .versionLabels) .selectableVersions) .versions -}}
{{- $version := . | toJson | trimAll "\"" -}}
{{- if regexMatch "^[0-9]+$" $version -}}
{{- $versions = append $versions $version -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $versions | uniq | sortAlpha | toJson -}}
{{- end -}}

{{- /* Defaults of TensorFlow Serving's flags, with server.flags over them; as JSON. */ -}}
{{- define "clothing-classifier.server.flags" -}}
{{- $cpus := include "clothing-classifier.server.cpus" . | int -}}
{{- $set := dict -}}
{{- range $flag, $value := .Values.server.flags -}}
{{- if not (kindIs "invalid" $value) -}}
{{- $_ := set $set $flag $value -}}
{{- end -}}
{{- end -}}
{{- $defaults := dict
  "enable_profiler" false
  "file_system_poll_wait_seconds" 0
  "max_num_load_retries" 0
  "grpc_channel_arguments" (include "clothing-classifier.server.channelArguments" .)
  "grpc_max_threads" (include "clothing-classifier.server.grpcThreads" . | int)
  "rest_api_num_threads" (mul 4 $cpus) -}}
{{- if not $set.tensorflow_session_parallelism -}}
{{- $defaults = merge (dict "tensorflow_intra_op_parallelism" $cpus "tensorflow_inter_op_parallelism" $cpus) $defaults -}}
{{- end -}}
{{- with .Values.server.rollout -}}
{{- if eq .mode "hotReload" -}}
{{- $defaults = merge (dict "file_system_poll_wait_seconds" .pollSeconds "model_config_file_poll_wait_seconds" .pollSeconds
  "num_load_threads" 1 "num_unload_threads" 1) $defaults -}}
{{- end -}}
{{- end -}}
{{- merge $set $defaults | toJson -}}
{{- end -}}

{{- /* CPUs that the pod is promised, at least 1: the limit rounded down, else the request rounded up. TensorFlow would count the node's. */ -}}
{{- define "clothing-classifier.server.cpus" -}}
{{- $limit := dig "limits" "cpu" "" .Values.server.resources | toString -}}
{{- $quantity := default (dig "requests" "cpu" "" .Values.server.resources | toString) $limit -}}
{{- $cpus := ternary (divf (trimSuffix "m" $quantity | float64) 1000) (float64 $quantity) (hasSuffix "m" $quantity) -}}
{{- max 1 (ternary (ceil $cpus) (floor $cpus) (empty $limit)) -}}
{{- end -}}

{{- define "clothing-classifier.server.batchThreads" -}}
{{- default (include "clothing-classifier.server.cpus" .) .Values.server.batching.threads | int64 -}}
{{- end -}}

{{- /* TensorFlow Serving queues no call: beyond its threads it refuses (measured: 8 threads, 24 clients, 204 of 1,214 answers were 503; with 256
       threads none). So there are as many as all gateways can send: a call for each photo in flight, a metadata call of each gateway, and the
       port's own thread; not divided by the servers, as the last one may have to take all. A batch fills only from calls that wait: twice its
       size for each batch thread. A thread that waits costs about half a MiB. In powers of two from 128, as a flag that followed the number of
       pods would restart every server when pods are added. */ -}}
{{- define "clothing-classifier.server.grpcThreads" -}}
{{- $gateways := include "clothing-classifier.maxReplicas" .Values.gateway | int -}}
{{- $wanted := add (mul $gateways (default 32 .Values.gateway.maxInFlight | int64)) $gateways 2 -}}
{{- with .Values.server.batching -}}
{{- if and .enabled (not .perModel) -}}
{{- $wanted = max $wanted (mul 2 (int64 .maxBatchSize) (include "clothing-classifier.server.batchThreads" $ | int64)) -}}
{{- end -}}
{{- end -}}
{{- $threads := 128 -}}
{{- range until 16 -}}
{{- $threads = ternary (mul 2 $threads) $threads (lt (int64 $threads) (int64 $wanted)) -}}
{{- end -}}
{{- $threads -}}
{{- end -}}

{{- /* A gateway pings a silent connection every 5 seconds; unless allowed, the server would close it. A connection's age makes gateways ask DNS again. */ -}}
{{- define "clothing-classifier.server.channelArguments" -}}
grpc.http2.min_ping_interval_without_data_ms=4000
{{- with .Values.server.maxConnectionAgeSeconds -}}
,grpc.max_connection_age_ms={{ mul . 1000 }},grpc.max_connection_age_grace_ms={{ mul (ceil $.Values.gateway.requestTimeoutSeconds) 1000 }}
{{- end -}}
{{- end -}}

{{- define "clothing-classifier.server.knowsGrpcHealth" -}}
{{- if semverCompare ">=2.15-0" .Values.server.version -}}
true
{{- end -}}
{{- end -}}

{{- /* How pods are replaced. With hotReload too, when their image or flags change. */ -}}
{{- define "clothing-classifier.server.rolloutMode" -}}
{{- $mode := .Values.server.rollout.mode -}}
{{- if not (has $mode (list "auto" "hotReload")) -}}
{{- $mode -}}
{{- else if and (or (not .Values.server.gpu.enabled) .Values.server.gpu.spare) (not (include "clothing-classifier.model.oneNode" .)) -}}
surge
{{- else if gt (include "clothing-classifier.minReplicas" .Values.server | int) 1 -}}
inPlace
{{- else -}}
recreate
{{- end -}}
{{- end -}}

{{- /* In a surge the old server stops when the gateways have had time to find the new one: they ask DNS again when a connection reaches its
       age, and cluster DNS may be some seconds behind. */ -}}
{{- define "clothing-classifier.server.minReadySeconds" -}}
{{- ternary (add .Values.server.maxConnectionAgeSeconds 5) 0 (eq (include "clothing-classifier.server.rolloutMode" .) "surge") -}}
{{- end -}}

{{- /* Whether an upgrade of the servers stops all of them at once; empty is no. */ -}}
{{- define "clothing-classifier.server.upgradeStopsAll" -}}
{{- $mode := include "clothing-classifier.server.rolloutMode" . -}}
{{- $servers := include "clothing-classifier.minReplicas" .Values.server | int -}}
{{- if or (eq $mode "recreate") (and (eq $mode "inPlace") (eq $servers 1)) -}}true{{- end -}}
{{- end -}}

{{- /* Starting may take server.startup.maxSeconds, pulling the image five minutes more; a gateway is ready when a server is. */ -}}
{{- define "clothing-classifier.server.progressDeadlineSeconds" -}}
{{- add .Values.server.startup.maxSeconds (include "clothing-classifier.server.minReadySeconds" .) 300 -}}
{{- end -}}

{{- /* Startup and liveness probe: gRPC health, or TCP where the server has none, or serves TLS, which the kubelet's gRPC probes can't. */ -}}
{{- define "clothing-classifier.server.alive" -}}
{{- if and (include "clothing-classifier.server.knowsGrpcHealth" .) (not (include "clothing-classifier.server.tlsSecretName" .)) -}}
grpc: {port: 8500}
{{- else -}}
tcpSocket: {port: grpc}
{{- end -}}
{{- end -}}
