{{- define "afterimage.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "afterimage.labels" -}}
{{ include "afterimage.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "afterimage.security" -}}
allowPrivilegeEscalation: false
capabilities: { drop: [ALL] }
readOnlyRootFilesystem: true
{{- end }}

{{- /* Afterimage's configuration; what a user lays over it goes last. */ -}}
{{- define "afterimage.config" -}}
{{- $s3 := dict
  "endpoint" .Values.store.endpoint
  "region" .Values.store.region
  "buckets" .Values.store.buckets
  "access_key_id" (dict "env" "AFTERIMAGE_S3_ACCESS_KEY_ID")
  "secret_access_key" (dict "env" "AFTERIMAGE_S3_SECRET_ACCESS_KEY") }}
{{- $ours := dict
  "listen" "unix:/run/afterimage/ext_proc.sock"
  "admin" (dict "listen" "0.0.0.0:9911")
  "envoy" (dict "message_timeout" "1s" "max_message_timeout" "30s")
  "store" (dict "kind" "s3" "s3" $s3)
  "policies" .Values.policies }}
{{- toYaml (mergeOverwrite $ours (deepCopy .Values.afterimage)) }}
{{- end }}
