/* SPDX-License-Identifier: GPL-2.0-only */
/* CPU hotplug: core.online, tasks of a CPU that goes offline, and enclaves that lose their last CPU. */
#ifndef GHOSTBPF_HOTPLUG_BPF_H
#define GHOSTBPF_HOTPLUG_BPF_H

#include "abi.h"
#include "bits.bpf.h"
#include "cpus.bpf.h"
#include "iterate.bpf.h"
#include "queues.bpf.h"
#include "state.bpf.h"

/* Return true if a CPU of e runs its tasks, or an arbiter may give e one. */
static bool has_cpu(struct enclave *e, struct core *c)
{
	u64 any = 0;

#pragma unroll
	for (u32 i = 0; i < NR_CPU_WORDS; i++)
		any |= serving(e, c, i);
	if (any || !e->tree)
		return any;
	for_each_number(i, 0, NR_CPU_WORDS)
		if (e->reach[i & (CPU_WORDS - 1)] & c->online[i & (CPU_WORDS - 1)])
			return true;
	return false;
}

/*
 * Mark the queue of an enclave without a CPU: every CPU serves it. Hotplug and a resize may run at the same time; the
 * one that stores last sees both changes when it checks again.
 */
static void update_orphaned(u32 id, struct enclave *e, struct core *c)
{
	for_each_number(attempt, 0, 8) {
		bool orphaned = !has_cpu(e, c);

		assign_bit(&c->orphaned_queues, id & (MAX_ENCLAVES - 1), orphaned);
		if (!has_cpu(e, c) == orphaned)
			return;
	}
}

/* The same of enclave `owner`, and of all leaves of its tree, which may lose their last CPU together. */
static void update_all_orphaned(u32 owner, u32 tree, struct core *c)
{
	for_each_number(id, 1, MAX_ENCLAVES) {
		struct enclave *e = enclave_of(id);

		if (e && (id == owner || (tree && e->tree == tree && e->state == ENCLAVE_ACTIVE)))
			update_orphaned(id, e, c);
	}
}

/* Kick all CPUs, since waiting tasks may have to run elsewhere now. */
static void kick_online(struct core *c)
{
	for_each_number(i, 0, NR_CPU_WORDS * 64)
		if (c->online[(u32)i / 64 & (CPU_WORDS - 1)] >> (i & 63) & 1)
			scx_bpf_kick_cpu(i, 0);
}

/*
 * Mark a CPU online or offline. The kernel calls this with the hotplug lock held, so core.online has one writer.
 */
static void set_online(s32 id, bool online)
{
	u64 *word, bit = 1ULL << (id & 63);
	struct cpu *cpu = cpu_of(id);
	struct core *c = the_core();
	struct enclave *e;

	if (!cpu || !c)
		return;
	word = &c->online[(u32)id / 64 & (CPU_WORDS - 1)];
	*word = online ? *word | bit : *word & ~bit;
	e = enclave_of(cpu->enclave);
	if (!cpu->enclave || !e)
		return;
	update_all_orphaned(cpu->enclave, e->tree, c);
	report_stuck(e);
	kick_online(c);
}

/*
 * Also off the queues of enclaves that the CPU has left, or never belonged to: a task may have joined while it ran here.
 * Other CPUs move tasks meanwhile, in this order of queues: none is missed.
 */
static void evacuate_queues(s32 id, bool bound)
{
	for_each_number(number, 0, scx_bpf_nr_cpu_ids()) {
		evacuate(CPU_DSQ(number), id, bound);
		evacuate(VTIME_DSQ(number), id, bound);
	}
	for_each_number(enclave, 1, MAX_ENCLAVES) {
		evacuate(THROTTLED_DSQ(enclave), id, bound);
		evacuate(PENDING_DSQ(enclave), id, bound);
	}
	evacuate(FALLBACK_DSQ, id, bound);
}

static void evacuate_cpu(s32 id)
{
	struct cpu *cpu = cpu_of(id);

	evacuate_queues(id, false);
	if (!cpu || !cpu->enclave)
		return;
	cpu->latched = 0;
	requeue(id, cpu->enclave);
}

/* Tasks that may no longer run on any online CPU of their enclave wait on the fallback queue. */
static void evacuate_affinity_misses(u32 id)
{
	struct enclave *e = enclave_of(id);
	struct core *c = the_core();
	struct cpu *cpu;
	s32 number;

	if (!id || !c || !e)
		return;
	move_to_fallback(PENDING_DSQ(id), e, c);
	for_each_cpu_of(id, e, cpu, number) {
		move_to_fallback(CPU_DSQ(number), e, c);
		move_to_fallback(VTIME_DSQ(number), e, c);
	}
}

/* Until the CPU is offline, all CPUs look for tasks that would wait for it, before they dispatch. */
static void set_leaving(s32 id, bool leaves)
{
	struct core *c = the_core();

	if (!c)
		return;
	c->leaving = leaves ? id + 1 : 0;
	assign_bit(&c->orphaned_queues, 0, leaves);
	if (leaves)
		kick_online(c);
}

BPF_PROG(core_cpu_online, s32 cpu)
{
	set_online(cpu, true);
	return 0;
}

BPF_PROG(core_cpu_offline, s32 id)
{
	struct cpu *cpu = cpu_of(id);

	set_leaving(id, false);
	evacuate_cpu(id);
	set_online(id, false);
	evacuate_affinity_misses(cpu ? cpu->enclave : 0);
	return 0;
}

/*
 * Long before cpu_offline() the kernel moves a CPU's tasks away, stops that CPU from fetching others, and waits for an
 * RCU grace period. A task that was preempted in a read-side section must not wait for that CPU: the grace period would
 * never end. The CPU's hotplug thread, which runs this, may have preempted such a task, and the task may be bound to
 * the CPU: other CPUs move it to the CPU's local queue, from where the CPU still takes tasks.
 */
BPF_PROG(tp_cpuhp_enter, u32 cpu, int target, int step, void *function)
{
	if (step == CPUHP_AP_ACTIVE && target < step) {
		set_online(cpu, false);
		set_leaving(cpu, true);
	}
	return 0;
}

/* If taking a CPU down fails, cpu_online() is not called. */
BPF_PROG(tp_cpuhp_exit, u32 cpu, int state, int step, int error)
{
	if (step == CPUHP_AP_ACTIVE && error) {
		set_leaving(cpu, false);
		set_online(cpu, true);
	}
	return 0;
}

#endif
