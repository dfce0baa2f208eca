/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef GHOSTBPF_MIGRATIONS_H
#define GHOSTBPF_MIGRATIONS_H

enum migration_reason {
	MOVED_FORK, /* a new task's first CPU */
	MOVED_AFFINITY, /* its affinity excludes the old CPU: moved at once if it runs or waits, else as it wakes */
	MOVED_EXEC, /* balanced at exec() */
	MOVED_WAKEUP, /* the wakeup chose that CPU */
	MOVED_STOPPER, /* by the migration thread: its CPU goes offline, or load balancing moves it as it runs */
	MOVED_EXT, /* a sched_ext scheduler dispatched it to that CPU */
	MOVED_BALANCE, /* it waited: pulled or pushed by load balancing */
};

struct migration_key {
	u32 tid;
	u32 reason;
	u16 from;
	u16 to;
	char comm[16];
	u32 reserved;
};

#endif
