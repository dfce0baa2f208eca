/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The half of an agent that is in the kernel: what it tells, what it does not ask, and what it does without one.
 *
 * With the fast path on, a task that finds an idle CPU runs there at once, and a CPU with nothing else to do takes the
 * head of the enclave's queue; the agent is told of those that wait, and decides between them. With it off, the agent
 * decides everything: a task waits until it is committed, and a CPU runs nothing but what was committed to it. (But who
 * has ended goes on at once: in its last steps no pid leads to it any more.)
 *
 * Where there is no agent, or it is silent for longer than its time-out, this is Biff: one FIFO queue, and whoever has
 * had a CPU for more than FALLBACK_SLICE while somebody waits goes to its tail. And a task that the agent has left
 * waiting for PATIENCE gets a CPU in any case: the kernel would end the whole scheduler otherwise.
 */
#include "sched.bpf.h"
#include "agent.h"

#define BUILTIN_SLICE (20 * 1000000ULL)
#define RESCUE_TIMEOUT (5 * 1000000000ULL)
#define CHECK_PERIOD (250 * 1000000ULL)
#define MOST_LOOKED_AT 32

BPF_F_TABLE("array", u32, struct agent_params, params, 1, BPF_F_MMAPABLE);
BPF_HASH(agents, u32, u32, MAX_CPUS);

/* Of a task that waits without a decision. */
static u64 slice(void)
{
	u32 zero = 0;
	struct agent_params *param = params.lookup(&zero);

	return param && param->slice_ns ? param->slice_ns : SLICE_ENDLESS;
}

#include "commit.bpf.h"

/* Does the agent have the say over everything that comes through this channel? */
static bool is_delegated(struct channel *ch)
{
	return has_agent(ch) && !ch->fastpath;
}

BPF_PROG(agent_select_cpu, struct task_struct *p, s32 prev, u64 wake_flags)
{
	struct agent_task *a = agent_task_of(p, 0);
	struct enclave *e = enclave_of(ENCLAVE);
	struct core *c = the_core();
	u32 number = 0;
	struct channel *ch = a ? channel_of(a, &number) : channel_at(0);
	s32 cpu;

	if (!ch || !e || !c || !is_delegated(ch))
		return select_idle(ENCLAVE, p, prev, wake_flags, slice());
	cpu = home_cpu(e, c, p->cpus_ptr, prev);
	return cpu >= 0 ? cpu : prev;
}

/* The agent cannot be asked about p, for one because there are more tasks than status words. */
static void queue_locally(struct task_struct *p, u64 enq_flags)
{
	struct enclave *e = enclave_of(ENCLAVE);
	struct core *c = the_core();
	s32 home = e && c ? home_cpu(e, c, p->cpus_ptr, scx_bpf_task_cpu(p)) : -1;
	struct cpu *cpu = cpu_of(home);

	if (!cpu) {
		scx_bpf_dsq_insert(p, PENDING, SCX_SLICE_DFL, enq_flags);
		return;
	}
	scx_bpf_dsq_insert(p, CPU_DSQ(home), SCX_SLICE_DFL, enq_flags);
	cpu->latched = 1;
	scx_bpf_kick_cpu(home, SCX_KICK_IDLE);
}

static void delegate(struct task_struct *p, struct agent_task *a, u64 enq_flags)
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
	tell_waits(p, a, enq_flags, boosted);
}

BPF_PROG(agent_enqueue, struct task_struct *p, u64 enq_flags)
{
	struct agent_task *a = agent_task_of(p, BPF_LOCAL_STORAGE_GET_F_CREATE);
	bool waits, boosted;
	u64 length = slice();
	struct channel *ch;
	u32 number;

	if (!a || p->flags & PF_EXITING) {
		queue_locally(p, enq_flags);
		if (a)
			note_waits(p, a);
		return 0;
	}
	ch = channel_of(a, &number);
	if (ch && is_delegated(ch)) {
		delegate(p, a, enq_flags);
		return 0;
	}
	boosted = is_interrupted(p, &length, enq_flags);
	waits = enqueue_for(ENCLAVE, p, length, boosted ? enq_flags | SCX_ENQ_HEAD : enq_flags);
	/* One that is silent just now reads it when it is back. */
	if (!waits || !ch || !ch->tid || !tell_waits(p, a, enq_flags, boosted))
		note_waits(p, a);
	return 0;
}

/*
 * What was committed to this CPU may run here, and what was committed to one that another class has taken, unless it is
 * its own agent that has it. With the fast path, where no CPU idles while a task waits, so may what was committed to any.
 */
static bool rescue(s32 here, bool any)
{
	bool scarce = are_words_scarce(); /* then queue_locally() puts tasks there, too */
	struct cpu *cpu;

	for_each_cpu_of(ENCLAVE, cpu, id) {
		/* A CPU that is taken does not look at its own queue, and its mark may be missing. */
		if (!cpu->latched && !scarce && !(cpu->preempted_by_class && scx_bpf_dsq_nr_queued(CPU_DSQ(id))))
			continue;
		if ((any || id == here || is_lost(cpu, id)) && !cpu->group_hold && scx_bpf_dsq_move_to_local(CPU_DSQ(id)))
			return true;
	}
	return false;
}

/*
 * For how long has p, which waits and may run here, been forgotten? Who came when there was no agent has no status word:
 * no agent knows it.
 */
static u64 forgotten_ns(struct task_struct *p, s32 here)
{
	struct agent_task *a = agent_task_of(p, 0);
	struct status_word *w = a ? word_at(a->word) : NULL;
	u64 waited;

	if (!has_bit(p->cpus_ptr->bits, here))
		return 0;
	if (!w)
		return 1;
	waited = w->state == TASK_WAITING ? ns_since(w->since_ns) : 0;
	return waited > RESCUE_TIMEOUT ? waited - RESCUE_TIMEOUT : 0;
}

/* Is there one like that among the first on a queue? For how long? If it is to be moved, it is the first. */
static u64 has_forgotten(u64 dsq, s32 here, bool move)
{
	volatile u32 seen = 0;

	for_each_waiting(waiting, p, dsq, 0) {
		u64 ns = forgotten_ns(p, here);

		if (ns) {
			if (move && seen)
				scx_bpf_dsq_move(&waiting, p, dsq, SCX_ENQ_HEAD);
			return ns;
		}
		if (++seen >= MOST_LOOKED_AT)
			return 0;
	}
	return 0;
}

/* Looked up now and then. */
static bool is_check_due(struct cpu *cpu)
{
	if (ns_since(cpu->checked_at) < CHECK_PERIOD)
		return false;
	cpu->checked_at = bpf_ktime_get_ns();
	return true;
}

/*
 * Somebody forgotten is to have this CPU. Where that comes too late, because so many are, every second dispatch is
 * theirs until they have caught up.
 */
static bool is_for_forgotten(struct cpu *cpu, s32 here)
{
	u64 ns;

	if (!is_check_due(cpu))
		return false;
	ns = has_forgotten(PENDING, here, true);
	if (ns > RESCUE_TIMEOUT) {
		cpu->rescue_in = 2;
		cpu->checked_at = 0;
	}
	return ns > 0;
}

/*
 * Does an agent have the say over everything that CPU here does? Where each CPU has one, so must the enclave, whose agent
 * commits to no CPU then: a CPU that came online later runs what waits, until it has an agent of its own.
 */
static bool is_cpu_delegated(s32 here)
{
	struct channel *own, *ch = channel_at(0);
	u32 number;

	if (!ch || !is_delegated(ch))
		return false;
	own = channel_of_cpu(here, &number);
	return own && !own->per_cpu && is_delegated(own);
}

BPF_PROG(agent_dispatch, s32 here, struct task_struct *prev)
{
	struct cpu *cpu = cpu_of(here);

	if (!cpu)
		return 0;
	if (is_for_forgotten(cpu, here) || !is_cpu_delegated(here)) {
		if (!scx_bpf_dsq_move_to_local(PENDING))
			rescue(here, true);
		return 0;
	}
	if (rescue(here, false) || cpu->told_idle || !scx_bpf_dsq_nr_queued(PENDING))
		return 0;
	cpu->told_idle = 1;
	tell_cpu(here, MSG_CPU_IDLE);
	return 0;
}

BPF_PROG(agent_tick, struct task_struct *p)
{
	s32 here = scx_bpf_task_cpu(p);
	struct cpu *cpu = cpu_of(here);
	struct channel *ch;
	bool late = false;
	u32 number;

	if (!cpu)
		return 0;
	ch = channel_of_cpu(here, &number);
	if (!ch)
		return 0;
	if (ch->ticks)
		tell_cpu(here, MSG_CPU_TICK);
	if (!has_agent(ch) || ch->per_cpu) {
		late = ns_on(cpu) > BUILTIN_SLICE &&
		       (scx_bpf_dsq_nr_queued(CPU_DSQ(here)) || scx_bpf_dsq_nr_queued(PENDING));
	} else if (cpu->rescue_in) {
		late = ns_on(cpu) > BUILTIN_SLICE;
	} else if (is_check_due(cpu)) {
		cpu->rescue_in = has_forgotten(PENDING, here, false) > 0;
		late = cpu->rescue_in || has_forgotten(CPU_DSQ(here), here, false);
		if (late)
			cpu->checked_at = 0; /* so that dispatch() looks, too */
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
		set_state(a, w, TASK_ON_CPU);
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
	/* One whose priority or affinity changes while it runs is taken off the CPU for a moment, and does not sleep. */
	if (!runnable && p->__state)
		tell_blocked(p, a);
	return 0;
}

/*
 * A real-time task waits for a lock of p's and lends p its priority: p is out of the class until it lets go. It keeps its
 * gtid and its word, and for the agent it sleeps.
 */
static void tell_away(struct task_struct *p, struct agent_task *a)
{
	tell_blocked(p, a);
}

/* A task whose policy was changed while it was away ends outside the class: disable() is not called. */
BPF_PROG(agent_exit_task, struct task_struct *p, struct scx_exit_task_args *args)
{
	struct agent_task *a = agent_task_of(p, 0);

	if (a)
		tell_gone(p, a, MSG_TASK_DEAD);
	return 0;
}

BPF_PROG(agent_disable, struct task_struct *p)
{
	struct agent_task *a = agent_task_of(p, 0);
	struct task_ctx *t = task_ctx_of(p);

	if (!a)
		return 0;
	if (p->flags & PF_EXITING)
		tell_gone(p, a, MSG_TASK_DEAD);
	else if (t && !t->left)
		tell_away(p, a);
	else
		tell_gone(p, a, MSG_TASK_DEPARTED);
	return 0;
}

BPF_PROG(agent_set_cpumask, struct task_struct *p, const struct cpumask *allowed)
{
	struct agent_task *a = agent_task_of(p, 0);
	struct status_word *w = a ? word_at(a->word) : NULL;

	if (!w)
		return 0;
	w->allowed = p->cpus_ptr->bits[0];
	tell(p, a, w, MSG_TASK_AFFINITY_CHANGED, 0);
	return 0;
}

BPF_PROG(agent_set_weight, struct task_struct *p, u32 weight)
{
	struct agent_task *a = agent_task_of(p, 0);
	struct status_word *w = a ? word_at(a->word) : NULL;

	if (!w || w->weight == weight)
		return 0;
	w->weight = weight;
	tell(p, a, w, MSG_TASK_PRIORITY_CHANGED, 0);
	return 0;
}

BPF_PROG(agent_yield, struct task_struct *from, struct task_struct *to)
{
	struct agent_task *a = agent_task_of(from, 0);

	if (a)
		a->yielded = 1;
	return 0;
}

/*
 * An agent's end, whatever its cause, is seen here: from now on the core decides. Where each CPU has an agent, none
 * goes on without the others.
 */
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

/* Attached for a policy that wants to know which CPUs higher classes take; an agent of the enclave's own is none of them. */
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
	tell_cpu(here, busy ? MSG_CPU_BUSY : MSG_CPU_AVAILABLE);
	return 0;
}

/* An idle system makes no events: somebody has to notice that an agent has become silent, or has forgotten a task. */
int pulse(struct bpf_perf_event_data *ctx)
{
	if (scx_bpf_dsq_nr_queued(PENDING) > 0)
		kick_cpus();
	return 0;
}
