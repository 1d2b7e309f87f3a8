#include <stdint.h>
#include <stdbool.h>
#include <string.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct key { uint32_t a; uint16_t b; };

SEC("cgroup_skb/egress") int prog(struct __sk_buff *skb)
{
	struct key key, copy;
	bool is_large = skb->len > 1500;

	memset(&key, 0, sizeof(key));
	key.a = skb->len;
	memcpy(&copy, &key, sizeof(copy));
	return is_large ? copy.a > 0 : 1;
}

char LICENSE[] SEC("license") = "GPL";
