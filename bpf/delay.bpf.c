// SPDX-License-Identifier: GPL-2.0-only
/*
 * delay: every packet leaves so much later, through the `fq` qdisc of the interface.
 *
 * It departs TIME after the moment at which it would have left: now, or when a link's rate (edt) or its socket
 * lets it go. With JITTER that time varies: uniformly, or as a table of QUANTILES says.
 *
 * With IS_ORDERED nothing overtakes. The delay is then a function of the moment alone, the same for all flows:
 * the moments are in slots, each slot has a draw, which a hash of its number makes, and what comes right after
 * a longer delay waits until all before it has left. So there is no state that packets or CPUs could disagree
 * about. Without IS_ORDERED each packet has a draw, and a flow of its own in fq, which lets it overtake.
 *
 * What waits is bounded by MOST_BYTES; what is more is dropped.
 */
#ifndef PODMGR_TC
#define PODMGR_TC 1 /* it cannot act at the cgroup hook */
#endif
#ifndef JITTER /* nanoseconds, 0 .. TIME: half the width of uniform, or of what QUANTILES say */
#define JITTER 0ULL
#endif
#define PODMGR_FIGURES (2 + BUCKETS) /* how many delays, their sum in ns, and how many were how long */
#if JITTER
#define BUCKETS 256
#else
#define BUCKETS 0 /* all are alike */
#endif
#include "freeing.h"

#ifndef TIME /* nanoseconds, 1000 .. 10 s: the mean */
#define TIME 100000000ULL
#endif
/* QUANTILES: 1025 numbers, the first and the last the ends; in 4096ths of JITTER above or below TIME */
#ifndef CORRELATION /* of 2^32: how probably a draw is the one before it */
#define CORRELATION 0ULL
#endif
#ifndef IS_ORDERED /* 1, or 0 to let packets overtake each other */
#define IS_ORDERED 1
#endif
#ifndef SLOT_SHIFT /* a slot of IS_ORDERED is 2^SLOT_SHIFT ns: no less than the draws lie apart */
#define SLOT_SHIFT 27
#endif
#ifndef LEAST /* nanoseconds: the shortest draw */
#define LEAST (TIME - JITTER)
#endif
#ifndef MOST /* nanoseconds: the longest draw */
#define MOST (TIME + JITTER)
#endif
#ifndef MOST_BYTES /* that wait, on the wire */
#define MOST_BYTES 125000000ULL
#endif

_Static_assert(TIME >= 1000 && TIME <= 10 * NS_PER_SECOND, "TIME is in nanoseconds, 1000 to 1e10");
_Static_assert(JITTER <= TIME, "JITTER is in nanoseconds, up to TIME");
_Static_assert(CORRELATION < 1ULL << 32, "CORRELATION is out of 2^32");
_Static_assert(LEAST <= TIME && MOST >= TIME && MOST <= 10 * NS_PER_SECOND,
	       "LEAST and MOST are in nanoseconds, TIME lies between, 1e10 is the most");
_Static_assert(MOST_BYTES >= 1 << 20, "MOST_BYTES is 1 MiB at least");

#define MOST_RUN 64 /* slots that have the same draw */

struct state {
	struct clock clock; /* of what waits */
	__u64 seed;	    /* of the draws of slots: chosen once */
	__u64 last;	    /* draw of a packet, and 2^32; 0: there was none */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct state);
} podmgr_delay SEC(".maps");

#ifdef QUANTILES
#define STEPS 1024
static const __s16 quantiles[STEPS + 1] = { QUANTILES };

static __always_inline __u64 delay_of(__u32 draw)
{
	__u32 step = draw >> 22, part = draw >> 6 & 0xffff;
	__s64 low = quantiles[step], high = quantiles[step + 1];
	__s64 delay_ns = (__s64)TIME + (((low << 16) + (high - low) * part) * (__s64)JITTER >> 28);

	return delay_ns < 0 ? 0 : delay_ns;
}
#else
static __always_inline __u64 delay_of(__u32 draw)
{
	return TIME - JITTER + ((__u64)(draw >> 2) * (2 * JITTER) >> 30);
}
#endif

static __always_inline void count_delay(__u64 delay_ns)
{
	add_to_figure(0, 1);
	add_to_figure(1, delay_ns);
#if BUCKETS
	/* So wide that all hold what lies between LEAST and MOST; the same is in rules/kinds/delay.py. */
	__u64 bucket = (delay_ns - LEAST) >> (64 - __builtin_clzll((MOST - LEAST) / BUCKETS | 1));

	if (delay_ns >= LEAST && bucket < BUCKETS)
		add_to_figure(2 + bucket, 1);
#endif
}

/* The finalizer of splitmix64: all bits depend on all bits. */
static __always_inline __u64 hash(__u64 number)
{
	number = (number ^ (number >> 30)) * 0xbf58476d1ce4e5b9ULL;
	number = (number ^ (number >> 27)) * 0x94d049bb133111ebULL;
	return number ^ (number >> 31);
}

/* The delay of a slot: by a draw of its own, or with CORRELATION by that of the slot before. */
static __always_inline __u64 delay_of_slot(__u64 seed, __u64 slot)
{
	__u64 number = hash(seed + slot * 0x9e3779b97f4a7c15ULL);

	for (int i = 1; CORRELATION && i < MOST_RUN && (number & 0xffffffff) < CORRELATION; i++)
		number = hash(seed + (slot - i) * 0x9e3779b97f4a7c15ULL);
	return delay_of(number >> 32);
}

/* When what would have left at a moment departs: never before what would have left earlier. */
static __always_inline __u64 in_order(struct state *state, __u64 moment_ns)
{
	__u64 slot = moment_ns >> SLOT_SHIFT, departure_ns, earliest_ns, seed;

	seed = *(volatile __u64 *)&state->seed;
	if (!seed) { /* whichever CPU is last, they agree from then on */
		seed = (__u64)bpf_get_prandom_u32() << 32 | 1;
		state->seed = seed;
	}
	departure_ns = moment_ns + delay_of_slot(seed, slot);
	earliest_ns = (slot << SLOT_SHIFT) + delay_of_slot(seed, slot - 1);
	return departure_ns < earliest_ns ? earliest_ns : departure_ns;
}

static __always_inline __u64 out_of_order(struct __sk_buff *skb, struct state *state, __u64 moment_ns)
{
	__u32 draw = bpf_get_prandom_u32();

	if (CORRELATION) {
		__u64 last = *(volatile __u64 *)&state->last;

		if (last && bpf_get_prandom_u32() < CORRELATION)
			draw = last;
		state->last = draw | 1ULL << 32;
	}
	if (!PODMGR_SHADOW)
		bpf_set_hash(skb, bpf_get_prandom_u32()); /* fq wakes no flow for a packet that overtakes */
	return moment_ns + delay_of(draw);
}

SEC(PODMGR_SECTION)
int podmgr_delay_packets(struct __sk_buff *skb)
{
	__u32 key = 0;
	struct state *state;
	struct wire wire;
	__u64 moment_ns, departure_ns, now_ns;

	if (is_to_free(skb))
		return free_from_socket(skb);
	state = bpf_map_lookup_elem(&podmgr_delay, &key);
	if (!state || is_exempt(skb))
		return VERDICT_PASS;
	wire = wire_of(skb);
	now_ns = bpf_ktime_get_ns();
	if (!may_wait(&state->clock, wire, now_ns, MOST_BYTES, MOST))
		return count(wire, VERDICT_DROP);

	moment_ns = skb->tstamp > now_ns ? skb->tstamp : now_ns;
	if (!JITTER)
		departure_ns = moment_ns + TIME;
	else if (IS_ORDERED)
		departure_ns = in_order(state, moment_ns);
	else
		departure_ns = out_of_order(skb, state, moment_ns);
	if (!PODMGR_SHADOW) {
		skb->tstamp = departure_ns;
		wait_in_fq(skb);
	}
	count_delay(departure_ns - moment_ns);
	return count(wire, VERDICT_PASS);
}

char LICENSE[] SEC("license") = "GPL";
