/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Where in a packet what stands: IP, what it carries, behind whatever options and extension headers, and its end.
 */
#ifndef PODMGR_NETWORK_H
#define PODMGR_NETWORK_H

#include "podmgr.h"

#define FRAGMENT_OFFSET 0x1fff
#define MORE_FRAGMENTS 0x2000
#define FIRST_OF_NEIGHBOUR_DISCOVERY 133
#define LAST_OF_NEIGHBOUR_DISCOVERY 137

#if PODMGR_TC
/* IP stands behind an Ethernet header or, on a tun device, behind none; -1: elsewhere. */
static __always_inline int network_offset(struct __sk_buff *skb)
{
	__u64 header = 0, found = 0;

	if (bpf_skb_load_bytes_relative(skb, 0, &header, sizeof(header), BPF_HDR_START_NET))
		return -1;
	if (!bpf_skb_load_bytes(skb, ETHERNET_HEADER_BYTES, &found, sizeof(found)) && found == header)
		return ETHERNET_HEADER_BYTES;
	return !bpf_skb_load_bytes(skb, 0, &found, sizeof(found)) && found == header ? 0 : -1;
}
#else
static __always_inline int network_offset(struct __sk_buff *skb)
{
	(void)skb;
	return 0;
}
#endif

/* In bytes from the packet's beginning. */
struct inside {
	__u32 network;
	__u32 is_ipv6;
	__u32 protocol;	 /* of what stands at `transport` */
	__u32 transport;
	__u32 end;
	__u32 is_later_fragment; /* than the first, which alone has the transport header */
};

/* Extension headers of IPv6; what stands behind more of them, or behind others, is not found. */
#define MOST_EXTENSIONS 6

static __always_inline int pass_extensions(struct __sk_buff *skb, struct inside *at)
{
	for (int i = 0; i < MOST_EXTENSIONS && !at->is_later_fragment; i++) {
		__u32 protocol = at->protocol;
		__u8 header[4];

		if (protocol != IPPROTO_HOPOPTS && protocol != IPPROTO_ROUTING && protocol != IPPROTO_FRAGMENT &&
		    protocol != IPPROTO_DSTOPTS && protocol != IPPROTO_AH && protocol != IPPROTO_MH)
			return 0;
		if (bpf_skb_load_bytes(skb, at->transport, header, sizeof(header)))
			return -1;
		if (protocol == IPPROTO_FRAGMENT) {
			at->is_later_fragment = (header[2] << 8 | header[3]) >> 3 != 0;
			at->transport += 8;
		} else {
			at->transport += protocol == IPPROTO_AH ? (header[1] + 2) * 4 : (header[1] + 1) * 8;
		}
		at->protocol = header[0];
	}
	return 0;
}

/* -1: it cannot be read. */
static __always_inline int look_inside(struct __sk_buff *skb, struct inside *at)
{
	int network = network_offset(skb);
	__u8 header[20];
	__u32 bytes;

	if (network < 0 || bpf_skb_load_bytes(skb, network, header, sizeof(header)))
		return -1;
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
		at->is_later_fragment = ((header[6] << 8 | header[7]) & FRAGMENT_OFFSET) != 0;
	}
	at->end = network + bytes;
	if (skb->gso_size || at->end > skb->len) /* what is larger than 64 KiB says that its length is 0 */
		at->end = skb->len;
	return at->is_ipv6 ? pass_extensions(skb, at) : 0;
}

#endif
