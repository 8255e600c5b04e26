"""The kernel's rule that asks the daemon `network-policies` about each new connection.

The node forwards packets between pods, and between pods and the host. The kernel holds the first packet of each such
connection until the daemon has judged it, and drops the packet when no daemon reads the queue. The node's own
connections, such as the kubelet's probes, are not forwarded and so are not judged.

kube-network-policies could write such a rule itself. But its rule needs CONFIG_NFT_QUEUE, which kernels of small
virtual machines lack. The target NFQUEUE of iptables does the same, and more kernels have it.
"""

from __future__ import annotations

NUMBER = 100
"""Each network namespace has its own queues, so two clusters do not share this one."""
STATUS = "/proc/net/netfilter/nfnetlink_queue"
"""A file with a line for each queue that a process reads. The line begins with the queue's number."""
RULE = (
    *("iptables", "--table", "mangle", "--append", "FORWARD"),
    *("--match", "conntrack", "!", "--ctstate", "ESTABLISHED,RELATED"),
    *("--jump", "NFQUEUE", "--queue-num", str(NUMBER)),
)
"""The chain comes after the choice of a Service's pod, and before the sender's address may change."""
