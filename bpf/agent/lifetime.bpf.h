/* SPDX-License-Identifier: GPL-2.0-only */
/* An agent's life in the kernel: the CPU that it spins on, and its end. */
#ifndef GHOSTBPF_LIFETIME_BPF_H
#define GHOSTBPF_LIFETIME_BPF_H

#include "abi.h"
#include "channels.bpf.h"
#include "core/bits.bpf.h"
#include "core/cpus.bpf.h"
#include "core/iterate.bpf.h"
#include "core/state.bpf.h"
#include "sched.bpf.h"

BPF_HASH(agents, u32, u32, MAX_CHANNELS); /* each agent's channel, by tid */

/*
 * Make the calling agent spin on args->cpu (-1: on none). A replaced agent does not take the CPU from its successor,
 * which has changed e->spinner.
 */
int call_spin(struct agent_args *args)
{
	struct enclave *e = enclave_of(ENCLAVE);
	struct channel *ch = channel_at(args->channel);
	struct cpu *cpu = cpu_of(args->cpu);
	u32 tid = (u32)bpf_get_current_pid_tgid();

	if (!e || !ch)
		return -1; /* EPERM */
	if (cpu)
		cpu->agent_must_move = 0;
	for_each_number(attempt, 0, 1000) {
		u64 before = *(volatile u64 *)&e->spinner;

		if (*(volatile u64 *)&ch->tid != tid)
			return -1;
		if (compare_and_swap(&e->spinner, before, (u64)(1 + args->cpu) << 32 | tid))
			return 0;
	}
	return -16; /* EBUSY */
}

static void stop_spinning(u32 tid)
{
	struct enclave *e = enclave_of(ENCLAVE);
	u64 spinner = e ? e->spinner : 0;

	if (e && (u32)spinner == tid)
		compare_and_swap(&e->spinner, spinner, 0);
}

static void kick_cpus(void)
{
	struct enclave *e = enclave_of(ENCLAVE);
	struct cpu *cpu;
	s32 id;

	if (!e)
		return;
	for_each_cpu_of(ENCLAVE, e, cpu, id)
		scx_bpf_kick_cpu(id, SCX_KICK_IDLE);
}

/* A channel's agent leaves, unless another has replaced it: the core decides from now on. */
int call_leave(struct agent_args *args)
{
	struct channel *ch = channel_at(args->channel);
	u32 tid = (u32)bpf_get_current_pid_tgid();

	stop_spinning(tid);
	if (!ch || !compare_and_swap(&ch->tid, tid, 0))
		return -1; /* EPERM */
	kick_cpus();
	return 0;
}

/* An agent has ended, whatever the cause: the core decides from now on. Per-CPU agents do not go on without one. */
BPF_PROG(tp_sched_process_exit, struct task_struct *p)
{
	u32 tid = p->pid, *number = agents.lookup(&tid);
	struct channel *ch = number ? channel_at(*number) : NULL;

	if (!ch)
		return 0;
	stop_spinning(tid);
	if (ch->tid != tid)
		return 0;
	for_each_number(channel, 0, 1 + scx_bpf_nr_cpu_ids()) {
		ch = channel_at(channel);
		if (ch)
			ch->tid = 0;
	}
	kick_cpus();
	return 0;
}

#endif
