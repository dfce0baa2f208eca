/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Rescue: tasks that would not run although their enclave has a free CPU.
 *
 * The kernel ends a scheduler that lets a runnable task wait for 30 s. So a task that its agent leaves waiting for
 * RESCUE_TIMEOUT gets a CPU in any case, and so does a task that was committed to a CPU that cannot run it.
 */
#ifndef GHOSTBPF_RESCUE_BPF_H
#define GHOSTBPF_RESCUE_BPF_H

#include "abi.h"
#include "channels.bpf.h"
#include "core/bits.bpf.h"
#include "core/cpus.bpf.h"
#include "core/iterate.bpf.h"
#include "core/state.bpf.h"
#include "sched.bpf.h"
#include "status_words.bpf.h"

#define RESCUE_TIMEOUT (5 * 1000000000ULL)
#define RESCUE_CHECK_PERIOD (250 * 1000000ULL)
#define RESCUE_SCAN_MAX 32 /* tasks at the head of a queue that are looked at */

/*
 * Run a task that was committed to a lost CPU. If `any` is set, also one that was committed to another CPU: the fast path
 * leaves no CPU idle while a task waits.
 */
static bool rescue(struct enclave *e, bool any)
{
	bool scarce = any && are_words_scarce(); /* queue_locally() then uses CPUs' own queues, too */
	struct cpu *cpu;
	s32 id;

	for_each_cpu_of(ENCLAVE, e, cpu, id) {
		bool lost = is_lost(cpu, id);

		if (cpu->latched)
			note_latches(e);

		/* A CPU that a higher class holds does not look at its own queue, and its mark may be missing. */
		if (!lost && !scarce && !(any && cpu->latched))
			continue;
		if (!scx_bpf_dsq_nr_queued(CPU_DSQ(id)))
			continue;
		/* There may be more, or this CPU may not run it: the next dispatch looks again. */
		if (lost)
			report_stuck(e);
		if (!cpu->group_hold && scx_bpf_dsq_move_to_local(CPU_DSQ(id)))
			return true;
	}
	return false;
}

/* Return true if a task waits on a CPU's own queue. */
static bool waits_on_own_queue(struct enclave *e)
{
	struct cpu *cpu;
	s32 id;

	for_each_cpu_of(ENCLAVE, e, cpu, id)
		if (scx_bpf_dsq_nr_queued(CPU_DSQ(id)))
			return true;
	return false;
}

/* Run a task that waits on the own queue of a lost CPU, if there may be one. */
static bool rescue_stuck(struct enclave *e)
{
	if (!e->stuck)
		return false;
	/* Cleared before the walk: a task that is reported after this is on its queue, or the mark is set again. */
	exchange(&e->stuck, 0);
	return rescue(e, false);
}

/* Run a task that waits on any CPU's own queue, if there may be one. */
static bool rescue_latched(struct enclave *e)
{
	if (!e->latches && !e->stuck && !are_words_scarce())
		return false;
	/* As above: rescue() sets the marks again if a task still waits so. */
	exchange(&e->latches, 0);
	exchange(&e->stuck, 0);
	return rescue(e, true);
}

/*
 * How long p, which waits, is overdue; 0 if it is not, or may not run here. A task without an agent that decides for it
 * is overdue at once: one whose agent has timed out, or one that was queued while there was no agent and has no status
 * word.
 */
static u64 overdue_ns(struct task_struct *p, s32 here)
{
	struct agent_task *a = agent_task_of(p, 0);
	struct status_word *w = a ? word_at(a->word) : NULL;
	struct channel *ch;
	u64 waited;
	u32 number;

	if (!has_bit(untrusted(p)->cpus_ptr->bits, here))
		return 0;
	if (!w)
		return 1;
	ch = channel_of(a, &number);
	if (!ch || ch->timed_out)
		return 1;
	waited = w->state == TASK_WAITING ? ns_since(w->since_ns) : 0;
	return waited > RESCUE_TIMEOUT ? waited - RESCUE_TIMEOUT : 0;
}

/* How long the first overdue task on a queue is overdue; 0 if there is none. With move it goes to the queue's head. */
static u64 find_overdue(u64 dsq, s32 here, bool move)
{
	volatile u32 seen = 0;

	for_each_waiting(waiting, p, dsq, 0) {
		u64 ns = overdue_ns(p, here);

		if (ns) {
			if (move && seen)
				scx_bpf_dsq_move(&waiting, p, dsq, SCX_ENQ_HEAD);
			return ns;
		}
		if (++seen >= RESCUE_SCAN_MAX)
			return 0;
	}
	return 0;
}

static bool is_rescue_check_due(struct cpu *cpu, u64 now)
{
	if (elapsed(cpu->checked_at, now) < RESCUE_CHECK_PERIOD)
		return false;
	cpu->checked_at = now;
	return true;
}

/* Return true if each CPU has an agent, and the one of channel 0, which assigns tasks to CPUs, has timed out. */
static bool is_assigner_out(u64 now)
{
	struct channel *ch = channel_at(0);

	return ch && ch->per_cpu && is_timed_out(ch, now);
}

/* Return true if the agent of CPU `here` is about to run on it: a message wakes it, or one that says that prev waits. */
static bool comes_agent(s32 here, struct task_struct *prev)
{
	struct channel *ch = channel_at(1 + here);

	return ch && ch->tid && (ch->state == AGENT_WOKEN || (prev && prev->scx.flags & SCX_TASK_QUEUED));
}

/*
 * Return true if an overdue task, now at the head of PENDING, gets this CPU. If many are overdue, so that one is twice
 * as late as allowed, every second dispatch runs an overdue task until none is that late.
 *
 * The agent of this CPU would interrupt the task before it has run at all. If the agent comes, the task gets the CPU
 * after the agent's turn, before the task that the agent commits in it.
 */
static bool must_rescue(struct cpu *cpu, s32 here, struct task_struct *prev)
{
	u64 now = cpu->dispatched_at, ns;

	if (!is_assigner_out(now) && !is_rescue_check_due(cpu, now))
		return false;
	ns = find_overdue(PENDING, here, true);
	if (ns && comes_agent(here, prev)) {
		cpu->rescue_in = 1;
		cpu->checked_at = 0;
		return false;
	}
	if (ns > RESCUE_TIMEOUT) {
		cpu->rescue_in = 2;
		cpu->checked_at = 0;
	}
	return ns > 0;
}

#endif
