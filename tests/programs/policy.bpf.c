#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 10000);
	__type(key, __u64);
	__type(value, __u32);
} policy SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} events SEC(".maps");

SEC("cgroup_skb/egress") int prog(struct __sk_buff *skb)
{
	__u64 key = skb->remote_ip4;
	__u32 *seen;

	if (!bpf_map_lookup_elem(&policy, &key))
		return 1;
	seen = bpf_ringbuf_reserve(&events, sizeof(*seen), 0);
	if (seen) {
		*seen = skb->remote_ip4;
		bpf_ringbuf_submit(seen, 0);
	}
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
