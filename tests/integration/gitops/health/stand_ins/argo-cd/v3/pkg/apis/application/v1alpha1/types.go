// Package v1alpha1 stands in for Argo CD's resources. Actions are compiled and never run.
package v1alpha1

import "k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

type ResourceOverride struct {
	HealthLua   string
	UseOpenLibs bool
	Actions     string
}

func (ResourceOverride) GetActions() (ResourceActions, error) { panic("an action was asked for") }

type ResourceActions struct {
	ActionDiscoveryLua  string
	Definitions         []ResourceActionDefinition
	MergeBuiltinActions bool
}

type ResourceActionDefinition struct{ Name, ActionLua string }

type ResourceAction struct {
	Name     string
	Disabled bool
}

func UnmarshalToUnstructured(string) (*unstructured.Unstructured, error) {
	panic("an action was asked for")
}
