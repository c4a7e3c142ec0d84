{{- /* What helm test wants of the gateway's answers; as YAML. */ -}}
{{- define "clothing-classifier.test.wanted" -}}
labels: {{ .Values.model.labels | toJson }}
label: {{ .Values.test.label | quote }}
photoUrl: {{ .Values.test.photoUrl | quote }}
maxSeconds: {{ default .Values.gateway.requestTimeoutSeconds .Values.test.maxSeconds }}
{{- $share := float64 .Values.model.canary.weight }}
{{- if and (gt $share 0.0) (lt $share 100.0) }}
canary:
  percent: {{ .Values.model.canary.weight }}
  version: {{ include "clothing-classifier.versionNumber" (dict "model" .Values.model "of" .Values.model.canary) | quote }}
  stable: {{ include "clothing-classifier.versionNumber" (dict "model" .Values.model "of" .Values.model) | quote }}
{{- else }}
canary: null
{{- end }}
{{- end -}}

{{- define "clothing-classifier.versionNumber" -}}
{{- $version := .of.version -}}
{{- if .of.versionLabel -}}
{{- $version = index .model.versionLabels .of.versionLabel -}}
{{- end -}}
{{- $version | toJson | trimAll "\"" -}}
{{- end -}}
