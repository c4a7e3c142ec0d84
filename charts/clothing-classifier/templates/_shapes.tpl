{{- /* Fails on a text of another shape than its value needs. The schema would print a regular expression; here is the cause, and the fix. */ -}}
{{- define "clothing-classifier.shapes" -}}
{{- $v := .Values -}}
{{- $host := "^([*][.])?[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?$|^[0-9A-Fa-f:]+$" -}}
{{- $name := "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" -}}
{{- $version := "^(0|[1-9][0-9]*)$" -}}
{{- $label := "^[A-Za-z0-9._-]*[A-Za-z._-][A-Za-z0-9._-]*$" -}}
{{- $folder := "^([^/.][^/]*|[.][^/.][^/]*)(/([^/.][^/]*|[.][^/.][^/]*))*/?$" -}}
{{- $duration := "^([0-9]+(ms|[smhdwy]))+$" -}}
{{- $count := "^([0-9]+|([0-9]|[1-9][0-9]|100)%)$" -}}
{{- $asLabel := "a label has a letter, and besides letters and digits only dots, hyphens and underscores; a number alone is a version" -}}
{{- $asFolder := "write a folder inside the volume, without a leading slash and without .." -}}
{{- $asDuration := "write numbers with units, as in 30s or 720h" -}}
{{- $asCount := "write a number, or a percentage as in 25%" -}}
{{- $asVersion := "a version is a whole number, the name of the model's folder; a name is a label, as in model.versionLabel" -}}
{{- $asNetwork := "write a network with its mask, 10.0.0.0/8, or 10.0.0.1/32 for one address" -}}
{{- $asHost := "write the host's name alone, photos.example.com, without https:// and path" -}}
{{- $asName := "write lower case letters, digits and hyphens" -}}
{{- $asPath := "begin it with a slash, as in /photos" -}}
{{- /* Value, texts, pattern, fix */ -}}
{{- $rows := list
  (list "nameOverride" (list $v.nameOverride) $name $asName)
  (list "fullnameOverride" (list $v.fullnameOverride) $name $asName)
  (list "model.version" (list $v.model.version) $version $asVersion)
  (list "model.versions" $v.model.versions $version $asVersion)
  (list "model.canary.version" (list $v.model.canary.version) $version $asVersion)
  (list "model.versionLabels" (values $v.model.versionLabels) $version $asVersion)
  (list "model.name" (list $v.model.name) "^[A-Za-z0-9][A-Za-z0-9._-]*$" "write letters, digits, dots, hyphens and underscores")
  (list "model.versionLabel" (list $v.model.versionLabel) $label $asLabel)
  (list "model.canary.versionLabel" (list $v.model.canary.versionLabel) $label $asLabel)
  (list "model.versionLabels" (keys $v.model.versionLabels) $label $asLabel)
  (list "model.selectableVersions" $v.model.selectableVersions (printf "%s|%s" $version $label) "write a version's number, or its label")
  (list "model.source.imageVolume.subPath" (list $v.model.source.imageVolume.subPath) $folder $asFolder)
  (list "model.source.pvc.subPath" (list $v.model.source.pvc.subPath) $folder $asFolder)
  (list "model.imageSize" (list $v.model.imageSize) "^[1-9][0-9]*(x[1-9][0-9]*)?$" "write 299, or width x height as in 640x480")
  (list "model.source.pvc.size" (list $v.model.source.pvc.size) "^[0-9]+([.][0-9]+)?([kMGTPE]i?)?$" "write a size such as 10Gi")
  (list "model.source.download.cache.sizeLimit" (list $v.model.source.download.cache.sizeLimit) "^[0-9]+([.][0-9]+)?([kMGTPE]i?)?$" "write a size such as 10Gi")
  (list "server.gpu.resourceName" (list $v.server.gpu.resourceName) "^[a-z0-9.-]+/[A-Za-z0-9._-]+$" "write DOMAIN/NAME, as in nvidia.com/gpu")
  (list "server.tls.certManager.duration" (list $v.server.tls.certManager.duration) $duration $asDuration)
  (list "server.tls.certManager.renewBefore" (list $v.server.tls.certManager.renewBefore) $duration $asDuration)
  (list "monitoring.podMonitor.interval" (list $v.monitoring.podMonitor.interval) $duration $asDuration)
  (list "monitoring.podMonitor.scrapeTimeout" (list $v.monitoring.podMonitor.scrapeTimeout) $duration $asDuration)
  (list "monitoring.serviceMonitor.interval" (list $v.monitoring.serviceMonitor.interval) $duration $asDuration)
  (list "monitoring.serviceMonitor.scrapeTimeout" (list $v.monitoring.serviceMonitor.scrapeTimeout) $duration $asDuration)
  (list "gateway.extraArgs" $v.gateway.extraArgs "^--?[A-Za-z]" "write a flag with its hyphens, as in --log-level=debug")
  (list "server.pdb.maxUnavailable" (list $v.server.pdb.maxUnavailable) $count $asCount)
  (list "server.pdb.minAvailable" (list $v.server.pdb.minAvailable) $count $asCount)
  (list "gateway.pdb.maxUnavailable" (list $v.gateway.pdb.maxUnavailable) $count $asCount)
  (list "gateway.pdb.minAvailable" (list $v.gateway.pdb.minAvailable) $count $asCount)
  (list "server.autoscaling.keda.prometheusAddress" (list $v.server.autoscaling.keda.prometheusAddress) "^https?://" "write its URL, as in http://prometheus-operated.monitoring:9090")
  (list "gateway.fetch.proxy" (list $v.gateway.fetch.proxy) "^http://[^/@]+:[0-9]+/?$" "write http://HOST:PORT; the gateway speaks plain HTTP to its proxy, without user and password")
  (list "gateway.fetch.allowedNetworks" $v.gateway.fetch.allowedNetworks "^[0-9A-Fa-f.:]+/[0-9]{1,3}$" $asNetwork)
  (list "gateway.fetch.deniedNetworks" $v.gateway.fetch.deniedNetworks "^[0-9A-Fa-f.:]+/[0-9]{1,3}$" $asNetwork)
  (list "gateway.trustedProxies" $v.gateway.trustedProxies "^[0-9A-Fa-f.:]+/[0-9]{1,3}$" $asNetwork)
  (list "gateway.service.loadBalancerSourceRanges" $v.gateway.service.loadBalancerSourceRanges "^[0-9A-Fa-f.:]+/[0-9]{1,3}$" $asNetwork)
  (list "gateway.fetch.allowedHosts" $v.gateway.fetch.allowedHosts $host $asHost)
  (list "gateway.fetch.deniedHosts" $v.gateway.fetch.deniedHosts $host $asHost)
  (list "gateway.ingress.hosts" $v.gateway.ingress.hosts $host $asHost)
  (list "gateway.httpRoute.hostnames" $v.gateway.httpRoute.hostnames $host $asHost)
  (list "gateway.allowedOrigins" $v.gateway.allowedOrigins "^([*]|https?://[A-Za-z0-9.\\[\\]:-]+)$" "write an origin with its scheme, as in https://shop.example, or *")
  (list "gateway.ingress.path" (list $v.gateway.ingress.path) "^/" $asPath)
  (list "gateway.httpRoute.path" (list $v.gateway.httpRoute.path) "^/" $asPath)
  (list "monitoring.rules.runbookUrl" (list $v.monitoring.rules.runbookUrl) "^https?://" "write its URL, with https://")
  (list "test.photoUrl" (list $v.test.photoUrl) "^https?://" "write its URL, with https://")
-}}
{{- range $alert, $changes := $v.monitoring.rules.alerts -}}
{{- $rows = append $rows (list (printf "monitoring.rules.alerts.%s.for" $alert) (list (get $changes "for")) $duration $asDuration) -}}
{{- end -}}
{{- range concat (default list $v.gateway.extraVolumeMounts) (default list $v.server.extraVolumeMounts) (default list $v.model.source.download.extraVolumeMounts) -}}
{{- $rows = append $rows (list (printf "the mountPath of the volume %s" .name) (list .mountPath) "^/" "begin it with a slash, as in /etc/ca") -}}
{{- end -}}
{{- range $v.model.source.download.archives -}}
{{- $rows = append $rows (list "model.source.download.archives.url" (list .url) "^(https?|s3|gs|az)://[^/#]+/[^#]+$" "write a URL that begins with https://, http://, s3://, gs:// or az://") -}}
{{- $rows = append $rows (list "model.source.download.archives.sha256" (list .sha256) "^[0-9a-f]{64}$" "write the 64 hexadecimal digits that sha256sum prints") -}}
{{- end -}}
{{- range $path, $image := dict "gateway.image" $v.gateway.image "server.image" $v.server.image "model.source.imageVolume.image" $v.model.source.imageVolume.image -}}
{{- if regexMatch "^latest(-gpu)?$" (default "" $image.tag) -}}
{{- fail (printf "%s.tag is %q: nodes keep what they have under that tag, and a rollback has no version to go back to: use the tag of one version" $path $image.tag) -}}
{{- end -}}
{{- $rows = append $rows (list (printf "%s.registry" $path) (list $image.registry) "^[A-Za-z0-9.-]+(:[0-9]+)?(/[A-Za-z0-9._/-]*[A-Za-z0-9])?$" "write a host, with a port or a path, as in registry.example.com:5000/team, without https://") -}}
{{- $rows = append $rows (list (printf "%s.repository" $path) (list $image.repository) "^[a-z0-9]+([._/-]+[a-z0-9]+)*$" (printf "write it in lower case, without a tag, which belongs to %s.tag, and a registry's port, which belongs to %s.registry" $path $path)) -}}
{{- $rows = append $rows (list (printf "%s.tag" $path) (list $image.tag) "^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$" "write letters, digits, dots, hyphens and underscores") -}}
{{- $rows = append $rows (list (printf "%s.digest" $path) (list $image.digest) "^sha256:[a-f0-9]{64}$" "write sha256: and 64 hexadecimal digits") -}}
{{- end -}}
{{- range $path, $resources := dict "gateway.resources" $v.gateway.resources "server.resources" $v.server.resources "helperResources" $v.helperResources -}}
{{- range $kind, $quantities := omit (default dict $resources) "claims" -}}
{{- range $resource, $quantity := $quantities -}}
{{- $rows = append $rows (list (printf "%s.%s.%s" $path $kind $resource) (list $quantity) "^[0-9]+([.][0-9]+)?(m|[kMGTPE]i?)?$" "write a number with a unit of Kubernetes: 500m of a CPU, 512Mi or 2Gi of memory") -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $row := $rows -}}
{{- range index $row 1 -}}
{{- $text := kindIs "string" . | ternary . (toJson .) -}}
{{- if not (or (kindIs "invalid" .) (eq $text "") (regexMatch (index $row 2) $text)) -}}
{{- /* Without a password, as of a proxy. */ -}}
{{- fail (printf "%s has %s: %s" (first $row) (regexReplaceAll "//[^/@]+@" (toJson .) "//***@") (last $row)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- /* What a request asks for and its limit forbids is no pod. */ -}}
{{- range $path, $resources := dict "gateway.resources" $v.gateway.resources "server.resources" $v.server.resources -}}
{{- range $resource, $request := default dict $resources.requests -}}
{{- $limit := get (default dict $resources.limits) $resource -}}
{{- if and (not (has $limit (list "" nil))) (gt (include "clothing-classifier.number" $request | float64) (include "clothing-classifier.number" $limit | float64)) -}}
{{- fail (printf "%s.requests.%s (%v) is above its limit (%v): lower the request, or raise %s.limits.%s" $path $resource $request $limit $path $resource) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* A quantity of Kubernetes as a plain number. */ -}}
{{- define "clothing-classifier.number" -}}
{{- $number := regexFind "^[0-9.]+" (toString .) -}}
{{- $units := dict "" 1.0 "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 -}}
{{- mulf (float64 $number) (get $units (trimPrefix $number (toString .)) | default 1.0) -}}
{{- end -}}
