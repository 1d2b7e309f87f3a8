// SPDX-License-Identifier: GPL-2.0-only
/*
 * burst: packets are lost in runs, by a Markov chain of four states: netem's, with its numbers.
 *
 *   1  received, in a gap        3  lost, in a burst
 *   2  received, in a burst      4  lost, in a gap: an isolated loss
 *
 * Each packet first moves the chain on, by one uniform 32-bit draw, and is then lost or not as the new state
 * says, as in netem's four states. PIJ of 2^32 draws lead from state I to state J, and the rest leaves it
 * where it is. The chain begins in state 1, as netem's does. Gilbert's model is states 1 and 3 alone. Of
 * Gilbert-Elliott's, 1 and 4 are the good state, 2 and 3 the bad one, each without and with a loss. A GSO
 * packet is one packet, as with netem.
 *
 * The state is one word for all CPUs, without a lock, read once and stored once. CPUs that judge at the same
 * moment go on from the same state, and of what they store the last stays: each of these packets is lost as
 * probably as that state says, but what the others made of the chain is forgotten. So the mean loss stays,
 * and a run may be a packet longer or shorter, and be counted as begun twice: two CPUs in a tight loop count
 * runs of up to 5.06 packets instead of 5. For the mean it matters that a state is stored also where it
 * stays the same: else only steps that stay would be forgotten, and of lost ones alone, whose count changes:
 * 10.18 % instead of 10. Where packets come one after another, on whatever CPUs, nothing is forgotten.
 */
#define LONGEST 16
#define PODMGR_FIGURES (1 + LONGEST + 1) /* see below */
#include "podmgr.h"

#define ALL (1ULL << 32)

/* From a state to another, each 0 .. 4294967296 = 2^32, and of one state no more together. */
#ifndef P12
#define P12 0ULL
#endif
#ifndef P13
#define P13 0ULL
#endif
#ifndef P14
#define P14 0ULL
#endif
#ifndef P21
#define P21 0ULL
#endif
#ifndef P23
#define P23 0ULL
#endif
#ifndef P24
#define P24 0ULL
#endif
#ifndef P31
#define P31 0ULL
#endif
#ifndef P32
#define P32 0ULL
#endif
#ifndef P34
#define P34 0ULL
#endif
#ifndef P41
#define P41 0ULL
#endif
#ifndef P42
#define P42 0ULL
#endif
#ifndef P43
#define P43 0ULL
#endif

#define IS_ROW(one, other, third) \
	((one) <= ALL && (other) <= ALL && (third) <= ALL && (one) + (other) + (third) <= ALL)
_Static_assert(IS_ROW(P12, P13, P14), "P12, P13 and P14 are out of 2^32 together");
_Static_assert(IS_ROW(P21, P23, P24), "P21, P23 and P24 are out of 2^32 together");
_Static_assert(IS_ROW(P31, P32, P34), "P31, P32 and P34 are out of 2^32 together");
_Static_assert(IS_ROW(P41, P42, P43), "P41, P42 and P43 are out of 2^32 together");

/* Where the draws end that lead to states 1, 2 and 3; what is beyond leads to 4. */
#define ENDS(to_1, to_2, to_3) { to_1, (to_1) + (to_2), (to_1) + (to_2) + (to_3) }
static const __u64 ends[4][3] = {
	ENDS(ALL - P12 - P13 - P14, P12, P13),
	ENDS(P21, ALL - P21 - P23 - P24, P23),
	ENDS(P31, P32, ALL - P31 - P32 - P34),
	ENDS(P41, P42, P43),
};

/* In one word, which is stored whole. */
struct chain {
	__u64 place; /* the state, counted from 0, and above STATE_BITS how many packets the run has lost so far */
};

#define STATE_BITS 2
#define STATES_MASK 3
#define FIRST_LOST 2 /* states 3 and 4, counted from 0 */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct chain);
} podmgr_chain SEC(".maps");

static __always_inline __u64 next_state(__u64 state, __u64 draw)
{
	const __u64 *end = ends[state & STATES_MASK];

	return (draw >= end[0]) + (draw >= end[1]) + (draw >= end[2]);
}

/* Runs begun; of those that have ended, how many were of 1, 2 ... LONGEST packets and more; what they lost. */
enum { FIGURE_BEGUN, FIGURE_SHORTEST, FIGURE_LOST = FIGURE_SHORTEST + LONGEST };

static __always_inline void count_run(__u64 length)
{
	add_to_figure(FIGURE_SHORTEST + (length < LONGEST ? length : LONGEST) - 1, 1);
	add_to_figure(FIGURE_LOST, length);
}

SEC(PODMGR_SECTION)
int podmgr_burst(struct __sk_buff *skb)
{
	__u32 key = 0;
	struct chain *chain = bpf_map_lookup_elem(&podmgr_chain, &key);
	__u64 seen, state, run;

	if (!chain || is_exempt(skb) || is_judged(skb))
		return VERDICT_PASS;
	seen = *(volatile __u64 *)&chain->place;
	run = seen >> STATE_BITS;
	state = next_state(seen, bpf_get_prandom_u32());
	if (state >= FIRST_LOST) {
		if (!run++)
			add_to_figure(FIGURE_BEGUN, 1);
	} else if (run) {
		count_run(run);
		run = 0;
	}
	*(volatile __u64 *)&chain->place = run << STATE_BITS | state;
	return count(wire_of(skb), state >= FIRST_LOST ? VERDICT_DROP : VERDICT_PASS);
}

char LICENSE[] SEC("license") = "GPL";
