// SPDX-License-Identifier: GPL-2.0
/*
 * seed: the limiter that podmgr began with, for the benchmark: a bucket of one second, full at
 * first, without a lock; GSO packets are charged as they are, and a drop returns 0.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#ifndef RATE /* bits per second */
#define RATE 10000000ULL
#endif

#define NS_PER_SECOND 1000000000ULL
#define BURST (RATE / 8) /* bytes */

struct bucket {
	__u64 bytes;
	__u64 updated_ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bucket);
} seed_bucket SEC(".maps");

SEC("cgroup_skb/" INTERFACE)
int seed(struct __sk_buff *skb)
{
	__u32 key = 0;
	struct bucket *bucket = bpf_map_lookup_elem(&seed_bucket, &key);
	__u64 now = bpf_ktime_get_ns(), bytes;

	if (!bucket)
		return 1;
	bytes = BURST;
	if (bucket->updated_ns && now - bucket->updated_ns < NS_PER_SECOND)
		bytes = bucket->bytes + (now - bucket->updated_ns) * (RATE / 8000) / (NS_PER_SECOND / 1000);
	if (bytes > BURST)
		bytes = BURST;
	bucket->updated_ns = now;
	if (bytes < skb->len) {
		bucket->bytes = bytes;
		return 0;
	}
	bucket->bytes = bytes - skb->len;
	return 1;
}

char LICENSE[] SEC("license") = "GPL";
