/* SPDX-License-Identifier: GPL-2.0-only */
/* Association: which agent gets a task's messages. Agents call the programs here. */
#ifndef GHOSTBPF_ASSOCIATE_BPF_H
#define GHOSTBPF_ASSOCIATE_BPF_H

#include "abi.h"
#include "channels.bpf.h"
#include "core/cpus.bpf.h"
#include "core/iterate.bpf.h"
#include "core/state.bpf.h"
#include "messages.bpf.h"
#include "sched.bpf.h"
#include "status_words.bpf.h"

static void register_waiting(u64 dsq)
{
	for_each_waiting(waiting, p, dsq, 0) {
		struct agent_task *a = agent_task_of(p, BPF_LOCAL_STORAGE_GET_F_CREATE);
		struct status_word *w = a ? word_of(p, a) : NULL;

		if (!w)
			continue;
		a->told_state = TASK_WAITING;
		note_allowed(w, a->word, untrusted(p)->cpus_ptr);
		count_load(a, load_of(w));
	}
}

/* Give each waiting task a status word, before a new agent reads the status words. */
int call_register_waiting(void *nothing)
{
	struct enclave *e = enclave_of(ENCLAVE);
	struct cpu *cpu;
	s32 id;

	if (!e)
		return -3; /* ESRCH */
	bpf_rcu_read_lock();
	register_waiting(PENDING);
	for_each_cpu_of(ENCLAVE, e, cpu, id)
		register_waiting(CPU_DSQ(id));
	bpf_rcu_read_unlock();
	return 0;
}

/*
 * Send p's messages to this channel from now on, beginning with one that tells p's state. A concurrent change of p's
 * state may send its message to the previous channel, so the state is sent again until none intervened.
 */
static void associate(struct agent_task *a, struct status_word *w, u32 number)
{
	struct channel *ch = channel_at(number);

	a->channel = number;
	for_each_number(attempt, 0, 4) {
		u64 state = w->state, seq = a->seq + 1;

		tell(a, w, state == TASK_WAITING ? MSG_TASK_NEW : MSG_TASK_BLOCKED, 0, bpf_ktime_get_ns());
		if (w->state == state && a->seq == seq)
			return;
	}
	if (ch)
		ch->overflowed = 1;
}

int call_associate(struct agent_task_args *args)
{
	struct task_struct *p = bpf_task_from_pid((s32)args->gtid);
	struct agent_task *a;
	struct status_word *w;

	if (!p)
		return -3; /* ESRCH */
	bpf_rcu_read_lock();
	a = agent_task_of(p, 0);
	w = a && a->gtid == args->gtid ? word_at(a->word) : NULL;
	if (w)
		associate(a, w, args->channel);
	bpf_rcu_read_unlock();
	bpf_task_release(p);
	return w ? 0 : -3;
}

/* Return true if the task waits for an agent that args->from names. */
static bool may_take(struct status_word *w, struct take_args *args)
{
	if (w->state != TASK_WAITING || w->channel == args->channel)
		return false;
	return args->from ? w->channel == args->from : w->channel != 0;
}

/* The agent of a CPU takes over tasks that wait for another agent and may run on its CPU, the longest waiting first. */
int call_take(struct take_args *args)
{
	struct enclave *e = enclave_of(ENCLAVE);
	struct core *c = the_core();

	args->taken = 0;
	if (!e || !c)
		return -3; /* ESRCH */
	bpf_rcu_read_lock();
	for_each_waiting(waiting, p, PENDING, 0) {
		struct agent_task *a = agent_task_of(p, 0);
		struct status_word *w = a ? word_at(a->word) : NULL;

		if (args->taken >= args->max)
			break;
		if (!a || !w || !may_take(w, args) || !is_usable(e, c, untrusted(p)->cpus_ptr, args->channel - 1))
			continue;
		associate(a, w, args->channel);
		args->taken++;
	}
	bpf_rcu_read_unlock();
	return 0;
}

/* A resize has changed the enclave's CPUs: tell each agent. */
int call_cpus_changed(void *nothing)
{
	struct message m = {};

	m.at_ns = bpf_ktime_get_ns();
	m.type = MSG_CPUS_CHANGED;
	m.cpu = -1;
	for_each_number(number, 0, 1 + scx_bpf_nr_cpu_ids())
		post(number, &m);
	return 0;
}

/* A task has moved to another enclave; no op told this enclave's policy. */
int call_depart(struct agent_task_args *args)
{
	struct task_struct *p = bpf_task_from_pid((s32)args->gtid);
	struct agent_task *a;

	if (!p)
		return -3; /* ESRCH */
	bpf_rcu_read_lock();
	a = agent_task_of(p, 0);
	if (a)
		tell_gone(a, MSG_TASK_DEPARTED);
	bpf_rcu_read_unlock();
	bpf_task_release(p);
	return 0;
}

#endif
