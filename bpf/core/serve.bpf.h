/* SPDX-License-Identifier: GPL-2.0-only */
/* The tasks that a CPU runs before its enclave's policy is asked: those of no enclave, and those latched to the CPU. */
#ifndef GHOSTBPF_SERVE_BPF_H
#define GHOSTBPF_SERVE_BPF_H

#include "abi.h"
#include "bits.bpf.h"
#include "cpus.bpf.h"
#include "drain.bpf.h"
#include "hotplug.bpf.h"
#include "state.bpf.h"

/* How often a busy enclave's CPU gives a slice to tasks of no enclave. */
#define FALLBACK_PERIOD (50 * 1000000ULL)

/* Return true if a task of e waits on a queue that this CPU serves. */
static bool may_serve(u32 id, struct enclave *e, s32 here)
{
	return has_waiting_tasks(id, e, here) || scx_bpf_dsq_nr_queued(CPU_DSQ(here));
}

static bool serve_fallback(struct cpu *cpu, s32 here, u32 id, struct enclave *e)
{
	u64 now = cpu->dispatched_at;

	if (!scx_bpf_dsq_nr_queued(FALLBACK_DSQ))
		return false;
	if (e && now - cpu->fallback_served_at < FALLBACK_PERIOD && may_serve(id, e, here) && !is_idle(here)) {
		/*
		 * The enclave's tasks may be barred from this CPU: if it then idles, the kick makes it dispatch again.
		 */
		scx_bpf_kick_cpu(here, SCX_KICK_IDLE);
		return false;
	}
	cpu->fallback_served_at = now;
	return scx_bpf_dsq_move_to_local(FALLBACK_DSQ);
}

/* Tasks that would wait for the CPU that goes offline: to the fallback queue, or to that CPU if they are bound to it. */
static void evacuate_leaving(void)
{
	struct core *c = the_core();
	s32 leaving = c ? (s32)c->leaving - 1 : -1;
	struct cpu *cpu = cpu_of(leaving);

	if (leaving < 0 || !cpu)
		return;
	evacuate_affinity_misses(cpu->enclave);
	evacuate_queues(leaving, true);
}

/* More than four orphaned queues at once are rare; the next dispatch serves the rest. */
static bool serve_orphaned_queues(u64 orphaned_queues)
{
	volatile u64 left = orphaned_queues & ~1ULL;

	if (orphaned_queues & 1)
		evacuate_leaving();
	for_each_number(i, 0, 4) {
		struct enclave *e;
		u32 id;

		if (!left)
			return false;
		id = take_bit(&left);
		e = enclave_of(id);
		if (scx_bpf_dsq_move_to_local(PENDING_DSQ(id)) || (e && each_draining_queue(id, e, DRAIN_SERVE)))
			return true;
	}
	return false;
}

/*
 * Return true if a task may wait on this CPU's own queue. cpu->latched tells agents that the CPU has its next task. It
 * is not enough here: an insert takes effect after its mark is set, and a look between the two clears the mark.
 */
static bool may_be_latched(struct cpu *cpu, s32 here, struct enclave *e)
{
	return cpu->latched || (e && has_cpu_queues(e) && scx_bpf_dsq_nr_queued(CPU_DSQ(here)));
}

/* Run the first task of this CPU's own queue. */
static bool serve_latched(struct cpu *cpu, s32 here)
{
	if (cpu->latched)
		exchange(&cpu->latched, 0);
	if (!scx_bpf_dsq_move_to_local(CPU_DSQ(here)))
		return false;
	cpu->latched = 1;
	return true;
}

/*
 * A task has come on this CPU: agents may commit the next one, unless another is latched already. The mark stays until
 * now because a CPU that has taken a task from its queue, but does not run it yet, is not idle.
 */
static void allow_next_latch(struct cpu *cpu, s32 here)
{
	if (!cpu->latched)
		return;
	exchange(&cpu->latched, 0);
	if (scx_bpf_dsq_nr_queued(CPU_DSQ(here)))
		cpu->latched = 1;
}

/*
 * Return true if a task that the enclave's policy does not manage waits for this CPU.
 *
 * It may be on the CPU's local queue: the kernel puts some tasks there without asking (for example one that may not
 * migrate), and a task that was sent to an idle CPU finds the CPU busy if another woke there meanwhile. Or it may be on
 * the fallback queue, if that queue's turn has come.
 */
static bool has_unmanaged_waiter(struct cpu *cpu, s32 here)
{
	return scx_bpf_dsq_nr_queued(SCX_DSQ_LOCAL_ON | here) > 0 ||
	       (scx_bpf_dsq_nr_queued(FALLBACK_DSQ) > 0 && ns_since(cpu->fallback_served_at) >= FALLBACK_PERIOD);
}

#endif
