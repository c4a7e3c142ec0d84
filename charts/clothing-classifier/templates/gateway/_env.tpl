{{- /* The gateway's settings. A null value leaves the gateway's own default. */ -}}
{{- define "clothing-classifier.gateway.env" -}}
- name: TF_SERVING_HOST
  value: dns:///{{ include "clothing-classifier.fullname" . }}-server-headless:8500
- name: GATEWAY_MODEL_NAME
  value: {{ .Values.model.name | quote }}
- name: GATEWAY_SIGNATURE_NAME
  value: {{ .Values.model.signatureName | quote }}
- name: GATEWAY_LABELS
  value: {{ .Values.model.labels | toJson | quote }}
- name: GATEWAY_PREPROCESSING
  value: {{ .Values.model.preprocessing | quote }}
- name: GATEWAY_REQUEST_TIMEOUT_SECONDS
  value: {{ .Values.gateway.requestTimeoutSeconds | quote }}
- name: GATEWAY_DRAIN_DELAY_SECONDS
  value: {{ .Values.gateway.drain.delaySeconds | quote }}
- name: GATEWAY_DRAIN_TIMEOUT_SECONDS
  value: {{ include "clothing-classifier.gateway.drainTimeoutSeconds" . | quote }}
- name: GATEWAY_LOG_LEVEL
  value: {{ .Values.gateway.logLevel | quote }}
- name: GATEWAY_FETCH_ALLOWED_PORTS
  value: {{ join "," .Values.gateway.fetch.allowedPorts | quote }}
{{- with .Values.gateway.fetch.allowedNetworks }}
- name: GATEWAY_FETCH_ALLOWED_NETWORKS
  value: {{ join "," . | quote }}
{{- end }}
{{- if include "clothing-classifier.gateway.tlsSecretName" . }}
{{- with .Values.gateway.serverTls }}
- name: GATEWAY_MODEL_TLS
  value: "on"
- name: GATEWAY_MODEL_TLS_CA_FILE
  value: /etc/clothing-gateway/server-tls/ca.crt
{{- if .mutual }}
- name: GATEWAY_MODEL_TLS_CERTIFICATE_FILE
  value: /etc/clothing-gateway/server-tls/tls.crt
- name: GATEWAY_MODEL_TLS_KEY_FILE
  value: /etc/clothing-gateway/server-tls/tls.key
{{- end }}
- name: GATEWAY_MODEL_TLS_SERVER_NAME
  value: {{ default (printf "%s-server-headless" (include "clothing-classifier.fullname" $)) .serverName | quote }}
{{- end }}
{{- end }}
{{- if .Values.gateway.keys.secretName }}
- name: GATEWAY_KEYS_FILE
  value: /etc/clothing-gateway/keys/keys
{{- end }}
{{- $optional := list
  (list "GATEWAY_MODEL_VERSION" (include "clothing-classifier.modelVersion" .))
  (list "GATEWAY_MODEL_LABEL" .Values.model.versionLabel)
  (list "GATEWAY_CANARY_VERSION" (.Values.model.canary.version | toJson | trimAll "\""))
  (list "GATEWAY_CANARY_LABEL" .Values.model.canary.versionLabel)
  (list "GATEWAY_CANARY_PERCENT" (ternary "" .Values.model.canary.weight (eq (toString .Values.model.canary.weight) "0")))
  (list "GATEWAY_SELECTABLE_VERSIONS" (include "clothing-classifier.gateway.selectableVersions" .))
  (list "GATEWAY_INPUT_NAME" .Values.model.inputName)
  (list "GATEWAY_OUTPUT_NAME" .Values.model.outputName)
  (list "GATEWAY_IMAGE_SIZE" .Values.model.imageSize)
  (list "GATEWAY_MAX_BODY_BYTES" .Values.gateway.maxBodyBytes)
  (list "GATEWAY_MAX_PIXELS" .Values.gateway.maxPixels)
  (list "GATEWAY_MAX_PHOTOS" .Values.gateway.maxPhotos)
  (list "GATEWAY_MAX_IN_FLIGHT" .Values.gateway.maxInFlight)
  (list "GATEWAY_MAX_CONNECTIONS" .Values.gateway.maxConnections)
  (list "GATEWAY_MAX_BUFFERED_BYTES" .Values.gateway.maxBufferedBytes)
  (list "GATEWAY_DECODE_SLOTS" .Values.gateway.decodeSlots)
  (list "GATEWAY_DECODE_MEMORY_BYTES" .Values.gateway.decodeMemoryBytes)
  (list "GATEWAY_PREDICT_BATCH_SIZE" .Values.gateway.predictBatchSize)
  (list "GATEWAY_MODEL_CHECK_SECONDS" .Values.gateway.modelCheckSeconds)
  (list "GATEWAY_RATE_PHOTOS_PER_MINUTE" (ternary "" .Values.gateway.rate.photosPerMinute (eq (toString .Values.gateway.rate.photosPerMinute) "0")))
  (list "GATEWAY_RATE_BURST_PHOTOS" .Values.gateway.rate.burstPhotos)
  (list "GATEWAY_TRUSTED_PROXIES" (join "," .Values.gateway.trustedProxies))
  (list "GATEWAY_RESAMPLING" (ternary "" .Values.model.resampling (eq .Values.model.resampling "nearest")))
  (list "GATEWAY_JPEG_SCALING" (ternary "on" "" .Values.gateway.jpegScaling))
  (list "GATEWAY_PAGE" (ternary "" "off" .Values.gateway.page))
  (list "GATEWAY_FETCH_ALLOWED_HOSTS" (join "," .Values.gateway.fetch.allowedHosts))
  (list "GATEWAY_FETCH_DENIED_HOSTS" (join "," .Values.gateway.fetch.deniedHosts))
  (list "GATEWAY_FETCH_PROXY" .Values.gateway.fetch.proxy)
  (list "GATEWAY_FETCH_TIMEOUT_SECONDS" .Values.gateway.fetch.timeoutSeconds)
  (list "GATEWAY_FETCH_MAX_REDIRECTS" .Values.gateway.fetch.maxRedirects)
  (list "GATEWAY_FETCH_MAX_BYTES" .Values.gateway.fetch.maxBytes) }}
{{- range $optional }}
{{- $value := last . }}
{{- if not (or (kindIs "invalid" $value) (eq (toString $value) "")) }}
- name: {{ first . }}
  value: {{ ternary $value (toJson $value) (kindIs "string" $value) | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "clothing-classifier.gateway.selectableVersions" -}}
{{- $versions := list -}}
{{- range .Values.model.selectableVersions -}}
{{- $versions = append $versions (. | toJson | trimAll "\"") -}}
{{- end -}}
{{- join "," $versions -}}
{{- end -}}

{{- /* A request taken in the last moment may use its whole time. */ -}}
{{- define "clothing-classifier.gateway.drainTimeoutSeconds" -}}
{{- add (ceil .Values.gateway.requestTimeoutSeconds) 1 -}}
{{- end -}}
