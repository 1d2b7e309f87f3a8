/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * When rules are in force. podmgr fills the windows in before the program is attached, and from then on nobody
 * else is needed: a rule ends though all that began it is dead. For podmgr.h, which includes it.
 */
#define PODMGR_WINDOWS 33 /* of the rule itself, and of those that may hide it */

/* In nanoseconds since boot (CLOCK_BOOTTIME). `for_ns` and `every_ns` 0: without an end, without a period. */
struct podmgr_window {
	__u64 is_over; /* for good: written here, and never again looked at the clock for */
	__u64 from_ns;
	__u64 until_ns;
	__u64 for_ns;
	__u64 every_ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PODMGR_WINDOWS);
	__type(key, __u32);
	__type(value, struct podmgr_window);
} podmgr_windows SEC(".maps");

/* By its place among the windows; 0 is the program's own rule. */
static __always_inline int is_in_force(__u32 rule)
{
	struct podmgr_window *window = bpf_map_lookup_elem(&podmgr_windows, &rule);
	__u64 now_ns, since_ns;

	if (!window || window->is_over)
		return 0;
	now_ns = bpf_ktime_get_boot_ns();
	if (now_ns < window->from_ns)
		return 0;
	since_ns = now_ns - window->from_ns;
	if (now_ns >= window->until_ns ||
	    (window->for_ns && !window->every_ns && since_ns >= window->for_ns)) {
		window->is_over = 1;
		return 0;
	}
	return !window->every_ns || since_ns % window->every_ns < window->for_ns;
}
