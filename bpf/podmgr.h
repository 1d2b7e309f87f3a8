/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What every podmgr program shares: verdicts, the size of a packet on the wire, counters, and
 * whose packets a rule is about. For programs at either hook: SEC(PODMGR_SECTION).
 *
 * podmgr sets, for every program and before this header is read:
 *   INTERFACE         "egress" (leaves the pod) or "ingress" (reaches the pod)
 *   DIRECTION_EGRESS  1 or 0, the same for the preprocessor
 *   PODMGR_LOOPBACK   1 if packets on the loopback interface count, else 0
 *   PODMGR_SCOPED     1 if the target shares its interfaces with others, else 0
 *   PODMGR_TC         1 for a program in SEC("tc"), else 0
 *   PODMGR_MATCH      1 if the rule is about some packets only, or another hides it for some, else 0
 *   PODMGR_CONTAINER  how deep the cgroups of containers lie, if a rule of the pod names one, else 0
 *   PODMGR_TIMED      1 if the rule is not always in force, else 0
 *   PODMGR_SHADOW     1 if the program only counts what it would do, else 0
 */
#ifndef PODMGR_H
#define PODMGR_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Defaults, so that a program also compiles by hand: clang -O2 -g -target bpf -c loss.bpf.c */
#ifndef INTERFACE
#define INTERFACE "egress"
#define DIRECTION_EGRESS 1
#endif
#ifndef PODMGR_LOOPBACK
#define PODMGR_LOOPBACK 1
#endif
#ifndef PODMGR_SCOPED
#define PODMGR_SCOPED 0
#endif
#ifndef PODMGR_TC
#define PODMGR_TC 0
#endif
#ifndef PODMGR_MATCH
#define PODMGR_MATCH 0
#endif
#ifndef PODMGR_CONTAINER
#define PODMGR_CONTAINER 0
#endif
#ifndef PODMGR_TIMED
#define PODMGR_TIMED 0
#endif
#ifndef PODMGR_SHADOW
#define PODMGR_SHADOW 0
#endif

/*
 * A program that keeps numbers of what it has done, beside how many packets passed, sets how many before
 * this header is read. What each means, the file of its kind says (podmgr/rules/kinds).
 */
#ifndef PODMGR_FIGURES
#define PODMGR_FIGURES 0
#endif

/* A program that acts for several rules sets, before this header is read, how many. */
#ifndef PODMGR_RULES
#define PODMGR_RULES 1
#endif

#if PODMGR_TC
/*
 * Verdicts at tc. OK would end the chain, so that no program behind this one saw the packet.
 * STOLEN takes it away in silence: the sender believes it sent, as with loss on a wire. SHOT
 * would tell a local sender of congestion. In programs of others podmgr makes UNSPEC of every
 * verdict but SHOT, STOLEN and TRAP, see podmgr/programs/verdicts.py.
 */
#define PODMGR_SECTION "tc"
#define VERDICT_PASS TC_ACT_UNSPEC
#define VERDICT_DROP TC_ACT_STOLEN
#define LINK_HEADER_BYTES 0 /* skb->len has it */
#else
/*
 * Verdicts of a cgroup_skb program. At egress, 0 would make the sender's sendto() fail with
 * EPERM; 2 (bit 0 "keep" clear, bit 1 "congestion" set) drops silently for UDP and tells TCP of
 * congestion. At ingress only 0 and 1 exist, and 0 is silent.
 */
#define PODMGR_SECTION "cgroup_skb/" INTERFACE
#define VERDICT_PASS 1
#define VERDICT_DROP (DIRECTION_EGRESS ? 2 : 0)
#define LINK_HEADER_BYTES ETHERNET_HEADER_BYTES
#endif

#define LOOPBACK_IFINDEX 1 /* in every network namespace */
#define ETHERNET_HEADER_BYTES 14
#define MOST_LINK_HEADER_BYTES 32
#define NS_PER_SECOND 1000000000ULL

struct podmgr_counters {
	__u64 passed_packets;
	__u64 passed_bytes;
	__u64 dropped_packets;
	__u64 dropped_bytes;
};

/* The layout that `podmgr list` reads, one row per rule and CPU: the sum of both, or `own` alone. */
struct podmgr_row {
	struct podmgr_counters own;
	__u64 is_busy; /* `own` is being written */
	struct podmgr_counters aside;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PODMGR_RULES);
	__type(key, __u32);
	__type(value, struct podmgr_row);
} podmgr_counters SEC(".maps");

/* Written out because compilers since clang 20 choose an instruction that Linux 5.10 lacks. */
static __always_inline void add_atomically(void *number, __u64 value)
{
	asm volatile("lock *(u64 *)(%0 + 0) += %1" : : "r"(number), "r"(value) : "memory");
}

/* A packet as the wire sees it: a GSO packet is gso_segs packets, each with headers of its own. */
struct wire {
	__u32 packets;
	__u32 bytes;
};

/* The transport header: its protocol, and how many bytes of IP header stand before it. */
struct transport {
	__u8 protocol;
	__u32 offset;
};

/* IPv6 extension headers are taken for the transport: their protocol matches none. */
static __always_inline struct transport transport_of(struct __sk_buff *skb)
{
	__u8 version_ihl = 0;
	struct transport transport = { .protocol = 0, .offset = 40 };
	__u32 protocol_offset = 6;

	bpf_skb_load_bytes_relative(skb, 0, &version_ihl, 1, BPF_HDR_START_NET);
	if (version_ihl >> 4 == 4) {
		transport.offset = (version_ihl & 0x0f) * 4;
		protocol_offset = 9;
	}
	bpf_skb_load_bytes_relative(skb, protocol_offset, &transport.protocol, 1,
				    BPF_HDR_START_NET);
	return transport;
}

/* Of what is rare, see below: IP options, UDP without payload in front. */
static __always_inline __u32 odd_header_bytes(struct __sk_buff *skb)
{
	struct transport transport = transport_of(skb);
	__u8 data_offset = 0;

	if (transport.protocol != IPPROTO_TCP)
		return transport.offset + 8; /* UDP segmentation offload */
	bpf_skb_load_bytes_relative(skb, transport.offset + 12, &data_offset, 1,
				    BPF_HDR_START_NET);
	return transport.offset + (data_offset >> 4) * 4;
}

/*
 * Bytes of the IP and transport header at the front of each segment of a GSO packet, by one load
 * where byte by byte there would be three. It ends at the byte of TCP that tells its header's length,
 * behind an IPv4 header without options: only headers can be loaded so, payload lies elsewhere.
 */
static __always_inline __u32 segment_header_bytes(struct __sk_buff *skb)
{
	__u8 header[20 + 13], data_offset = 0;

	if (bpf_skb_load_bytes_relative(skb, 0, header, sizeof(header), BPF_HDR_START_NET))
		return odd_header_bytes(skb);
	if (header[0] == 0x45)
		return header[9] == IPPROTO_TCP ? 20 + (header[20 + 12] >> 4) * 4 : 20 + 8;
	if (header[0] >> 4 != 6)
		return odd_header_bytes(skb);
	if (header[6] != IPPROTO_TCP)
		return 40 + 8;
	bpf_skb_load_bytes_relative(skb, 40 + 12, &data_offset, 1, BPF_HDR_START_NET);
	return 40 + (data_offset >> 4) * 4;
}

#if PODMGR_TC && !DIRECTION_EGRESS
/* What stands before IP: nothing on a tun device or WireGuard, a VLAN's tag too on others. */
static __always_inline __u32 link_header_bytes(struct __sk_buff *skb)
{
	__u8 header[6];
	__u32 bytes;

	if (bpf_skb_load_bytes_relative(skb, 0, header, sizeof(header), BPF_HDR_START_NET))
		return ETHERNET_HEADER_BYTES;
	if (header[0] >> 4 == 4)
		bytes = skb->len - (header[2] << 8 | header[3]);
	else
		bytes = skb->len - 40 - (header[4] << 8 | header[5]);
	/* what is larger than 64 KiB says that its length is 0 */
	return bytes <= MOST_LINK_HEADER_BYTES ? bytes : ETHERNET_HEADER_BYTES;
}
#else
static __always_inline __u32 link_header_bytes(struct __sk_buff *skb)
{
	(void)skb;
	return ETHERNET_HEADER_BYTES;
}
#endif

/*
 * A GSO packet that comes from a virtual machine does not say how many packets it is, only how large
 * their payload is. At tc egress the kernel has made the sum, for the link header that the device has.
 * Datagrams above the MTU count as one: at the cgroup hook they are not yet in fragments.
 */
static __always_inline struct wire wire_of(struct __sk_buff *skb)
{
	struct wire wire = { .packets = 1, .bytes = LINK_HEADER_BYTES + skb->len };
	__u32 segments = skb->gso_segs, payload = skb->gso_size;

	if (segments > 1 || payload) {
		__u32 link = link_header_bytes(skb), headers = segment_header_bytes(skb);
		__u32 first = (PODMGR_TC ? link : 0) + headers;

		if (!segments)
			segments = skb->len > first ? (skb->len - first + payload - 1) / payload : 1;
		wire.packets = segments;
		wire.bytes += (segments - 1) * (link + headers);
	}
#if PODMGR_TC && DIRECTION_EGRESS
	wire.bytes = skb->wire_len;
#endif
	return wire;
}

/*
 * Time on a link of some rate is kept in ticks, sixteenths of a nanosecond: at 400 Gbit/s a full
 * frame takes 30 ns. Seconds since boot fill 2^63 of them in 18 years.
 */
#define TICKS_PER_NS 16

static __always_inline __s64 now_ticks(void)
{
	return bpf_ktime_get_ns() * TICKS_PER_NS;
}

/*
 * How long a link of so many bits per second (a constant) sends a packet: without a division at
 * run time, rounded down to a tick, at 400 Gbit/s a thousandth of a full frame.
 */
static __always_inline __s64 sending_ticks(struct wire wire, const __u64 rate)
{
	const __u64 per_byte_q16 = (8 * NS_PER_SECOND * TICKS_PER_NS << 16) / rate;

	return wire.bytes * per_byte_q16 >> 16;
}

/*
 * Until when a link is taken by what it was given, in ticks; 0: by nothing yet. One for all CPUs,
 * without a lock, which costs as much as the rest of a program.
 *
 * Time is taken by an atomic addition, so that none is lost while the link is busy, however many
 * CPUs send at once: each may be a packet too early, and all wait for it afterwards. Only a link
 * that has been idle is set. What is taken between the last look and the store, by another CPU,
 * or on this one if it is interrupted just there, is forgotten: as a rule nothing, rarely a
 * packet, at worst what the link was given meanwhile, a BURST or a HORIZON, once.
 */
struct clock {
	__s64 taken_until;
};

static __always_inline __s64 taken_until(const struct clock *clock)
{
	return *(const volatile __s64 *)&clock->taken_until;
}

static __always_inline void set_taken(struct clock *clock, __s64 until)
{
	*(volatile __s64 *)&clock->taken_until = until;
}

/* `seen` is what taken_until() returned, `from` when the packet's time begins. */
static __always_inline void take(struct clock *clock, __s64 seen, __s64 from, __s64 ticks)
{
	if (from == seen || taken_until(clock) != seen)
		add_atomically(&clock->taken_until, ticks);
	else
		set_taken(clock, from + ticks);
}

#if PODMGR_TC
/* The cgroup hook sees IP alone: at tc, neighbour discovery by ARP and the like are not judged. */
static __always_inline int is_ip(struct __sk_buff *skb)
{
	return skb->protocol == bpf_htons(ETH_P_IP) || skb->protocol == bpf_htons(ETH_P_IPV6);
}

/* Router and neighbour solicitations and advertisements, and redirects: RFC 4861. */
static __always_inline int is_neighbour_discovery(struct __sk_buff *skb)
{
	__u8 next = 0, type = 0;

	if (skb->protocol != bpf_htons(ETH_P_IPV6))
		return 0;
	bpf_skb_load_bytes_relative(skb, 6, &next, 1, BPF_HDR_START_NET);
	if (next != IPPROTO_ICMPV6)
		return 0;
	bpf_skb_load_bytes_relative(skb, 40, &type, 1, BPF_HDR_START_NET);
	return type >= 133 && type <= 137;
}
#endif

/* Before programs of others the fields are those of a type of podmgr's, see podmgr_gate.h. */
#define PODMGR_CONTEXT(skb) (skb)

#if PODMGR_TC
#include "marks.h"

/*
 * What block.bpf.c answers in the name of others: no rule is about it. It is marked by the side of the interface
 * that it passes next; on the other side of a veth it is a packet like others.
 */
#define ANSWER(leaves) (SENT_ANEW + 1 + !!(leaves))

static __always_inline int is_answer(struct __sk_buff *skb)
{
	return !skb->sk && skb->cb[CB_SENT_ANEW] == ANSWER(DIRECTION_EGRESS);
}

/* The copy of a packet, on the interface where it was made. */
static __always_inline int is_copy(struct __sk_buff *skb)
{
	return is_sent_anew(skb) && skb->cb[CB_IS_COPY];
}
#else
static __always_inline int is_copy(struct __sk_buff *skb)
{
	(void)skb;
	return 0;
}
#endif

/*
 * What stands before what copies has judged a copy already, as the packet that it is of. What arrives was
 * copied on the other side of a veth: there each is a packet like others, whatever is left in its cb.
 */
static __always_inline int is_judged(struct __sk_buff *skb)
{
	return DIRECTION_EGRESS && is_copy(skb);
}

#if PODMGR_TC && PODMGR_SCOPED
/* Whose packets a rule is about, on interfaces that others use too; podmgr fills it in. */
struct podmgr_scope {
	__u64 cgroup_id;
	__u64 level; /* how many cgroups lie between it and the root */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct podmgr_scope);
} podmgr_scope SEC(".maps");

/*
 * Sent by a process of the cgroup. podmgr puts the program where such a packet passes just once: not
 * on the VLAN or the tunnel too that it leaves through.
 */
static __always_inline int is_in_scope(struct __sk_buff *skb)
{
	__u32 key = 0;
	struct podmgr_scope *scope = bpf_map_lookup_elem(&podmgr_scope, &key);

	if (!scope)
		return 0;
	if (is_sent_anew(skb))
		return skb->cb[CB_SCOPE] == (__u32)scope->cgroup_id;
	return bpf_skb_ancestor_cgroup_id(skb, scope->level) == scope->cgroup_id;
}

/* What stands in cb for it: nobody else's packets get there, and half of the number will do. */
static __always_inline __u32 scope_mark(void)
{
	__u32 key = 0;
	struct podmgr_scope *scope = bpf_map_lookup_elem(&podmgr_scope, &key);

	return scope ? scope->cgroup_id : 0;
}
#else
static __always_inline __u32 scope_mark(void)
{
	return 0;
}

static __always_inline int is_in_scope(struct __sk_buff *skb)
{
	(void)skb;
	return 1;
}
#endif

#include "container.h"
#if PODMGR_TIMED || PODMGR_MATCH
#include "timing.h"
#endif
#if PODMGR_MATCH
#include "match.h"
#endif

/*
 * Not what the rule is about, now. A pod's own loopback traffic is not its network. At tc, ARP is not IP; what
 * IPv6 has in its place always passes too.
 */
static __always_inline int is_exempt(struct __sk_buff *skb)
{
#if PODMGR_TC
	if (!is_ip(skb) || is_neighbour_discovery(skb) || is_answer(skb) || !is_in_scope(skb))
		return 1;
#else
	if (!PODMGR_LOOPBACK && skb->ifindex == LOOPBACK_IFINDEX)
		return 1;
#endif
#if PODMGR_TIMED
	if (!is_in_force(0))
		return 1;
#endif
#if PODMGR_MATCH
	return !is_matched(skb);
#else
	return 0;
#endif
}

#if PODMGR_FIGURES
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PODMGR_FIGURES);
	__type(key, __u32);
	__type(value, __u64);
} podmgr_figures SEC(".maps");

/* A figure is one CPU's alone; at the cgroup hook another packet may come in between, see count_for(). */
static __always_inline void add_to_figure(__u32 figure, __u64 value)
{
	__u64 *sum = bpf_map_lookup_elem(&podmgr_figures, &figure);

	if (!sum)
		return;
#if PODMGR_TC
	*sum += value;
#else
	add_atomically(sum, value);
#endif
}
#endif

/* fq sends what is urgent to the kernel (TC_PRIO_CONTROL) at once, whatever its departure time. */
static __always_inline void wait_in_fq(struct __sk_buff *skb)
{
	if ((skb->priority & TC_PRIO_MAX) == TC_PRIO_CONTROL)
		skb->priority ^= TC_PRIO_CONTROL ^ TC_PRIO_INTERACTIVE;
}

/* What the kernel is told: a rule in the shadow counts what it would do, and does nothing. */
static __always_inline int told(int verdict)
{
	return PODMGR_SHADOW ? VERDICT_PASS : verdict;
}

/*
 * Count the packet under its verdict for a rule, by its place among those that share the program, and
 * return the verdict.
 *
 * A row is one CPU's alone. But who sends through the cgroup hook may be interrupted there, between
 * load and store, by another packet of the cgroup, such as TCP's answer to what arrives: that one is
 * counted aside. At tc, and of what arrives, nothing comes in between.
 */
static __always_inline int count_for(__u32 rule, struct wire wire, int verdict)
{
	struct podmgr_row *row = bpf_map_lookup_elem(&podmgr_counters, &rule);

	if (!row)
		return told(verdict);
#if !PODMGR_TC && DIRECTION_EGRESS
	if (*(volatile __u64 *)&row->is_busy) {
		int passes = verdict == VERDICT_PASS;

		add_atomically(passes ? &row->aside.passed_packets : &row->aside.dropped_packets,
			       wire.packets);
		add_atomically(passes ? &row->aside.passed_bytes : &row->aside.dropped_bytes,
			       wire.bytes);
		return told(verdict);
	}
	*(volatile __u64 *)&row->is_busy = 1;
	barrier();
#endif
	if (verdict == VERDICT_PASS) {
		row->own.passed_packets += wire.packets;
		row->own.passed_bytes += wire.bytes;
	} else {
		row->own.dropped_packets += wire.packets;
		row->own.dropped_bytes += wire.bytes;
	}
#if !PODMGR_TC && DIRECTION_EGRESS
	barrier();
	*(volatile __u64 *)&row->is_busy = 0;
#endif
	return told(verdict);
}

/* The same for a program that acts for one rule. */
static __always_inline int count(struct wire wire, int verdict)
{
	return count_for(0, wire, verdict);
}

#endif
