/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Messages about tasks and CPUs, from the core to agents.
 *
 * Each change of a task's state is sent with the task's runqueue locked, so a task's messages arrive in order, numbered
 * without a gap.
 */
#ifndef GHOSTBPF_MESSAGES_BPF_H
#define GHOSTBPF_MESSAGES_BPF_H

#include "abi.h"
#include "channels.bpf.h"
#include "sched.bpf.h"
#include "status_words.bpf.h"

/* Number p's next message and store its contents in p's status word. Return false if the word is no longer p's. */
static bool number_message(struct agent_task *a, struct status_word *w, struct message *m, u32 channel, u64 *load)
{
	bool own;

	bpf_spin_lock(&a->lock);
	own = a->gtid && w->gtid == a->gtid;
	if (own) {
		m->gtid = a->gtid;
		m->word = a->word;
		w->seq = m->seq = ++a->seq;
		w->channel = channel;
		m->cpu = w->cpu;
		w->boosted = m->flags & MSG_BOOSTED;
		*load = load_of(w);
	}
	bpf_spin_unlock(&a->lock);
	return own;
}

static void tell(struct agent_task *a, struct status_word *w, u16 type, u16 flags, u64 now)
{
	struct message m = {};
	u64 load = 0;
	u32 number;

	channel_of(a, &number);
	m.type = type;
	m.flags = flags;
	if (!number_message(a, w, &m, number, &load))
		return;
	count_load(a, load);
	m.runtime_ns = a->runtime_ns;
	m.at_ns = now;
	m.allowed = w->allowed;
	m.tgid = w->tgid;
	m.weight = w->weight;
	post(number, &m);
}

static void tell_cpu(s32 cpu, u16 type, u64 now)
{
	struct message m = {};
	u32 number;

	channel_of_cpu(cpu, &number);
	m.at_ns = now;
	m.type = type;
	m.cpu = cpu;
	post(number, &m);
}

/* p has left the enclave or ended (type): send its last message and free its status word. */
static void tell_gone(struct agent_task *a, u16 type)
{
	struct status_word *w = word_at(a->word);
	u32 number;

	if (!w)
		return;
	tell(a, w, type, 0, set_state(a, w, TASK_BLOCKED, bpf_ktime_get_ns()));
	number = release_word(a, w);
	a->told_state = TASK_BLOCKED;
	a->channel = 0;
	if (number)
		free_word(number);
}

/*
 * p's status word, allocated if p has none; NULL if all are in use. A new agent gives words to all waiting tasks
 * (call_register_waiting), possibly while p gets its own here: the lock lets one of the two win.
 *
 * exec() by a thread that is not the leader gives it the leader's pid. The gtid contains the pid, so such a task
 * departs and becomes a new one.
 */
static struct status_word *word_of(struct task_struct *p, struct agent_task *a)
{
	struct status_word *w = word_at(a->word);
	bool is_new;
	u32 number;

	if (w && (u32)a->gtid == (u32)p->pid)
		return w;
	if (w)
		tell_gone(a, MSG_TASK_DEPARTED);
	number = take_word();
	w = word_at(number);
	if (!w)
		return NULL;
	w->runtime_ns = w->seq = w->channel = w->boosted = 0;
	w->state = TASK_WAITING;
	w->since_ns = bpf_ktime_get_ns();
	note_allowed(w, number, p->cpus_ptr);
	forget_cgroup(number);
	w->weight = p->scx.weight;
	w->cpu = scx_bpf_task_cpu(p);
	w->tgid = p->tgid;
	w->gtid = next_gtid(p);
	bpf_spin_lock(&a->lock);
	is_new = !a->word;
	if (is_new) {
		a->word = number;
		a->gtid = w->gtid;
		a->runtime_ns = a->seq = 0;
	}
	bpf_spin_unlock(&a->lock);
	if (is_new)
		return w;
	free_word(number);
	return word_at(a->word);
}

/* p waits for the agent's decision. Return false if there is no status word left. */
static bool tell_waits(struct task_struct *p, struct agent_task *a, u64 enq_flags, bool boosted, u64 now)
{
	struct status_word *w = word_of(p, a);
	u16 type = MSG_TASK_PREEMPT;

	if (!w)
		return false;
	if (!w->seq)
		type = MSG_TASK_NEW;
	else if (enq_flags & SCX_ENQ_WAKEUP)
		type = MSG_TASK_WAKEUP;
	else if (a->left_by)
		type = a->left_by;
	a->left_by = 0;
	a->told_state = TASK_WAITING;
	note_allowed(w, a->word, p->cpus_ptr);
	note_cgroup(p, a->word);
	tell(a, w, type, boosted ? MSG_BOOSTED : 0, set_state(a, w, TASK_WAITING, now));
	return true;
}

/*
 * The same for a task that is no longer throttled. Return false if it has no status word yet. It is shorter, because it
 * is part of a loop over a queue; see update_limits(). tell() counts the load.
 */
static bool tell_released(struct task_struct *p, struct agent_task *a)
{
	struct status_word *w = a ? word_at(a->word) : NULL;
	u64 now = bpf_ktime_get_ns();

	if (!w)
		return false;
	a->left_by = 0;
	a->told_state = TASK_WAITING;
	w->state = TASK_WAITING;
	w->since_ns = now;
	w->cpu = scx_bpf_task_cpu(p);
	tell(a, w, MSG_TASK_WAKEUP, 0, now);
	return true;
}

/* p waits, and the core itself finds it a CPU: the agent gets no message. */
static void note_waits(struct task_struct *p, struct agent_task *a, u64 now)
{
	struct status_word *w = a->word ? word_of(p, a) : NULL;

	a->left_by = 0;
	if (w)
		set_state(a, w, TASK_WAITING, now);
}

static void tell_blocked(struct agent_task *a)
{
	struct status_word *w = word_at(a->word);
	u64 now;

	if (!w)
		return;
	now = set_state(a, w, TASK_BLOCKED, bpf_ktime_get_ns());
	if (a->told_state == TASK_BLOCKED)
		return;
	a->told_state = TASK_BLOCKED;
	tell(a, w, MSG_TASK_BLOCKED, 0, now);
}

#endif
