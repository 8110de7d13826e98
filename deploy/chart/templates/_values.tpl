{{/*
Puts together what holds: the values of older charts, which had them under cni, over the others; then what
the platform says where nothing else does; then what remains. All templates start with it.
*/}}
{{- define "millrace.prepare" -}}
{{- $v := deepCopy .Values }}
{{- with $v.cni }}
{{- $v = mustMergeOverwrite $v (deepCopy .) }}
{{- end }}
{{- $platform := include "millrace.platform" $v }}
{{- $preset := dict }}
{{- with $platform }}
{{- $preset = $.Files.Get (printf "files/platforms/%s.yaml" .) | fromYaml }}
{{- end }}
{{- $usual := dict "cniBinDir" "/opt/cni/bin" "cniConfDir" "/etc/cni/net.d" "cniConfFileName" "" "chained" true "provider" "default" }}
{{- range $name, $value := $usual }}
{{- if or (not (hasKey $v $name)) (has (get $v $name) (list nil "")) }}
{{- $_ := set $v $name (ternary (get $preset $name) $value (hasKey $preset $name)) }}
{{- end }}
{{- end }}
{{- if and (not $v.chained) (not $v.cniConfFileName) }}
{{- $_ := set $v "cniConfFileName" "istio-cni.conf" }}
{{- end }}
{{- if contains "ambient" $v.profile }}
{{- $_ := set $v.ambient "enabled" true }}
{{- end }}
{{- if kindIs "invalid" $v.resourceQuotas.enabled }}
{{- $_ := set $v.resourceQuotas "enabled" (dig "resourceQuotas" "enabled" false $preset) }}
{{- end }}
{{- if kindIs "invalid" $v.millrace.securityContextConstraints }}
{{- $_ := set $v.millrace "securityContextConstraints" (dig "millrace" "securityContextConstraints" false $preset) }}
{{- end }}
{{- if not $v.seLinuxOptions }}
{{- $_ := set $v "seLinuxOptions" (get $preset "seLinuxOptions" | default dict) }}
{{- end }}
{{- $_ := set $v "hub" ($v.hub | default $v.global.hub) }}
{{- $_ := set $v "tag" ($v.tag | default $v.global.tag | default .Chart.AppVersion | toString) }}
{{- $_ := set $v "variant" ($v.variant | default $v.global.variant) }}
{{- $_ := set $v "pullPolicy" ($v.pullPolicy | default $v.global.imagePullPolicy) }}
{{- $_ := set $v "resources" ($v.resources | default $v.global.defaultResources) }}
{{- $_ := set . "Values" $v }}
{{- include "millrace.refuse" . }}
{{- end }}

{{/* The platform's name, of those that have a file; nothing without one. */}}
{{- define "millrace.platform" -}}
{{- $names := dict }}
{{- range list .platform .global.platform }}
{{- if . }}{{ $_ := set $names . true }}{{ end }}
{{- end }}
{{- if has .profile (list "openshift" "openshift-ambient") }}
{{- $_ := set $names "openshift" true }}
{{- else if hasPrefix "platform-" .profile }}
{{- $_ := set $names (trimPrefix "platform-" .profile) true }}
{{- end }}
{{- if gt (len $names) 1 }}
{{- fail (printf "platform, global.platform and profile name several platforms: %s" (keys $names | sortAlpha | join ", ")) }}
{{- end }}
{{- keys $names | first | default "" }}
{{- end }}

{{/* Where the plugin stands, as the agent calls it. */}}
{{- define "millrace.mode" -}}
{{- if not .Values.chained }}standalone
{{- else if .Values.istioOwnedCNIConfig }}own-file
{{- else if .Values.millrace.dropIn }}drop-in
{{- else }}chained
{{- end }}
{{- end }}

{{/*
What is done about pods that run uncaptured, as the agent calls it. Where the plugin is taken away, others
capture them from then on.
*/}}
{{- define "millrace.repair" -}}
{{- if or (not .Values.repair.enabled) .Values.millrace.uninstall.enabled }}off
{{- else if .Values.repair.deletePods }}delete
{{- else if .Values.repair.labelPods }}label
{{- else if eq (toString .Values.repair.repairPods) "false" }}report
{{- else }}in-place
{{- end }}
{{- end }}

{{/* What captures new pods, as the agent calls it. Where the plugin is taken away, the runtime loses it too. */}}
{{- define "millrace.connects" -}}
{{- if and (has .Values.millrace.hook (list "nri" "both")) (not .Values.millrace.uninstall.enabled) }}true{{ end }}
{{- end }}

{{/* Whether pods are enrolled with the node's ztunnel. Where the plugin is taken away, others do it. */}}
{{- define "millrace.ambient" -}}
{{- if and .Values.ambient.enabled (not .Values.millrace.uninstall.enabled) }}true{{ end }}
{{- end }}

{{/* Whether the agent goes into the network namespaces of pods. */}}
{{- define "millrace.enters" -}}
{{- if or (include "millrace.connects" .) (include "millrace.ambient" .) (ne (include "millrace.repair" .) "off") }}true{{ end }}
{{- end }}

{{/* A level of one of istio-cni's forms, as the plugin calls it. */}}
{{- define "millrace.level" -}}
{{- $level := . | toString }}
{{- if contains ":" $level }}
{{- $scopes := dict }}
{{- range splitList "," $level }}
{{- $parts := splitList ":" . }}
{{- $_ := set $scopes (first $parts | trim) (last $parts | trim) }}
{{- end }}
{{- $level = coalesce $scopes.cni $scopes.default $scopes.all "info" }}
{{- end }}
{{- if eq $level "fatal" }}{{ $level = "error" }}{{ end }}
{{- if not (has $level (list "none" "error" "warn" "info" "debug")) }}
{{- fail (printf "%q is no level of messages: none, error, warn, info or debug" .) }}
{{- end }}
{{- $level }}
{{- end }}

{{- define "millrace.agentLevel" -}}
{{- include "millrace.level" (.Values.logging.level | default .Values.global.logging.level) }}
{{- end }}

{{- define "millrace.image" -}}
{{- if .Values.millrace.image }}
{{- .Values.millrace.image }}
{{- else if .Values.hub }}
{{- printf "%s/%s:%s" (trimSuffix "/" .Values.hub) .Values.image .Values.tag }}
{{- else if contains "/" .Values.image }}
{{- printf "%s:%s" .Values.image .Values.tag }}
{{- else }}
{{- /* As `cargo xtask image` names it: a name without a registry would be looked up in a public one. */}}
{{- printf "localhost/%s:%s" .Values.image .Values.tag }}
{{- end }}
{{- end }}

{{/* What the plugin's entry says, as JSON with sorted keys. */}}
{{- define "millrace.settings" -}}
{{- $settings := deepCopy .Values.millrace.settings }}
{{- if not (hasKey $settings "plugin_log_level") }}
{{- $level := .Values.logLevel | default (include "millrace.agentLevel" .) }}
{{- $_ := set $settings "plugin_log_level" (include "millrace.level" $level) }}
{{- end }}
{{- if .Values.global.nativeNftables }}
{{- $_ := set $settings "backend" "nftables" }}
{{- end }}
{{- mustToRawJson $settings }}
{{- end }}

{{/* The agent's variables, one object; env adds to it. */}}
{{- define "millrace.variables" -}}
{{- if include "millrace.ambient" . -}}
MILLRACE_NODE_AMBIENT: "true"
{{- range $name, $value := dict "DNS_CAPTURE" .Values.ambient.dnsCapture "IPV6" .Values.ambient.ipv6 "RECONCILE" .Values.ambient.reconcileIptablesOnStartup }}
{{- if not (kindIs "invalid" $value) }}
MILLRACE_NODE_AMBIENT_{{ $name }}: {{ $value | toString | quote }}
{{- end }}
{{- end }}
{{- with .Values.ambient.enablementSelectors }}
MILLRACE_NODE_AMBIENT_SELECTORS: {{ mustToRawJson . | quote }}
{{- end }}
{{ end -}}
MILLRACE_NODE_CNI_BIN_DIR: /host/cni/bin
MILLRACE_NODE_CNI_CONF_DIR: /host/cni/net.d
{{- if .Values.istioOwnedCNIConfig }}
{{- with .Values.istioOwnedCNIConfigFileName }}
MILLRACE_NODE_CONF_FILE: {{ . | quote }}
{{- end }}
{{- else }}
{{- with .Values.cniConfFileName }}
MILLRACE_NODE_CONF_FILE: {{ . | quote }}
{{- end }}
{{- end }}
MILLRACE_NODE_EXCLUDE_NAMESPACES: {{ join "," .Values.excludeNamespaces | quote }}
MILLRACE_NODE_HEALTH_ADDRESS: {{ .Values.millrace.healthAddress | quote }}
{{- if include "millrace.connects" . }}
MILLRACE_NODE_HOOK: {{ .Values.millrace.hook | quote }}
{{- end }}
MILLRACE_NODE_INSTALL_AGAIN: {{ .Values.millrace.installAgain | toString | quote }}
MILLRACE_NODE_KUBECONFIG: {{ .Values.millrace.kubeconfig | quote }}
MILLRACE_NODE_LOG_LEVEL: {{ include "millrace.agentLevel" . | replace "none" "off" | quote }}
MILLRACE_NODE_METRICS_ADDRESS: {{ .Values.millrace.metricsAddress | quote }}
MILLRACE_NODE_MODE: {{ include "millrace.mode" . }}
{{- if include "millrace.connects" . }}
MILLRACE_NODE_NRI_SOCKET: {{ printf "/host/nri/%s" (base .Values.millrace.nri.socket) | quote }}
{{- end }}
MILLRACE_NODE_PERIOD: {{ .Values.millrace.period | quote }}
{{- if include "millrace.enters" . }}
MILLRACE_NODE_PROC_DIR: /host/proc
{{- end }}
MILLRACE_NODE_REPAIR: {{ include "millrace.repair" . | quote }}
{{- if eq (include "millrace.repair" .) "label" }}
MILLRACE_NODE_REPAIR_LABEL: {{ printf "%s=%s" (.Values.repair.brokenPodLabelKey | default "cni.istio.io/uninitialized") (.Values.repair.brokenPodLabelValue | default "true") | quote }}
{{- end }}
MILLRACE_NODE_RUN_DIR: {{ .Values.millrace.runDir | quote }}
MILLRACE_NODE_SETTINGS: {{ include "millrace.settings" . | quote }}
MILLRACE_NODE_STATE_DIR: {{ .Values.millrace.stateDir | quote }}
MILLRACE_NODE_TAKE_OVER: {{ join "," .Values.millrace.takeOver | default "none" | quote }}
{{- with .Values.millrace.untaint }}
MILLRACE_NODE_UNTAINT: {{ . | quote }}
{{- end }}
{{- end }}

{{/* The port of an address, which the schema holds to a form. */}}
{{- define "millrace.port" -}}
{{- regexFind "[0-9]+$" . }}
{{- end }}

{{/* What the agent may do beyond files of the host, where it goes into their network namespaces. */}}
{{- define "millrace.repairCapabilities" -}}
- NET_ADMIN
- SYS_ADMIN
- SYS_PTRACE
{{- end }}

{{- define "millrace.selector" -}}
app.kubernetes.io/name: millrace-node
k8s-app: millrace-node
{{- end }}

{{- define "millrace.labels" -}}
{{ include "millrace.selector" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
istio.io/rev: {{ .Values.revision | default "default" | quote }}
{{- end }}
