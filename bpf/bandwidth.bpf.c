// SPDX-License-Identifier: GPL-2.0
/*
 * bandwidth: a token bucket that drops what exceeds the rate.
 *
 * One bucket for the whole cgroup, shared by all CPUs under a spin lock. Credit grows with time
 * at RATE up to BURST and pays for bytes on the wire. It is kept in units of 1e-9 bit, so that
 * elapsed nanoseconds times bits per second need no division and nothing is rounded away;
 * above 2^32 bits/s the unit is 2^10 times larger, so that the sum stays below 2^63.
 *
 * The bucket starts with INITIAL bytes only: enough for a connection to begin, too little to
 * show in an average. A packet larger than the bucket is always dropped.
 */
#include "podmgr.h"

#ifndef RATE /* bits per second, 8000 .. 400000000000 */
#define RATE 10000000ULL
#endif
#ifndef BURST /* bytes, at most 1000000000 up to 2^32 bits/s */
#define BURST 312500ULL
#endif
#ifndef INITIAL /* bytes, at most BURST */
#define INITIAL 12500ULL
#endif

#define UNIT_SHIFT (RATE >> 32 ? 10 : 0)
#define CREDIT_PER_NS (RATE >> UNIT_SHIFT)
#define CREDIT_PER_BYTE ((8 * NS_PER_SECOND) >> UNIT_SHIFT)
#define CREDIT_MAX (BURST * CREDIT_PER_BYTE)
#define FILL_NS (CREDIT_MAX / CREDIT_PER_NS)

_Static_assert(RATE >= 8000 && RATE <= 400000000000ULL, "RATE is in bits per second, 8000 to 4e11");
_Static_assert(INITIAL <= BURST, "INITIAL is at most BURST");
_Static_assert(BURST > 0 && BURST <= (1ULL << 63) / CREDIT_PER_BYTE, "BURST is too small or too large");

struct bucket {
	struct bpf_spin_lock lock;
	__u64 credit;
	__u64 updated_ns; /* 0: no packet yet */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bucket);
} podmgr_bucket SEC(".maps");

SEC(PODMGR_SECTION)
int podmgr_bandwidth(struct __sk_buff *skb)
{
	__u32 key = 0;
	struct bucket *bucket = bpf_map_lookup_elem(&podmgr_bucket, &key);
	struct wire wire;
	__u64 cost, now, elapsed_ns;
	int verdict = VERDICT_DROP;

	if (!bucket || is_exempt(skb))
		return VERDICT_PASS;
	wire = wire_of(skb);
	cost = wire.bytes * CREDIT_PER_BYTE;
	now = bpf_ktime_get_ns(); /* no helper may be called under the lock */

	bpf_spin_lock(&bucket->lock);
	if (!bucket->updated_ns) {
		bucket->updated_ns = now;
		bucket->credit = INITIAL * CREDIT_PER_BYTE;
	}
	if (now > bucket->updated_ns) { /* another CPU may have been here with a later clock */
		elapsed_ns = now - bucket->updated_ns;
		bucket->updated_ns = now;
		if (elapsed_ns > FILL_NS)
			elapsed_ns = FILL_NS;
		bucket->credit += elapsed_ns * CREDIT_PER_NS;
		if (bucket->credit > CREDIT_MAX)
			bucket->credit = CREDIT_MAX;
	}
	if (bucket->credit >= cost) {
		bucket->credit -= cost;
		verdict = VERDICT_PASS;
	}
	bpf_spin_unlock(&bucket->lock);
	return count(wire, verdict);
}

char LICENSE[] SEC("license") = "GPL";
