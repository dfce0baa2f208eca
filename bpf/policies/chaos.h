/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef GHOSTBPF_CHAOS_H
#define GHOSTBPF_CHAOS_H

/* Chances are in 1/100 of a percent. */
struct chaos_params {
	u64 seed;
	u64 delay; /* the chance that a task that wakes is held back */
	u64 delay_ns; /* for how long at most */
	u64 preempt; /* the chance that a turn is cut off, and the task held back */
	u64 reorder; /* the chance that a task that has to wait goes to the head of the queue */
	u64 migrate; /* the chance that a task that wakes gets a random idle CPU */
	u64 degrade; /* the chance that a turn has a shorter slice */
	u64 slice_ns; /* how long a task may run while another waits */
};

enum chaos_action {
	CHAOS_DELAY = 1,
	CHAOS_PREEMPT,
	CHAOS_REORDER,
	CHAOS_MIGRATE,
	CHAOS_DEGRADE,
};

/* What was decided for a task: the same in each run with one seed. */
struct chaos_decision {
	u64 task; /* names the task in each run: a hash of the seed and of the task's descent */
	u64 wakeup; /* which wakeup of the task, from 1 on */
	u64 turn; /* which turn on a CPU since that wakeup, from 1 on; 0: none yet */
	u64 ns; /* how long the task is held back, or how long its turn may be */
	u64 action; /* enum chaos_action; 0: the entry is free */
};

#define CHAOS_DECISIONS_KEPT 4096

#endif
