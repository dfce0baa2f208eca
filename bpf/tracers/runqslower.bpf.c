/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Waits for a CPU that were longer than a limit, and the tasks that ran instead.
 *
 * The tracer keeps the last 16 tasks that left each CPU. Those that ran while a task waited, on the CPU where it then
 * ran, are its culprits.
 */
#define RUNS_OF(p) false /* a missed run loses a culprit, not a wait: it is not counted */
#include "run.bpf.h"
#include "runqslower.h"
#include "trace.bpf.h"
#include "wait.bpf.h"

struct recent {
	u32 head;
	u32 reserved;
	struct culprit culprits[CULPRITS];
};

BPF_PERCPU_ARRAY(recents, struct recent, 1);
BPF_PERCPU_ARRAY(waits, struct slow_wait, 1);
BPF_RINGBUF_OUTPUT(events, 64);

static void note_culprit(struct task_struct *p, u64 since, u64 now)
{
	u32 zero = 0;
	struct recent *recent = recents.lookup(&zero);
	struct culprit *culprit;

	if (!recent || !p->pid || !since)
		return;
	culprit = &recent->culprits[recent->head & (CULPRITS - 1)];
	culprit->until = now;
	culprit->ran = now - since;
	culprit->tid = p->pid;
	bpf_probe_read_kernel_str(culprit->comm, sizeof(culprit->comm), p->comm);
	recent->head++;
}

static void report(struct task_struct *p, u64 since, u64 now)
{
	u32 zero = 0;
	struct recent *recent = recents.lookup(&zero);
	struct slow_wait *wait = waits.lookup(&zero);

	if (!recent || !wait)
		return;
	wait->since = since;
	wait->waited = now - since;
	wait->at = now;
	wait->tid = *(volatile s32 *)&p->pid; /* one load each: the verifier refuses one for both */
	wait->tgid = p->tgid;
	wait->cpu = bpf_get_smp_processor_id();
	wait->head = recent->head;
	bpf_probe_read_kernel_str(wait->comm, sizeof(wait->comm), p->comm);
	__builtin_memcpy(wait->culprits, recent->culprits, sizeof(wait->culprits));
	if (events.ringbuf_output(wait, sizeof(*wait), 0))
		count_dropped();
}

BPF_PROG(tp_sched_wakeup, struct task_struct *p)
{
	wait_woken(p);
	return 0;
}

BPF_PROG(tp_sched_wakeup_new, struct task_struct *p)
{
	wait_woken(p);
	return 0;
}

BPF_PROG(tp_sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next, u32 prev_state)
{
	u64 now = bpf_ktime_get_ns(), since;

	note_culprit(prev, run_ended(prev, next, now), now);
	wait_left(prev, preempt, prev_state);
	if (wait_ended(next, &since) && now - since >= LINK_CONSTANT(min_ns) && matches_cpu())
		report(next, since, now);
	return 0;
}
