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
 * The state is one for all CPUs, and a step of the chain is taken under a lock: without it CPUs that judge at
 * the same moment go on from the same state, and two of them in a tight loop lose 9.7 to 10.7 % of 10, in runs
 * of 3.9 to 5.7 packets instead of 5.
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

struct chain {
	struct bpf_spin_lock lock;
	__u32 state; /* counted from 0 */
	__u64 run;   /* how many packets the run has lost so far */
};

#define STATES_MASK 3
#define FIRST_LOST 2 /* states 3 and 4, counted from 0 */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct chain);
} podmgr_chain SEC(".maps");

static __always_inline __u32 next_state(__u32 state, __u64 draw)
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
	__u64 draw, run;
	__u32 state;

	if (!chain || is_exempt(skb) || is_judged(skb))
		return VERDICT_PASS;
	draw = bpf_get_prandom_u32();
	bpf_spin_lock(&chain->lock);
	run = chain->run;
	state = next_state(chain->state, draw);
	chain->state = state;
	chain->run = state >= FIRST_LOST ? run + 1 : 0;
	bpf_spin_unlock(&chain->lock);

	if (state >= FIRST_LOST && !run)
		add_to_figure(FIGURE_BEGUN, 1);
	if (state < FIRST_LOST && run)
		count_run(run);
	return count(wire_of(skb), state >= FIRST_LOST ? VERDICT_DROP : VERDICT_PASS);
}

char LICENSE[] SEC("license") = "GPL";
