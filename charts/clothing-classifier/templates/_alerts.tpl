{{- /* The ratio of failed and of slow requests over each window of the alerts, recorded once. Requests without a photo, such as a load balancer's
       probes, don't count; a photo's own server that fails (424) is no fault of the release. */ -}}
{{- define "clothing-classifier.objectives" -}}
{{- $photos := printf "%s,route=~\"/predict|/classify\"" (include "clothing-classifier.series" (dict "context" . "component" "gateway")) -}}
{{- $labels := dict "namespace" .Release.Namespace "release" .Release.Name -}}
{{- range $window := list "5m" "30m" "1h" "2h" "6h" "1d" "3d" }}
- record: clothing_classifier:errors:ratio_rate{{ $window }}
  expr: >-
    sum(rate(gateway_request_duration_seconds_count{ {{- $photos }},status=~"5.."}[{{ $window }}]))
    / sum(rate(gateway_request_duration_seconds_count{ {{- $photos -}} }[{{ $window }}]))
  labels:
    {{- toYaml $labels | nindent 4 }}
- record: clothing_classifier:slow:ratio_rate{{ $window }}
  expr: >-
    1 - sum(rate(gateway_request_duration_seconds_bucket{ {{- $photos }},status="200",le=~"{{ $.Values.monitoring.rules.latencySeconds }}([.]0)?"}[{{ $window }}]))
    / sum(rate(gateway_request_duration_seconds_count{ {{- $photos }},status="200"}[{{ $window }}]))
  labels:
    {{- toYaml $labels | nindent 4 }}
{{- end }}
{{- end -}}

{{- /* Burn rate: 1 spends an objective's error budget in 30 days. Two windows each: the long one shows that it matters, the short one that it
       continues. Usage: include "clothing-classifier.burn" (dict "context" . "ratio" "errors" "percent" 99.5 "pairs" (list (list "1h" "5m" 14.4))) */ -}}
{{- define "clothing-classifier.burn" -}}
{{- $budget := divf (subf 100 .percent) 100 -}}
{{- $series := printf "{namespace=%q,release=%q}" .context.Release.Namespace .context.Release.Name -}}
{{- $parts := list -}}
{{- range .pairs -}}
{{- $limit := round (mulf (index . 2) $budget) 6 -}}
{{- $long := printf "clothing_classifier:%s:ratio_rate%s%s > %v" $.ratio (index . 0) $series $limit -}}
{{- $short := printf "clothing_classifier:%s:ratio_rate%s%s > %v" $.ratio (index . 1) $series $limit -}}
{{- $parts = append $parts (printf "(%s and %s)" $long $short) -}}
{{- end -}}
{{- join " or " $parts -}}
{{- end -}}

{{- define "clothing-classifier.alerts" -}}
{{- $name := include "clothing-classifier.fullname" . -}}
{{- $gateway := include "clothing-classifier.series" (dict "context" . "component" "gateway") -}}
{{- $server := include "clothing-classifier.series" (dict "context" . "component" "server") -}}
{{- $rules := .Values.monitoring.rules -}}
{{- $fast := list (list "1h" "5m" 14.4) (list "6h" "30m" 6.0) -}}
{{- $slow := list (list "1d" "2h" 3.0) (list "3d" "6h" 1.0) -}}
- alert: ClassifierAvailabilityBurnFast
  expr: {{ include "clothing-classifier.burn" (dict "context" . "ratio" "errors" "percent" $rules.availabilityPercent "pairs" $fast) | toJson }}
  for: 2m
  severity: critical
  summary: {{ $name }} answers too many photos with 5xx; the error budget of 30 days lasts for days only
- alert: ClassifierAvailabilityBurnSlow
  expr: {{ include "clothing-classifier.burn" (dict "context" . "ratio" "errors" "percent" $rules.availabilityPercent "pairs" $slow) | toJson }}
  for: 15m
  severity: warning
  summary: {{ $name }} answers more photos with 5xx than its objective allows
- alert: ClassifierLatencyBurnFast
  expr: {{ include "clothing-classifier.burn" (dict "context" . "ratio" "slow" "percent" $rules.latencyPercent "pairs" $fast) | toJson }}
  for: 2m
  severity: critical
  summary: Too many answers of {{ $name }} take longer than {{ $rules.latencySeconds }} s; the error budget of 30 days lasts for days only
- alert: ClassifierLatencyBurnSlow
  expr: {{ include "clothing-classifier.burn" (dict "context" . "ratio" "slow" "percent" $rules.latencyPercent "pairs" $slow) | toJson }}
  for: 15m
  severity: warning
  summary: More answers of {{ $name }} take longer than {{ $rules.latencySeconds }} s than its objective allows
- alert: ClassifierNoGatewayReady
  expr: {{ printf "sum(gateway_ready{%s}) < 1 or absent(gateway_ready{%s})" $gateway $gateway | toJson }}
  for: 2m
  severity: critical
  summary: No gateway of {{ $name }} is ready, so no request is answered
- alert: ClassifierGatewayNotReady
  expr: {{ printf "min by (pod) (gateway_ready{%s}) == 0" $gateway | toJson }}
  for: 10m
  severity: warning
  summary: {{ `"{{ $labels.pod }} is not ready; its /readyz and its log have the reason"` }}
{{- /* Calls that a full server refused are in neither sum: most of them succeed when they are retried, and those that don't have alerts of
       their own, by the error that the client got. */}}
- alert: ClassifierModelCallsFail
  expr: {{ printf "sum(rate(gateway_rpcs_total{%s,code!~\"OK|CANCELLED|RESOURCE_EXHAUSTED\"}[5m])) / sum(rate(gateway_rpcs_total{%s,code!=\"RESOURCE_EXHAUSTED\"}[5m])) > 0.05" $gateway $gateway | toJson }}
  for: 5m
  severity: warning
  summary: More than 5 of 100 calls of {{ $name }}'s gateways to the model servers fail
- alert: ClassifierOverloaded
  expr: {{ printf "sum(rate(gateway_errors_total{%s,code=\"overloaded\"}[5m])) > 0" $gateway | toJson }}
  for: 10m
  severity: warning
  summary: The gateways of {{ $name }} reject requests with 503, as all their in-flight slots are taken
- alert: ClassifierServerThreadsBusy
  expr: {{ printf "sum(rate(gateway_errors_total{%s,code=\"model-busy\"}[5m])) > 0" $gateway | toJson }}
  for: 5m
  severity: warning
  summary: The model servers of {{ $name }} are too busy, so that calls find no gRPC thread or expire beside others; add servers, or raise grpc_max_threads
- alert: ClassifierBatchQueueFull
  expr: {{ printf "sum(rate(gateway_errors_total{%s,code=\"model-queue-full\"}[5m])) > 0" $gateway | toJson }}
  for: 5m
  severity: warning
  summary: The batching queue of {{ $name }}'s model servers is full, and they refuse calls
- alert: ClassifierServerOutOfMemory
  expr: {{ printf "sum(rate(gateway_errors_total{%s,code=\"model-out-of-memory\"}[5m])) > 0" $gateway | toJson }}
  for: 2m
  severity: warning
  summary: Predict runs out of memory on {{ $name }}'s model servers or their GPU; a retry fails the same way
- alert: ClassifierPhotosPileUp
  expr: {{ printf "avg(gateway_in_flight_photos{%s}) > %v" $gateway (mulf 0.8 (default 32 .Values.gateway.maxInFlight)) | toJson }}
  for: 10m
  severity: warning
  summary: The gateways of {{ $name }} use over 80 % of their in-flight slots
{{- if .Values.server.monitoring.enabled }}
- alert: ClassifierBatchQueueLong
  expr: {{ printf "histogram_quantile(0.95, sum by (le) (rate(:tensorflow:serving:batching_session:queuing_latency_bucket{%s}[5m]))) / 1e6 > %v" $server (round (divf $rules.latencySeconds 2) 4) | toJson }}
  for: 10m
  severity: warning
  summary: Calls wait in the batching queue of {{ $name }}'s model servers for half of latencySeconds
{{- end }}
{{- if .Values.server.tls.certManager.enabled }}
- alert: ClassifierCertificateExpires
  expr: {{ printf "min by (name) ((certmanager_certificate_expiration_timestamp_seconds{namespace=%q,name=~\"%s-(gateway|server)\"} or certmanager_certificate_expiration_timestamp_seconds{exported_namespace=%q,name=~\"%s-(gateway|server)\"}) - time()) < 14 * 86400" .Release.Namespace $name .Release.Namespace $name | toJson }}
  for: 1h
  severity: warning
  summary: {{ `"The certificate {{ $labels.name }} expires within 14 days and has not been renewed"` }}
{{- end }}
{{- end -}}
