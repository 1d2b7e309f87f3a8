/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Packets that wait long must wait on nobody's account. What a qdisc holds is charged to its socket, so
 * that TCP's small queues and SO_SNDBUF stop the sender: 0.45 Mbit/s at 100 ms, where netem has 211. A clone
 * has no socket; it is sent in the place of the packet, which is gone with that.
 *
 * The clone passes the chain anew, so this must be its first filter: a program before it would see each packet
 * twice. podmgr attaches a program that frees twice to each interface, as the first filter and in its own
 * place. The class of a filter, which the kernel copies into tc_classid, says which of the two runs.
 */
#include "podmgr.h"

#define CLASS_FREES 1

/* How a packet fares that is being sent anew: on this CPU, and within the call that sends it. */
struct freeing {
	__u64 is_on_its_way;
	__u64 departure_ns; /* its socket's own stamp, which is lost on the way */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct freeing);
} podmgr_freeing SEC(".maps");

static __always_inline int is_to_free(struct __sk_buff *skb)
{
	return skb->tc_classid == CLASS_FREES;
}

/*
 * The verdict of the first filter. A packet without a socket, such as one that was routed, needs no clone, so
 * none goes round. What the clone is stands in cb from here on, whatever others before us make of that.
 */
static __always_inline int free_from_socket(struct __sk_buff *skb)
{
	__u32 key = 0;
	struct freeing *freeing = bpf_map_lookup_elem(&podmgr_freeing, &key);
	long error;

	if (!freeing)
		return VERDICT_PASS;
	if (freeing->is_on_its_way) {
		freeing->is_on_its_way = 0;
		skb->cb[CB_SENT_ANEW] = SENT_ANEW;
		skb->cb[CB_SCOPE] = scope_mark();
		skb->cb[CB_IS_COPY] = 0;
		skb->tstamp = freeing->departure_ns;
		return VERDICT_PASS;
	}
	if (!skb->sk || is_exempt(skb))
		return VERDICT_PASS;
	freeing->departure_ns = skb->tstamp;
	freeing->is_on_its_way = 1;
	error = bpf_clone_redirect(skb, skb->ifindex, 0);
	freeing->is_on_its_way = 0;
	return error < 0 ? VERDICT_PASS : VERDICT_DROP; /* without memory for a clone it waits as it is */
}
