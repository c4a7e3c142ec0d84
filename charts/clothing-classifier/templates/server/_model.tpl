{{- /* Where the model comes from. Whatever the source, it lies in /models/NAME/VERSION, and the server and the preflight see the same. */ -}}
{{- define "clothing-classifier.model.claimName" -}}
{{- default (printf "%s-models" (include "clothing-classifier.fullname" .)) .Values.model.source.pvc.existingClaim -}}
{{- end -}}

{{- /* Whether the model's volume can be mounted by one node only. */ -}}
{{- define "clothing-classifier.model.oneNode" -}}
{{- $modes := .Values.model.source.pvc.accessModes -}}
{{- if and (eq .Values.model.source.type "pvc") (not (or (has "ReadWriteMany" $modes) (has "ReadOnlyMany" $modes))) -}}
true
{{- end -}}
{{- end -}}

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

{{- define "clothing-classifier.model.volumes" -}}
{{- with .Values.model.source -}}
{{- if eq .type "imageVolume" }}
- name: models
  image:
    reference: {{ include "clothing-classifier.image" (dict "context" $ "image" .imageVolume.image "tag" "") | quote }}
    pullPolicy: {{ .imageVolume.image.pullPolicy }}
{{- else if eq .type "pvc" }}
- name: models
  persistentVolumeClaim:
    claimName: {{ include "clothing-classifier.model.claimName" $ }}
{{- else if eq .type "download" }}
- name: models
  {{- with .download.cache.sizeLimit }}
  emptyDir:
    sizeLimit: {{ . }}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- with .download.cache.existingClaim }}
- name: model-cache
  persistentVolumeClaim:
    claimName: {{ . }}
{{- end }}
{{- end }}
{{- end -}}
{{- end -}}

{{- /* Fetches the archives with the model; the gateway's image has the program. The fragment of an address, which no server sees, pins it. */ -}}
{{- define "clothing-classifier.model.download" -}}
{{- with .Values.model.source.download -}}
- name: download
  image: {{ include "clothing-classifier.gateway.image" $ | quote }}
  imagePullPolicy: {{ $.Values.gateway.image.pullPolicy }}
  args:
    - download
    - --name={{ $.Values.model.name }}
    - --to=/models
    - --cache={{ ternary "/model-cache" "/models/.cache" (not (empty .cache.existingClaim)) }}
    {{- with .maxBytes }}
    - --max-bytes={{ toJson . }}
    {{- end }}
    {{- range .archives }}
    - {{ printf "%s#sha256=%s%s" .url .sha256 (hasKey . "version" | ternary (printf "&version=%s" (toJson .version | trimAll "\"")) "") | quote }}
    {{- end }}
  {{- with .env }}
  env:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .secretName }}
  envFrom:
    - secretRef:
        name: {{ . }}
  {{- end }}
  resources:
    {{- toYaml .resources | nindent 4 }}
  securityContext:
    {{- include "clothing-classifier.containerSecurityContext" $ | nindent 4 }}
  terminationMessagePolicy: FallbackToLogsOnError
  volumeMounts:
    - name: models
      mountPath: /models
    {{- if .cache.existingClaim }}
    - name: model-cache
      mountPath: /model-cache
    {{- end }}
{{- end -}}
{{- end -}}

{{- /* Looks at the model before the server does, which would wait for it in silence. In the server's own image: there is nothing more to pull. */ -}}
{{- define "clothing-classifier.model.preflight" -}}
- name: preflight
  image: {{ include "clothing-classifier.server.image" . | quote }}
  imagePullPolicy: {{ .Values.server.image.pullPolicy }}
  command:
    - sh
    - -c
    - |
      {{- regexReplaceAll "(?m)^#.*\n" (.Files.Get "files/preflight.sh") "" | trim | nindent 6 }}
  args:
    - preflight
    - /models
    - {{ .Values.model.name | quote }}
    {{- if not (include "clothing-classifier.server.hotReload" .) }}
    {{- range include "clothing-classifier.loadedVersions" . | fromJsonArray }}
    - {{ . | quote }}
    {{- end }}
    {{- end }}
  resources:
    requests: {cpu: 10m, memory: 16Mi}
    limits: {memory: 64Mi}
  securityContext:
    {{- include "clothing-classifier.containerSecurityContext" . | nindent 4 }}
  terminationMessagePolicy: FallbackToLogsOnError
  {{- with include "clothing-classifier.model.volumeMounts" . | trim }}
  volumeMounts:
    {{- . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- define "clothing-classifier.server.initContainers" -}}
{{- if include "clothing-classifier.server.tlsSecretName" . }}
- {{ include "clothing-classifier.server.tlsInitContainer" . | nindent 2 | trim }}
{{- end }}
{{- if eq .Values.model.source.type "download" }}
{{ include "clothing-classifier.model.download" . }}
{{- end }}
{{- if .Values.model.preflight }}
{{ include "clothing-classifier.model.preflight" . }}
{{- end }}
{{- end -}}
