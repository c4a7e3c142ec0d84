{{- /* What stands before the gateway waits longer than it does, so that a client gets the gateway's own answer: 504, and why. */ -}}
{{- define "clothing-classifier.gateway.proxyTimeoutSeconds" -}}
{{- add (ceil .Values.gateway.requestTimeoutSeconds) 5 -}}
{{- end -}}

{{- /* The gateway's own default where the value is null; a test compares the two. */ -}}
{{- define "clothing-classifier.gateway.maxBodyBytes" -}}
{{- default 20971520 .Values.gateway.maxBodyBytes | int64 -}}
{{- end -}}

{{- /* Limits of a proxy in step with the gateway's, in the annotations of the controllers that have such; as YAML. */ -}}
{{- define "clothing-classifier.gateway.ingressLimits" -}}
{{- $seconds := include "clothing-classifier.gateway.proxyTimeoutSeconds" . -}}
{{- $bytes := include "clothing-classifier.gateway.maxBodyBytes" . -}}
{{- with .Values.gateway.ingress.controller -}}
{{- if eq . "nginx" -}}
nginx.ingress.kubernetes.io/proxy-body-size: {{ $bytes | quote }}
nginx.ingress.kubernetes.io/proxy-read-timeout: {{ $seconds | quote }}
nginx.ingress.kubernetes.io/proxy-send-timeout: {{ $seconds | quote }}
{{- else if eq . "alb" -}}
alb.ingress.kubernetes.io/target-type: ip
alb.ingress.kubernetes.io/healthcheck-path: /ping
alb.ingress.kubernetes.io/load-balancer-attributes: idle_timeout.timeout_seconds={{ $seconds }}
{{- else if eq . "haproxy" -}}
haproxy.org/timeout-server: {{ $seconds }}s
haproxy.org/timeout-client: {{ $seconds }}s
{{- else if eq . "contour" -}}
projectcontour.io/response-timeout: {{ $seconds }}s
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* A path of the outside is none of the gateway's, so it is taken off. */ -}}
{{- define "clothing-classifier.gateway.routeFilters" -}}
{{- $route := .Values.gateway.httpRoute -}}
{{- $filters := $route.filters -}}
{{- if ne $route.path "/" -}}
{{- $rewrite := dict "type" "URLRewrite" "urlRewrite" (dict "path" (dict "type" "ReplacePrefixMatch" "replacePrefixMatch" "/")) -}}
{{- $filters = prepend $filters $rewrite -}}
{{- end -}}
{{- toYaml $filters -}}
{{- end -}}
