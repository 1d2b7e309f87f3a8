#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

SEC("classifier") int cls_main(struct __sk_buff *skb)
{
	return skb->protocol == 0x0608 ? TC_ACT_OK : TC_ACT_PIPE;
}

char __license[] SEC("license") = "GPL";
