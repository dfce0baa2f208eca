/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Histograms of times, as a whole or broken down by process, thread, CPU or a key of the tracer's own.
 *
 * A tracer with more than one histogram defines their number, HISTS, before it includes this file.
 */
#ifndef GHOSTBPF_HIST_BPF_H
#define GHOSTBPF_HIST_BPF_H

#include "buckets.bpf.h"
#include "trace.bpf.h"
#include "trace.h"

#ifndef HISTS
#define HISTS 1
#endif

BPF_PERCPU_ARRAY(hists, struct hist, HISTS);
BPF_HASH(cells, struct cell_key, struct cell, 65536);
BPF_HASH(names, u64, struct task_name, 16384);

/* A time's bucket, by 1/HIST_SCALE of the unit; the last bucket includes all longer times. */
static u32 bucket_of_time(u64 ns)
{
	u32 bucket = bucket_of(ns >> 53 ? ~0ULL >> 1 : ns * HIST_SCALE / LINK_CONSTANT(unit));

	return bucket < HIST_BUCKETS ? bucket : HIST_BUCKETS - 1;
}

static void keep_name(u64 id, struct task_struct *p)
{
	struct task_struct *named = LINK_CONSTANT(by) == BY_PROCESS ? p->group_leader : p;
	struct task_name name = {};

	bpf_probe_read_kernel_str(name.comm, sizeof(name.comm), named->comm);
	names.update(&id, &name);
}

/* Attached if tasks are broken down by name: a task that calls exec() continues under its new name. */
BPF_PROG(named_sched_process_exec, struct task_struct *p)
{
	u64 id = LINK_CONSTANT(by) == BY_PROCESS ? p->tgid : p->pid;

	if (names.lookup(&id))
		keep_name(id, p);
	return 0;
}

static void record_cell(struct cell_key *key, struct task_struct *p, u64 ns)
{
	struct cell *cell = cells.lookup(key);

	if (!cell) {
		struct cell zero = {};

		cells.insert(key, &zero);
		cell = cells.lookup(key);
		if (!cell) {
			count_dropped();
			return;
		}
		if (LINK_CONSTANT(by) == BY_PROCESS || LINK_CONSTANT(by) == BY_THREAD)
			keep_name(key->id, p);
	}
	__sync_fetch_and_add(&cell->count, 1);
	__sync_fetch_and_add(&cell->sum, ns);
	if (ns > cell->max)
		cell->max = ns;
}

/* Add a time to histogram `which`; with a breakdown, to the histogram `which` of id. */
static void record_for(u64 id, u32 which, struct task_struct *p, u64 ns)
{
	u32 bucket = bucket_of_time(ns);
	struct hist *hist;

	if (LINK_CONSTANT(by)) {
		struct cell_key key = { .id = id, .which = which, .bucket = bucket };

		record_cell(&key, p, ns);
		return;
	}
	hist = hists.lookup(&which);
	if (!hist || bucket >= HIST_BUCKETS)
		return;
	hist->count[bucket]++;
	hist->sum += ns;
	if (ns > hist->max)
		hist->max = ns;
}

/* Add a time to histogram `which`; a breakdown is by p's thread or process, or by this CPU. */
static void record(u32 which, struct task_struct *p, u64 ns)
{
	u64 id = LINK_CONSTANT(by) == BY_PROCESS ? p->tgid :
		 LINK_CONSTANT(by) == BY_THREAD ? p->pid : bpf_get_smp_processor_id();

	record_for(id, which, p, ns);
}

#endif
