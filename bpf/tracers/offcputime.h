/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef GHOSTBPF_OFFCPUTIME_H
#define GHOSTBPF_OFFCPUTIME_H

struct off_key {
	u32 tid;
	u32 tgid;
	s32 kernel_stack; /* an index of the stacks map, or a negative errno */
	s32 user_stack;
	char comm[16];
};

struct off_time {
	u64 ns;
	u64 count;
};

struct stack {
	u64 address[127]; /* innermost first, 0 after the last */
};

#endif
