// SPDX-License-Identifier: GPL-2.0-only
/*
 * edt: earliest departure time. Delays instead of dropping.
 *
 * Every packet is stamped with the moment at which the one before it has left a link of RATE;
 * the `fq` qdisc of the interface then holds it until that moment. Without fq a stamp changes
 * nothing, so podmgr attaches this program only where fq is. A packet that would have to wait
 * longer than HORIZON is dropped; one of a flow that understands ECN is marked as having met
 * congestion when it waits half as long, so that its sender slows down before that.
 */
#include "podmgr.h"

#ifndef RATE /* bits per second, 8000 .. 400000000000 */
#define RATE 10000000ULL
#endif
#ifndef HORIZON /* nanoseconds, 20 ms to 10 s: less starves 1 Mbit/s */
#define HORIZON 250000000ULL
#endif

_Static_assert(RATE >= 8000 && RATE <= 400000000000ULL, "RATE is in bits per second, 8000 to 4e11");
_Static_assert(HORIZON >= 20000000 && HORIZON <= 10000000000ULL,
	       "HORIZON is in nanoseconds, 20 ms to 10 s");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct clock);
} podmgr_clock SEC(".maps");

SEC(PODMGR_SECTION)
int podmgr_edt(struct __sk_buff *skb)
{
	__u32 key = 0;
	struct clock *clock = bpf_map_lookup_elem(&podmgr_clock, &key);
	struct wire wire;
	__s64 now, seen, from, wait;

	if (!clock || is_exempt(skb))
		return VERDICT_PASS;
	wire = wire_of(skb);
	now = now_ticks();
	seen = taken_until(clock);
	from = seen < now ? now : seen;
	wait = from - now;
	if (wait > (__s64)HORIZON * TICKS_PER_NS)
		return count(wire, VERDICT_DROP);
	take(clock, seen, from, sending_ticks(wire, RATE));

#if DIRECTION_EGRESS || PODMGR_TC
	__u64 departure_ns = (__u64)from / TICKS_PER_NS;

	/* A socket may have paced itself already (SO_TXTIME, TCP): the later moment holds. */
	if (skb->tstamp < departure_ns)
		skb->tstamp = departure_ns;
	if (wait > (__s64)HORIZON * TICKS_PER_NS / 2)
		bpf_skb_ecn_set_ce(skb);
#endif
	return count(wire, VERDICT_PASS);
}

char LICENSE[] SEC("license") = "GPL";
