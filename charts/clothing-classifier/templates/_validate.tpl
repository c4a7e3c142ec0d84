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
{{- include "clothing-classifier.validateGpu" .Values.server -}}
{{- include "clothing-classifier.validateArgs" .Values.server.extraArgs -}}
{{- include "clothing-classifier.validateEnv" . -}}
{{- include "clothing-classifier.validateService" .Values.gateway.service -}}
{{- include "clothing-classifier.validateExposure" .Values.gateway -}}
{{- include "clothing-classifier.validateNetworkPolicy" . -}}
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
{{- if and .canary.percent (not $canary) -}}
{{- fail "model.canary.percent is set, and no canary: set model.canary.version or model.canary.versionLabel" -}}
{{- end -}}
{{- if and (or $canary .versionLabels .selectableVersions) (not $stable) -}}
{{- fail "there are several versions of the model, and nothing says which one requests go to: set model.version or model.versionLabel" -}}
{{- end -}}
{{- if and $canary (eq $stable $canary) -}}
{{- fail "model.canary is the same version as the model's: set another one" -}}
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

{{- define "clothing-classifier.validateArgs" -}}
{{- $values := dict
  "port" "the chart sets it"
  "rest_api_port" "the chart sets it"
  "model_name" "set model.name"
  "model_base_path" "it follows from model.name"
  "model_config_file" "set model.version"
  "monitoring_config_file" "set server.monitoring"
  "ssl_config_file" "set server.tls.secretName"
  "grpc_channel_arguments" "set server.maxConnectionAgeSeconds"
  "enable_grpc_healthcheck_service" "set server.grpcHealthCheck"
  "per_process_gpu_memory_fraction" "set server.gpu.memoryFraction" -}}
{{- range $arg := . -}}
{{- with get $values ($arg | trimPrefix "--" | splitList "=" | first) -}}
{{- fail (printf "server.extraArgs has %s: remove it, %s" $arg .) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* A variable that is there twice can't be applied by the server (Helm 4). */ -}}
{{- define "clothing-classifier.validateEnv" -}}
{{- $own := list -}}
{{- range include "clothing-classifier.gateway.env" . | fromYamlArray -}}
{{- $own = append $own .name -}}
{{- end -}}
{{- range .Values.gateway.extraEnv -}}
{{- if has .name $own -}}
{{- fail (printf "gateway.extraEnv has %s, which the chart sets from a value of its own: remove it there, and set the value (see the README's table)" .name) -}}
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
