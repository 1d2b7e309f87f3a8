#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("cgroup_skb/ingress") int count_in(struct __sk_buff *skb) { return skb->len > 0; }
SEC("cgroup_skb/egress") int count_out(struct __sk_buff *skb) { return skb->len > 0; }

char LICENSE[] SEC("license") = "GPL";
