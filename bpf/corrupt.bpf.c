// SPDX-License-Identifier: GPL-2.0-only
/*
 * corrupt: one random bit of a packet is wrong with the same probability, independently of all others.
 *
 * A uniform 32-bit draw below THRESHOLD makes it so, P(corrupt) = THRESHOLD / 2^32, exactly. A GSO packet
 * is one draw. The bit is one of the payload, so that the packet finds its way to the receiver. TCP, UDP,
 * ICMP and ICMPv6 are corrupted; other protocols, IPv6 with extension headers (fragments among them), and
 * neighbour discovery are left alone.
 *
 * Without REACHES_APPLICATION the receiver's checksum finds it, and the packet is discarded, as on a wire.
 * Since that is computed behind us, or between veths not at all, it is computed here: finish_checksum().
 * Without payload the bit is one of the checksum itself. A GSO packet is corrupted whole: its first segment
 * arrives, wrong, and the others do not, since a kernel that makes segments of a packet mends their
 * checksums. Any fragment of IPv4 is corrupted, which spoils its datagram.
 *
 * With REACHES_APPLICATION the checksum is mended. Packets without payload are left alone, and so are all
 * fragments but the first, which has the checksum. One bit of a GSO packet is wrong.
 */
#ifndef PODMGR_TC
#define PODMGR_TC 1 /* it cannot act at the cgroup hook */
#endif
#define PODMGR_FIGURES 1 /* corrupted packets */
#include "network.h"

#ifndef THRESHOLD /* 0 .. 4294967296 = 2^32: corrupts all */
#define THRESHOLD 0ULL
#endif
#ifndef REACHES_APPLICATION /* 1, or 0: the receiver's checksum finds it */
#define REACHES_APPLICATION 0
#endif

_Static_assert(THRESHOLD <= 1ULL << 32, "THRESHOLD is out of 2^32");

/* Where what stands in a packet, in bytes from its beginning. */
struct layout {
	__u32 network;
	__u32 is_ipv6;
	__u32 protocol;
	__u32 transport;
	__u32 payload;
	__u32 end;
	__u32 checksum; /* 0: in another fragment */
	__u32 is_fragment;
};

/* How many bytes the transport header has; 0 of what is left alone. */
static __always_inline __u32 find_checksum(struct __sk_buff *skb, struct layout *at)
{
	__u8 first = 0;

	if (at->protocol == IPPROTO_TCP) {
		bpf_skb_load_bytes(skb, at->transport + 12, &first, sizeof(first));
		at->checksum = at->transport + 16;
		return (first >> 4) * 4;
	}
	if (at->protocol == IPPROTO_UDP) {
		at->checksum = at->transport + 6;
		return 8;
	}
	at->checksum = at->transport + 2;
	if (!at->is_ipv6)
		return at->protocol == IPPROTO_ICMP ? 8 : 0;
	bpf_skb_load_bytes(skb, at->transport, &first, sizeof(first));
	if (first >= FIRST_OF_NEIGHBOUR_DISCOVERY && first <= LAST_OF_NEIGHBOUR_DISCOVERY)
		return 0;
	return at->protocol == IPPROTO_ICMPV6 ? 8 : 0;
}

/* Whether it is a packet that can be corrupted. */
static __always_inline int look(struct __sk_buff *skb, struct layout *at)
{
	int network = network_offset(skb);
	__u8 header[20];
	__u32 bytes, transport_bytes, fragment = 0;

	if (network < 0 || bpf_skb_load_bytes_relative(skb, 0, header, sizeof(header), BPF_HDR_START_NET))
		return 0;
	at->network = network;
	at->is_ipv6 = header[0] >> 4 == 6;
	if (at->is_ipv6) {
		at->transport = network + 40;
		at->protocol = header[6];
		bytes = 40 + (header[4] << 8 | header[5]);
	} else {
		at->transport = network + (header[0] & 0x0f) * 4;
		at->protocol = header[9];
		bytes = header[2] << 8 | header[3];
		fragment = header[6] << 8 | header[7];
	}
	at->is_fragment = (fragment & (FRAGMENT_OFFSET | MORE_FRAGMENTS)) != 0;
	at->end = network + bytes;
	if (skb->gso_size || at->end > skb->len) /* what is larger than 64 KiB says that its length is 0 */
		at->end = skb->len;
	transport_bytes = find_checksum(skb, at);
	if (!transport_bytes)
		return 0;
	if (fragment & FRAGMENT_OFFSET) {
		at->checksum = 0;
		transport_bytes = 0;
	}
	at->payload = at->transport + transport_bytes;
	if (REACHES_APPLICATION)
		return at->checksum && at->payload < at->end;
	return at->payload < at->end || (at->checksum && at->payload == at->end);
}

/* A random one among `count` bits. */
static __always_inline __u32 draw_bit(__u32 count)
{
	return (__u64)bpf_get_prandom_u32() * count >> 32;
}

#if REACHES_APPLICATION
/* The kernel itself knows whether the checksum is finished yet, and mends it only then. */
static __always_inline long corrupt(struct __sk_buff *skb, struct layout *at)
{
	__u32 bit = draw_bit((at->end - at->payload) * 8), offset = at->payload + bit / 8;
	__u32 shift = (offset - at->transport) % 2 ? 0 : 8; /* in its two bytes of the sum */
	__u64 flags = sizeof(__u16) | (at->protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0);
	__u8 byte, wrong;

	if (bpf_skb_load_bytes(skb, offset, &byte, sizeof(byte)))
		return -1;
	wrong = byte ^ 1 << bit % 8;
	if (bpf_skb_store_bytes(skb, offset, &wrong, sizeof(wrong), 0))
		return -1;
	bpf_l4_csum_replace(skb, at->checksum, bpf_htons((__u16)(byte << shift)), bpf_htons((__u16)(wrong << shift)),
			    flags);
	return 0;
}
#else
/* Cuts a GSO packet down to its first segment, which is a packet like others. */
static __always_inline long cut(struct __sk_buff *skb, struct layout *at)
{
	__u32 end = at->payload + skb->gso_size;
	__be16 bytes, before = 0;

	if (end < at->end)
		at->end = end;
	if (bpf_skb_change_tail(skb, at->end, 0))
		return -1;
	if (at->protocol == IPPROTO_UDP) {
		bytes = bpf_htons((__u16)(at->end - at->transport));
		bpf_skb_store_bytes(skb, at->transport + 4, &bytes, sizeof(bytes), 0);
	}
	if (at->is_ipv6) {
		bytes = bpf_htons((__u16)(at->end - at->transport));
		return bpf_skb_store_bytes(skb, at->network + 4, &bytes, sizeof(bytes), 0);
	}
	bytes = bpf_htons((__u16)(at->end - at->network));
	bpf_skb_load_bytes(skb, at->network + 2, &before, sizeof(before));
	bpf_l3_csum_replace(skb, at->network + 10, before, bytes, sizeof(bytes));
	return bpf_skb_store_bytes(skb, at->network + 2, &bytes, sizeof(bytes), 0);
}

/*
 * The kernel forgets that a checksum is still to be computed, or was found right, once the place where its
 * sum begins has been taken out of the packet: that is taken out, and put back. A short packet is longer
 * meanwhile.
 */
#define TAKEN_BYTES 80 /* an Ethernet header and the longest of IP: farther than any sum begins */

static __always_inline long let_checksum_be(struct __sk_buff *skb, struct layout *at)
{
	__u8 taken[TAKEN_BYTES];
	__u32 offset = at->network + (at->is_ipv6 ? 40 : 20), length = skb->len;

	if (length < offset + TAKEN_BYTES && bpf_skb_change_tail(skb, offset + TAKEN_BYTES, 0))
		return -1;
	if (bpf_skb_load_bytes(skb, offset, taken, TAKEN_BYTES) ||
	    bpf_skb_adjust_room(skb, -TAKEN_BYTES, BPF_ADJ_ROOM_NET, 0) ||
	    bpf_skb_adjust_room(skb, TAKEN_BYTES, BPF_ADJ_ROOM_NET, 0) ||
	    bpf_skb_store_bytes(skb, offset, taken, TAKEN_BYTES, BPF_F_RECOMPUTE_CSUM))
		return -1;
	return skb->len == length ? 0 : bpf_skb_change_tail(skb, length, 0);
}

/* RFC 1071. A packet of more than MOST_CHUNKS, 16 KiB, keeps a wrong one. */
#define CHUNK_BYTES 256
#define MOST_CHUNKS 64

static __always_inline long finish_checksum(struct __sk_buff *skb, struct layout *at)
{
	__be32 chunk[CHUNK_BYTES / 4] = { bpf_htonl(at->end - at->transport), bpf_htonl(at->protocol) };
	__u16 checksum = 0;
	__u32 offset = at->transport;
	__s64 sum = 0;

	if (at->is_ipv6) {
		bpf_skb_load_bytes(skb, at->network + 8, chunk + 2, 32);
		sum = bpf_csum_diff(0, 0, chunk, 40, 0);
	} else if (at->protocol != IPPROTO_ICMP) {
		bpf_skb_load_bytes(skb, at->network + 12, chunk + 2, 8);
		sum = bpf_csum_diff(0, 0, chunk, 16, 0);
	}
	if (bpf_skb_store_bytes(skb, at->checksum, &checksum, sizeof(checksum), BPF_F_RECOMPUTE_CSUM))
		return -1;
	for (int i = 0; i < MOST_CHUNKS && offset + CHUNK_BYTES <= at->end; i++) {
		bpf_skb_load_bytes(skb, offset, chunk, CHUNK_BYTES);
		sum = bpf_csum_diff(0, 0, chunk, CHUNK_BYTES, sum);
		offset += CHUNK_BYTES;
	}
	__builtin_memset(chunk, 0, CHUNK_BYTES);
	if (offset < at->end) {
		__u32 less_one = (at->end - offset - 1) & (CHUNK_BYTES - 1);

		barrier_var(less_one); /* the verifier shall see that it is 1 byte at least, CHUNK_BYTES at most */
		bpf_skb_load_bytes(skb, offset, chunk, less_one + 1);
	}
	sum = bpf_csum_diff(0, 0, chunk, CHUNK_BYTES, sum);
	sum = ((__u32)sum >> 16) + (sum & 0xffff);
	checksum = ~(__u16)((sum >> 16) + sum);
	if (!checksum && at->protocol == IPPROTO_UDP)
		checksum = 0xffff; /* 0 would say that there is none */
	return bpf_skb_store_bytes(skb, at->checksum, &checksum, sizeof(checksum), BPF_F_RECOMPUTE_CSUM);
}

static __always_inline long corrupt(struct __sk_buff *skb, struct layout *at)
{
	__u32 offset = at->payload, count = sizeof(__u16), bit;
	__u8 byte;

	if ((skb->gso_size && cut(skb, at)) || let_checksum_be(skb, at))
		return -1;
	if (!at->is_fragment && finish_checksum(skb, at))
		return -1;
	if (offset < at->end)
		count = at->end - offset;
	else
		offset = at->checksum;
	bit = draw_bit(count * 8);
	offset += bit / 8;
	if (bpf_skb_load_bytes(skb, offset, &byte, sizeof(byte)))
		return -1;
	byte ^= 1 << bit % 8;
	return bpf_skb_store_bytes(skb, offset, &byte, sizeof(byte), BPF_F_RECOMPUTE_CSUM);
}
#endif

SEC(PODMGR_SECTION)
int podmgr_corrupt(struct __sk_buff *skb)
{
	struct layout at = {};
	struct wire wire;

	if (is_exempt(skb) || is_judged(skb))
		return VERDICT_PASS;
	wire = wire_of(skb);
	if ((__u64)bpf_get_prandom_u32() >= THRESHOLD || !look(skb, &at))
		return count(wire, VERDICT_PASS);
	if (!PODMGR_SHADOW && corrupt(skb, &at)) /* without memory; what the receiver would discard may as well be lost here */
		return count(wire, REACHES_APPLICATION ? VERDICT_PASS : VERDICT_DROP);
	add_to_figure(0, wire.packets);
	return count(wire, VERDICT_PASS);
}

char LICENSE[] SEC("license") = "GPL";
