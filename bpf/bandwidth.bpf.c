// SPDX-License-Identifier: GPL-2.0-only
/*
 * bandwidth: a token bucket that drops what exceeds the rate.
 *
 * One bucket for the whole cgroup, shared by all CPUs. It is kept as a moment (the generic cell
 * rate algorithm, ITU-T I.371 annex A): a link of RATE has paid for bytes on the wire until then.
 * How far that moment lies back is the credit; a packet passes when the credit covers it.
 *
 * Credit is time of the link that nobody used, and there are two kinds of it. While nothing is to
 * be sent it grows to BURST. While TCP waits because a packet of its own was refused, which takes
 * it 200 ms whatever the rate, and while it finds its way back to the rate, which takes seconds, it
 * grows on, to twice STALL: that time was lost to the limit. Without the one a bucket of less than
 * 200 ms of the rate starved every flow; without the other a flow carried 96 % of it. All the same no
 * more has passed at any time than INITIAL or BURST and what the rate makes since the link was idle.
 *
 * A packet that is larger than all the credit there can be passes when there is that much, and is
 * paid for afterwards. The bucket starts with INITIAL bytes only: enough for a connection to begin,
 * too little to show in an average.
 */
#include "podmgr.h"

#ifndef RATE /* bits per second, 8000 .. 400000000000 */
#define RATE 10000000ULL
#endif
#ifndef BURST /* bytes, at most 100000000000 */
#define BURST 156250ULL
#endif
#ifndef INITIAL /* bytes, at most BURST */
#define INITIAL 16000ULL
#endif

/* Constants, exact: a packet of BURST bytes costs BURST_TICKS at most, and passes. */
#define TICKS_OF(BYTES) \
	((__s64)((unsigned __int128)(BYTES) * (8 * NS_PER_SECOND * TICKS_PER_NS) / RATE))
#define BURST_TICKS TICKS_OF(BURST)
#define INITIAL_TICKS TICKS_OF(INITIAL)
#define LARGER(A, B) ((A) > (B) ? (A) : (B))
#define SMALLER(A, B) ((A) < (B) ? (A) : (B))
#define NS_PER_MS 1000000LL
#define STALL_BYTES 49152 /* the same numbers are in podmgr/rules/kinds/bandwidth.py, which tells what they mean */
/* TCP's shortest timeout and some; at low rates what it sends in one packet after a timeout. */
#define STALL_TICKS LARGER((__s64)(250 * NS_PER_MS * TICKS_PER_NS), TICKS_OF(STALL_BYTES))
#define MOST_TICKS LARGER(BURST_TICKS, STALL_TICKS)
/* As long TCP may wait after a refusal; a pause that is longer is none of its waits. */
#define WAITING_TICKS SMALLER(4 * STALL_TICKS, (__s64)(3000 * NS_PER_MS * TICKS_PER_NS))

_Static_assert(RATE >= 8000 && RATE <= 400000000000ULL, "RATE is in bits per second, 8000 to 4e11");
_Static_assert(INITIAL <= BURST, "INITIAL is at most BURST");
_Static_assert(BURST > 0 && BURST <= 100000000000ULL, "BURST is too small or too large");

struct bucket {
	struct clock clock;
	/* When TCP was refused, or has gone on since without a pause; in ticks. Written without a lock:
	 * only its order of magnitude counts. */
	__s64 limited_at;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bucket);
} podmgr_bucket SEC(".maps");

/*
 * Who sends anything else does not wait, and has lost no time. Read in place, which costs less
 * than a helper's call: the headers of TCP lie together. At tc a link header may stand before them.
 */
static __always_inline int is_tcp(struct __sk_buff *skb)
{
	void *start = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u8 *ip = start;
#if PODMGR_TC
	struct ethhdr *link = start;

	if ((void *)(link + 1) > end)
		return 0;
	if (link->h_proto == skb->protocol)
		ip = (__u8 *)(link + 1);
#endif
	if ((void *)(ip + 10) > end)
		return 0;
	return (ip[0] >> 4 == 4 ? ip[9] : ip[6]) == IPPROTO_TCP;
}

SEC(PODMGR_SECTION)
int podmgr_bandwidth(struct __sk_buff *skb)
{
	__u32 key = 0;
	struct bucket *bucket = bpf_map_lookup_elem(&podmgr_bucket, &key);
	struct wire wire;
	__s64 now, since, seen, from, ticks, most = BURST_TICKS, enough = BURST_TICKS;

	if (!bucket || is_exempt(skb))
		return VERDICT_PASS;
	wire = wire_of(skb);
	ticks = sending_ticks(wire, RATE);
	now = now_ticks();
	seen = taken_until(&bucket->clock);
	if (!seen) { /* the first packet of all */
		seen = now - INITIAL_TICKS;
		set_taken(&bucket->clock, seen);
	}
	since = now - bucket->limited_at;
	if (since < WAITING_TICKS) {
		enough = MOST_TICKS;
		most = 2 * MOST_TICKS;
	}
	from = seen < now - most ? now - most : seen;
	if (from + (ticks < enough ? ticks : enough) > now) {
		if (is_tcp(skb))
			bucket->limited_at = now;
		return count(wire, VERDICT_DROP);
	}
	if (since > WAITING_TICKS / 2 && since < WAITING_TICKS && is_tcp(skb))
		bucket->limited_at = now;
	take(&bucket->clock, seen, from, ticks);
	return count(wire, VERDICT_PASS);
}

char LICENSE[] SEC("license") = "GPL";
