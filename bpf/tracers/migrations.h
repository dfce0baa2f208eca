/* SPDX-License-Identifier: GPL-2.0-only */
enum migration_reason {
	MOVED_FORK, /* a new task's first CPU */
	MOVED_AFFINITY, /* its affinity has changed, it may not stay: moved at once if it runs or waits, else as it wakes */
	MOVED_EXEC, /* exec is a good time to move */
	MOVED_WAKEUP, /* its waker placed it there */
	MOVED_STOPPER, /* by the migration thread: its CPU goes away, or load balancing takes it as it runs */
	MOVED_EXT, /* a sched_ext scheduler gave it to that CPU */
	MOVED_BALANCE, /* it was waiting: pulled or pushed by load balancing */
};

struct migration_key {
	u32 tid;
	u32 reason;
	u16 from;
	u16 to;
	char comm[16];
	u32 reserved;
};
