{{/* Name of what belongs to this release; names of pods in a StatefulSet get a number behind it. */}}
{{- define "distd.name" -}}
{{- $name := .Release.Name -}}
{{- if not (contains .Chart.Name $name) }}{{ $name = printf "%s-%s" $name .Chart.Name }}{{ end -}}
{{- $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Labels by which a Service finds its pods: (list . "origin"). They never change. */}}
{{- define "distd.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "distd.labels" -}}
{{- $root := index . 0 -}}
{{ include "distd.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end -}}

{{/* Image of a program: (list . "distd-server"). */}}
{{- define "distd.image" -}}
{{- $root := index . 0 -}}
image: {{ printf "%s/%s:%s" $root.Values.image.registry (index . 1) ($root.Values.image.tag | default $root.Chart.AppVersion) }}
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
{{- end -}}

{{/* Settings as the environment: (list "DISTD_SERVER" map). */}}
{{- define "distd.settings" -}}
{{- $prefix := index . 0 -}}
{{- range $key, $value := index . 1 }}
- name: {{ printf "%s_%s" $prefix ($key | replace "." "_" | upper) }}
  {{- if kindIs "slice" $value }}
  value: {{ join "," $value | quote }}
  {{- else if kindIs "float64" $value }}
  value: {{ int64 $value | quote }}
  {{- else }}
  value: {{ $value | quote }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "distd.log" -}}
- name: DISTD_LOG
  value: {{ .Values.log.filter | quote }}
{{- if eq .Values.log.format "json" }}
- name: DISTD_LOG_FORMAT
  value: json
{{- end }}
{{- end -}}

{{/* Database and store of origins and workers. */}}
{{- define "distd.places" -}}
{{- with .Values.origin.database }}{{ if .secret }}
- name: DISTD_SERVER_DB
  valueFrom: {secretKeyRef: {name: {{ .secret }}, key: {{ .key }}}}
{{- end }}{{ end }}
{{- with .Values.origin.store }}
- name: DISTD_SERVER_STORE
  value: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* What every pod of distd is: the "restricted" standard of Kubernetes. */}}
{{- define "distd.pod" -}}
automountServiceAccountToken: false
# Variables of Services would look like settings: a Service distd-server gives DISTD_SERVER_PORT.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  # Otherwise each start opens every file of the volume to the group, and distd refuses keys that are open. The data
  # is in a directory below the mount point, whose own owner and mode stay as Kubernetes has set them.
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "distd.contained" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{/* Where pods run: the settings of a component. */}}
{{- define "distd.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Type of a Service and what goes with it. */}}
{{- define "distd.service" -}}
type: {{ .type }}
{{- if ne .type "ClusterIP" }}
externalTrafficPolicy: {{ .externalTrafficPolicy }}
{{- end }}
{{- with .loadBalancerIP }}
loadBalancerIP: {{ . }}
{{- end }}
{{- end -}}
