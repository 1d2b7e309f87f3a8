#include <arpa/inet.h>
#include <netinet/in.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_helpers.h>

SEC("tc") int prog(struct __sk_buff *skb)
{
	if (skb->protocol != htons(ETH_P_IP))
		return -1;
	return skb->len > ntohs(htons(9000)) && skb->mark == IPPROTO_TCP ? 2 : -1;
}

char LICENSE[] SEC("license") = "GPL";
