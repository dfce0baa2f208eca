/* SPDX-License-Identifier: GPL-2.0-only */
/* What the tracers and user space share; see ../abi.h for what may stand here. */
#ifndef GHOSTBPF_TRACE_H
#define GHOSTBPF_TRACE_H

/*
 * A histogram's bucket: the power of two below the value in 1/1024ths of the unit, and the three bits that follow it.
 * So powers of two of the unit are edges of buckets, and a percentile is right within an eighth.
 */
#define HIST_BUCKETS 432
#define HIST_SCALE 1024

struct hist {
	u64 sum; /* ns */
	u64 max; /* ns */
	u64 count[432];
};

/* With a breakdown, histograms are kept in cells instead: one of a bucket that has been hit. */
struct cell_key {
	u64 id; /* a tgid, tid, CPU or DSQ */
	u32 which; /* of the tool's histograms */
	u32 bucket;
};

struct cell {
	u64 count;
	u64 sum; /* ns */
	u64 max; /* ns */
};

/* Since when something of a task lasts, and what tells whether an event of it was missed. */
struct span {
	u64 since; /* 0 while it does not last */
	u64 runs_plus_1; /* how often the task had come on a CPU by the last event; 0 where that is not known */
};

/* Times that are not in the figures because an event of theirs was missed. */
struct missed {
	u64 unended; /* a start was seen, and no end */
	u64 unannounced; /* an end, or nothing, was seen, and no start */
};

struct task_name {
	char comm[16];
};

enum trace_by {
	BY_NOTHING = 0,
	BY_PROCESS = 1,
	BY_THREAD = 2,
	BY_CPU = 3,
	BY_OTHER = 4, /* the tool's own */
};

#endif
