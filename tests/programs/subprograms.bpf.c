#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

static __noinline int is_large(struct __sk_buff *skb) { return skb->len > 1000; }
static __noinline int verdict(struct __sk_buff *skb) { return is_large(skb) ? 2 : -1; }

SEC("tc/egress") int prog(struct __sk_buff *skb) { return verdict(skb); }

char LICENSE[] SEC("license") = "GPL";
