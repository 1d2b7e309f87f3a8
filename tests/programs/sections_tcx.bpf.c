#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("tcx/ingress") int in(struct __sk_buff *skb) { return skb->mark ? -1 : 0; }
SEC("tcx/egress") int out(struct __sk_buff *skb) { return skb->mark ? -1 : 0; }

char LICENSE[] SEC("license") = "Dual BSD/GPL";
