#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct flow { __u32 peer, ports; };
struct state { __u64 packets, bytes, last_ns; };

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct flow);
	__type(value, struct state);
} flows SEC(".maps");

SEC("cgroup_skb/ingress") int prog(struct __sk_buff *skb)
{
	struct flow flow = { skb->remote_ip4, skb->remote_port ^ skb->local_port };
	struct state first = { 1, skb->len, bpf_ktime_get_ns() };
	struct state *state = bpf_map_lookup_elem(&flows, &flow);

	if (!state) {
		bpf_map_update_elem(&flows, &flow, &first, BPF_ANY);
		return 1;
	}
	__sync_fetch_and_add(&state->packets, 1);
	__sync_fetch_and_add(&state->bytes, skb->len);
	state->last_ns = first.last_ns;
	return 1;
}

char LICENSE[] SEC("license") = "GPL";
