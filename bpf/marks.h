/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What stands in cb of packets that podmgr sends anew (anew.h). They pass the chain from its beginning, and have
 * no socket any more: those that freeing.h has taken off theirs, and the copies of duplicate.bpf.c. Nothing of it
 * is believed of a packet that has a socket. For podmgr.h and podmgr_gate.h, which include it.
 */
#define SENT_ANEW 0x706d6721
enum { CB_SENT_ANEW, CB_SCOPE, CB_IS_COPY, CB_CONTAINER };

static __always_inline int is_sent_anew(struct __sk_buff *skb)
{
	return !PODMGR_CONTEXT(skb)->sk && PODMGR_CONTEXT(skb)->cb[CB_SENT_ANEW] == SENT_ANEW;
}
