#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} bytes SEC(".maps");

static __always_inline int add(struct __sk_buff *skb, __u32 key)
{
	__u64 *sum = bpf_map_lookup_elem(&bytes, &key);

	if (sum)
		__sync_fetch_and_add(sum, skb->len);
	return TC_ACT_OK;
}

SEC("tc/egress") int out(struct __sk_buff *skb) { return add(skb, 0); }
SEC("tc/ingress") int in(struct __sk_buff *skb) { return add(skb, 1); }

char LICENSE[] SEC("license") = "GPL";
