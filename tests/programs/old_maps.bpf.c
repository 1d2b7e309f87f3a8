#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct old_map { unsigned int type, key_size, value_size, max_entries, map_flags; };

struct old_map SEC("maps") counts = { BPF_MAP_TYPE_ARRAY, 4, 8, 1, 0 };

SEC("tc") int prog(struct __sk_buff *skb)
{
	__u32 key = 0;
	__u64 *count = bpf_map_lookup_elem(&counts, &key);

	if (count)
		*count += skb->len;
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
