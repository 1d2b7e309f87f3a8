// SPDX-License-Identifier: GPL-2.0
/*
 * stamp: the least that delays a packet in fq, for the benchmark. With CLONES a clone without a socket is sent
 * in the place of each packet that has one, and stamped when it comes anew. Nothing is counted or bounded.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#ifndef CLONES
#define CLONES 0
#endif
#ifndef TIME /* nanoseconds */
#define TIME 1000000ULL
#endif

SEC("tc")
int stamp(struct __sk_buff *skb)
{
	if (CLONES && skb->sk) {
		bpf_clone_redirect(skb, skb->ifindex, 0);
		return TC_ACT_STOLEN;
	}
	skb->tstamp = bpf_ktime_get_ns() + TIME;
	return TC_ACT_UNSPEC;
}

char LICENSE[] SEC("license") = "GPL";
