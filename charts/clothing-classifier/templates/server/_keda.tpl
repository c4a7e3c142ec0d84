{{- define "clothing-classifier.server.kedaTriggers" -}}
{{- $series := include "clothing-classifier.series" (dict "context" . "component" "server") -}}
{{- $keda := .Values.server.autoscaling.keda -}}
{{- with $keda.targetCallsPerSecond }}
# Calls are shared out: so many servers that each gets the target.
- type: prometheus
  metricType: AverageValue
  metadata:
    serverAddress: {{ $keda.prometheusAddress }}
    query: sum(rate(:tensorflow:serving:request_latency_count{ {{- $series }},API="Predict",entrypoint="GRPC"}[2m]))
    threshold: {{ . | quote }}
    # No series is no load only where a server says so: otherwise the number stays.
    ignoreNullValues: "false"
{{- end }}
{{- with $keda.targetQueueMilliseconds }}
# A wait is each server's own: more servers, in the proportion of the wait to the target. The metric has microseconds; idle, it
# has no quantile, and the wait is 0.
- type: prometheus
  metricType: Value
  metadata:
    serverAddress: {{ $keda.prometheusAddress }}
    query: >-
      histogram_quantile(0.95, sum by (le) (rate(:tensorflow:serving:batching_session:queuing_latency_bucket{ {{- $series -}} }[2m]))) / 1000 >= 0
      or 0 * sum(rate(:tensorflow:serving:batching_session:queuing_latency_count{ {{- $series -}} }[2m]))
    threshold: {{ . | quote }}
    ignoreNullValues: "false"
{{- end }}
{{- with .Values.server.autoscaling }}
{{- range $resource, $target := dict "cpu" .targetCPUUtilizationPercentage "memory" .targetMemoryUtilizationPercentage }}
{{- if $target }}
- type: {{ $resource }}
  metricType: Utilization
  metadata:
    value: {{ $target | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- with $keda.triggers }}
{{ toYaml . }}
{{- end }}
{{- end -}}
