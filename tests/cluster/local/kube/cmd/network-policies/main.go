// Command network-policies judges the connections between pods by their NetworkPolicies. The judge is the controller of
// sigs.k8s.io/kube-network-policies. This main leaves out what upstream's main needs in a pod and on many nodes.
//
// The kernel hands over the first packet of each connection by a rule that the cluster writes (packet_queue.py), and
// drops the packet when nobody reads the queue. So pods stay closed when this program ends.
package main

import (
	"context"
	"errors"
	"flag"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
)

func main() {
	kubeconfig := flag.String("kubeconfig", "", "access to list and watch pods, namespaces and NetworkPolicies")
	queue := flag.Int("queue", 0, "the number of the queue that the kernel's rule names")
	flag.Var(new(klog.Level), "v", "how much to log; from 2 on every judgement")
	flag.Parse()
	klog.Fatalf("NetworkPolicies are not enforced: %v", judge(context.Background(), *kubeconfig, *queue))
}

// judge returns when connections cannot be judged any longer, with the reason.
func judge(ctx context.Context, kubeconfig string, queue int) error {
	access, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(access)
	if err != nil {
		return err
	}
	watches := informers.NewSharedInformerFactory(client, 0)
	controller, err := networkpolicy.NewController(
		client,
		watches.Networking().V1().NetworkPolicies(),
		watches.Core().V1().Namespaces(),
		watches.Core().V1().Pods(),
		nil, nil, nil, nil, // for policies of a whole cluster, which are no part of Kubernetes
		networkpolicy.Config{
			QueueID: queue,
			// The controller would write rules for the pods of its node. It gets no node, because the rule exists already.
			// So it writes rules that match nothing, once. A kernel without CONFIG_NFT_QUEUE refuses them, which it logs.
			NodeName: "none",
			// Pods' addresses come from the API server only: containerd has no NRI here, and the attempt to reach it is
			// harmless. With NRIdisabled, v0.8.0 panics at the first packet from an address that no pod has.
			NRIdisabled: false,
		},
	)
	if err != nil {
		return err
	}
	watches.Start(ctx.Done())
	if err := controller.Run(ctx); err != nil {
		return err
	}
	return errors.New("the controller ended without an error")
}
