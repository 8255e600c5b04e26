// Package application stands in for Argo CD's clients. A check of health has no parameters.
package application

type ResourceActionParameters struct{}

func (*ResourceActionParameters) GetName() string { return "" }

func (*ResourceActionParameters) GetValue() string { return "" }
