#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#ifndef RATE_BYTES
#define RATE_BYTES 125000
#endif

struct bucket { struct bpf_spin_lock lock; __u32 tokens; __u64 filled_ns; };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bucket);
} buckets SEC(".maps");

SEC("cgroup_skb/egress") int prog(struct __sk_buff *skb)
{
	__u32 key = 0;
	__u64 now = bpf_ktime_get_ns(), more;
	struct bucket *bucket = bpf_map_lookup_elem(&buckets, &key);
	int pass;

	if (!bucket)
		return 1;
	bpf_spin_lock(&bucket->lock);
	more = (now - bucket->filled_ns) * RATE_BYTES / 1000000000;
	if (more) {
		bucket->tokens = bucket->tokens + more > RATE_BYTES ? RATE_BYTES : bucket->tokens + more;
		bucket->filled_ns = now;
	}
	pass = bucket->tokens >= skb->len;
	if (pass)
		bucket->tokens -= skb->len;
	bpf_spin_unlock(&bucket->lock);
	return pass;
}

char LICENSE[] SEC("license") = "GPL";
