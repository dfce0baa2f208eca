/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Spans: times between two events of a task, where events may be missing. Kernels, hypervisors and sandboxes lose a
 * sched_switch now and then, and a start without its end must not become a long time that never was.
 *
 * The kernel counts each task's switches (nvcsw, nivcsw) under the same runqueue lock as the tracepoints. So each event
 * tells how often the task has come on a CPU by then, and whether a run was missed since the previous event:
 *
 *   a start that is followed by a missed run is dropped and counted as unended;
 *   a run with no start seen is counted as unannounced.
 *
 * The recorded times, the unended and the unannounced ones add up to the runs that the kernel counts in schedstat.
 *
 * A tracer that looks at some of the matching tasks only defines SPANS_OF(p) before it includes this file.
 */
#ifndef GHOSTBPF_SPAN_BPF_H
#define GHOSTBPF_SPAN_BPF_H

#include "trace.bpf.h"
#include "trace.h"

#ifndef SPANS_OF
#define SPANS_OF(p) matches(p)
#endif

/* A span that began before all programs were attached may have lost its end to that: it does not count as missed. */
static bool is_early(u64 since)
{
	u32 zero = 0;
	u64 *at = attached_at.lookup(&zero);

	return !at || !*at || since < *at;
}

/*
 * p is seen off its CPU, or as it comes on one. Drop a start that a missed run has ended. Return false if the previous
 * event is not known.
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
	count_missed(since ? 1 : 0, since ? unseen - 1 : unseen);
	return true;
}

/* p leaves its CPU, or is woken: start the span. Return false if it has started already. */
static bool span_begin(struct span *span, struct task_struct *p)
{
	span_catch_up(span, p);
	if (span->since)
		return false;
	span->since = bpf_ktime_get_ns();
	return true;
}

/* p leaves its CPU, and no span starts. */
static void span_none(struct span *span, struct task_struct *p)
{
	span_catch_up(span, p);
	span->since = 0;
}

/* p comes on a CPU: end the span. Return when it started, or 0 if that is not known. */
static u64 span_end(struct span *span, struct task_struct *p)
{
	bool is_followed = SPANS_OF(p), is_whole = span->since && span->runs_plus_1 == switches_of(p) + 1;
	u64 since = is_whole ? span->since : 0;

	if (is_followed && !is_whole && span_catch_up(span, p))
		count_missed(0, 1);
	span->since = 0;
	/* Events of a task are not looked at while it does not match, so they do not count as missed. */
	span->runs_plus_1 = is_followed ? switches_of(p) + 2 : 0;
	return since;
}

/* Drop the span: p's next events do not matter. */
static void span_forget(struct span *span)
{
	span->since = 0;
	span->runs_plus_1 = 0;
}

#endif
