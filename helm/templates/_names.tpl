{{- define "accord.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{- define "accord.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{ include "accord.selector" . }}
{{- end -}}

{{- define "accord.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "accord.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "accord.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "accord.name" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end -}}

{{- define "accord.authSecret" -}}
{{ .Values.auth.existingSecret | default (printf "%s-api-key" (include "accord.name" .)) }}
{{- end -}}

{{- define "accord.rayAuthSecret" -}}
{{ .Values.ray.auth.existingSecret | default (printf "%s-ray-token" (include "accord.name" .)) }}
{{- end -}}

{{- define "accord.rayCluster" -}}
{{ include "accord.name" . }}
{{- end -}}

{{/* KubeRay names the head's service; without a cluster each runner's pod is one. */}}
{{- define "accord.rayAddress" -}}
{{- if .Values.ray.enabled -}}
{{ include "accord.rayCluster" . }}-head-svc:6379
{{- else -}}
127.0.0.1:6379
{{- end -}}
{{- end -}}

{{- define "accord.runsClaim" -}}
{{ .Values.runs.existingClaim | default (printf "%s-runs" (include "accord.name" .)) }}
{{- end -}}

{{- define "accord.storeSecret" -}}
{{- if .Values.store.enabled -}}
{{ include "accord.name" . }}-store
{{- else -}}
{{ required "externalStore.existingSecret: name the secret with the store's URL, or set store.enabled to true" .Values.externalStore.existingSecret }}
{{- end -}}
{{- end -}}
