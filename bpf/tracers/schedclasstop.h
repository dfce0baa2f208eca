/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef GHOSTBPF_SCHEDCLASSTOP_H
#define GHOSTBPF_SCHEDCLASSTOP_H

enum sched_class_id {
	CLASS_OTHER,
	CLASS_FIFO,
	CLASS_RR,
	CLASS_BATCH,
	CLASS_IDLE_TASK,
	CLASS_SCHED_IDLE,
	CLASS_DEADLINE,
	CLASS_STOP,
	CLASS_EXT,
};

#define CLASSES 9

/* Per CPU. */
struct class_time {
	u64 since; /* when the task on the CPU came on; 0 if that is not known */
	u64 current; /* its class */
	u64 ns[9];
};

#endif
