/* SPDX-License-Identifier: GPL-2.0-only */
/* A task's number in the initial pid namespace, and in the namespace of the process that asks. */
struct task_number {
	s32 initial;
	s32 local;
};

struct count_args {
	u32 enclave;
	u32 generation;
	u32 tasks;
	u32 pad;
};
