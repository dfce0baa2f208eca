/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef GHOSTBPF_PIDS_H
#define GHOSTBPF_PIDS_H

/* A task's id in the initial pid namespace, and in that of the calling process. */
struct task_number {
	s32 initial;
	s32 local;
};

/* Argument of call_count_hidden. */
struct count_args {
	u32 enclave;
	u32 generation;
	u32 tasks; /* result */
	u32 pad;
};

#endif
