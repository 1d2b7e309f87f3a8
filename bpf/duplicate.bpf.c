// SPDX-License-Identifier: GPL-2.0-only
/*
 * duplicate: of each packet there is a second copy with the same probability, independently of all others.
 *
 * A uniform 32-bit draw below THRESHOLD makes it, so P(copy) = THRESHOLD / 2^32, exactly. A GSO packet is
 * one draw and one copy, as with netem.
 *
 * The copy leaves just before the packet. It passes the chain anew, in which everything behind this program
 * judges it by itself, so that each is delayed on its own; loss and corrupt, which stand before, pass it.
 * So does this program: nothing is copied twice. It has no socket, the packet keeps its own.
 */
#ifndef PODMGR_TC
#define PODMGR_TC 1 /* it cannot act at the cgroup hook */
#endif
#define PODMGR_FIGURES 1 /* copies */
#include "anew.h"

#ifndef THRESHOLD /* 0 .. 4294967296 = 2^32: copies all */
#define THRESHOLD 0ULL
#endif

_Static_assert(THRESHOLD <= 1ULL << 32, "THRESHOLD is out of 2^32");

/* What stands in cb meanwhile is for programs before this one; the packet's own comes back. */
static __always_inline long send_copy(struct __sk_buff *skb, struct anew *anew)
{
	__u32 sent_anew = skb->cb[CB_SENT_ANEW], scope = skb->cb[CB_SCOPE], is_copy = skb->cb[CB_IS_COPY];
	__u32 container = PODMGR_CONTAINER ? skb->cb[CB_CONTAINER] : 0;
	long error;

	mark_as_anew(skb, container_of_packet(skb), 1);
	error = send_anew(skb, anew);
	skb->cb[CB_SENT_ANEW] = sent_anew;
	skb->cb[CB_SCOPE] = scope;
	skb->cb[CB_IS_COPY] = is_copy;
	if (PODMGR_CONTAINER)
		skb->cb[CB_CONTAINER] = container;
	return error;
}

SEC(PODMGR_SECTION)
int podmgr_duplicate(struct __sk_buff *skb)
{
	__u32 key = 0;
	struct anew *anew = bpf_map_lookup_elem(&podmgr_anew, &key);
	struct wire wire;

	if (!anew || has_come_anew(skb, anew, 1) || is_exempt(skb) || is_copy(skb))
		return VERDICT_PASS;
	wire = wire_of(skb);
	if ((__u64)bpf_get_prandom_u32() < THRESHOLD && (PODMGR_SHADOW || send_copy(skb, anew) >= 0))
		add_to_figure(0, wire.packets);
	return count(wire, VERDICT_PASS);
}

char LICENSE[] SEC("license") = "GPL";
