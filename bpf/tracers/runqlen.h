/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef GHOSTBPF_RUNQLEN_H
#define GHOSTBPF_RUNQLEN_H

#define RUNQLEN_MAX 128

/* Per CPU; the last count includes all longer queues. */
struct runqlen_counts {
	u64 samples[128]; /* by queue length: tasks that wait; the running task is not counted */
};

#endif
