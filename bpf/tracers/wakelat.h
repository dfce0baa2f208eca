/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef GHOSTBPF_WAKELAT_H
#define GHOSTBPF_WAKELAT_H

#define WAKELAT_BUCKETS 512 /* 64 powers of two of 8 steps each: a percentile is right within an eighth */

/* A marked task. */
struct wakelat_mark {
	u64 since; /* when its wait started; 0 while it runs or sleeps */
	u64 switches; /* how often it had left a CPU by that time */
};

struct wakelat_totals {
	u64 switches; /* marked tasks put on a CPU */
	u64 longest_ns; /* the longest wait from wakeup to CPU */
	u64 last_on; /* when a marked task last came on a CPU */
	u64 longest_gap_ns; /* the longest time without that */
	u64 forks; /* tasks that marked tasks made */
	u64 exits; /* marked tasks that ended */
	u64 unmarked; /* of the forks: tasks that could not be marked, so their ends are not seen */
	u64 reserved;
};

#endif
