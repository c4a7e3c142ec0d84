{{- /* Labels of the rules: two charts of one release, as aliases of an umbrella chart, have rules of their own by their full name. */ -}}
{{- define "clothing-classifier.ruleLabels" -}}
namespace: {{ .Release.Namespace }}
release: {{ .Release.Name }}
classifier: {{ include "clothing-classifier.fullname" . }}
{{- end -}}

{{- /* The ratio of failed and of slow requests over each window of the alerts, recorded once, and their number over the long windows. Requests
       without a photo, such as a load balancer's probes, don't count; a photo's own server that fails (424) is no fault of the release. Slow is
       what the release took, without the client's uplink and the photo's server: a phone uploads 1.4 MB in 5 s. */ -}}
{{- define "clothing-classifier.objectives" -}}
{{- $pods := include "clothing-classifier.series" (dict "context" . "component" "gateway") -}}
{{- $all := printf "gateway_request_duration_seconds_count{%s,route=~\"/predict|/classify\"}" $pods -}}
{{- $failed := printf "gateway_request_duration_seconds_count{%s,route=~\"/predict|/classify\",status=~\"5..\"}" $pods -}}
{{- $answered := printf "gateway_processing_duration_seconds_count{%s}" $pods -}}
{{- $fast := printf "gateway_processing_duration_seconds_bucket{%s,le=~\"%v([.]0)?\"}" $pods .Values.monitoring.rules.latencySeconds -}}
{{- $labels := include "clothing-classifier.ruleLabels" . -}}
{{- range $window := list "5m" "30m" "1h" "2h" "6h" "1d" "3d" }}
- record: clothing_classifier:errors:ratio_rate{{ $window }}
  expr: sum(rate({{ $failed }}[{{ $window }}])) / sum(rate({{ $all }}[{{ $window }}]))
  labels:
    {{- $labels | nindent 4 }}
- record: clothing_classifier:slow:ratio_rate{{ $window }}
  expr: 1 - sum(rate({{ $fast }}[{{ $window }}])) / sum(rate({{ $answered }}[{{ $window }}]))
  labels:
    {{- $labels | nindent 4 }}
{{- end }}
{{- range $window := list "1h" "6h" "1d" "3d" }}
- record: clothing_classifier:errors:increase{{ $window }}
  expr: sum(increase({{ $failed }}[{{ $window }}]))
  labels:
    {{- $labels | nindent 4 }}
- record: clothing_classifier:slow:increase{{ $window }}
  expr: sum(increase({{ $answered }}[{{ $window }}])) - sum(increase({{ $fast }}[{{ $window }}]))
  labels:
    {{- $labels | nindent 4 }}
{{- end }}
{{- end -}}

{{- /* Burn rate: 1 spends an objective's error budget in 30 days. Two windows each: the long one shows that it matters, the short one that it
       continues. Of few photos a single failure is a high ratio: the long window needs minFailures of them.
       Usage: include "clothing-classifier.burn" (dict "context" . "ratio" "errors" "percent" 99.5 "pairs" (list (list "1h" "5m" 14.4))) */ -}}
{{- define "clothing-classifier.burn" -}}
{{- $budget := divf (subf 100 .percent) 100 -}}
{{- $series := printf "{namespace=%q,classifier=%q}" .context.Release.Namespace (include "clothing-classifier.fullname" .context) -}}
{{- $failures := int64 .context.Values.monitoring.rules.minFailures -}}
{{- $parts := list -}}
{{- range .pairs -}}
{{- $limit := round (mulf (index . 2) $budget) 6 -}}
{{- $long := printf "clothing_classifier:%s:ratio_rate%s%s > %v" $.ratio (index . 0) $series $limit -}}
{{- $short := printf "clothing_classifier:%s:ratio_rate%s%s > %v" $.ratio (index . 1) $series $limit -}}
{{- $many := printf "clothing_classifier:%s:increase%s%s >= %v" $.ratio (index . 0) $series $failures -}}
{{- $parts = append $parts (printf "(%s and %s and %s)" $long $short $many) -}}
{{- end -}}
{{- join " or " $parts -}}
{{- end -}}

{{- /* Each alert; "when" false leaves it out. Those of pods and autoscalers are of kube-state-metrics, and silent without it. */ -}}
{{- define "clothing-classifier.alerts" -}}
{{- $name := include "clothing-classifier.fullname" . -}}
{{- $gateway := include "clothing-classifier.series" (dict "context" . "component" "gateway") -}}
{{- $server := include "clothing-classifier.series" (dict "context" . "component" "server") -}}
{{- $rules := .Values.monitoring.rules -}}
{{- $pods := include "clothing-classifier.series" (dict "context" . "component" "(gateway|server)") -}}
{{- $scaler := printf "namespace=%q,horizontalpodautoscaler=~\"(keda-hpa-)?%s-(gateway|server)\"" .Release.Namespace $name -}}
{{- /* Scaled to zero, by hand or at night: nothing is ready by design. */ -}}
{{- $zero := printf "unless on() (kube_deployment_spec_replicas{namespace=%q,deployment=~\"%s-(gateway|server)\"} == 0)" .Release.Namespace $name -}}
{{- /* An upgrade that stops the only server leaves no gateway ready for as long as the new one may load. */ -}}
{{- $loading := include "clothing-classifier.server.progressDeadlineSeconds" . | int -}}
{{- $noServer := include "clothing-classifier.server.upgradeStopsAll" . | empty | not -}}
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
  expr: {{ printf "(sum(gateway_ready{%s}) < 1 or absent(gateway_ready{%s})) %s" $gateway $gateway $zero | toJson }}
  for: {{ ternary (printf "%ds" $loading) "2m" $noServer }}
  severity: critical
  summary: No gateway of {{ $name }} is ready, so no request is answered
- alert: ClassifierGatewayNotReady
  expr: {{ printf "min by (pod) (gateway_ready{%s}) == 0 %s" $gateway $zero | toJson }}
  for: {{ ternary (printf "%ds" (max 600 $loading)) "10m" $noServer }}
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
- alert: ClassifierBatchQueueLong
  when: {{ .Values.server.monitoring.enabled }}
  expr: {{ printf "histogram_quantile(0.95, sum by (le) (rate(:tensorflow:serving:batching_session:queuing_latency_bucket{%s}[5m]))) / 1e6 > %v" $server (round (divf $rules.latencySeconds 2) 4) | toJson }}
  for: 10m
  severity: warning
  summary: Calls wait in the batching queue of {{ $name }}'s model servers for half of latencySeconds
- alert: ClassifierPodRestarts
  expr: {{ printf "sum by (pod, container) (increase(kube_pod_container_status_restarts_total{%s}[1h])) > 2.5" $pods | toJson }}
  for: 1m
  severity: warning
  summary: {{ `"{{ $labels.container }} in {{ $labels.pod }} restarted three times or more in an hour"` }}
- alert: ClassifierPodOutOfMemory
  expr: {{ printf "max by (pod, container) (kube_pod_container_status_last_terminated_reason{%s,reason=\"OOMKilled\"}) == 1 and on (pod, container) sum by (pod, container) (increase(kube_pod_container_status_restarts_total{%s}[30m])) > 0.5" $pods $pods | toJson }}
  for: 1m
  severity: warning
  summary: {{ `"{{ $labels.container }} in {{ $labels.pod }} exceeded its memory limit and was killed"` }}
- alert: ClassifierPodPending
  expr: {{ printf "max by (pod) (kube_pod_status_phase{%s,phase=\"Pending\"}) == 1" $pods | toJson }}
  for: 15m
  severity: warning
  summary: {{ `"{{ $labels.pod }} is Pending: no node has room for it, its image isn't pulled, or an init container doesn't end"` }}
- alert: ClassifierAutoscalerAtMaximum
  when: {{ or .Values.server.autoscaling.enabled .Values.gateway.autoscaling.enabled }}
  expr: {{ printf "max by (horizontalpodautoscaler) (kube_horizontalpodautoscaler_status_current_replicas{%s}) >= max by (horizontalpodautoscaler) (kube_horizontalpodautoscaler_spec_max_replicas{%s}) > max by (horizontalpodautoscaler) (kube_horizontalpodautoscaler_spec_min_replicas{%s})" $scaler $scaler $scaler | toJson }}
  for: 30m
  severity: warning
  summary: {{ `"{{ $labels.horizontalpodautoscaler }} has had its maximum of replicas for half an hour: more load would be refused"` }}
- alert: ClassifierCertificateExpires
  when: {{ .Values.server.tls.certManager.enabled }}
  expr: {{ printf "min by (name) ((certmanager_certificate_expiration_timestamp_seconds{namespace=%q,name=~\"%s-(gateway|server)\"} or certmanager_certificate_expiration_timestamp_seconds{exported_namespace=%q,name=~\"%s-(gateway|server)\"}) - time()) < 14 * 86400" .Release.Namespace $name .Release.Namespace $name | toJson }}
  for: 1h
  severity: warning
  summary: {{ `"The certificate {{ $labels.name }} expires within 14 days and has not been renewed"` }}
{{- /* Of what the servers serve: a renewed certificate is served after a restart only. A sixth of a lifetime is late for cert-manager, which renews
       after two thirds, and leaves time to act; 14 days are enough of a long one. */}}
- alert: ClassifierServedCertificateExpires
  when: {{ include "clothing-classifier.gateway.tlsSecretName" . | empty | not }}
  expr: {{ printf "min(gateway_server_certificate_not_after_timestamp_seconds{%s}) - time() < clamp_max(min(gateway_server_certificate_not_after_timestamp_seconds{%s} - gateway_server_certificate_not_before_timestamp_seconds{%s}) / 6, 14 * 86400)" $gateway $gateway $gateway | toJson }}
  for: 15m
  severity: critical
  summary: A model server of {{ $name }} serves a certificate that ends soon, and then every call fails; restart the servers once it is renewed
{{- end -}}
