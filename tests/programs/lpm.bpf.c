#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct key { __u32 prefixlen; __u32 address; };

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 256);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct key);
	__type(value, __u8);
} blocked SEC(".maps");

SEC("cgroup_skb/egress") int prog(struct __sk_buff *skb)
{
	struct key key = { .prefixlen = 32, .address = skb->remote_ip4 };

	return bpf_map_lookup_elem(&blocked, &key) ? 0 : 1;
}

char LICENSE[] SEC("license") = "GPL";
