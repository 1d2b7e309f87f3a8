/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Sending a clone of a packet: it leaves through the same interface, and so passes the whole chain anew,
 * within the call that sends it. How the program finds it there is a flag of this CPU, which no other
 * program can clear; what it is stands in cb from there on.
 */
#include "podmgr.h"

/* Of this CPU, and within the call. */
struct anew {
	__u64 is_on_its_way;
	__u64 departure_ns; /* the packet's own stamp, which is lost on the way */
	__u64 container;    /* as is its socket */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct anew);
} podmgr_anew SEC(".maps");

static __always_inline void mark_as_anew(struct __sk_buff *skb, __u32 container, int is_copy)
{
	skb->cb[CB_SENT_ANEW] = SENT_ANEW;
	skb->cb[CB_SCOPE] = scope_mark();
	skb->cb[CB_IS_COPY] = is_copy;
	if (PODMGR_CONTAINER)
		skb->cb[CB_CONTAINER] = container;
}

/* Whether the packet is the clone that this program is just sending. */
static __always_inline int has_come_anew(struct __sk_buff *skb, struct anew *anew, int is_copy)
{
	if (!anew->is_on_its_way)
		return 0;
	anew->is_on_its_way = 0;
	mark_as_anew(skb, anew->container, is_copy);
	skb->tstamp = anew->departure_ns;
	return 1;
}

/* Less than 0 without memory for a clone. */
static __always_inline long send_anew(struct __sk_buff *skb, struct anew *anew)
{
	long error;

	anew->departure_ns = skb->tstamp;
	anew->container = container_of_packet(skb);
	anew->is_on_its_way = 1;
	error = bpf_clone_redirect(skb, skb->ifindex, 0);
	anew->is_on_its_way = 0;
	return error;
}
