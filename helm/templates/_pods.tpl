{{/* What all pods and containers of this chart have in common. */}}

{{- define "accord.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "accord.containerSecurity" -}}
runAsNonRoot: true
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "accord.podExtras" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* Environment of every Accord process. */}}
{{- define "accord.env" -}}
- name: HOME
  value: /tmp
- name: ACCORD_RUNS_DIR
  value: /runs
- name: ACCORD_DATA_DIR
  value: /data
- name: ACCORD_INPUT_ROOTS
  value: {{ join ":" .Values.inputRoots | quote }}
- name: REDIS_URL
  valueFrom:
    secretKeyRef:
      name: {{ include "accord.storeSecret" . }}
      key: {{ if .Values.store.enabled }}redis-url{{ else }}{{ .Values.externalStore.key }}{{ end }}
{{- with .Values.rewards.hosts }}
- name: ACCORD_REWARD_HOSTS
  value: {{ join "," . | quote }}
{{- end }}
{{- range $name, $value := .Values.env }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

{{/* Token of the Ray cluster, for processes that join it without KubeRay's help. */}}
{{- define "accord.rayEnv" -}}
- name: RAY_AUTH_MODE
  value: token
- name: RAY_AUTH_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ include "accord.rayAuthSecret" . }}
      key: auth_token
{{- end -}}

{{- define "accord.mounts" -}}
- name: tmp
  mountPath: /tmp
- name: data
  mountPath: /data
- name: runs
  mountPath: /runs
{{- if .Values.models.existingClaim }}
- name: models
  mountPath: /models
  readOnly: true
{{- end }}
{{- end -}}

{{- define "accord.volumes" -}}
- name: tmp
  emptyDir: {}
- name: data
  emptyDir: {}
- name: runs
  persistentVolumeClaim:
    claimName: {{ include "accord.runsClaim" . }}
{{- with .Values.models.existingClaim }}
- name: models
  persistentVolumeClaim:
    claimName: {{ . }}
    readOnly: true
{{- end }}
{{- end -}}
