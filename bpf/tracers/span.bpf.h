/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Times between two events of a task, where some events may be missing: kernels, hypervisors and sandboxes do lose a
 * sched_switch now and then, and a start whose end was lost must not become a long time that never was.
 *
 * The kernel counts the switches of each task itself (nvcsw, nivcsw), under the same run queue lock as the
 * tracepoints. So each event tells how often the task has come on a CPU by then, and whether a run was missed since
 * the event before:
 *
 *   a start that was followed by a missed run is dropped, and counted as unended
 *   a run of which no start was seen is counted as unannounced
 *
 * Times that were counted, unended and unannounced add up to the runs that the kernel counts in schedstat.
 */
#ifndef GHOSTBPF_SPAN_BPF_H
#define GHOSTBPF_SPAN_BPF_H

#include "trace.bpf.h"

#ifndef SPANS_OF
#define SPANS_OF(p) wanted(p)
#endif

/* A span that began before all programs were attached may have lost its end to that: it is not counted as missed. */
static bool is_early(u64 since)
{
	u32 zero = 0;
	u64 *at = attached_at.lookup(&zero);

	return !at || !*at || since < *at;
}

/*
 * p is seen off its CPU, or as it comes on one. Drop a start that a missed run has ended. False where the event before
 * is not known.
 */
static bool span_catch_up(struct span *span, struct task_struct *p)
{
	u64 runs = switches_of(p), since = span->since, before = span->runs_plus_1, unseen;

	span->runs_plus_1 = runs + 1;
	if (!before)
		return false;
	unseen = runs + 1 - before;
	if (!unseen)
		return true;
	span->since = 0;
	if (since && is_early(since))
		return false;
	missed(since ? 1 : 0, since ? unseen - 1 : unseen);
	return true;
}

/* p leaves its CPU, or is woken: a span begins, unless one has begun already. */
static bool span_begin(struct span *span, struct task_struct *p)
{
	span_catch_up(span, p);
	if (span->since)
		return false;
	span->since = bpf_ktime_get_ns();
	return true;
}

/* p leaves its CPU, and no span begins. */
static void span_none(struct span *span, struct task_struct *p)
{
	span_catch_up(span, p);
	span->since = 0;
}

/* p comes on a CPU: since when the span lasted that ends so, 0 where it is not known. */
static u64 span_end(struct span *span, struct task_struct *p)
{
	bool is_followed = SPANS_OF(p), is_whole = span->since && span->runs_plus_1 == switches_of(p) + 1;
	u64 since = is_whole ? span->since : 0;

	if (is_followed && !is_whole && span_catch_up(span, p))
		missed(0, 1);
	span->since = 0;
	/* While a task does not match its events are not seen, and none of them is missing. */
	span->runs_plus_1 = is_followed ? switches_of(p) + 2 : 0;
	return since;
}

/* What p does next does not matter. */
static void span_forget(struct span *span)
{
	span->since = 0;
	span->runs_plus_1 = 0;
}

#endif
