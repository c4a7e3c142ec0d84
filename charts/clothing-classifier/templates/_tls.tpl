{{- /* Secrets with the certificates, the operator's or cert-manager's; empty is plaintext. */ -}}
{{- define "clothing-classifier.server.tlsSecretName" -}}
{{- if .Values.server.tls.certManager.enabled -}}
{{ include "clothing-classifier.fullname" . }}-server-tls
{{- else -}}
{{ .Values.server.tls.secretName }}
{{- end -}}
{{- end -}}

{{- define "clothing-classifier.gateway.tlsSecretName" -}}
{{- if .Values.server.tls.certManager.enabled -}}
{{ include "clothing-classifier.fullname" . }}-gateway-tls
{{- else -}}
{{ .Values.gateway.serverTls.secretName }}
{{- end -}}
{{- end -}}

{{- /* The part that both Certificates share. */ -}}
{{- define "clothing-classifier.certificate" -}}
{{- with .Values.server.tls.certManager -}}
issuerRef:
  name: {{ .issuerRef.name }}
  kind: {{ .issuerRef.kind }}
  group: {{ .issuerRef.group }}
duration: {{ .duration }}
renewBefore: {{ .renewBefore }}
privateKey:
  algorithm: ECDSA
  rotationPolicy: Always
{{- end -}}
{{- end -}}
