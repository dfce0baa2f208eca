/* SPDX-License-Identifier: GPL-2.0-only */
/* Whom a CPU runs before its enclave's policy is asked. */
#ifndef GHOSTBPF_SERVE_BPF_H
#define GHOSTBPF_SERVE_BPF_H

#include "drain.bpf.h"

/* A busy enclave's CPU gives tasks of no enclave one slice this often. */
#define FALLBACK_PERIOD (50 * 1000000ULL)

static bool is_idle(s32 cpu)
{
	const struct cpumask *idle = scx_bpf_get_idle_cpumask();
	bool found = has_bit(idle->bits, cpu);

	scx_bpf_put_idle_cpumask(idle);
	return found;
}

/* Does a task of e's wait that this CPU might run? */
static bool may_serve(u32 id, struct enclave *e, s32 here)
{
	return is_waited_for(id, e, here) || scx_bpf_dsq_nr_queued(CPU_DSQ(here));
}

static bool serve_fallback(struct cpu *cpu, s32 here, u32 id, struct enclave *e)
{
	u64 now = cpu->dispatched_at;

	if (!scx_bpf_dsq_nr_queued(FALLBACK_DSQ))
		return false;
	if (e && now - cpu->fallback_at < FALLBACK_PERIOD && may_serve(id, e, here) && !is_idle(here)) {
		/* Who waits on the common queue may not be allowed here; if so, idle, it is asked again. */
		scx_bpf_kick_cpu(here, SCX_KICK_IDLE);
		return false;
	}
	cpu->fallback_at = now;
	return scx_bpf_dsq_move_to_local(FALLBACK_DSQ);
}

static bool serve_orphaned_queues(u64 orphaned_queues)
{
	/* More than a few at a time there never are; the next dispatch goes on. */
	for (u32 i = 0; i < 4 && orphaned_queues; i++) {
		u32 id = lowest_bit(orphaned_queues);
		struct enclave *e = enclave_of(id);

		if (scx_bpf_dsq_move_to_local(PENDING_DSQ(id)) || (e && each_draining_queue(id, e, SERVE)))
			return true;
		orphaned_queues &= orphaned_queues - 1;
	}
	return false;
}

/*
 * Does a task wait on this CPU's own queue? cpu->latched tells agents that this CPU has its next task; the queue itself
 * tells whether it has: an insert takes effect only after its mark is set, and a look between the two would clear it.
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
 * This CPU runs a task now, and agents may commit the next to it, unless another waits there already. Not before: until
 * it runs what it took from its queue, it does not idle, though it runs nothing.
 */
static void open_for_next(struct cpu *cpu, s32 here)
{
	if (!cpu->latched)
		return;
	exchange(&cpu->latched, 0);
	if (scx_bpf_dsq_nr_queued(CPU_DSQ(here)))
		cpu->latched = 1;
}

/*
 * Does a task wait for this CPU that its enclave's policy does not know of? On the CPU's own queue: the kernel puts
 * some there unasked (for one, a task that may not migrate just now), and a task that was to have an idle CPU finds
 * it taken when that woke by itself meanwhile. Or on the fallback queue, whose turn it is.
 */
static bool has_unmanaged_waiter(struct cpu *cpu, s32 here)
{
	return scx_bpf_dsq_nr_queued(SCX_DSQ_LOCAL_ON | here) > 0 ||
	       (scx_bpf_dsq_nr_queued(FALLBACK_DSQ) > 0 && ns_since(cpu->fallback_at) >= FALLBACK_PERIOD);
}

#endif
