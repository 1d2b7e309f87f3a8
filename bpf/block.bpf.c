// SPDX-License-Identifier: GPL-2.0-only
/*
 * block: nothing passes in this direction, or with ONLY_NEW nothing that begins.
 *
 * REPLY says what the sender is told: nothing, as if the network had lost it; a RST, so that TCP fails at once;
 * or by ICMP that an administrator forbids it. What is not TCP is never answered by a RST. Never answered are
 * RSTs, errors of ICMP, what goes to a group, and later fragments.
 *
 * With CUTS what is sent in an open connection ends it: a RST goes to both ends, in each other's name. It goes
 * again when the sender has acknowledged more since, or after AGAIN_NS, and to the other end if it goes on: the
 * first came too late then. RSTs that the ends themselves send in a connection that was cut pass.
 *
 * With ONLY_NEW a SYN without ACK is blocked, and no other packet of TCP. Datagrams and pings are blocked in
 * flows of which nothing has been seen going the other way since the program was attached. Protocols without
 * ports are a flow for each pair of addresses. Other ICMP, and later fragments, pass: they begin nothing.
 *
 * For both, podmgr also attaches it to the other side of the interface, behind what blocks there, with
 * CLASS_WATCHES as the class of its filter, see freeing.h. The last MOST_FLOWS flows are known.
 */
#ifndef REPLY /* 0: none, 1: rst, 2: icmp */
#define REPLY 0
#endif
#ifndef ONLY_NEW /* 1, or 0: whatever it is */
#define ONLY_NEW 0
#endif
#ifndef CUTS /* 1, or 0: open connections are left to find out */
#define CUTS 0
#endif
#define PODMGR_FIGURES 3 /* RSTs, ICMPs, connections cut */
#include "answer.h"

#define MOST_FLOWS 4096 /* 128 bytes each */
#define AGAIN_NS (100 * 1000000ULL)
#define CLASS_WATCHES 2

enum { NONE, RST_OF_TCP, UNREACHABLE };
enum { RSTS, ICMPS, CUT };

_Static_assert(REPLY >= NONE && REPLY <= UNREACHABLE, "REPLY is 0, 1 or 2");
_Static_assert(!(ONLY_NEW && CUTS), "what is cut is not new");
_Static_assert(PODMGR_TC || !(REPLY || ONLY_NEW || CUTS), "the cgroup hook knows silence alone");

#if ONLY_NEW || CUTS
struct flow {
	__be32 local[4];
	__be32 remote[4];
	__be16 local_port;
	__be16 remote_port;
	__u32 protocol;
};

struct cut {
	__u64 at_ns;
	__u64 acknowledged;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MOST_FLOWS);
	__type(key, struct flow);
	__type(value, struct cut); /* 0 if it was only seen */
} podmgr_flows SEC(".maps");

/* That the packet is of. */
static __always_inline void name_flow(const struct inside *at, const struct ends *ends, struct flow *flow)
{
	int leaves = ends->leaves;

	__builtin_memset(flow, 0, sizeof(*flow));
	__builtin_memcpy(flow->local, leaves ? ends->sender : ends->receiver, 16);
	__builtin_memcpy(flow->remote, leaves ? ends->receiver : ends->sender, 16);
	flow->local_port = leaves ? ends->sender_port : ends->receiver_port;
	flow->remote_port = leaves ? ends->receiver_port : ends->sender_port;
	flow->protocol = at->protocol;
}
#endif

#if ONLY_NEW
static __always_inline int has_ports(__u32 protocol)
{
	return protocol == IPPROTO_UDP || protocol == IPPROTO_UDPLITE || protocol == IPPROTO_SCTP ||
	       protocol == IPPROTO_DCCP;
}

/*
 * The flow of what is not TCP. A ping's number stands for its ports.
 * 0: it is none that could begin something.
 */
static __always_inline int find_flow(struct __sk_buff *skb, const struct inside *at, struct ends *ends,
				     struct flow *flow)
{
	__u8 icmp[6] = {};

	if (at->is_later_fragment)
		return 0;
	if (has_ports(at->protocol)) {
		bpf_skb_load_bytes(skb, at->transport, &ends->sender_port, 4);
	} else if (at->protocol == (at->is_ipv6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP)) {
		bpf_skb_load_bytes(skb, at->transport, icmp, sizeof(icmp));
		if (at->is_ipv6 ? icmp[0] != 128 && icmp[0] != 129 : icmp[0] != 8 && icmp[0] != 0)
			return 0;
		__builtin_memcpy(&ends->sender_port, icmp + 4, 2);
		ends->receiver_port = ends->sender_port;
	}
	name_flow(at, ends, flow);
	return 1;
}

static __always_inline int begins(struct __sk_buff *skb, const struct inside *at, struct ends *ends)
{
	struct flow flow;

	if (at->protocol == IPPROTO_TCP)
		return !at->is_later_fragment && (ends->flags & (SYN | ACK)) == SYN;
	return find_flow(skb, at, ends, &flow) && !bpf_map_lookup_elem(&podmgr_flows, &flow);
}

/* What goes the other way: an answer to it begins nothing. */
static __always_inline int watch(struct __sk_buff *skb)
{
	struct inside at = {};
	struct ends ends = {};
	struct flow flow;
	struct cut seen = {};

	if (!is_ip(skb) || look_inside(skb, &at) || at.protocol == IPPROTO_TCP ||
	    read_ends(skb, &at, !DIRECTION_EGRESS, &ends))
		return VERDICT_PASS;
	if (find_flow(skb, &at, &ends, &flow) && !bpf_map_lookup_elem(&podmgr_flows, &flow))
		bpf_map_update_elem(&podmgr_flows, &flow, &seen, BPF_ANY);
	return VERDICT_PASS;
}
#endif

#if CUTS
/* Whether the connection goes on though it was cut, or is to be cut now. */
static __always_inline int is_to_cut(const struct flow *flow, const struct ends *ends)
{
	struct cut cut = { .at_ns = bpf_ktime_get_ns(), .acknowledged = ends->acknowledged };
	struct cut *before = bpf_map_lookup_elem(&podmgr_flows, flow);

	if (before && before->acknowledged == cut.acknowledged && cut.at_ns - before->at_ns < AGAIN_NS)
		return 0;
	if (!before)
		add_to_figure(CUT, 1);
	bpf_map_update_elem(&podmgr_flows, flow, &cut, BPF_ANY);
	return 1;
}

/* What goes the other way in a connection that was cut: its RST overtook what this end still waited for. */
static __always_inline int watch(struct __sk_buff *skb)
{
	struct inside at = {};
	struct ends ends = {};
	struct flow flow;

	if (PODMGR_SHADOW || !is_ip(skb) || look_inside(skb, &at) || at.protocol != IPPROTO_TCP ||
	    at.is_later_fragment || read_ends(skb, &at, !DIRECTION_EGRESS, &ends) || ends.flags & RST)
		return VERDICT_PASS;
#if PODMGR_TIMED
	if (!is_in_force(0))
		return VERDICT_PASS;
#endif
	name_flow(&at, &ends, &flow);
	if (ends.flags & SYN) { /* another connection */
		bpf_map_delete_elem(&podmgr_flows, &flow);
		return VERDICT_PASS;
	}
	if (!bpf_map_lookup_elem(&podmgr_flows, &flow))
		return VERDICT_PASS;
	if (!send_rst(skb, &at, &ends, TO_SENDER))
		add_to_figure(RSTS, 1);
	return VERDICT_DROP;
}
#endif

#if REPLY || ONLY_NEW || CUTS
static __always_inline int block(struct __sk_buff *skb)
{
	struct inside inside = {}, *at = &inside;
	struct ends ends = {};
	struct wire wire = wire_of(skb);
	int is_tcp;

	if (look_inside(skb, at) || read_ends(skb, at, DIRECTION_EGRESS, &ends))
		return count(wire, VERDICT_DROP);
#if ONLY_NEW
	if (!begins(skb, at, &ends))
		return count(wire, VERDICT_PASS);
#endif
	is_tcp = at->protocol == IPPROTO_TCP && !at->is_later_fragment;
#if CUTS
	struct flow flow;

	name_flow(at, &ends, &flow);
	if (is_tcp && ends.flags & RST && bpf_map_lookup_elem(&podmgr_flows, &flow))
		return count(wire, VERDICT_PASS);
	if (is_tcp && !(ends.flags & (RST | SYN)) && may_be_answered(at, &ends)) {
		if (is_to_cut(&flow, &ends)) {
			if (PODMGR_SHADOW || !send_rst(skb, at, &ends, TO_RECEIVER))
				add_to_figure(RSTS, 1);
			if (PODMGR_SHADOW || !send_rst(skb, at, &ends, TO_SENDER))
				add_to_figure(RSTS, 1);
		}
		return count(wire, VERDICT_DROP);
	}
#endif
	if (REPLY == NONE || (is_tcp && ends.flags & RST) || !may_be_answered(at, &ends))
		return count(wire, VERDICT_DROP);
	if (REPLY == RST_OF_TCP && is_tcp && (PODMGR_SHADOW || !send_rst(skb, at, &ends, TO_SENDER)))
		add_to_figure(RSTS, 1);
	if (REPLY == UNREACHABLE && !is_icmp_error(skb, at) &&
	    (PODMGR_SHADOW || !send_unreachable(skb, at, &ends)))
		add_to_figure(ICMPS, 1);
	return count(wire, VERDICT_DROP);
}
#else
static __always_inline int block(struct __sk_buff *skb)
{
	return count(wire_of(skb), VERDICT_DROP);
}
#endif

SEC(PODMGR_SECTION)
int podmgr_block(struct __sk_buff *skb)
{
#if ONLY_NEW || CUTS
	if (skb->tc_classid == CLASS_WATCHES)
		return watch(skb);
#endif
	if (is_exempt(skb) || is_judged(skb))
		return VERDICT_PASS;
	return block(skb);
}

char LICENSE[] SEC("license") = "GPL";
