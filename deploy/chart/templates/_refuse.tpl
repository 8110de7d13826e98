{{/* Says all that can't be had at once, with what to do. */}}
{{- define "millrace.refuse" -}}
{{- $wrong := list }}
{{- $v := .Values }}
{{- if not (or (hasPrefix "platform-" $v.profile) (has $v.profile (list "" "ambient" "default" "demo" "empty" "minimal" "openshift" "openshift-ambient" "preview" "remote" "stable"))) }}
{{- $wrong = append $wrong (printf "profile %s is not known: leave it out, or name the platform" $v.profile) }}
{{- end }}
{{- $platform := include "millrace.platform" $v }}
{{- if and $platform (not (.Files.Get (printf "files/platforms/%s.yaml" $platform))) }}
{{- $wrong = append $wrong (printf "platform %s is not known: set cniBinDir and cniConfDir instead" $platform) }}
{{- end }}
{{- $repairs := list }}
{{- range $name := list "labelPods" "deletePods" "repairPods" }}
{{- if get $v.repair $name }}
{{- $repairs = append $repairs (printf "repair.%s" $name) }}
{{- end }}
{{- end }}
{{- if and $repairs (not $v.repair.enabled) }}
{{- $wrong = append $wrong (printf "%s: repair.enabled is false: set it to true, or leave %s out" (join ", " $repairs) (gt (len $repairs) 1 | ternary "them" "it")) }}
{{- else if gt (len $repairs) 1 }}
{{- $wrong = append $wrong (printf "%s: one thing is done about a pod: set one of them to true" (join ", " $repairs)) }}
{{- end }}
{{- if and $v.repair.enabled (eq (toString (get $v.millrace.settings "backend")) "ebpf") }}
{{- $wrong = append $wrong "repair.enabled: millrace.settings.backend is ebpf, and the agent of this chart has neither the BPF file system nor the capabilities for it: set repair.enabled to false" }}
{{- end }}
{{- if and (include "millrace.connects" .) (eq (toString (get $v.millrace.settings "backend")) "ebpf") }}
{{- $wrong = append $wrong (printf "millrace.hook %s: millrace.settings.backend is ebpf, and the agent of this chart has neither the BPF file system nor the capabilities for it: set millrace.hook to cni" $v.millrace.hook) }}
{{- end }}
{{- if and $v.millrace.nri.tolerateAnnotation (eq $v.millrace.hook "cni") }}
{{- $wrong = append $wrong "millrace.nri.tolerateAnnotation: millrace.hook is cni: leave it out" }}
{{- end }}
{{- if and $v.chained (eq $v.provider "multus") }}
{{- $wrong = append $wrong "provider multus: Multus calls a plugin that has a file of its own: set chained to false" }}
{{- end }}
{{- if and (not $v.chained) (ne $v.provider "multus") }}
{{- $wrong = append $wrong "chained false: a runtime would take the plugin's file for the network: set provider to multus" }}
{{- end }}
{{- if and (not $v.chained) (not (hasSuffix ".conf" $v.cniConfFileName)) }}
{{- $wrong = append $wrong (printf "cniConfFileName %s: the plugin's own file has to end in .conf where chained is false" $v.cniConfFileName) }}
{{- end }}
{{- if and $v.istioOwnedCNIConfig (not $v.chained) }}
{{- $wrong = append $wrong "istioOwnedCNIConfig: a list of the agent's own is chained: set chained to true, or istioOwnedCNIConfig to false" }}
{{- end }}
{{- if and $v.istioOwnedCNIConfig $v.cniConfFileName }}
{{- $wrong = append $wrong (printf "cniConfFileName %s: the agent's own list follows the one that the runtime would use, whatever its name: leave it out with istioOwnedCNIConfig" $v.cniConfFileName) }}
{{- end }}
{{- if and $v.istioOwnedCNIConfigFileName (not $v.istioOwnedCNIConfig) }}
{{- $wrong = append $wrong "istioOwnedCNIConfigFileName: set istioOwnedCNIConfig to true, or leave it out" }}
{{- end }}
{{- if and $v.istioOwnedCNIConfigFileName (not (hasSuffix ".conflist" $v.istioOwnedCNIConfigFileName)) }}
{{- $wrong = append $wrong (printf "istioOwnedCNIConfigFileName %s has to end in .conflist" $v.istioOwnedCNIConfigFileName) }}
{{- end }}
{{- if contains "istio-cni" $v.istioOwnedCNIConfigFileName }}
{{- $wrong = append $wrong (printf "istioOwnedCNIConfigFileName %s is the name of istio-cni's own file, which is to be taken over: leave it out (00-millrace.conflist)" $v.istioOwnedCNIConfigFileName) }}
{{- end }}
{{- if and $v.millrace.dropIn (or $v.istioOwnedCNIConfig (not $v.chained) $v.cniConfFileName) }}
{{- $wrong = append $wrong "millrace.dropIn: the plugin stands in the folder of the runtime's list: leave out istioOwnedCNIConfig, chained and cniConfFileName" }}
{{- end }}
{{- if not $v.millrace.image }}
{{- if contains "install-cni" $v.image }}
{{- $wrong = append $wrong (printf "image %s is istio-cni's: leave it out, or set millrace.image" $v.image) }}
{{- end }}
{{- if has (trimSuffix "/" $v.hub) (list "docker.io/istio" "istio" "gcr.io/istio-release" "gcr.io/istio-testing" "registry.istio.io/release" "registry.istio.io/testing") }}
{{- $wrong = append $wrong (printf "hub %s has images of Istio alone: set hub and tag, or millrace.image, to where you put this one" $v.hub) }}
{{- end }}
{{- end }}
{{- if not (has $v.variant (list "" "distroless")) }}
{{- $wrong = append $wrong (printf "variant %s: there is one image, which has no shell: leave it out" $v.variant) }}
{{- end }}
{{- if $v.psp_cluster_role }}
{{- $wrong = append $wrong "psp_cluster_role: Kubernetes has no PodSecurityPolicies since 1.25: leave it out" }}
{{- end }}
{{- if hasKey $v.millrace.settings "exclude_namespaces" }}
{{- $wrong = append $wrong "millrace.settings.exclude_namespaces: set excludeNamespaces" }}
{{- end }}
{{- if and $v.ambient.enabled (eq $v.millrace.hook "nri") }}
{{- $wrong = append $wrong "ambient.enabled: millrace.hook is nri, and pods that start are enrolled by the CNI plugin: set it to cni or both" }}
{{- end }}
{{- if hasKey $v.millrace.settings "ambient_enabled" }}
{{- $wrong = append $wrong "millrace.settings.ambient_enabled: set ambient.enabled" }}
{{- end }}
{{- if hasKey $v.millrace.settings "kubeconfig" }}
{{- $wrong = append $wrong "millrace.settings.kubeconfig: set millrace.kubeconfig" }}
{{- end }}
{{- $backend := get $v.millrace.settings "backend" | default "nftables" }}
{{- if and $v.global.nativeNftables (ne $backend "nftables") }}
{{- $wrong = append $wrong (printf "global.nativeNftables: millrace.settings.backend is %s: leave one of them out" $backend) }}
{{- end }}
{{- $variables := include "millrace.variables" . | fromYaml }}
{{- range $name := keys $v.env | sortAlpha }}
{{- if or (hasKey $variables $name) (has $name (list "MILLRACE_NODE_AMBIENT" "MILLRACE_NODE_AMBIENT_DNS_CAPTURE" "MILLRACE_NODE_AMBIENT_IPV6" "MILLRACE_NODE_AMBIENT_RECONCILE" "MILLRACE_NODE_AMBIENT_SELECTORS" "MILLRACE_NODE_HOOK" "MILLRACE_NODE_NAME" "MILLRACE_NODE_NRI_SOCKET" "MILLRACE_NODE_PROC_DIR" "MILLRACE_NODE_REPAIR_LABEL" "MILLRACE_NODE_UNTAINT" "MILLRACE_NODE_ZTUNNEL_SOCKET")) }}
{{- $wrong = append $wrong (printf "env.%s: the chart sets it, by a value where there is one" $name) }}
{{- else if not (or (hasPrefix "MILLRACE_NODE_" $name) (hasPrefix "KUBERNETES_SERVICE_" $name)) }}
{{- $wrong = append $wrong (printf "env.%s: the agent has no such variable: leave it out" $name) }}
{{- end }}
{{- end }}
{{- $labels := include "millrace.labels" . | fromYaml }}
{{- range $name := concat (keys $v.podLabels) (keys $v.daemonSetLabels) | uniq | sortAlpha }}
{{- if hasKey $labels $name }}
{{- $wrong = append $wrong (printf "podLabels, daemonSetLabels: %s is the chart's own" $name) }}
{{- end }}
{{- end }}
{{- if ne (toString (get $v.updateStrategy.rollingUpdate "maxSurge" | default "0")) "0" }}
{{- $wrong = append $wrong "updateStrategy.rollingUpdate.maxSurge: two agents of a node would need the same ports: leave it out" }}
{{- end }}
{{- if and $v.millrace.uninstall.enabled $v.millrace.installAgain }}
{{- $wrong = append $wrong "millrace.uninstall.enabled: millrace.installAgain would undo it: set one of them to false" }}
{{- end }}
{{- if $wrong }}
{{- fail (printf "these values can't be applied:\n  %s" (join "\n  " $wrong)) }}
{{- end }}
{{- end }}
