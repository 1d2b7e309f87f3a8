#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("cgroup/skb") int prog(struct __sk_buff *skb) { return skb->len < 100000; }

char _license[] SEC("license") = "GPL";
