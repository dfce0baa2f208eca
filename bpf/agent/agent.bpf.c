/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The kernel half of every agent policy: it sends messages to the agent, commits the agent's transactions, and
 * schedules without the agent where it may or must.
 *
 * With the fast path, a task that wakes runs at once if a CPU is idle, and a CPU with nothing to run takes the head of
 * the enclave's queue; otherwise the agent gets a message and chooses among the waiting tasks. Without the fast path
 * the agent decides everything: a task waits until it is committed, and a CPU runs nothing but what was committed to
 * it. Exiting tasks bypass the agent: bpf_task_from_pid() no longer finds them.
 *
 * Without an agent, or while the agent is timed out, this is Biff: one FIFO queue, and a task that has run for
 * BUILTIN_SLICE while another waits goes to the tail. rescue.bpf.h bounds how long an agent may leave a task waiting.
 *
 * Good for: policies in user space, since a slow, dead or wrong agent costs policy and not progress. Not good for:
 * policies that are short enough to write in BPF, which save a message and a transaction per decision.
 *
 * It demonstrates ghOSt's agents on sched_ext: messages, status words, transactions, and a scheduler that never depends
 * on its agent.
 */
#include "abi.h"
#include "sched.bpf.h"
#include "associate.bpf.h"
#include "channels.bpf.h"
#include "commit.bpf.h"
#include "core/cpus.bpf.h"
#include "core/state.bpf.h"
#include "core/throttle.bpf.h"
#include "lifetime.bpf.h"
#include "messages.bpf.h"
#include "params.bpf.h"
#include "rescue.bpf.h"
#include "status_words.bpf.h"

#define BUILTIN_SLICE (20 * 1000000ULL)

BPF_PROG(agent_select_cpu, struct task_struct *p, s32 prev, u64 wake_flags)
{
	struct agent_task *a = agent_task_of(p, 0);
	struct enclave *e = enclave_of(ENCLAVE);
	struct core *c = the_core();
	u32 number = 0;
	struct channel *ch = a ? channel_of(a, &number) : channel_at(0);
	s32 cpu;

	/* The last check of the time-out will do: agent_enqueue() checks again. */
	if (!ch || !e || !c || !ch->tid || ch->timed_out || ch->fastpath)
		return select_idle(ENCLAVE, p, prev, wake_flags, slice());
	/*
	 * The agent chooses where p runs. On the waker's CPU, agent_enqueue() needs no interrupt to another CPU. But the
	 * agent of p's CPU is best woken there.
	 */
	cpu = number ? prev : (s32)bpf_get_smp_processor_id();
	if (!is_usable(e, c, p->cpus_ptr, cpu))
		cpu = home_cpu(e, c, p->cpus_ptr, prev);
	return cpu >= 0 ? cpu : prev;
}

/* Queue p on a CPU's own queue without the agent, for example because no status word is free. */
static void queue_locally(struct task_struct *p, u64 enq_flags)
{
	struct enclave *e = enclave_of(ENCLAVE);
	struct core *c = the_core();
	s32 home = e && c ? home_cpu(e, c, p->cpus_ptr, scx_bpf_task_cpu(p)) : -1;
	struct cpu *cpu = cpu_of(home);

	if (!cpu || !e) {
		scx_bpf_dsq_insert(p, PENDING, SCX_SLICE_DFL, enq_flags);
		return;
	}
	scx_bpf_dsq_insert(p, CPU_DSQ(home), SCX_SLICE_DFL, enq_flags);
	cpu->latched = 1;
	note_latches(e);
	if (cpu->preempted_by_class)
		report_stuck(e);
	scx_bpf_kick_cpu(home, SCX_KICK_IDLE);
}

static void delegate(struct task_struct *p, struct agent_task *a, u64 enq_flags, u64 now)
{
	u64 length = slice();
	bool boosted;

	if (!word_of(p, a)) {
		queue_locally(p, enq_flags);
		return;
	}
	boosted = is_interrupted(p, &length, enq_flags);
	if (boosted)
		enq_flags |= SCX_ENQ_HEAD;
	COUNT(ENCLAVE, queued);
	scx_bpf_dsq_insert(p, PENDING, length, enq_flags);
	tell_waits(p, a, enq_flags, boosted, now);
}

BPF_PROG(agent_enqueue, struct task_struct *p, u64 enq_flags)
{
	struct agent_task *a = agent_task_of(p, BPF_LOCAL_STORAGE_GET_F_CREATE);
	bool waits, boosted;
	u64 length = slice(), now = bpf_ktime_get_ns();
	struct channel *ch;
	u32 number;

	if (!a || p->flags & PF_EXITING) {
		queue_locally(p, enq_flags);
		if (a)
			note_waits(p, a, now);
		return 0;
	}
	ch = channel_of(a, &number);
	if (ch && is_delegated(ch, now)) {
		delegate(p, a, enq_flags, now);
		return 0;
	}
	boosted = is_interrupted(p, &length, enq_flags);
	waits = enqueue_for(ENCLAVE, p, length, boosted ? enq_flags | SCX_ENQ_HEAD : enq_flags);
	/* A timed-out agent gets the message too: it reads the message when it is back. */
	if (!waits || !ch || !ch->tid || !tell_waits(p, a, enq_flags, boosted, now))
		note_waits(p, a, now);
	return 0;
}

/*
 * Return true if an agent decides everything on CPU `here`. If each CPU has an agent, channel 0 has one too, but its
 * agent commits to no CPU: a CPU runs waiting tasks by itself while it has no agent of its own, and does not if only
 * the agent of channel 0 has timed out. It may then be waiting for tasks that the CPU's agent has run.
 */
static bool is_cpu_delegated(s32 here, u64 now)
{
	struct channel *ch = channel_at(0);

	if (ch && ch->per_cpu)
		ch = channel_at(1 + here);
	return ch && is_delegated(ch, now);
}

BPF_PROG(agent_dispatch, s32 here, struct task_struct *prev)
{
	struct enclave *e = enclave_of(ENCLAVE);
	struct cpu *cpu = cpu_of(here);
	struct channel *ch;
	u32 number;

	if (!cpu || !e)
		return 0;
	if (must_rescue(cpu, here, prev) || !is_cpu_delegated(here, cpu->dispatched_at)) {
		if (!scx_bpf_dsq_move_to_local(PENDING))
			rescue_latched(e);
		return 0;
	}
	/* The core let an overdue task go first, and there is none. */
	if (cpu->latched && !cpu->group_hold && scx_bpf_dsq_move_to_local(CPU_DSQ(here)))
		return 0;
	if (rescue_stuck(e) || cpu->told_idle || !scx_bpf_dsq_nr_queued(PENDING))
		return 0;
	/* With a higher class just gone from the CPU, preempted_by_class is cleared only after this. */
	ch = channel_of_cpu(here, &number);
	if (ch && !cpu->preempted_by_class && will_read_cpus(ch))
		return 0;
	cpu->told_idle = 1;
	tell_cpu(here, MSG_CPU_IDLE, cpu->dispatched_at);
	return 0;
}

BPF_PROG(agent_tick, struct task_struct *p)
{
	s32 here = scx_bpf_task_cpu(p);
	struct cpu *cpu = cpu_of(here);
	struct channel *ch;
	u64 now = bpf_ktime_get_ns();
	bool late = false;
	u32 number;

	if (!cpu)
		return 0;
	ch = channel_of_cpu(here, &number);
	if (!ch)
		return 0;
	if (ch->ticks)
		tell_cpu(here, MSG_CPU_TICK, now);
	if (!has_agent(ch, now) || ch->per_cpu) {
		late = ns_on(cpu) > BUILTIN_SLICE &&
		       (scx_bpf_dsq_nr_queued(CPU_DSQ(here)) || scx_bpf_dsq_nr_queued(PENDING));
	} else if (cpu->rescue_in) {
		late = ns_on(cpu) > BUILTIN_SLICE;
	} else if (is_rescue_check_due(cpu, now)) {
		cpu->rescue_in = find_overdue(PENDING, here, false) > 0;
		late = cpu->rescue_in || find_overdue(CPU_DSQ(here), here, false);
		if (late)
			cpu->checked_at = 0; /* dispatch() must check, too */
	}
	if (late) {
		COUNT(ENCLAVE, preempted);
		set_slice(p, 0);
	}
	return 0;
}

BPF_PROG(agent_running, struct task_struct *p)
{
	struct agent_task *a = agent_task_of(p, 0);
	s32 here = scx_bpf_task_cpu(p);
	struct cpu *cpu = cpu_of(here);
	struct status_word *w;

	if (cpu)
		cpu->told_idle = 0;
	if (!a)
		return 0;
	w = word_at(a->word);
	if (w) {
		w->cpu = here;
		set_state(a, w, TASK_ON_CPU, bpf_ktime_get_ns());
	}
	return 0;
}

BPF_PROG(agent_stopping, struct task_struct *p, bool runnable)
{
	struct agent_task *a = agent_task_of(p, 0);
	struct cpu *cpu = cpu_of(scx_bpf_task_cpu(p));
	struct status_word *w;

	if (!a || !cpu)
		return 0;
	a->runtime_ns += ns_on(cpu);
	w = word_at(a->word);
	if (w)
		w->runtime_ns = a->runtime_ns;
	/*
	 * To change a running task's priority or affinity, the kernel takes it off the CPU for a moment: it does not
	 * sleep.
	 */
	if (!runnable && p->__state)
		tell_blocked(a);
	return 0;
}

/* If a task's policy changes during priority inheritance, the task ends outside the class, without disable(). */
BPF_PROG(agent_exit_task, struct task_struct *p, struct scx_exit_task_args *args)
{
	struct agent_task *a = agent_task_of(p, 0);

	if (a)
		tell_gone(a, MSG_TASK_DEAD);
	return 0;
}

BPF_PROG(agent_disable, struct task_struct *p)
{
	struct agent_task *a = agent_task_of(p, 0);
	struct task_ctx *t = task_ctx_of(p);

	if (!a)
		return 0;
	if (p->flags & PF_EXITING)
		tell_gone(a, MSG_TASK_DEAD);
	else if (t && !t->departed)
		tell_blocked(a); /* priority inheritance: p keeps its gtid and word until it is back in the class */
	else
		tell_gone(a, MSG_TASK_DEPARTED);
	return 0;
}

BPF_PROG(agent_set_cpumask, struct task_struct *p, const struct cpumask *allowed)
{
	struct agent_task *a = agent_task_of(p, 0);
	struct status_word *w = a ? word_at(a->word) : NULL;

	if (!w)
		return 0;
	note_allowed(w, a->word, p->cpus_ptr);
	tell(a, w, MSG_TASK_AFFINITY_CHANGED, 0, bpf_ktime_get_ns());
	return 0;
}

BPF_PROG(agent_set_weight, struct task_struct *p, u32 weight)
{
	struct agent_task *a = agent_task_of(p, 0);
	struct status_word *w = a ? word_at(a->word) : NULL;

	if (!w || w->weight == weight)
		return 0;
	w->weight = weight;
	tell(a, w, MSG_TASK_PRIORITY_CHANGED, 0, bpf_ktime_get_ns());
	return 0;
}

BPF_PROG(agent_yield, struct task_struct *from, struct task_struct *to)
{
	struct agent_task *a = agent_task_of(from, 0);

	if (a)
		a->left_by = MSG_TASK_YIELD;
	return 0;
}

/* A task whose cgroup has used up its CPU time is blocked for its agent, and wakes when it is released. */
BPF_PROG(agent_throttle, struct task_struct *p, u64 enq_flags)
{
	struct agent_task *a = agent_task_of(p, 0);

	if (!a)
		return 0;
	tell_blocked(a);
	a->left_by = MSG_TASK_WAKEUP;
	return 0;
}

#define TELL_RELEASED(p) tell_released(p, agent_task_of(p, 0))

/*
 * The timer function of an enclave with an agent. The agent gets the message before the task is on PENDING: afterwards,
 * the task might run before the message says that it waits.
 */
int release_throttled(void *map)
{
	struct limit_timer *timer = limit_timer_of(ENCLAVE);
	struct enclave *e = enclave_of(ENCLAVE);
	struct core *c = the_core();
	volatile u64 next;
	u64 now;

	if (!timer || !e || !c)
		return 0;
	now = scx_bpf_now();
	timer->due = 0;
	next = now + RELEASE_LATEST;
	bpf_rcu_read_lock();
	RELEASE_THROTTLED(ENCLAVE, e, c, now, &next, TELL_RELEASED);
	bpf_rcu_read_unlock();
	continue_limits(ENCLAVE, e, timer, next, now);
	return 0;
}

/* Let release_throttled() be the enclave's timer function. */
int call_set_release(void *nothing)
{
	struct limit_timer *timer = limit_timer_of(ENCLAVE);

	return timer ? bpf_timer_set_callback(&timer->timer, LINK_ADDRESS(release_throttled)) : -3 /* ESRCH */;
}

/* Attached for policies that ask for BUSY and AVAILABLE messages. The enclave's own agents do not count as busy. */
BPF_PROG(tp_sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	s32 here = bpf_get_smp_processor_id();
	struct cpu *cpu = cpu_of(here);
	struct core *c = the_core();
	u32 tid = next->pid;
	bool busy;

	if (!cpu || !c || cpu->enclave != ENCLAVE)
		return 0;
	busy = is_higher_class(next, c->default_enclave) && !agents.lookup(&tid);
	if (busy == cpu->told_busy)
		return 0;
	cpu->told_busy = busy;
	tell_cpu(here, busy ? MSG_CPU_BUSY : MSG_CPU_AVAILABLE, bpf_ktime_get_ns());
	return 0;
}

/*
 * An idle system makes no events: the pulse makes CPUs dispatch, which finds timed-out agents and overdue tasks. One may
 * also wait for the CPU of an agent that does not end its turn.
 */
int pulse(struct bpf_perf_event_data *ctx)
{
	struct enclave *e = enclave_of(ENCLAVE);

	if (!e)
		return 0;
	if (waits_on_own_queue(e))
		report_stuck(e);
	if (e->stuck || scx_bpf_dsq_nr_queued(PENDING) > 0)
		kick_cpus();
	return 0;
}
