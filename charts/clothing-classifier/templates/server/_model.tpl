{{- define "clothing-classifier.model.claimName" -}}
{{- default (printf "%s-models" (include "clothing-classifier.fullname" .)) .Values.model.source.pvc.existingClaim -}}
{{- end -}}

{{- /* Whether only one node can mount the model's volume. */ -}}
{{- define "clothing-classifier.model.oneNode" -}}
{{- $modes := .Values.model.source.pvc.accessModes -}}
{{- if and (eq .Values.model.source.type "pvc") (not (or (has "ReadWriteMany" $modes) (has "ReadOnlyMany" $modes))) -}}
true
{{- end -}}
{{- end -}}

{{- /* The model in /models/NAME/VERSION, for the server and for the preflight; in the image there is nothing to mount. */ -}}
{{- define "clothing-classifier.model.volumeMounts" -}}
{{- with .Values.model.source -}}
{{- if ne .type "image" }}
- name: models
  mountPath: /models
  readOnly: true
  {{- with (index . .type).subPath }}
  subPath: {{ . }}
  {{- end }}
{{- end }}
{{- if and (eq .type "download") .download.cache.existingClaim }}
- name: model-cache
  mountPath: /model-cache
  readOnly: true
{{- end }}
{{- end -}}
{{- end -}}
