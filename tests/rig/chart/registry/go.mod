// The OCI registry that the chart is pushed to in tests. A module of its own, so that a change here does not rebuild
// the cluster.
module aurora.invalid/registry

go 1.26.6

tool github.com/google/go-containerregistry/cmd/registry

require github.com/google/go-containerregistry v0.22.1 // indirect
