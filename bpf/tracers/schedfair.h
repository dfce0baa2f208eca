/* SPDX-License-Identifier: GPL-2.0-only */
#define FAIR_PRIOS 40
#define FAIR_BINS 20 /* tenths of the fair share; the last is for all from 1.9 on */

/* The fair share of one task since the trace began, in thousandths of a CPU times ns. */
struct fair_share {
	u64 at; /* up to when it is counted */
	u64 share;
	u64 busy; /* somebody is counting */
	s64 load; /* tasks that run or could */
};

struct fair_task {
	u64 share; /* over all its windows */
	u64 ran; /* ns */
	u64 prio; /* static_prio - 100: 0 is nice -20, 39 nice 19 */
};
