{{- define "akocore.labels" -}}
app.kubernetes.io/name: akocore
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}
{{- define "akocore.selector" -}}
app.kubernetes.io/name: akocore
app.kubernetes.io/component: controller
{{- end }}
{{- define "akocore.image" -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end }}
