/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Answers to a packet in its place: a RST of TCP, or that its destination is unreachable by ICMP, as netfilter's
 * REJECT does. The packet itself becomes the answer, with the addresses swapped; a clone of it, which has no
 * socket, is sent back: what leaves is answered on the side of the interface that receives, what arrives on
 * the side that sends. podmgr's other programs know it by a mark and leave it alone: is_answer() of podmgr.h.
 */
#include "network.h"

#if PODMGR_TC
enum { FIN = 1, SYN = 2, RST = 4, ACK = 16 };
enum { TO_SENDER = 1, TO_RECEIVER = 0 };

#define TCP_BYTES 20
#define ICMP_BYTES 8
#define IPV4_BYTES 20
#define IPV6_BYTES 40
#define MOST_QUOTED 128 /* bytes of the packet in an answer by ICMP */
#define TTL 64

/* Of a packet: whose it is, and what TCP says in it. In the order of the headers. */
struct ends {
	__u8 receiver_mac[6];
	__u8 sender_mac[6];
	__be32 sender[4];
	__be32 receiver[4];
	__be16 sender_port;
	__be16 receiver_port;
	__be32 sequence;
	__be32 acknowledged;
	__u8 data_offset;
	__u8 flags;
	__u8 leaves; /* the pod; what does not, reaches it */
};

/* -1: it cannot be read, or is too short for its protocol. */
static __always_inline int read_ends(struct __sk_buff *skb, struct inside *at, int leaves, struct ends *ends)
{
	ends->leaves = leaves;
	if (at->network && bpf_skb_load_bytes(skb, 0, ends->receiver_mac, 12))
		return -1;
	if (at->is_ipv6) {
		if (bpf_skb_load_bytes(skb, at->network + 8, ends->sender, 32))
			return -1;
	} else if (bpf_skb_load_bytes(skb, at->network + 12, ends->sender, 4) ||
		   bpf_skb_load_bytes(skb, at->network + 16, ends->receiver, 4)) {
		return -1;
	}
	if (at->protocol != IPPROTO_TCP || at->is_later_fragment)
		return 0;
	return bpf_skb_load_bytes(skb, at->transport, &ends->sender_port, 14) ? -1 : 0;
}

/*
 * Whether there is one to answer, as RFC 1122 (3.2.2) and RFC 4443 (2.4) say: not a group of receivers, not an
 * unknown sender, and no later fragment.
 */
static __always_inline int may_be_answered(const struct inside *at, const struct ends *ends)
{
	__u8 sent_to = bpf_ntohl(ends->receiver[0]) >> 24, sent_by = bpf_ntohl(ends->sender[0]) >> 24;

	if (at->is_later_fragment || (at->network && ends->receiver_mac[0] & 1))
		return 0;
	if (!at->is_ipv6)
		return sent_to < 224 && sent_by < 224 && ends->sender[0];
	if (!(ends->sender[0] | ends->sender[1] | ends->sender[2] | ends->sender[3]))
		return 0;
	return sent_to != 0xff && sent_by != 0xff;
}

/* Errors are never answered (the same RFCs). */
static __always_inline int is_icmp_error(struct __sk_buff *skb, const struct inside *at)
{
	__u8 type = 3;

	if (at->protocol != (at->is_ipv6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP))
		return 0;
	bpf_skb_load_bytes(skb, at->transport, &type, sizeof(type));
	if (at->is_ipv6)
		return type < 128;
	return type == 3 || type == 4 || type == 5 || type == 11 || type == 12;
}

/* RFC 1071. */
static __always_inline __u16 folded(__s64 sum)
{
	sum = ((__u32)sum >> 16) + (sum & 0xffff);
	return ~bpf_ntohs((__u16)((sum >> 16) + sum));
}

/*
 * The packet is so long, has no segments, and its checksum is nobody's to finish any more: the kernel forgets
 * that once the place where the sum begins has been taken out of the packet, see corrupt.bpf.c. What stands in
 * it is to be written. A header that was longer than all the answer leaves bytes behind it, as Ethernet does.
 */
static __always_inline long make_blank(struct __sk_buff *skb, const struct inside *at, __u32 length)
{
	__u32 network_bytes = at->is_ipv6 ? IPV6_BYTES : IPV4_BYTES;
	__s32 taken = at->transport + TCP_BYTES;

	if (bpf_skb_change_tail(skb, at->network + network_bytes + taken, 0) ||
	    bpf_skb_adjust_room(skb, -taken, BPF_ADJ_ROOM_NET, 0) ||
	    bpf_skb_adjust_room(skb, taken, BPF_ADJ_ROOM_NET, 0))
		return -1;
	return bpf_skb_change_tail(skb, length, 0) ? bpf_skb_change_tail(skb, at->transport, 0) : 0;
}

/* IP, in front of so many bytes. */
static __always_inline long write_ip(struct __sk_buff *skb, const struct inside *at, const struct ends *ends,
				     int to_sender, __u8 protocol, __u32 bytes)
{
	const __be32 *from = to_sender ? ends->receiver : ends->sender;
	const __be32 *to = to_sender ? ends->sender : ends->receiver;
	__be32 header[IPV6_BYTES / 4] = {};

	if (at->is_ipv6) {
		header[0] = bpf_htonl(6U << 28);
		header[1] = bpf_htonl(bytes << 16 | protocol << 8 | TTL);
		__builtin_memcpy(header + 2, from, 16);
		__builtin_memcpy(header + 6, to, 16);
		return bpf_skb_store_bytes(skb, at->network, header, IPV6_BYTES, BPF_F_RECOMPUTE_CSUM);
	}
	header[0] = bpf_htonl(0x45U << 24 | (IPV4_BYTES + bytes));
	header[1] = bpf_htonl(0x4000); /* it must not be cut */
	header[2] = bpf_htonl(TTL << 24 | protocol << 16);
	header[3] = from[0];
	header[4] = to[0];
	header[2] |= bpf_htonl(folded(bpf_csum_diff(0, 0, header, IPV4_BYTES, 0)));
	return bpf_skb_store_bytes(skb, at->network, header, IPV4_BYTES, BPF_F_RECOMPUTE_CSUM);
}

/* What a checksum also covers of IP: the addresses, the protocol and the length. */
static __always_inline __s64 sum_of_ip(const struct ends *ends, __u8 protocol, __u32 bytes)
{
	__be32 rest[2] = { bpf_htonl(protocol), bpf_htonl(bytes) };

	/* of IPv4 the rest of the addresses is 0 */
	return bpf_csum_diff(0, 0, rest, sizeof(rest), bpf_csum_diff(0, 0, (__be32 *)ends->sender, 32, 0));
}

/* Send what has been written, as a clone, so that the packet can be written anew. */
static __always_inline long send_answer(struct __sk_buff *skb, const struct inside *at, const struct ends *ends,
					int to_sender)
{
	int leaves = ends->leaves ? !to_sender : to_sender;
	__u8 macs[12];

	if (skb->ifindex == LOOPBACK_IFINDEX) /* what is sent there arrives */
		leaves = 1;
	__builtin_memcpy(macs, to_sender ? ends->sender_mac : ends->receiver_mac, 6);
	__builtin_memcpy(macs + 6, to_sender ? ends->receiver_mac : ends->sender_mac, 6);
	if (at->network && bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), BPF_F_RECOMPUTE_CSUM))
		return -1;
	skb->tstamp = 0;
	skb->cb[CB_SENT_ANEW] = ANSWER(leaves);
	return bpf_clone_redirect(skb, skb->ifindex, leaves ? 0 : BPF_F_INGRESS);
}

/*
 * A RST in the name of one end, to the other, who must take it for what he waits for next. The sender waits for
 * what he has acknowledged; who has acknowledged nothing has just begun, and is told that this has arrived (RFC
 * 9293, 3.10.7.1). The receiver waits for what is sent now.
 */
static __always_inline long send_rst(struct __sk_buff *skb, const struct inside *at, const struct ends *ends,
				     int to_sender)
{
	__u32 network_bytes = at->is_ipv6 ? IPV6_BYTES : IPV4_BYTES;
	__u32 sequence, acknowledged = 0, flags = RST;
	__be32 tcp[TCP_BYTES / 4];

	if (!to_sender) {
		sequence = bpf_ntohl(ends->sequence);
		acknowledged = bpf_ntohl(ends->acknowledged);
		flags |= ends->flags & ACK;
	} else if (ends->flags & ACK) {
		sequence = bpf_ntohl(ends->acknowledged);
	} else {
		acknowledged = bpf_ntohl(ends->sequence) + at->end - at->transport - (ends->data_offset >> 4) * 4 +
			       !!(ends->flags & SYN) + !!(ends->flags & FIN);
		sequence = 0;
		flags |= ACK;
	}
	tcp[0] = to_sender ? bpf_htonl(bpf_ntohs(ends->receiver_port) << 16 | bpf_ntohs(ends->sender_port)) :
			     bpf_htonl(bpf_ntohs(ends->sender_port) << 16 | bpf_ntohs(ends->receiver_port));
	tcp[1] = bpf_htonl(sequence);
	tcp[2] = bpf_htonl(acknowledged);
	tcp[3] = bpf_htonl(TCP_BYTES / 4 << 28 | flags << 16);
	tcp[4] = 0;
	tcp[4] = bpf_htonl(folded(bpf_csum_diff(0, 0, tcp, TCP_BYTES, sum_of_ip(ends, IPPROTO_TCP, TCP_BYTES))) << 16);

	if (make_blank(skb, at, at->network + network_bytes + TCP_BYTES) ||
	    write_ip(skb, at, ends, to_sender, IPPROTO_TCP, TCP_BYTES) ||
	    bpf_skb_store_bytes(skb, at->network + network_bytes, tcp, TCP_BYTES, BPF_F_RECOMPUTE_CSUM))
		return -1;
	return send_answer(skb, at, ends, to_sender);
}

/*
 * To the sender: forbidden by an administrator, in the name of the receiver. It quotes the packet's beginning.
 */
static __always_inline long send_unreachable(struct __sk_buff *skb, const struct inside *at,
					     const struct ends *ends)
{
	__u32 network_bytes = at->is_ipv6 ? IPV6_BYTES : IPV4_BYTES;
	__u8 protocol = at->is_ipv6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP;
	__be32 icmp[(ICMP_BYTES + MOST_QUOTED) / 4] = {};
	__u32 less_one = at->end - at->network - 1, bytes;
	__s64 sum = 0;

	if (at->end <= at->network)
		return -1;
	if (less_one > MOST_QUOTED - 1)
		less_one = MOST_QUOTED - 1;
	barrier_var(less_one); /* the verifier shall see that it is 1 byte at least, MOST_QUOTED at most */
	less_one &= MOST_QUOTED - 1;
	if (bpf_skb_load_bytes(skb, at->network, icmp + ICMP_BYTES / 4, less_one + 1))
		return -1;
	bytes = ICMP_BYTES + less_one + 1;
	icmp[0] = bpf_htonl(at->is_ipv6 ? 1 << 24 | 1 << 16 : 3 << 24 | 13 << 16); /* type, code */
	if (at->is_ipv6)
		sum = sum_of_ip(ends, protocol, bytes);
	icmp[0] |= bpf_htonl(folded(bpf_csum_diff(0, 0, icmp, sizeof(icmp), sum)));

	if (make_blank(skb, at, at->network + network_bytes + bytes) ||
	    write_ip(skb, at, ends, TO_SENDER, protocol, bytes) ||
	    bpf_skb_store_bytes(skb, at->network + network_bytes, icmp, ICMP_BYTES, BPF_F_RECOMPUTE_CSUM) ||
	    bpf_skb_store_bytes(skb, at->network + network_bytes + ICMP_BYTES, icmp + ICMP_BYTES / 4, less_one + 1,
				BPF_F_RECOMPUTE_CSUM))
		return -1;
	return send_answer(skb, at, ends, TO_SENDER);
}
#endif
