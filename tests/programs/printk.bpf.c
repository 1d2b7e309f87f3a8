#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

const volatile __u32 limit = 9000;
__u64 seen;

SEC("cgroup_skb/ingress") int prog(struct __sk_buff *skb)
{
	__sync_fetch_and_add(&seen, 1);
	if (skb->len > limit)
		bpf_printk("%d bytes", skb->len);
	return 1;
}

char LICENSE[] SEC("license") = "GPL";
