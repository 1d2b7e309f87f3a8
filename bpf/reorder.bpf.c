// SPDX-License-Identifier: GPL-2.0-only
/*
 * reorder: some packets are late, and so are overtaken, through the `fq` qdisc of the interface.
 *
 * A uniform 32-bit draw below THRESHOLD makes a packet late, so P(late) = THRESHOLD / 2^32, exactly. It
 * departs TIME after the moment at which it would have left: now, or when a rate, a delay or its socket
 * lets it go. A GSO packet is one draw and late as a whole.
 *
 * fq lets nothing overtake within a flow, so what is late is one of its own. What waits is bounded by
 * MOST_BYTES; what is more is not late, since nothing shall be lost.
 */
#ifndef PODMGR_TC
#define PODMGR_TC 1 /* it cannot act at the cgroup hook */
#endif
#define PODMGR_FIGURES 1 /* late packets */
#include "freeing.h"

#ifndef THRESHOLD /* 0 .. 4294967296 = 2^32: all are late */
#define THRESHOLD 0ULL
#endif
#ifndef TIME /* nanoseconds, 1000 .. 10 s */
#define TIME 10000000ULL
#endif
#ifndef MOST_BYTES /* that wait, on the wire */
#define MOST_BYTES 16777216ULL
#endif

_Static_assert(THRESHOLD <= 1ULL << 32, "THRESHOLD is out of 2^32");
_Static_assert(TIME >= 1000 && TIME <= 10 * NS_PER_SECOND, "TIME is in nanoseconds, 1000 to 1e10");
_Static_assert(MOST_BYTES >= 1 << 20, "MOST_BYTES is 1 MiB at least");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct clock);
} podmgr_reorder SEC(".maps");

#define FQ_BUCKETS 1024 /* of flows without a socket, by the low bits of their hash: its default */

/* Never the flow that it was in: what comes behind would wait with it. */
static __always_inline void leave_flow(struct __sk_buff *skb)
{
	bpf_set_hash(skb, bpf_get_hash_recalc(skb) + 1 + bpf_get_prandom_u32() % (FQ_BUCKETS - 1));
}

/* Late, if there is room for it to wait. */
static __always_inline void make_late(struct __sk_buff *skb, struct clock *clock, struct wire wire)
{
	__u64 now_ns = bpf_ktime_get_ns();

	if (!may_wait(clock, wire, now_ns, MOST_BYTES, TIME))
		return;
	if (!PODMGR_SHADOW) {
		skb->tstamp = (skb->tstamp > now_ns ? skb->tstamp : now_ns) + TIME;
		leave_flow(skb);
		wait_in_fq(skb);
	}
	add_to_figure(0, wire.packets);
}

SEC(PODMGR_SECTION)
int podmgr_reorder_packets(struct __sk_buff *skb)
{
	__u32 key = 0;
	struct clock *clock;
	struct wire wire;

	if (is_to_free(skb))
		return free_from_socket(skb);
	clock = bpf_map_lookup_elem(&podmgr_reorder, &key);
	if (!clock || is_exempt(skb))
		return VERDICT_PASS;
	wire = wire_of(skb);
	if ((__u64)bpf_get_prandom_u32() < THRESHOLD)
		make_late(skb, clock, wire);
	return count(wire, VERDICT_PASS);
}

char LICENSE[] SEC("license") = "GPL";
