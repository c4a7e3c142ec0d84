{{- /* Refuses values that contradict each other, and says what to do. What one value alone may be is in values.schema.json. */ -}}
{{- define "clothing-classifier.validate" -}}
{{- range $name := list "server" "gateway" -}}
{{- $values := index $.Values $name -}}
{{- include "clothing-classifier.validateScaling" (dict "name" $name "values" $values) -}}
{{- include "clothing-classifier.validatePdb" (dict "name" $name "pdb" $values.pdb "replicas" (include "clothing-classifier.minReplicas" $values | int)) -}}
{{- end -}}
{{- include "clothing-classifier.validateVersions" .Values.model -}}
{{- with .Values.server.tls -}}
{{- if and .certManager.enabled (or .secretName $.Values.gateway.serverTls.secretName) -}}
{{- fail "server.tls.certManager makes the Secrets of both sides: remove server.tls.secretName and gateway.serverTls.secretName, or set certManager.enabled=false" -}}
{{- end -}}
{{- if and .certManager.enabled (not .certManager.issuerRef.name) -}}
{{- fail "server.tls.certManager.enabled is true, and no issuer is named: set server.tls.certManager.issuerRef.name" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.gateway.serverTls.mutual (not (include "clothing-classifier.gateway.tlsSecretName" .)) -}}
{{- fail "gateway.serverTls.mutual means nothing without TLS: set server.tls and gateway.serverTls.secretName, or remove it" -}}
{{- end -}}
{{- if and .Values.server.tls.secretName (not .Values.gateway.serverTls.secretName) -}}
{{- fail "server.tls.secretName lets the model server speak TLS alone, and the gateway doesn't: set gateway.serverTls.secretName too" -}}
{{- end -}}
{{- if and .Values.gateway.serverTls.secretName (not .Values.server.tls.secretName) -}}
{{- fail "gateway.serverTls.secretName lets the gateway speak TLS alone, and the model server doesn't: set server.tls.secretName too" -}}
{{- end -}}
{{- include "clothing-classifier.validateSource" . -}}
{{- include "clothing-classifier.validateGpu" .Values.server -}}
{{- include "clothing-classifier.validateRollout" . -}}
{{- include "clothing-classifier.validateFlags" . -}}
{{- include "clothing-classifier.validateBatching" (dict "keda" .Values.server.autoscaling.keda "batching" .Values.server.batching "sent" .Values.gateway.predictBatchSize) -}}
{{- include "clothing-classifier.validateArgs" .Values.server -}}
{{- include "clothing-classifier.validateEnv" . -}}
{{- include "clothing-classifier.validateService" .Values.gateway.service -}}
{{- include "clothing-classifier.validateExposure" .Values.gateway -}}
{{- include "clothing-classifier.validateNetworkPolicy" . -}}
{{- if and .Values.test.label (not (has .Values.test.label .Values.model.labels)) -}}
{{- fail (printf "test.label is %q, which model.labels doesn't have: name one of them" .Values.test.label) -}}
{{- end -}}
{{- if and .Values.monitoring.rules.enabled (ge (float64 .Values.monitoring.rules.latencySeconds) (float64 .Values.gateway.requestTimeoutSeconds)) -}}
{{- fail (printf "monitoring.rules.latencySeconds (%v) is no less than gateway.requestTimeoutSeconds (%v), so no answer could be too slow: lower it" .Values.monitoring.rules.latencySeconds .Values.gateway.requestTimeoutSeconds) -}}
{{- end -}}
{{- end -}}

{{- define "clothing-classifier.validateVersions" -}}
{{- $stable := print (.version | toJson | trimAll "\"") .versionLabel -}}
{{- $canary := print (.canary.version | toJson | trimAll "\"") .canary.versionLabel -}}
{{- range $name, $values := dict "model" . "model.canary" .canary -}}
{{- if and (ne (toString $values.version) "") $values.versionLabel -}}
{{- fail (printf "%s.version and %s.versionLabel are both set: keep one" $name $name) -}}
{{- end -}}
{{- if and $values.versionLabel (not (hasKey $.versionLabels $values.versionLabel)) -}}
{{- fail (printf "%s.versionLabel is %q, and model.versionLabels has no such label: add it there with its version" $name $values.versionLabel) -}}
{{- end -}}
{{- end -}}
{{- if and .canary.weight (not $canary) -}}
{{- fail "model.canary.weight is set, and no canary: set model.canary.version or model.canary.versionLabel" -}}
{{- end -}}
{{- if and (or $canary .versionLabels .selectableVersions (gt (len .versions) 1)) (not $stable) -}}
{{- fail "several versions are in use, and none is named as stable: set model.version or model.versionLabel" -}}
{{- end -}}
{{- if and $canary (eq $stable $canary) -}}
{{- fail "the canary is the stable version: set another model.canary.version or model.canary.versionLabel" -}}
{{- end -}}
{{- if .versions -}}
{{- $loaded := list -}}
{{- range .versions -}}
{{- $loaded = append $loaded (. | toJson | trimAll "\"") -}}
{{- end -}}
{{- $named := dict "model.version" .version "model.canary.version" .canary.version -}}
{{- range $label, $version := .versionLabels -}}
{{- $_ := set $named (printf "model.versionLabels.%s" $label) $version -}}
{{- end -}}
{{- range $index, $version := .selectableVersions -}}
{{- $_ := set $named (printf "model.selectableVersions[%d]" $index) $version -}}
{{- end -}}
{{- range $name, $value := $named -}}
{{- $version := $value | toJson | trimAll "\"" -}}
{{- if and (regexMatch "^[0-9]+$" $version) (not (has $version $loaded)) -}}
{{- fail (printf "%s is %s, and model.versions doesn't load it: add %s to model.versions, or leave that empty" $name $version $version) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range .selectableVersions -}}
{{- if not (or (regexMatch "^[0-9]+$" (. | toJson | trimAll "\"")) (hasKey $.versionLabels (toString .))) -}}
{{- fail (printf "model.selectableVersions has %q, and model.versionLabels has no such label: add it there with its version" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "clothing-classifier.validateScaling" -}}
{{- $name := .name -}}
{{- $resources := default dict .values.resources -}}
{{- with .values.autoscaling -}}
{{- if and (get (default dict (get . "keda")) "enabled") (not .enabled) -}}
{{- fail (printf "%s.autoscaling.keda.enabled is true, but %s.autoscaling.enabled isn't: set it, or remove keda.enabled" $name $name) -}}
{{- end -}}
{{- if .enabled -}}
{{- if gt (int .minReplicas) (int .maxReplicas) -}}
{{- fail (printf "%s.autoscaling.minReplicas (%d) is above maxReplicas (%d): raise maxReplicas or lower minReplicas" $name (int .minReplicas) (int .maxReplicas)) -}}
{{- end -}}
{{- $keda := default dict (get . "keda") -}}
{{- if $keda.enabled -}}
{{- if and (or $keda.targetCallsPerSecond $keda.targetQueueMilliseconds) (not $keda.prometheusAddress) -}}
{{- fail (printf "%s.autoscaling.keda has a target, and no Prometheus to ask: set %s.autoscaling.keda.prometheusAddress" $name $name) -}}
{{- end -}}
{{- if not (or $keda.targetCallsPerSecond $keda.targetQueueMilliseconds $keda.triggers) -}}
{{- fail (printf "%s.autoscaling.keda has nothing to go by: set targetCallsPerSecond, targetQueueMilliseconds or triggers" $name) -}}
{{- end -}}
{{- if .metrics -}}
{{- fail (printf "%s.autoscaling.metrics are a HorizontalPodAutoscaler's, and KEDA makes its own: write them as %s.autoscaling.keda.triggers" $name $name) -}}
{{- end -}}
{{- else if not (or .targetCPUUtilizationPercentage .targetMemoryUtilizationPercentage .metrics) -}}
{{- fail (printf "%s.autoscaling has nothing to go by: set targetCPUUtilizationPercentage, targetMemoryUtilizationPercentage or metrics" $name) -}}
{{- end -}}
{{- range $resource, $target := dict "cpu" .targetCPUUtilizationPercentage "memory" .targetMemoryUtilizationPercentage -}}
{{- if and $target (not (or (dig "requests" $resource "" $resources) (dig "limits" $resource "" $resources))) -}}
{{- fail (printf "%s.autoscaling aims at a percentage of the %s request, and there is none: set %s.resources.requests.%s" $name $resource $name $resource) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "clothing-classifier.validatePdb" -}}
{{- if .pdb.enabled -}}
{{- $minimum := toString .pdb.minAvailable -}}
{{- if kindIs "invalid" .pdb.minAvailable -}}
{{- if has (toString .pdb.maxUnavailable) (list "0" "0%") -}}
{{- fail (printf "%s.pdb.maxUnavailable is %v, which blocks every drain of a node: set it to 1 or more, or set %s.pdb.enabled=false" .name .pdb.maxUnavailable .name) -}}
{{- end -}}
{{- else if and (gt .replicas 1) (ge (include "clothing-classifier.countOf" (dict "value" $minimum "of" .replicas) | int) .replicas) -}}
{{- fail (printf "%s.pdb.minAvailable is %v with as few as %d replicas, which blocks every drain of a node: lower it, or use maxUnavailable" .name .pdb.minAvailable .replicas) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "clothing-classifier.validateGpu" -}}
{{- $isGpuImage := contains "gpu" .image.tag -}}
{{- if and .gpu.enabled .image.tag (not $isGpuImage) (not .image.digest) -}}
{{- fail (printf "server.gpu.enabled is true, but the image's tag %q isn't of a GPU image: set server.image.tag to a tag with \"-gpu\", leave it empty, or set server.gpu.enabled=false" .image.tag) -}}
{{- end -}}
{{- if and (not .gpu.enabled) $isGpuImage -}}
{{- fail (printf "the image's tag %q is of a GPU image, but no GPU is asked for: set server.gpu.enabled=true, or another server.image.tag" .image.tag) -}}
{{- end -}}
{{- range $kind := list "requests" "limits" -}}
{{- if hasKey (default dict (index $.resources $kind)) $.gpu.resourceName -}}
{{- fail (printf "server.resources.%s has %s: remove it there, and set server.gpu.enabled=true and server.gpu.count" $kind $.gpu.resourceName) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "clothing-classifier.validateSource" -}}
{{- with .Values.model.source -}}
{{- $names := dict
  "imageVolume" (list "image.repository" .imageVolume.image.repository)
  "pvc" (list "existingClaim" .pvc.existingClaim)
  "download" (list "archives" .download.archives) -}}
{{- range $type, $name := $names -}}
{{- if and (last $name) (ne $.Values.model.source.type $type) -}}
{{- fail (printf "model.source.type is %s, but model.source.%s.%s names a second source: set model.source.type=%s, or remove it" $.Values.model.source.type $type (first $name) $type) -}}
{{- end -}}
{{- end -}}
{{- if and (eq .type "imageVolume") (not (and .imageVolume.image.repository (or .imageVolume.image.tag .imageVolume.image.digest))) -}}
{{- fail "model.source.type is imageVolume, and no image is named: set model.source.imageVolume.image.repository, and its tag or digest" -}}
{{- end -}}
{{- if and (eq .type "imageVolume") (semverCompare "<1.33-0" $.Capabilities.KubeVersion.Version) -}}
{{- fail (printf "model.source.type is imageVolume, which Kubernetes has since 1.33 (behind the feature gate ImageVolume until 1.35), and this is %s: use image, pvc or download" $.Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- if and (eq .type "download") (not .download.archives) -}}
{{- fail "model.source.type is download, and there is nothing to fetch: set model.source.download.archives to a list of {url, sha256}" -}}
{{- end -}}
{{- if and .download.cache.existingClaim .download.cache.sizeLimit -}}
{{- fail "model.source.download.cache has an existingClaim, and a sizeLimit, which is for a pod's own volume: keep one" -}}
{{- end -}}
{{- end -}}
{{- if and (eq .Values.model.source.type "download") .Values.networkPolicy.enabled (not .Values.networkPolicy.server.egress) -}}
{{- fail "model.source.type is download, and networkPolicy.enabled lets the model servers' pods reach nothing: set networkPolicy.server.egress to rules for DNS and for the store" -}}
{{- end -}}
{{- $servers := int (ternary .Values.server.autoscaling.maxReplicas .Values.server.replicas .Values.server.autoscaling.enabled) -}}
{{- if and (gt $servers 1) (include "clothing-classifier.model.oneNode" .) -}}
{{- fail (printf "the model's volume is for one node (model.source.pvc.accessModes is %s), and there may be %d model servers: set accessModes to [ReadOnlyMany] or [ReadWriteMany], if the storage has it, or run one server" (join ", " .Values.model.source.pvc.accessModes) $servers) -}}
{{- end -}}
{{- end -}}

{{- define "clothing-classifier.validateRollout" -}}
{{- with .Values.server.rollout -}}
{{- if and (eq .mode "surge") $.Values.server.gpu.enabled (not $.Values.server.gpu.spare) -}}
{{- fail "server.rollout.mode is surge on a GPU: the new server would wait for a GPU that the old one holds. Set the mode to auto, recreate or inPlace, or server.gpu.spare=true where there is one more" -}}
{{- end -}}
{{- if and (eq .mode "surge") (include "clothing-classifier.model.oneNode" $) -}}
{{- fail "server.rollout.mode is surge, and the model's volume is for one node: a new server on another node would wait for it. Set the mode to auto or recreate, or model.source.pvc.accessModes to [ReadOnlyMany] or [ReadWriteMany]" -}}
{{- end -}}
{{- if eq .mode "hotReload" -}}
{{- if ne $.Values.model.source.type "pvc" -}}
{{- fail (printf "server.rollout.mode is hotReload, and model.source.type is %s, where no new version can appear: set model.source.type=pvc, or the mode to auto" $.Values.model.source.type) -}}
{{- end -}}
{{- if eq (toString $.Values.server.flags.file_system_poll_wait_seconds) "0" -}}
{{- fail "server.rollout.mode is hotReload, and server.flags.file_system_poll_wait_seconds=0 looks for versions once: remove it, and set server.rollout.pollSeconds" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Since which version of TensorFlow Serving a flag is known; the others are older than any in use. */ -}}
{{- define "clothing-classifier.validateFlags" -}}
{{- $since := dict
  "enable_profiler" "2.5"
  "grpc_max_threads" "2.5"
  "num_load_threads" "2.5"
  "num_unload_threads" "2.5"
  "num_request_iterations_for_warmup" "2.8"
  "enable_per_model_batching_parameters" "2.11"
  "mixed_precision" "2.15"
  "xla_gpu_compilation_enabled" "2.18"
  "enable_serialization_as_tensor_content" "2.19" -}}
{{- $version := .Values.server.version -}}
{{- range $flag, $value := .Values.server.flags -}}
{{- $first := get $since $flag -}}
{{- if and $first (not (kindIs "invalid" $value)) (not (semverCompare (printf ">=%s-0" (default "0" $first)) $version)) -}}
{{- fail (printf "server.flags.%s is known since TensorFlow Serving %s, and server.version is %s: set the flag to null, or use a newer image and say so in server.version" $flag $first $version) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.server.batching.enabled .Values.server.batching.perModel (not (semverCompare ">=2.11-0" $version)) -}}
{{- fail (printf "server.batching.perModel is known since TensorFlow Serving 2.11, and server.version is %s: set it to false, or use a newer image and say so in server.version" $version) -}}
{{- end -}}
{{- end -}}

{{- define "clothing-classifier.validateBatching" -}}
{{- if and .keda.enabled .keda.targetQueueMilliseconds (not .batching.enabled) -}}
{{- fail "server.autoscaling.keda.targetQueueMilliseconds is of the batching queue, and the server doesn't batch: set server.batching.enabled=true, or use targetCallsPerSecond" -}}
{{- end -}}
{{- $sent := default 8 .sent | int -}}
{{- with .batching -}}
{{- if and .enabled (not .perModel) (gt $sent (int .maxBatchSize)) -}}
{{- fail (printf "server.batching.maxBatchSize is %d, and a gateway sends up to %d photos in a call, which the server would refuse: raise it, or set gateway.predictBatchSize=%d" (int .maxBatchSize) $sent (int .maxBatchSize)) -}}
{{- end -}}
{{- if and .enabled .allowedBatchSizes -}}
{{- $before := 0 -}}
{{- range .allowedBatchSizes -}}
{{- if le (int .) $before -}}
{{- fail (printf "server.batching.allowedBatchSizes has %d after %d: sort it, ascending" (int .) $before) -}}
{{- end -}}
{{- $before = int . -}}
{{- end -}}
{{- if ne $before (int .maxBatchSize) -}}
{{- fail (printf "server.batching.allowedBatchSizes ends with %d, and maxBatchSize is %d: TensorFlow Serving wants them equal" $before (int .maxBatchSize)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "clothing-classifier.validateArgs" -}}
{{- $values := dict
  "port" "the chart sets it"
  "rest_api_port" "the chart sets it"
  "model_name" "set model.name"
  "model_base_path" "it follows from model.name"
  "model_config_file" "set model.versions and model.versionLabels"
  "model_config_file_poll_wait_seconds" "set server.rollout.mode=hotReload and server.rollout.pollSeconds"
  "allow_version_labels_for_unavailable_models" "it follows from model.versionLabels"
  "monitoring_config_file" "set server.monitoring"
  "enable_batching" "set server.batching"
  "batching_parameters_file" "set server.batching"
  "enable_per_model_batching_parameters" "set server.batching.perModel"
  "ssl_config_file" "set server.tls.secretName"
  "grpc_channel_arguments" "set server.maxConnectionAgeSeconds"
  "enable_grpc_healthcheck_service" "it follows from server.version"
  "per_process_gpu_memory_fraction" "set server.gpu.memoryFraction" -}}
{{- range $flag, $_ := .flags -}}
{{- $_ := set $values $flag (printf "set server.flags.%s" $flag) -}}
{{- end -}}
{{- range $arg := .extraArgs -}}
{{- with get $values ($arg | trimPrefix "-" | trimPrefix "-" | splitList "=" | first) -}}
{{- fail (printf "server.extraArgs has %s: remove it, %s" $arg .) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* What the chart derives from a value (deadlines, limits of proxies) would not follow a variable. */ -}}
{{- define "clothing-classifier.validateEnv" -}}
{{- $values := include "clothing-classifier.gateway.valueOf" . | fromYaml -}}
{{- range $variable := .Values.gateway.extraEnv -}}
{{- with get $values $variable.name -}}
{{- fail (printf "gateway.extraEnv has %s: remove it there, and set %s" $variable.name .) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "clothing-classifier.validateService" -}}
{{- range $key, $types := dict
  "loadBalancerClass" (list "LoadBalancer")
  "loadBalancerSourceRanges" (list "LoadBalancer")
  "externalTrafficPolicy" (list "LoadBalancer" "NodePort")
  "allocateLoadBalancerNodePorts" (list "LoadBalancer")
  "nodePort" (list "LoadBalancer" "NodePort") -}}
{{- if and (not (has (toString (index $ $key)) (list "" "[]" "<nil>"))) (not (has $.type $types)) -}}
{{- fail (printf "gateway.service.%s means nothing for a Service of type %s: remove it, or set gateway.service.type=%s" $key $.type (first $types)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "clothing-classifier.validateExposure" -}}
{{- if and .httpRoute.enabled (not .httpRoute.parentRefs) -}}
{{- fail "gateway.httpRoute.enabled is true, and no Gateway would take the route: name one in gateway.httpRoute.parentRefs" -}}
{{- end -}}
{{- if and (has .service.allocateLoadBalancerNodePorts (list false)) .service.nodePort -}}
{{- fail "gateway.service.nodePort is set, and allocateLoadBalancerNodePorts is false: remove one of them" -}}
{{- end -}}
{{- end -}}

{{- define "clothing-classifier.validateNetworkPolicy" -}}
{{- $proxy := .Values.gateway.fetch.proxy -}}
{{- if and .Values.networkPolicy.enabled $proxy (not (regexMatch "^http://[0-9.]+:[0-9]+/?$" $proxy)) (not .Values.networkPolicy.gateway.egress) -}}
{{- fail (printf "gateway.fetch.proxy is %s, and a NetworkPolicy knows pods and addresses, not names: let the gateways reach it by a rule in networkPolicy.gateway.egress" $proxy) -}}
{{- end -}}
{{- end -}}
