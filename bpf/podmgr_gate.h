/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The gate before a program of others whose rule has a match or a time: it alone is entered, and calls the
 * program for the packets that are meant, while the rule is in force. All others pass. podmgr puts this behind
 * the program's source when both have been through the preprocessor (podmgr/programs/gate.py): neither sees
 * the macros of the other. That no name meets one of the program's, each begins with podmgr_, if need be by
 * a macro. Of all that the program includes the gate takes the names of two structs alone, __sk_buff and
 * bpf_spin_lock.
 *
 * podmgr sets, besides what podmgr.h tells:
 *   PODMGR_GATED          the program's function
 *   PODMGR_GATED_SECTION  the section that it stood in, as a string
 */
#ifndef PODMGR_CONTAINER
#define PODMGR_CONTAINER 0
#endif

#define __u8 unsigned char
#define __u16 unsigned short
#define __u32 unsigned int
#define __u64 unsigned long long
#define __always_inline inline __attribute__((always_inline))

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, number) int(*name)[number]
#define __type(name, type) typeof(type) *name

/* linux/bpf.h */
#define BPF_MAP_TYPE_ARRAY 2
#define BPF_MAP_TYPE_LRU_HASH 9
#define BPF_MAP_TYPE_LPM_TRIE 11
#define bpf_skb_ancestor_cgroup_id ((__u64(*)(const void *skb, int level))83)
#define BPF_F_NO_PREALLOC 1
#define BPF_ANY 0
#define BPF_HDR_START_NET 1
#define bpf_map_lookup_elem ((void *(*)(void *map, const void *key))1)
#define bpf_map_update_elem ((long (*)(void *map, const void *key, const void *value, __u64 flags))2)
#define bpf_skb_load_bytes_relative \
	((long (*)(const void *skb, __u32 offset, void *to, __u32 size, __u32 from))68)
#define bpf_ktime_get_boot_ns ((__u64(*)(void))125)
#define bpf_get_smp_processor_id ((__u32(*)(void))8)
/* The kernel knows `struct bpf_spin_lock` by its name: it is the program's, or podmgr puts it before this. */
#define bpf_spin_lock(lock) (((long (*)(void *))93)(lock))
#define bpf_spin_unlock(lock) (((long (*)(void *))94)(lock))

/* linux/in.h, linux/in6.h, linux/if_ether.h */
#define IPPROTO_HOPOPTS 0
#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_ROUTING 43
#define IPPROTO_FRAGMENT 44
#define IPPROTO_AH 51
#define IPPROTO_ICMPV6 58
#define IPPROTO_DSTOPTS 60
#define IPPROTO_SCTP 132
#define IPPROTO_MH 135
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define ethhdr podmgr_ethhdr
struct ethhdr {
	__u8 destination[6], source[6];
	__u16 h_proto;
};

/* struct __sk_buff up to what is read. That of vmlinux.h says that its fields may lie elsewhere. */
struct podmgr_context {
	__u32 before_protocol[4], protocol, before_cb[7], cb[5], before_data[2], data, data_end, before_sk[21];
	void *sk;
};
#define PODMGR_CONTEXT(skb) ((const struct podmgr_context *)(skb))

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define bpf_htons(number) ((__u16)__builtin_bswap16(number))
#else
#define bpf_htons(number) (number)
#endif

#if PODMGR_TC
#define VERDICT_PASS -1 /* TC_ACT_UNSPEC */
#else
#define VERDICT_PASS 1
#endif

/* marks.h, container.h, timing.h, match.h, recent.h */
#define CB_CONTAINER podmgr_CB_CONTAINER
#define CB_IS_COPY podmgr_CB_IS_COPY
#define CB_SCOPE podmgr_CB_SCOPE
#define CB_SENT_ANEW podmgr_CB_SENT_ANEW
#define TERM_IS_TIMED podmgr_TERM_IS_TIMED
#define TERM_TAKES_AWAY podmgr_TERM_TAKES_AWAY
#define container_of_packet podmgr_container_of_packet
#define follow_piece podmgr_follow_piece
#define is_extension podmgr_is_extension
#define is_in_force podmgr_is_in_force
#define is_matched podmgr_is_matched
#define is_sent_anew podmgr_is_sent_anew
#define is_with_ports podmgr_is_with_ports
#define list_of_peer podmgr_list_of_peer
#define misfit podmgr_misfit
#define packed podmgr_packed
#define read_any podmgr_read_any
#define read_ipv4 podmgr_read_ipv4
#define read_ipv6 podmgr_read_ipv6
#define read_plain podmgr_read_plain
#define take_ports podmgr_take_ports

#if PODMGR_CONTAINER
#include "marks.h"
#endif
#include "container.h"
#include "timing.h"
#if PODMGR_MATCH
#include "match.h"
#endif

/* A function of its own, so that what it keeps on the stack is gone when the program needs all of it. */
static __attribute__((noinline)) int podmgr_is_meant(struct __sk_buff *skb)
{
#if PODMGR_TIMED
	if (!is_in_force(0))
		return 0;
#endif
#if PODMGR_MATCH
	return is_matched(skb);
#else
	return 1;
#endif
}

SEC(PODMGR_GATED_SECTION) int podmgr_gate(struct __sk_buff *skb)
{
	return podmgr_is_meant(skb) ? PODMGR_GATED(skb) : VERDICT_PASS;
}
