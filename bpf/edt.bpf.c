// SPDX-License-Identifier: GPL-2.0-only
/*
 * edt: earliest departure time. Delays instead of dropping.
 *
 * Every packet is stamped with the moment at which the one before it has left a link of RATE;
 * the `fq` qdisc of the interface then holds it until that moment. Without fq a stamp changes
 * nothing, so podmgr attaches this program only where fq is. A packet that would have to wait
 * longer than HORIZON is dropped; one of a flow that understands ECN is marked as having met
 * congestion when it waits half as long, so that its sender slows down before that.
 *
 * A socket may have stamped the packet already (SO_TXTIME, or TCP that paces itself): the later moment
 * holds. The link's time is booked from now on all the same, so that nobody else waits for it. Packets
 * with stamps later than that would leave in one burst: each flow that has some has a clock of its own,
 * which keeps them apart by the link's rate. What that clock makes later by more than HORIZON is dropped.
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

#define IS_STAMPED (DIRECTION_EGRESS || PODMGR_TC) /* what reaches a cgroup waits nowhere any more */

#if IS_STAMPED
#define MOST_FLOWS 1024 /* with a clock: what has not sent for longest loses its own */
#define MOST_AHEAD_NS (60 * NS_PER_SECOND) /* a stamp later than that is fq's to refuse */

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MOST_FLOWS);
	__type(key, __u64);
	__type(value, struct clock);
} podmgr_flows SEC(".maps");

/* At tc a packet may have no socket any more; at the cgroup hook it may have no hash yet. */
static __always_inline __u64 flow_of(struct __sk_buff *skb)
{
#if PODMGR_TC
	return bpf_get_hash_recalc(skb);
#else
	return bpf_get_socket_cookie(skb);
#endif
}

static __always_inline __s64 later(__s64 one, __s64 other)
{
	return one < other ? other : one;
}

/*
 * When a packet departs, in nanoseconds, that the link would let go at a moment, and takes so many ticks
 * to send; 0: it may not. A flow whose stamps are no later than that has no clock, and needs none.
 */
static __always_inline __u64 departure_ns(struct __sk_buff *skb, __s64 now, __s64 link, __s64 ticks)
{
	__u64 stamp_ns = skb->tstamp, now_ns = (__u64)now / TICKS_PER_NS;
	__s64 wished, seen, from;
	struct clock *clock;
	__u64 flow;

	if (stamp_ns <= now_ns)
		return (__u64)link / TICKS_PER_NS;
	if (stamp_ns > now_ns + MOST_AHEAD_NS)
		return stamp_ns;
	wished = later(link, stamp_ns * TICKS_PER_NS);
	flow = flow_of(skb);
	clock = bpf_map_lookup_elem(&podmgr_flows, &flow);
	if (clock) {
		seen = taken_until(clock);
		from = later(wished, seen);
		if (from - wished > (__s64)HORIZON * TICKS_PER_NS)
			return 0;
		take(clock, seen, from, ticks);
		return (__u64)from / TICKS_PER_NS;
	}
	if (wished > link) {
		struct clock begun = { .taken_until = wished + ticks };

		bpf_map_update_elem(&podmgr_flows, &flow, &begun, BPF_ANY);
	}
	return (__u64)wished / TICKS_PER_NS;
}
#endif

SEC(PODMGR_SECTION)
int podmgr_edt(struct __sk_buff *skb)
{
	__u32 key = 0;
	struct clock *clock = bpf_map_lookup_elem(&podmgr_clock, &key);
	struct wire wire;
	__s64 now, seen, from, wait, ticks;

	if (!clock || is_exempt(skb))
		return VERDICT_PASS;
	wire = wire_of(skb);
	ticks = sending_ticks(wire, RATE);
	now = now_ticks();
	seen = taken_until(clock);
	from = seen < now ? now : seen;
	wait = from - now;
	if (wait > (__s64)HORIZON * TICKS_PER_NS)
		return count(wire, VERDICT_DROP);

#if IS_STAMPED
	__u64 departure = departure_ns(skb, now, from, ticks);

	if (!departure)
		return count(wire, VERDICT_DROP);
	if (!PODMGR_SHADOW) {
		skb->tstamp = departure;
		wait_in_fq(skb);
		if (wait > (__s64)HORIZON * TICKS_PER_NS / 2)
			bpf_skb_ecn_set_ce(skb);
	}
#endif
	take(clock, seen, from, ticks);
	return count(wire, VERDICT_PASS);
}

char LICENSE[] SEC("license") = "GPL";
