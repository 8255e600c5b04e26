// Health prints how Argo CD and Flux judge objects, by the code of both.
//
// It reads a JSON list of objects from standard input, and the Lua check for Argo CD from the file that its argument
// names. It prints a JSON list with a verdict for each object, in the same order.
package main

import (
	"encoding/json"
	"log"
	"os"

	"github.com/argoproj/argo-cd/v3/pkg/apis/application/v1alpha1"
	"github.com/argoproj/argo-cd/v3/util/lua"
	"github.com/argoproj/gitops-engine/pkg/health"
	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

type verdict struct {
	Argo string `json:"argo"`
	Flux string `json:"flux"`
}

func main() {
	check, err := os.ReadFile(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	checks := lua.ResourceHealthOverrides{
		"aurora.dev/AuroraSpeculator": v1alpha1.ResourceOverride{HealthLua: string(check)},
	}
	var objects []unstructured.Unstructured
	if err := json.NewDecoder(os.Stdin).Decode(&objects); err != nil {
		log.Fatal(err)
	}
	verdicts := []verdict{}
	for _, object := range objects {
		argo, err := health.GetResourceHealth(&object, checks)
		if err != nil {
			log.Fatal(err)
		}
		flux, err := status.Compute(&object)
		if err != nil {
			log.Fatal(err)
		}
		verdicts = append(verdicts, verdict{Argo: string(argo.Status), Flux: flux.Status.String()})
	}
	if err := json.NewEncoder(os.Stdout).Encode(verdicts); err != nil {
		log.Fatal(err)
	}
}
