{{/* The name of the operator's objects: the release's name, with "operator" in it. */}}
{{- define "aurora.fullname" -}}
{{- if contains "operator" .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-operator{{ end -}}
{{- end }}

{{- define "aurora.storename" -}}
{{ .Release.Name }}-store
{{- end }}

{{/* Hosts of stores that may have private addresses. The embedded store is one of them, under each of its names. */}}
{{- define "aurora.internalhosts" -}}
{{- $hosts := .Values.stores.internalHosts }}
{{- if .Values.embeddedStore.enabled }}
{{- $hosts = append $hosts (include "aurora.storename" .) }}
{{- range list "" ".svc" ".svc.cluster.local" }}
{{- $hosts = append $hosts (printf "%s.%s%s" (include "aurora.storename" $) $.Release.Namespace .) }}
{{- end }}
{{- end }}
{{- join "," $hosts }}
{{- end }}

{{- define "aurora.selector" -}}
app.kubernetes.io/name: aurora-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "aurora.storeselector" -}}
app.kubernetes.io/name: aurora-store
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "aurora.labels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/*
A full image name. An empty tag means the chart's appVersion. There is no default repository: a name without a registry
would be pulled from a public registry, where nobody of this project owns it.
*/}}
{{- define "aurora.image" -}}
{{- $image := get .root.Values.images .part -}}
{{- if not $image.repository -}}
{{- $text := "images.%s.repository is not set: push the Dockerfile's image %s to your registry, and set this value" -}}
{{- fail (printf $text .part .part) -}}
{{- end -}}
{{ include "aurora.imagename" (dict "image" $image "tag" .root.Chart.AppVersion) }}
{{- end }}

{{/* repository@digest, or without a digest repository:tag. */}}
{{- define "aurora.imagename" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .tag }}
{{- end -}}
{{- end }}

{{/* The securityContext of every container. Pod Security's profile "restricted" accepts it. */}}
{{- define "aurora.container" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* The securityContext of every pod. */}}
{{- define "aurora.pod" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end }}
