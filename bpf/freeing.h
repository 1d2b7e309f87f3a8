/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Packets that wait long must wait on nobody's account. What a qdisc holds is charged to its socket, so
 * that TCP's small queues and SO_SNDBUF stop the sender: 0.45 Mbit/s at 100 ms, where netem has 211. A
 * clone has no socket; it is sent in the place of the packet, which is gone with that.
 *
 * The clone passes the chain anew, so this must be its first filter: a program before it would see each
 * packet twice. podmgr attaches a program that frees twice to each interface, as the first filter and in
 * its own place. The class of a filter, which the kernel copies into tc_classid, says which of the two
 * runs.
 */
#include "anew.h"

#define CLASS_FREES 1

static __always_inline int is_to_free(struct __sk_buff *skb)
{
	return skb->tc_classid == CLASS_FREES;
}

/*
 * The verdict of the first filter. A packet without a socket, such as one that was routed, needs no clone,
 * so none goes round. What the clone is stands in cb from here on, whatever others before us make of that.
 */
static __always_inline int free_from_socket(struct __sk_buff *skb)
{
	__u32 key = 0;
	struct anew *anew = bpf_map_lookup_elem(&podmgr_anew, &key);

	if (!anew || has_come_anew(skb, anew, 0) || !skb->sk || is_exempt(skb))
		return VERDICT_PASS;
	return send_anew(skb, anew) < 0 ? VERDICT_PASS : VERDICT_DROP; /* without a clone it waits as it is */
}

/*
 * What waits is bounded, since nobody's socket pays for it: `most_bytes` on the wire, of which half may
 * come at once, and the other half while `longest_ns` go by. Whether there is room for this packet, which
 * then is taken.
 */
static __always_inline int may_wait(struct clock *clock, struct wire wire, __u64 now_ns,
				    const __u64 most_bytes, const __u64 longest_ns)
{
	const __s64 credit = (__s64)longest_ns * TICKS_PER_NS;
	__s64 seen = taken_until(clock), from = (__s64)now_ns * TICKS_PER_NS - credit;

	if (seen > from + credit)
		return 0;
	take(clock, seen, seen < from ? from : seen,
	     sending_ticks(wire, most_bytes / 2 * 8 * NS_PER_SECOND / longest_ns));
	return 1;
}
