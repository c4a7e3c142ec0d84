{{- /* Which series are those of a component's pods, by the labels that a PodMonitor gives them; as other scrapers do by habit.
       Usage: include "clothing-classifier.series" (dict "context" . "component" "gateway") */ -}}
{{- define "clothing-classifier.series" -}}
namespace="{{ .context.Release.Namespace }}",pod=~"{{ include "clothing-classifier.fullname" .context }}-{{ .component }}-[a-z0-9]+(-[a-z0-9]+)?"
{{- end -}}
