// Package kube stands in for the client of the API server: Argo CD takes the names of kinds from there.
package kube

const (
	APIServiceKind              = "APIService"
	DaemonSetKind               = "DaemonSet"
	DeploymentKind              = "Deployment"
	HorizontalPodAutoscalerKind = "HorizontalPodAutoscaler"
	IngressKind                 = "Ingress"
	JobKind                     = "Job"
	PersistentVolumeClaimKind   = "PersistentVolumeClaim"
	PodKind                     = "Pod"
	ReplicaSetKind              = "ReplicaSet"
	ServiceKind                 = "Service"
	StatefulSetKind             = "StatefulSet"
)

type ResourceKey struct{ Group, Kind, Namespace, Name string }
