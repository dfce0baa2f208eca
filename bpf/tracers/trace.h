/* SPDX-License-Identifier: GPL-2.0-only */
/* What the tracers and user space share. ../abi.h says what such a header may contain. */
#ifndef GHOSTBPF_TRACE_H
#define GHOSTBPF_TRACE_H

/*
 * A histogram's bucket is the power of two below the value, in 1/1024ths of the unit, and the three bits that follow
 * it. So powers of two of the unit are edges of buckets, and a percentile is exact to an eighth.
 */
#define HIST_BUCKETS 432
#define HIST_SCALE 1024

struct hist {
	u64 sum; /* ns */
	u64 max; /* ns */
	u64 count[432];
};

/* With a breakdown, histograms are kept in cells instead: one for each bucket with a count. */
struct cell_key {
	u64 id; /* a tgid, tid, CPU or DSQ */
	u32 which; /* the number of the tool's histogram */
	u32 bucket;
};

struct cell {
	u64 count;
	u64 sum; /* ns */
	u64 max; /* ns */
};

/* The start of a task's span, and what tells whether an event of the task was missed; see span.bpf.h. */
struct span {
	u64 since; /* 0 outside a span */
	u64 runs_plus_1; /* 1 + how often the task had come on a CPU by the last event; 0 if that is not known */
};

/* Times that were not recorded because an event was missed. */
struct missed {
	u64 unended; /* the end was missed */
	u64 unannounced; /* the start was missed, or both */
};

struct task_name {
	char comm[16];
};

enum trace_by {
	BY_NOTHING = 0,
	BY_PROCESS = 1,
	BY_THREAD = 2,
	BY_CPU = 3,
	BY_OTHER = 4, /* by a key of the tool's own */
};

#endif
