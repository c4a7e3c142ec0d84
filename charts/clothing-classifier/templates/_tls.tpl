{{- /* Secrets with the certificates, the operator's or cert-manager's; empty is plain text. */ -}}
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

{{- /* What both Certificates have. */ -}}
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

{{- /* TensorFlow Serving reads certificates as text in a file of its own form; the gateway's image, which has a Python, writes it from the
       Secret, into memory. */ -}}
{{- define "clothing-classifier.server.tlsInitContainer" -}}
name: tls
image: {{ include "clothing-classifier.gateway.image" . | quote }}
imagePullPolicy: {{ .Values.gateway.image.pullPolicy }}
command:
  - python
  - -c
  - {{ .Files.Get "files/ssl_config.py" | toJson }}
args:
  - /etc/clothing-classifier-tls-secret
  - /etc/clothing-classifier-tls/ssl.config
  - {{ .Values.gateway.serverTls.mutual | quote }}
resources:
  requests:
    cpu: 10m
    memory: 32Mi
  limits:
    memory: 64Mi
securityContext:
  {{- include "clothing-classifier.containerSecurityContext" . | nindent 2 }}
volumeMounts:
  - name: tls-secret
    mountPath: /etc/clothing-classifier-tls-secret
    readOnly: true
  - name: tls
    mountPath: /etc/clothing-classifier-tls
{{- end -}}
