// SPDX-License-Identifier: GPL-2.0-only
/*
 * dropper: drops packets by protocol, port and destination. An example of a program of your own.
 *
 *   ebpf-limit: "dropper egress"                                     drops all that leaves
 *   ebpf-limit: "dropper egress -DPROTOCOL=IPPROTO_UDP -DPORT=53"    no more name service
 *   ebpf-limit: "dropper egress -DDST=10.0.0.1; dropper egress -DDST=fd00::1"    not to these two
 *   ebpf-limit: "dropper ingress -DPORT=80 -DDROP=0"                 drops nothing, only counts
 *
 * podmgr.h brings the verdicts, the counters that `podmgr list` shows, and INTERFACE, which is
 * the rule's direction. Only macros that the source tests with #ifndef can be set by a rule.
 */
#include "podmgr.h"
#include <bpf/bpf_endian.h>

#ifndef DROP /* 1: drop what matches; 0: let it pass, and count only it */
#define DROP 1
#endif
#ifndef PROTOCOL /* of the IP header, such as IPPROTO_TCP or 17; 0: every one */
#define PROTOCOL 0
#endif
#ifndef PORT /* of TCP or UDP, source or destination; 0: every packet */
#define PORT 0
#endif
#ifndef DST /* IPv4 or IPv6 address that it goes to; 0: any */
#define DST 0
#endif

_Static_assert(DROP == 0 || DROP == 1, "DROP is 0 or 1");
_Static_assert(PROTOCOL >= 0 && PROTOCOL <= 255, "PROTOCOL is a number of the IP header");
_Static_assert(PORT >= 0 && PORT <= 65535, "PORT is 0 to 65535");

/* DST is a number for IPv4, four of them for IPv6. */
static __always_inline int goes_there(struct __sk_buff *skb)
{
	const __u32 wanted[] = { DST };
	const int is_ipv4 = sizeof(wanted) == 4;
	__u32 found[4] = {};
	__u8 version = 0;

	if (is_ipv4 && !wanted[0])
		return 1;
	bpf_skb_load_bytes_relative(skb, 0, &version, 1, BPF_HDR_START_NET);
	if (version >> 4 != (is_ipv4 ? 4 : 6) ||
	    bpf_skb_load_bytes_relative(skb, is_ipv4 ? 16 : 24, found, sizeof(wanted),
					BPF_HDR_START_NET))
		return 0;
	for (int word = 0; word < (int)sizeof(wanted) / 4; word++)
		if (found[word] != wanted[word])
			return 0;
	return 1;
}

static __always_inline int matches(struct __sk_buff *skb)
{
	struct transport transport = transport_of(skb);
	__be16 ports[2] = {};

	if (!goes_there(skb))
		return 0;
	if (PROTOCOL != 0 && transport.protocol != PROTOCOL)
		return 0;
	if (PORT == 0)
		return 1;
	if (transport.protocol != IPPROTO_TCP && transport.protocol != IPPROTO_UDP)
		return 0;
	if (bpf_skb_load_bytes_relative(skb, transport.offset, ports, sizeof(ports),
					BPF_HDR_START_NET))
		return 0;
	return ports[0] == bpf_htons(PORT) || ports[1] == bpf_htons(PORT);
}

SEC("cgroup_skb/" INTERFACE)
int dropper(struct __sk_buff *skb)
{
	if (is_exempt(skb))
		return VERDICT_PASS;
	if (!matches(skb))
		return DROP ? count(wire_of(skb), VERDICT_PASS) : VERDICT_PASS;
	return count(wire_of(skb), DROP ? VERDICT_DROP : VERDICT_PASS);
}

char LICENSE[] SEC("license") = "GPL";
