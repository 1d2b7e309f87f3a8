/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which container of the pod has the socket of a packet, by the lower half of its cgroup's number; 0: none, such
 * as of what the kernel answers by itself. podmgr sets PODMGR_CONTAINER, how many cgroups lie between a container
 * and the root, where some rule of the pod asks. For podmgr.h and podmgr_gate.h, which include it.
 */
static __always_inline __u32 container_of_packet(struct __sk_buff *skb)
{
#if PODMGR_CONTAINER && PODMGR_TC
	if (is_sent_anew(skb))
		return PODMGR_CONTEXT(skb)->cb[CB_CONTAINER];
#endif
#if PODMGR_CONTAINER
	return bpf_skb_ancestor_cgroup_id(skb, PODMGR_CONTAINER);
#else
	(void)skb;
	return 0;
#endif
}
