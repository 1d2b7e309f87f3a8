/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The lists of the peers that were looked up last. For match.h, which includes it.
 *
 * Among thousands of prefixes a look-up goes from node to node some fifteen times, and the next packet mostly
 * goes to a peer of those before. While podmgr changes the prefixes nothing is remembered, and what was before
 * counts no more: each state of the table has a number of its own, and 0 says that there is none, or that the
 * table is so small that remembering would take longer.
 *
 * A place is locked and not one CPU's own, as a packet can interrupt another on its way through the program.
 */
#define RECENT_PLACES 64 /* a power of two */

struct podmgr_recent_peer {
	struct bpf_spin_lock lock;
	struct podmgr_list list;
	__u64 state;
	__u64 peer[3];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, RECENT_PLACES);
	__type(key, __u32);
	__type(value, struct podmgr_recent_peer);
} podmgr_recent SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} podmgr_state SEC(".maps");

/* The list of the longest prefix that the peer lies in, of length 0 if in none. */
static __always_inline struct podmgr_list list_of_peer(const struct podmgr_prefix *peer)
{
	__u64 words[3], *state, now;
	__u32 place = 0;
	int is_known = 0;
	struct podmgr_list list = {}, *found;
	struct podmgr_recent_peer *recent = 0;

	state = bpf_map_lookup_elem(&podmgr_state, &place);
	now = state ? *(volatile __u64 *)state : 0; /* before the prefixes: what changes meanwhile has another */
	if (now) {
		__builtin_memcpy(words, peer, sizeof(words));
		/* Neighbours in a network, and CPUs that send to the same peer, have places of their own. */
		place = (peer->address[3] ^ peer->address[15]) + bpf_get_smp_processor_id() * (RECENT_PLACES / 2 - 1);
		place &= RECENT_PLACES - 1;
		recent = bpf_map_lookup_elem(&podmgr_recent, &place);
		if (!recent)
			return list;
		bpf_spin_lock(&recent->lock);
		is_known = recent->state == now && recent->peer[0] == words[0] &&
			   recent->peer[1] == words[1] && recent->peer[2] == words[2];
		list = recent->list;
		bpf_spin_unlock(&recent->lock);
		if (is_known)
			return list;
	}
	found = bpf_map_lookup_elem(&podmgr_peers, peer);
	if (found)
		list = *found;
	else
		list = (struct podmgr_list){};
	if (recent) {
		bpf_spin_lock(&recent->lock);
		recent->state = now;
		recent->peer[0] = words[0];
		recent->peer[1] = words[1];
		recent->peer[2] = words[2];
		recent->list = list;
		bpf_spin_unlock(&recent->lock);
	}
	return list;
}
