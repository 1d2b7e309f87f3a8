// SPDX-License-Identifier: GPL-2.0
/*
 * bandwidth: a token bucket that drops what exceeds the rate.
 *
 * One bucket for the whole cgroup, shared by all CPUs. It is kept as a moment (the generic cell
 * rate algorithm, ITU-T I.371 annex A): a link of RATE has paid for bytes on the wire until then.
 * How far that moment lies back is the credit; it lies back BURST at most, and a packet passes
 * when it does not move beyond now.
 *
 * The bucket starts with INITIAL bytes only: enough for a connection to begin, too little to
 * show in an average. A packet larger than the bucket is always dropped.
 */
#include "podmgr.h"

#ifndef RATE /* bits per second, 8000 .. 400000000000 */
#define RATE 10000000ULL
#endif
#ifndef BURST /* bytes, at most 100000000000 */
#define BURST 312500ULL
#endif
#ifndef INITIAL /* bytes, at most BURST */
#define INITIAL 12500ULL
#endif

/* Constants, exact: a packet of BURST bytes costs BURST_TICKS at most, and passes. */
#define TICKS_OF(BYTES) \
	((__s64)((unsigned __int128)(BYTES) * (8 * NS_PER_SECOND * TICKS_PER_NS) / RATE))
#define BURST_TICKS TICKS_OF(BURST)
#define INITIAL_TICKS TICKS_OF(INITIAL)

_Static_assert(RATE >= 8000 && RATE <= 400000000000ULL, "RATE is in bits per second, 8000 to 4e11");
_Static_assert(INITIAL <= BURST, "INITIAL is at most BURST");
_Static_assert(BURST > 0 && BURST <= 100000000000ULL, "BURST is too small or too large");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct link);
} podmgr_bucket SEC(".maps");

SEC(PODMGR_SECTION)
int podmgr_bandwidth(struct __sk_buff *skb)
{
	__u32 key = 0;
	struct link *link = bpf_map_lookup_elem(&podmgr_bucket, &key);
	struct wire wire;
	__s64 now, seen, from, ticks;

	if (!link || is_exempt(skb))
		return VERDICT_PASS;
	wire = wire_of(skb);
	ticks = sending_ticks(wire, RATE);
	now = now_ticks();
	seen = taken_until(link);
	if (!seen) { /* the first packet of all */
		seen = now - INITIAL_TICKS;
		set_taken(link, seen);
	}
	from = seen < now - BURST_TICKS ? now - BURST_TICKS : seen;
	if (from + ticks > now)
		return count(wire, VERDICT_DROP);
	take(link, seen, from, ticks);
	return count(wire, VERDICT_PASS);
}

char LICENSE[] SEC("license") = "GPL";
