/* SPDX-License-Identifier: GPL-2.0-only */
#define RUNQLEN_MAX 128

/* Per CPU; the last count is for all that are as long or longer. */
struct runqlen_counts {
	u64 samples[128]; /* by queue length: the tasks that wait, not the one that runs */
};
