/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which packets a rule is about, by peer, port, protocol and container; and which of several rules. For
 * podmgr.h, which includes it.
 *
 * The longest prefix that the peer's address has leads to a list of terms, in the order of how specific they
 * are. The first that fits decides: it is the rule's own, or of a rule that hides it. podmgr makes the lists
 * (podmgr/rules/tables.py), and changes them while the program acts: a list is never changed in place.
 *
 * IPv6 extension headers are passed over, up to MOST_HEADERS; behind more nothing is known of the transport.
 * Of a datagram in pieces the first alone has ports, and the others follow it, so long as it is remembered;
 * else they have none. ICMPv6 is icmp.
 */
#define MOST_PREFIXES 65536
#define MOST_TERMS 512		 /* of all lists */
#define MOST_TERMS_OF_A_LIST 64 /* podmgr/rules/tables.py refuses more */
#define MOST_PIECES 128		 /* datagrams in pieces that are remembered */
#define MOST_HEADERS 6
#define UNKNOWN_PROTOCOL 0xfffe

struct podmgr_prefix {
	__u32 bits;	  /* of what follows */
	__u8 family;	  /* 4 or 6 */
	__u8 address[19]; /* 4 or 16 bytes, and then nothing */
};

struct podmgr_list {
	__u32 first;
	__u32 count;
};

struct podmgr_term {
	__u16 protocol, protocol_mask; /* mask 0: any */
	__u16 first_port, last_port;   /* of the peer; from 0 on: also what has no ports */
	__u16 first_local, last_local;
	__u8 rule; /* its place among the windows; 0 is the program's own */
	__u8 flags;
	__u16 has_container; /* 1, or 0: any */
	__u32 container;     /* the lower half of its cgroup's number, see container.h */
};
enum { TERM_TAKES_AWAY = 1, TERM_IS_TIMED = 2 };

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MOST_PREFIXES);
	__type(key, struct podmgr_prefix);
	__type(value, struct podmgr_list);
} podmgr_peers SEC(".maps");

#include "recent.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MOST_TERMS);
	__type(key, __u32);
	__type(value, struct podmgr_term);
} podmgr_terms SEC(".maps");

/* What of a packet decides besides the peer's address. Ports in the order of the host, 0 where there are none. */
struct podmgr_transport {
	__u16 protocol;
	__u16 port, local;
};

struct podmgr_piece {
	__u8 source[16], destination[16];
	__u32 id;
	__u32 protocol;
};

struct podmgr_ports {
	__u16 port, local;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MOST_PIECES);
	__type(key, struct podmgr_piece);
	__type(value, struct podmgr_ports);
} podmgr_pieces SEC(".maps");

/* As functions of their own return it. */
static __always_inline __u64 packed(struct podmgr_transport transport)
{
	return (__u64)transport.protocol << 32 | (__u32)transport.port << 16 | transport.local;
}

static __always_inline void take_ports(struct podmgr_transport *transport, const __u8 *ports)
{
	__u16 source = ports[0] << 8 | ports[1], destination = ports[2] << 8 | ports[3];

	transport->port = DIRECTION_EGRESS ? destination : source;
	transport->local = DIRECTION_EGRESS ? source : destination;
}

static __always_inline int is_with_ports(__u16 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP;
}

/* The first piece is remembered, the others follow it. */
static __always_inline void follow_piece(struct podmgr_transport *transport, struct podmgr_piece *piece,
					 int is_first)
{
	struct podmgr_ports ports = { transport->port, transport->local }, *known;

	piece->protocol = transport->protocol;
	if (is_first) {
		bpf_map_update_elem(&podmgr_pieces, piece, &ports, BPF_ANY);
		return;
	}
	known = bpf_map_lookup_elem(&podmgr_pieces, piece);
	if (known) {
		transport->port = known->port;
		transport->local = known->local;
	}
}

static __always_inline void read_ipv4(struct __sk_buff *skb, struct podmgr_transport *transport,
				      const __u8 *header)
{
	__u32 length = (header[0] & 0x0f) * 4, fragment = (header[6] & 0x3f) << 8 | header[7];
	__u8 ports[4];

	transport->protocol = header[9];
	if (!is_with_ports(transport->protocol))
		return;
	if (!(fragment & 0x1fff) && !bpf_skb_load_bytes_relative(skb, length, ports, 4, BPF_HDR_START_NET))
		take_ports(transport, ports);
	if (fragment) {
		struct podmgr_piece piece = { .id = header[4] << 8 | header[5] };

		__builtin_memcpy(piece.source, header + 12, 4);
		__builtin_memcpy(piece.destination, header + 16, 4);
		follow_piece(transport, &piece, !(fragment & 0x1fff));
	}
}

static __always_inline int is_extension(__u8 header)
{
	return header == IPPROTO_HOPOPTS || header == IPPROTO_ROUTING || header == IPPROTO_DSTOPTS ||
	       header == IPPROTO_FRAGMENT || header == IPPROTO_AH || header == IPPROTO_MH;
}

static __always_inline void read_ipv6(struct __sk_buff *skb, struct podmgr_transport *transport, __u8 next)
{
	struct podmgr_piece piece = {};
	__u32 offset = 40;
	int is_piece = 0, is_first = 1;
	__u8 behind[8];

	for (int i = 0; i < MOST_HEADERS && is_first && is_extension(next); i++) {
		if (bpf_skb_load_bytes_relative(skb, offset, behind, 8, BPF_HDR_START_NET))
			return;
		if (next == IPPROTO_FRAGMENT) {
			is_first = !(behind[2] << 8 | (behind[3] & 0xf8));
			is_piece = !is_first || behind[3] & 1;
			__builtin_memcpy(&piece.id, behind + 4, 4);
			offset += 8;
		} else {
			offset += next == IPPROTO_AH ? (behind[1] + 2) * 4 : (behind[1] + 1) * 8;
		}
		next = behind[0];
	}
	if (is_extension(next))
		return;
	transport->protocol = next == IPPROTO_ICMPV6 ? IPPROTO_ICMP : next;
	if (!is_with_ports(next))
		return;
	if (is_first && !bpf_skb_load_bytes_relative(skb, offset, behind, 4, BPF_HDR_START_NET))
		take_ports(transport, behind);
	if (is_piece) {
		bpf_skb_load_bytes_relative(skb, 8, &piece, 32, BPF_HDR_START_NET);
		follow_piece(transport, &piece, is_first);
	}
}

/*
 * What reads a packet and what goes through a list are functions of their own, which the verifier looks at by
 * themselves: together it would follow each list once for each way that there is to read a packet.
 */
__attribute__((noinline)) __u64 podmgr_read_transport(struct __sk_buff *skb)
{
	struct podmgr_transport transport = { .protocol = UNKNOWN_PROTOCOL };
	__u8 header[20];

	if (!bpf_skb_load_bytes_relative(skb, 0, header, sizeof(header), BPF_HDR_START_NET)) {
		if (header[0] >> 4 == 4)
			read_ipv4(skb, &transport, header);
		else if (header[0] >> 4 == 6)
			read_ipv6(skb, &transport, header[6]);
	}
	return packed(transport);
}

/*
 * 0 if the packet fits. Without a branch for each comparison, of which the verifier would follow all that
 * there are in a list: a difference below 0 shows in its highest bit.
 */
static __always_inline __u64 misfit(const struct podmgr_term *term, __u32 protocol, __u32 port, __u32 local,
				    __u32 container)
{
	__u32 outside = (port - term->first_port) | (term->last_port - port) | (local - term->first_local) |
			(term->last_local - local);

	return outside >> 31 | ((protocol ^ term->protocol) & term->protocol_mask) |
	       (PODMGR_CONTAINER ? (__u64)(container ^ term->container) * term->has_container : 0);
}

/* Whether of all terms of a list that fit the first in force is the rule's own. */
__attribute__((noinline)) int podmgr_decide(__u32 first, __u32 count, __u32 protocol, __u32 ports,
					     __u32 container)
{
	__u64 taken_away = 0;

	asm volatile("" : : "r"(container)); /* what is read by nobody clang does not pass, and the verifier misses it */
	for (__u32 i = 0; i < MOST_TERMS_OF_A_LIST && i < count; i++) {
		__u32 key = first + i, rule;
		struct podmgr_term *term = bpf_map_lookup_elem(&podmgr_terms, &key);

		if (!term)
			return 0;
		if (misfit(term, protocol, ports >> 16, ports & 0xffff, container))
			continue;
		rule = term->rule & 63;
		if (term->flags & TERM_TAKES_AWAY)
			taken_away |= 1ULL << rule;
		else if (!(taken_away >> rule & 1) && (!(term->flags & TERM_IS_TIMED) || is_in_force(rule)))
			return !rule;
	}
	return 0;
}

/*
 * What most packets are, read in place: IP without options or extension headers, in one piece, and behind it
 * what has ports. A helper's call for each field takes twice as long. At tc a link header stands before it.
 */
static __always_inline int read_plain(struct __sk_buff *skb, struct podmgr_prefix *peer, __u64 *transport)
{
	void *start = (void *)(long)PODMGR_CONTEXT(skb)->data, *end = (void *)(long)PODMGR_CONTEXT(skb)->data_end;
	__u8 *ip = start, *behind;
	struct podmgr_transport read = {};
#if PODMGR_TC
	struct ethhdr *link = start;

	if ((void *)(link + 1) > end || link->h_proto != PODMGR_CONTEXT(skb)->protocol)
		return 0;
	ip = (__u8 *)(link + 1);
#endif
	if ((void *)(ip + 24) > end)
		return 0;
	if (ip[0] == 0x45) {
		if (*(__u16 *)(ip + 6) & bpf_htons(0x3fff))
			return 0;
		peer->bits = 8 + 32;
		peer->family = 4;
		__builtin_memcpy(peer->address, ip + (DIRECTION_EGRESS ? 16 : 12), 4);
		read.protocol = ip[9];
		behind = ip + 20;
	} else {
		if (ip[0] >> 4 != 6 || (void *)(ip + 44) > end)
			return 0;
		peer->bits = 8 + 128;
		peer->family = 6;
		__builtin_memcpy(peer->address, ip + (DIRECTION_EGRESS ? 24 : 8), 16);
		read.protocol = ip[6];
		behind = ip + 40;
	}
	if (!is_with_ports(read.protocol))
		return 0;
	take_ports(&read, behind);
	*transport = packed(read);
	return 1;
}

/* The same of any packet; 0 if it is not IP. */
static __always_inline int read_any(struct __sk_buff *skb, struct podmgr_prefix *peer, __u64 *transport)
{
	long error = -1;

	if (PODMGR_CONTEXT(skb)->protocol == bpf_htons(ETH_P_IP)) {
		peer->bits = 8 + 32;
		peer->family = 4;
		error = bpf_skb_load_bytes_relative(skb, DIRECTION_EGRESS ? 16 : 12, peer->address, 4,
						    BPF_HDR_START_NET);
	} else if (PODMGR_CONTEXT(skb)->protocol == bpf_htons(ETH_P_IPV6)) {
		peer->bits = 8 + 128;
		peer->family = 6;
		error = bpf_skb_load_bytes_relative(skb, DIRECTION_EGRESS ? 24 : 8, peer->address, 16,
						    BPF_HDR_START_NET);
	}
	if (error)
		return 0;
	*transport = podmgr_read_transport(skb);
	return 1;
}

/* Whether the packet is the rule's: of all rules that match it, the most specific that is in force. */
static __always_inline int is_matched(struct __sk_buff *skb)
{
	struct podmgr_prefix peer __attribute__((aligned(8))) = {};
	struct podmgr_list list;
	__u64 transport = 0;

	if (!read_plain(skb, &peer, &transport) && !read_any(skb, &peer, &transport))
		return 0;
	list = list_of_peer(&peer);
	if (!list.count)
		return 0;
	return podmgr_decide(list.first, list.count, transport >> 32, transport, container_of_packet(skb));
}
