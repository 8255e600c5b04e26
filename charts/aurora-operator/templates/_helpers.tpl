{{/*
The name of the operator's objects: fullnameOverride, or the release's name with "operator". Helm allows
release names that Kubernetes refuses as the name of a Service: longer ones, and ones with a dot or a digit first.
*/}}
{{- define "aurora.fullname" -}}
{{- $own := ternary .Release.Name (printf "%s-operator" .Release.Name) (contains "operator" .Release.Name) -}}
{{- $name := .Values.fullnameOverride | default $own -}}
{{- if not (regexMatch "^[a-z][-a-z0-9]{0,54}$" $name) -}}
{{- $text := "the release's objects would have the name %s: set fullnameOverride to a name that begins" -}}
{{- fail (printf (print $text " with a letter, and has at most 40 letters, digits and dashes") $name) -}}
{{- end -}}
{{ $name }}
{{- end }}

{{/* The operator's ServiceAccount. */}}
{{- define "aurora.serviceaccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "aurora.fullname" .) }}
{{- else if .Values.serviceAccount.name -}}
{{ .Values.serviceAccount.name }}
{{- else -}}
{{- fail "serviceAccount.create is false: set serviceAccount.name to the ServiceAccount that the operator must use" -}}
{{- end -}}
{{- end }}

{{- define "aurora.storename" -}}
{{- if not (regexMatch "^[a-z][-a-z0-9]*$" .Release.Name) -}}
{{- $text := "the embedded store's Service cannot have the name %s-store: choose a release name that begins" -}}
{{- fail (printf (print $text " with a letter, and has letters, digits and dashes only") .Release.Name) -}}
{{- end -}}
{{ .Release.Name }}-store
{{- end }}

{{/*
Labels of the operator's pods. The NetworkPolicies of speculators admit the operator by app.kubernetes.io/name, so no
value changes it.
*/}}
{{- define "aurora.selector" -}}
app.kubernetes.io/name: aurora-operator
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "aurora.storeselector" -}}
app.kubernetes.io/name: aurora-store
app.kubernetes.io/instance: {{ .Release.Name | quote }}
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

{{/* The securityContext of every pod. Without a fixed user, the cluster chooses one, as OpenShift does. */}}
{{- define "aurora.pod" -}}
runAsNonRoot: true
{{- if .Values.fixedUser }}
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end }}
