{{- /* Generated from gateway/src/clothing_gateway/settings.py by `make docs`: change it there. */ -}}
{{- define "clothing-classifier.gateway.env" -}}
{{- $tls := include "clothing-classifier.gateway.tlsSecretName" . | empty | not -}}
{{- $settings := list
  (list "TF_SERVING_HOST" (printf "dns:///%s-server-headless:8500" (include "clothing-classifier.fullname" .)))
  (list "GATEWAY_MODEL_TLS" (ternary "on" "" $tls))
  (list "GATEWAY_MODEL_TLS_CA_FILE" (ternary "/etc/clothing-gateway/server-tls/ca.crt" "" $tls))
  (list "GATEWAY_MODEL_TLS_CERTIFICATE_FILE" (ternary "/etc/clothing-gateway/server-tls/tls.crt" "" (and $tls .Values.gateway.serverTls.mutual)))
  (list "GATEWAY_MODEL_TLS_KEY_FILE" (ternary "/etc/clothing-gateway/server-tls/tls.key" "" (and $tls .Values.gateway.serverTls.mutual)))
  (list "GATEWAY_MODEL_TLS_SERVER_NAME" (ternary (default (printf "%s-server-headless" (include "clothing-classifier.fullname" .)) .Values.gateway.serverTls.serverName) "" $tls))
  (list "GATEWAY_MODEL_NAME" .Values.model.name)
  (list "GATEWAY_MODEL_VERSION" (include "clothing-classifier.modelVersion" .))
  (list "GATEWAY_MODEL_LABEL" .Values.model.versionLabel)
  (list "GATEWAY_CANARY_VERSION" (.Values.model.canary.version | toJson | trimAll "\""))
  (list "GATEWAY_CANARY_LABEL" .Values.model.canary.versionLabel)
  (list "GATEWAY_CANARY_PERCENT" .Values.model.canary.weight)
  (list "GATEWAY_SELECTABLE_VERSIONS" (include "clothing-classifier.gateway.selectableVersions" .))
  (list "GATEWAY_SIGNATURE_NAME" .Values.model.signatureName)
  (list "GATEWAY_INPUT_NAME" .Values.model.inputName)
  (list "GATEWAY_OUTPUT_NAME" .Values.model.outputName)
  (list "GATEWAY_IMAGE_SIZE" .Values.model.imageSize)
  (list "GATEWAY_LABELS" (toJson .Values.model.labels))
  (list "GATEWAY_PREPROCESSING" .Values.model.preprocessing)
  (list "GATEWAY_MEAN" (join "," .Values.model.mean))
  (list "GATEWAY_STD" (join "," .Values.model.std))
  (list "GATEWAY_CHANNELS" .Values.model.channels)
  (list "GATEWAY_SCORES" .Values.model.scores)
  (list "GATEWAY_THRESHOLD" .Values.model.threshold)
  (list "GATEWAY_FIT" .Values.model.fit)
  (list "GATEWAY_SHORTER_SIDE" .Values.model.shorterSide)
  (list "GATEWAY_RESAMPLING" .Values.model.resampling)
  (list "GATEWAY_EXIF_ORIENTATION" (ternary "on" "off" .Values.model.exifOrientation))
  (list "GATEWAY_JPEG_SCALING" (ternary "on" "off" .Values.gateway.jpegScaling))
  (list "GATEWAY_REQUEST_TIMEOUT_SECONDS" .Values.gateway.requestTimeoutSeconds)
  (list "GATEWAY_MAX_BODY_BYTES" .Values.gateway.maxBodyBytes)
  (list "GATEWAY_MAX_IN_FLIGHT" .Values.gateway.maxInFlight)
  (list "GATEWAY_MAX_PHOTOS" .Values.gateway.maxPhotos)
  (list "GATEWAY_MAX_PIXELS" .Values.gateway.maxPixels)
  (list "GATEWAY_PREDICT_BATCH_SIZE" .Values.gateway.predictBatchSize)
  (list "GATEWAY_FETCH_TIMEOUT_SECONDS" .Values.gateway.fetch.timeoutSeconds)
  (list "GATEWAY_FETCH_ALLOWED_PORTS" (join "," .Values.gateway.fetch.allowedPorts))
  (list "GATEWAY_FETCH_ALLOWED_NETWORKS" (join "," .Values.gateway.fetch.allowedNetworks))
  (list "GATEWAY_FETCH_DENIED_NETWORKS" (join "," .Values.gateway.fetch.deniedNetworks))
  (list "GATEWAY_FETCH_ALLOWED_HOSTS" (join "," .Values.gateway.fetch.allowedHosts))
  (list "GATEWAY_FETCH_DENIED_HOSTS" (join "," .Values.gateway.fetch.deniedHosts))
  (list "GATEWAY_FETCH_PROXY" .Values.gateway.fetch.proxy)
  (list "GATEWAY_KEYS_FILE" (ternary "/etc/clothing-gateway/keys/keys" "" (ne .Values.gateway.keys.secretName "")))
  (list "GATEWAY_RATE_PHOTOS_PER_MINUTE" .Values.gateway.rate.photosPerMinute)
  (list "GATEWAY_RATE_MEGAPIXELS_PER_MINUTE" .Values.gateway.rate.megapixelsPerMinute)
  (list "GATEWAY_ALLOWED_ORIGINS" (join "," .Values.gateway.allowedOrigins))
  (list "GATEWAY_TRUSTED_PROXIES" (join "," .Values.gateway.trustedProxies))
  (list "GATEWAY_DRAIN_DELAY_SECONDS" .Values.gateway.drain.delaySeconds)
  (list "GATEWAY_DRAIN_TIMEOUT_SECONDS" (include "clothing-classifier.gateway.drainTimeoutSeconds" .))
  (list "GATEWAY_PAGE" (ternary "on" "off" .Values.gateway.page))
  (list "GATEWAY_LOG_LEVEL" .Values.gateway.logLevel) -}}
{{- include "clothing-classifier.gateway.variables" (list $settings .Values.gateway.extraEnv) | trim -}}
{{- end -}}

{{- define "clothing-classifier.gateway.valueOf" -}}
GATEWAY_MODEL_TLS: gateway.serverTls.secretName
GATEWAY_MODEL_TLS_CA_FILE: gateway.serverTls.secretName
GATEWAY_MODEL_TLS_CERTIFICATE_FILE: gateway.serverTls.mutual
GATEWAY_MODEL_TLS_KEY_FILE: gateway.serverTls.mutual
GATEWAY_MODEL_TLS_SERVER_NAME: gateway.serverTls.serverName
GATEWAY_MODEL_NAME: model.name
GATEWAY_MODEL_VERSION: model.version
GATEWAY_MODEL_LABEL: model.versionLabel
GATEWAY_CANARY_VERSION: model.canary.version
GATEWAY_CANARY_LABEL: model.canary.versionLabel
GATEWAY_CANARY_PERCENT: model.canary.weight
GATEWAY_SELECTABLE_VERSIONS: model.selectableVersions
GATEWAY_SIGNATURE_NAME: model.signatureName
GATEWAY_INPUT_NAME: model.inputName
GATEWAY_OUTPUT_NAME: model.outputName
GATEWAY_IMAGE_SIZE: model.imageSize
GATEWAY_LABELS: model.labels
GATEWAY_PREPROCESSING: model.preprocessing
GATEWAY_MEAN: model.mean
GATEWAY_STD: model.std
GATEWAY_CHANNELS: model.channels
GATEWAY_SCORES: model.scores
GATEWAY_THRESHOLD: model.threshold
GATEWAY_FIT: model.fit
GATEWAY_SHORTER_SIDE: model.shorterSide
GATEWAY_RESAMPLING: model.resampling
GATEWAY_EXIF_ORIENTATION: model.exifOrientation
GATEWAY_JPEG_SCALING: gateway.jpegScaling
GATEWAY_REQUEST_TIMEOUT_SECONDS: gateway.requestTimeoutSeconds
GATEWAY_MAX_BODY_BYTES: gateway.maxBodyBytes
GATEWAY_MAX_IN_FLIGHT: gateway.maxInFlight
GATEWAY_MAX_PHOTOS: gateway.maxPhotos
GATEWAY_MAX_PIXELS: gateway.maxPixels
GATEWAY_PREDICT_BATCH_SIZE: gateway.predictBatchSize
GATEWAY_FETCH_TIMEOUT_SECONDS: gateway.fetch.timeoutSeconds
GATEWAY_FETCH_ALLOWED_PORTS: gateway.fetch.allowedPorts
GATEWAY_FETCH_ALLOWED_NETWORKS: gateway.fetch.allowedNetworks
GATEWAY_FETCH_DENIED_NETWORKS: gateway.fetch.deniedNetworks
GATEWAY_FETCH_ALLOWED_HOSTS: gateway.fetch.allowedHosts
GATEWAY_FETCH_DENIED_HOSTS: gateway.fetch.deniedHosts
GATEWAY_FETCH_PROXY: gateway.fetch.proxy
GATEWAY_KEYS_FILE: gateway.keys.secretName
GATEWAY_RATE_PHOTOS_PER_MINUTE: gateway.rate.photosPerMinute
GATEWAY_RATE_MEGAPIXELS_PER_MINUTE: gateway.rate.megapixelsPerMinute
GATEWAY_ALLOWED_ORIGINS: gateway.allowedOrigins
GATEWAY_TRUSTED_PROXIES: gateway.trustedProxies
GATEWAY_DRAIN_DELAY_SECONDS: gateway.drain.delaySeconds
GATEWAY_DRAIN_TIMEOUT_SECONDS: gateway.requestTimeoutSeconds
GATEWAY_PAGE: gateway.page
GATEWAY_LOG_LEVEL: gateway.logLevel
{{- end -}}
{{- /* End of what is generated. */ -}}

{{- /* Environment variables of a list of names and texts. An empty or null one leaves the gateway's own default; one that extraEnv has is set there. */ -}}
{{- define "clothing-classifier.gateway.variables" -}}
{{- $extra := dict -}}
{{- range last . -}}
{{- $_ := set $extra .name true -}}
{{- end -}}
{{- range first . }}
{{- $value := last . }}
{{- if not (or (kindIs "invalid" $value) (eq (toString $value) "") (hasKey $extra (first .))) }}
- {name: {{ first . }}, value: {{ ternary $value (toJson $value) (kindIs "string" $value) | quote }}}
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
