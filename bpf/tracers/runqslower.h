/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef GHOSTBPF_RUNQSLOWER_H
#define GHOSTBPF_RUNQSLOWER_H

#define CULPRITS 16

struct culprit {
	u64 until; /* when it left the CPU */
	u64 ran; /* ns */
	u32 tid;
	u32 reserved;
	char comm[16];
};

/* A task that waited too long, and the ring of tasks that had the CPU before it; the latest is at (head - 1) & 15. */
struct slow_wait {
	u64 since;
	u64 waited; /* ns */
	u64 at; /* when it came on the CPU; CLOCK_MONOTONIC */
	u32 tid;
	u32 tgid;
	u32 cpu;
	u32 head;
	char comm[16];
	struct culprit culprits[16];
};

#endif
