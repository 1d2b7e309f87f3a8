#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

SEC("cgroup_skb/egress") int prog(struct __sk_buff *skb)
{
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)))
		return 1;
	return ip.version != 4 || ip.protocol != IPPROTO_UDP || bpf_ntohs(ip.tot_len) < 9000;
}

char LICENSE[] SEC("license") = "GPL";
