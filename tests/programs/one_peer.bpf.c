#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#ifndef DST
#define DST 0
#endif

/* podmgr compile 'ebpf-limit=one_peer egress -DDST=198.18.1.2' */
SEC("cgroup_skb/egress") int prog(struct __sk_buff *skb)
{
	__u32 daddr = 0;

	bpf_skb_load_bytes(skb, 16, &daddr, sizeof(daddr)); /* of an IPv4 header */
	return daddr == DST ? 2 : 1;
}

char LICENSE[] SEC("license") = "GPL";
