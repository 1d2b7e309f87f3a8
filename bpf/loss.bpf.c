// SPDX-License-Identifier: GPL-2.0-only
/*
 * loss: every packet is dropped with the same probability, independently of all others.
 *
 * A uniform 32-bit draw below THRESHOLD drops, so P(drop) = THRESHOLD / 2^32, exactly. Both
 * distributions of the `loss` annotation come down to this constant. A GSO packet is one draw,
 * as with netem.
 */
#include "podmgr.h"

#ifndef THRESHOLD /* 0 .. 4294967296 = 2^32: drops all */
#define THRESHOLD 0ULL
#endif

_Static_assert(THRESHOLD <= 1ULL << 32, "THRESHOLD is out of 2^32");

SEC(PODMGR_SECTION)
int podmgr_loss(struct __sk_buff *skb)
{
	if (is_exempt(skb) || is_judged(skb))
		return VERDICT_PASS;
	return count(wire_of(skb),
		     (__u64)bpf_get_prandom_u32() < THRESHOLD ? VERDICT_DROP : VERDICT_PASS);
}

char LICENSE[] SEC("license") = "GPL";
