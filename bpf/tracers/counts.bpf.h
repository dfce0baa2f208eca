/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Counts of events by a key.
 *
 * A tracer defines COUNT_KEY, the type of its keys, before it includes this file.
 */
#ifndef GHOSTBPF_COUNTS_BPF_H
#define GHOSTBPF_COUNTS_BPF_H

#include "trace.bpf.h"

#ifndef COUNT_KEY
#define COUNT_KEY u64
#endif

BPF_HASH(counts, COUNT_KEY, u64, 16384);

static void count_event(COUNT_KEY *key)
{
	u64 *count = counts.lookup(key), one = 1;

	if (count)
		__sync_fetch_and_add(count, 1);
	else if (counts.insert(key, &one)) {
		/* The map is full, unless another CPU has just inserted the key. */
		count = counts.lookup(key);
		if (count)
			__sync_fetch_and_add(count, 1);
		else
			count_dropped();
	}
}

#endif
