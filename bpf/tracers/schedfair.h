/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef GHOSTBPF_SCHEDFAIR_H
#define GHOSTBPF_SCHEDFAIR_H

#define FAIR_PRIOS 40
#define FAIR_BINS 20 /* tenths of the fair share; the last includes all from 1.9 on */

/* The fair share of one task since the trace began, in thousandths of a CPU times ns. */
struct fair_share {
	u64 at; /* the time up to which share is counted */
	u64 share;
	u64 busy; /* a CPU is counting */
	s64 load; /* runnable tasks */
};

struct fair_task {
	u64 share; /* over all its windows */
	u64 ran; /* ns */
	u64 prio; /* static_prio - 100: 0 is nice -20, 39 nice 19 */
};

#endif
