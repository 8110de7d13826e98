{{/* What each container has. */}}
{{- define "millrace.container" -}}
image: {{ include "millrace.image" . | quote }}
{{- with .Values.pullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
envFrom:
  - configMapRef:
      name: millrace-node-config
env:
  - name: MILLRACE_NODE_NAME
    valueFrom:
      fieldRef:
        fieldPath: spec.nodeName
  {{- range $name, $value := .Values.env }}
  - name: {{ $name }}
    value: {{ $value | toString | quote }}
  {{- end }}
securityContext:
  allowPrivilegeEscalation: false
  {{- if and .Values.millrace.appArmorProfile (not .Values.useAppArmorAnnotation) }}
  appArmorProfile:
    {{- toYaml .Values.millrace.appArmorProfile | nindent 4 }}
  {{- end }}
  capabilities:
    drop:
      - ALL
    {{- $enters := include "millrace.enters" . }}
    {{- if or $enters .Values.millrace.capabilities }}
    add:
      {{- with .Values.millrace.capabilities }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
      {{- if $enters }}
      # For pods: to see and write rules, to enter their network namespaces, and to see which one a
      # process is in.
      {{- include "millrace.repairCapabilities" . | nindent 6 }}
      {{- end }}
    {{- end }}
  privileged: false
  readOnlyRootFilesystem: true
  runAsGroup: 0
  runAsNonRoot: false
  runAsUser: 0
  {{- with .Values.seLinuxOptions }}
  seLinuxOptions:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- with .Values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  - name: cni-bin
    mountPath: /host/cni/bin
  - name: cni-conf
    mountPath: /host/cni/net.d
  # The plugin's entry names files in it: the path is the host's.
  - name: run
    mountPath: {{ .Values.millrace.runDir | quote }}
  - name: state
    mountPath: {{ .Values.millrace.stateDir | quote }}
  {{- if include "millrace.connects" . }}
  # A runtime that is started anew makes its socket anew.
  - name: nri
    mountPath: /host/nri
  {{- end }}
  {{- if $enters }}
  # Among the host's processes are those of pods. Without hostPID the agent sees them, and signals none.
  - name: proc
    mountPath: /host/proc
    readOnly: true
  {{- end }}
  {{- if include "millrace.ambient" . }}
  # Its socket, to which ztunnel connects, has this path for it as well.
  - name: ztunnel
    mountPath: /var/run/ztunnel
  {{- end }}
{{- end }}

{{/* A request to the agent. An address that is the node's alone is asked by its name. */}}
{{- define "millrace.probe" -}}
{{- $address := last . }}
{{- $host := regexReplaceAll ":[0-9]+$" $address "" -}}
httpGet:
  path: {{ first . }}
  port: health
  {{- if not (has $host (list "[::]" "0.0.0.0")) }}
  host: {{ $host | trimPrefix "[" | trimSuffix "]" | quote }}
  {{- end }}
{{- end }}
