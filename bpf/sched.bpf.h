/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a policy stands on. A policy's C touches the world only through bcc's map macros, the kernel's
 * functions by name, and this header.
 *
 * A policy is a set of functions <policy>_<op>(…), each with the arguments of the sched_ext op of that
 * name; ops that it leaves out fall back to the core's FIFO. It decides for one enclave, ENCLAVE, whose
 * number is known when it is linked. It may rely on this:
 *
 *   - each task it sees is in ENCLAVE and may run on at least one online CPU of it;
 *   - PENDING is the enclave's FIFO queue. Whatever waits there when another policy takes over stays
 *     there, in its order, so a policy must serve it, and may have any slice;
 *   - VTIME_DSQ(cpu) is a CPU's own queue in order of vtime, for a policy that is registered as having queues. Who
 *     waits there when another policy takes over goes to PENDING;
 *   - nothing else inserts into the enclave's queues, and each CPU that dispatch() names is the enclave's.
 */
#ifndef GHOSTBPF_SCHED_BPF_H
#define GHOSTBPF_SCHED_BPF_H

#include "abi.h"
#include "core/iterate.bpf.h"

#ifndef NR_CPU_WORDS
#define NR_CPU_WORDS CPU_WORDS
#endif

BPF_TASK_STORAGE(tasks, struct task_ctx);
BPF_F_TABLE("array", u32, struct enclave, enclaves, MAX_ENCLAVES, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct cpu, cpus, MAX_CPUS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct core, core, 1, BPF_F_MMAPABLE);
BPF_PERCPU_ARRAY(counters, struct counters, MAX_ENCLAVES);

#define SCHED_EXT 7
#define PF_EXITING 0x00000004
#define MAX_RT_PRIO 100

#define ENCLAVE ((u32)LINK_CONSTANT(enclave))

#define PENDING_DSQ(enclave) ((u64)PENDING_DSQS | (enclave))
#define CPU_DSQ(cpu) ((u64)CPU_DSQS | (cpu))
#define VTIME_DSQ(cpu) ((u64)VTIME_DSQS | (cpu))
#define PENDING PENDING_DSQ(ENCLAVE)

/* Long enough never to expire, and still not SCX_SLICE_INF, which lets a nohz_full CPU stop its tick. */
#define SLICE_ENDLESS (1ULL << 62)

#define COUNT(enclave, event)                                   \
	do {                                                    \
		struct counters *__c = counters_of(enclave);    \
		if (__c)                                        \
			__c->event++;                           \
	} while (0)

static struct counters *counters_of(u32 enclave)
{
	return counters.lookup(&enclave);
}

static struct enclave *enclave_of(u32 id)
{
	return enclaves.lookup(&id);
}

static struct cpu *cpu_of(s32 id)
{
	u32 key = id;

	return cpus.lookup(&key);
}

static struct core *the_core(void)
{
	u32 zero = 0;

	return core.lookup(&zero);
}

static struct task_ctx *task_ctx_of(struct task_struct *p)
{
	return tasks.task_storage_get(p, 0, 0);
}

static bool is_live(struct enclave *e, u32 generation)
{
	return e->state == ENCLAVE_ACTIVE && e->generation == generation;
}

/* The enclave that a task with this record belongs to, and in *e its own; 0 where there is none. */
static u32 membership(struct task_ctx *t, struct enclave **e)
{
	struct core *c = the_core();
	u32 id = c ? c->default_enclave : 0;

	if (t && t->enclave) {
		*e = enclave_of(t->enclave);
		if (*e && is_live(*e, t->generation))
			return t->enclave;
	}
	*e = enclave_of(id);
	return id && *e && (*e)->state == ENCLAVE_ACTIVE ? id : 0;
}

/* Is p of a class that comes before ours, when all of the fair class is in ours (full mode) or is not? */
static bool is_higher_class(struct task_struct *p, bool full)
{
	return p->pid && (p->prio < MAX_RT_PRIO || (!full && p->policy != SCHED_EXT));
}

/* A task is about to wait on a CPU's own queue; tracers want to know. */
static void note_latch(struct task_ctx *t, bool by_agent)
{
	t->latched_at = bpf_ktime_get_ns();
	t->committed = by_agent;
}

/* Replace what a word holds if it still does. */
static bool replace(u64 *word, u64 old, u64 new)
{
	return __sync_val_compare_and_swap(word, old, new) == old;
}

/* Count one more; the new value. */
static u64 count_up(u64 *counter)
{
	return __sync_fetch_and_add(counter, 1) + 1;
}

/* Store value; the old one. A full barrier: no later load is done before the store is visible. */
#define exchange(word, value) __sync_lock_test_and_set(word, value)

/* From then to now. What another CPU notes meanwhile, or by a clock that is ahead, is no time ago, and not for ever. */
static u64 elapsed(u64 then, u64 now)
{
	return (s64)(now - then) > 0 ? now - then : 0;
}

/* Since then, by CLOCK_MONOTONIC. */
static u64 ns_since(u64 then)
{
	return elapsed(then, bpf_ktime_get_ns());
}

/* How long the task on this CPU has been there. */
static u64 ns_on(struct cpu *cpu)
{
	return elapsed(cpu->ran_at, scx_bpf_now());
}

static void set_slice(struct task_struct *p, u64 ns)
{
#ifdef HAVE_scx_bpf_task_set_slice
	scx_bpf_task_set_slice(p, ns);
#else
	p->scx.slice = ns;
#endif
}

/*
 * The index of the lowest set bit: the number of ones below it, counted without a branch, for each would
 * double the verifier's work. The empty asm keeps LLVM from seeing what this is: its own way to do it reads
 * a table, which bcc has no place for.
 */
static u32 lowest_bit(u64 word)
{
	u64 below = (word & -word) - 1;

	below -= below >> 1 & 0x5555555555555555ULL;
	asm volatile("" : "+r"(below));
	below = (below & 0x3333333333333333ULL) + (below >> 2 & 0x3333333333333333ULL);
	below = (below + (below >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	return below * 0x0101010101010101ULL >> 56;
}

/* Is bit number set in these words? Unrolled, for the verifier knows no index into some of them. */
#define has_bit(words, number)                                                  \
	({                                                                      \
		u64 __word = 0;                                                 \
		_Pragma("unroll") for (u32 __i = 0; __i < NR_CPU_WORDS; __i++)  \
			if (__i == (u32)(number) / 64)                          \
				__word = (words)[__i];                          \
		(bool)(__word >> ((number) & 63) & 1);                          \
	})

/* Each CPU id of an enclave, online or not, and its record. */
#define for_each_cpu_of(enclave_id, cpu, id)                            \
	for_each_number(id, 0, scx_bpf_nr_cpu_ids())                    \
		if (!(cpu = cpu_of(id)) || cpu->enclave != (enclave_id)) \
			continue;                                       \
		else

/* The CPU that an agent of e's spins on; -1: there is none. */
static s32 spun_cpu(struct enclave *e)
{
	return (s32)(e->spinner >> 32) - 1;
}

/* Word i of e's CPUs that run its tasks. */
static u64 serving(struct enclave *e, struct core *c, u32 i)
{
	u32 spun = spun_cpu(e);

	return e->cpus[i] & c->online[i] & ~(spun / 64 == i ? 1ULL << (spun & 63) : 0);
}

/* Those of them that are allowed. */
static u64 usable(struct enclave *e, struct core *c, const struct cpumask *allowed, u32 i)
{
	return serving(e, c, i) & allowed->bits[i];
}

static bool is_any_usable(struct enclave *e, struct core *c, const struct cpumask *allowed)
{
	u64 any = 0;

#pragma unroll
	for (u32 i = 0; i < NR_CPU_WORDS; i++)
		any |= usable(e, c, allowed, i);
	return any;
}

static bool is_usable(struct enclave *e, struct core *c, const struct cpumask *allowed, s32 cpu)
{
	u64 word = 0;

#pragma unroll
	for (u32 i = 0; i < NR_CPU_WORDS; i++)
		if (i == (u32)cpu / 64)
			word = usable(e, c, allowed, i);
	return word >> (cpu & 63) & 1;
}

/* A CPU of e's that is allowed, busy or not: prev where it will do. -1 if there is none. */
static s32 home_cpu(struct enclave *e, struct core *c, const struct cpumask *allowed, s32 prev)
{
	if (is_usable(e, c, allowed, prev))
		return prev;
#pragma unroll
	for (u32 i = 0; i < NR_CPU_WORDS; i++) {
		u64 word = usable(e, c, allowed, i);

		if (word)
			return i * 64 + lowest_bit(word);
	}
	return -1;
}

/*
 * An idle CPU of e's that is allowed: by preference prev, one of an idle core near prev (sharing its last-level
 * cache), one of an idle core, one near prev, or any. -1 if none is idle.
 */
static s32 find_idle_cpu(struct enclave *e, struct core *c, const struct cpumask *allowed, s32 prev)
{
	const struct cpumask *cores, *idle;
	struct cpu *at = cpu_of(prev);
	s32 best = -1;
	u32 rank = 5;

	if (!at)
		return -1;
	cores = scx_bpf_get_idle_smtmask();
	idle = scx_bpf_get_idle_cpumask();
#pragma unroll
	for (u32 i = 0; i < NR_CPU_WORDS; i++) {
		u64 any = usable(e, c, allowed, i) & idle->bits[i], whole = any & cores->bits[i];
		u64 word = i == (u32)prev / 64 ? any & 1ULL << (prev & 63) : 0;
		u32 r = 0;

		if (!word) { word = whole & at->llc[i]; r = 1; }
		if (!word) { word = whole; r = 2; }
		if (!word) { word = any & at->llc[i]; r = 3; }
		if (!word) { word = any; r = 4; }
		if (word && r < rank) {
			rank = r;
			best = i * 64 + lowest_bit(word);
		}
	}
	scx_bpf_put_idle_cpumask(idle);
	scx_bpf_put_idle_cpumask(cores);
	return best;
}

/* The same, and nobody else will find it; -1, too, if another was faster. */
static s32 claim_idle_cpu(struct enclave *e, struct core *c, const struct cpumask *allowed, s32 prev)
{
	s32 cpu;

	if (is_usable(e, c, allowed, prev) && scx_bpf_test_and_clear_cpu_idle(prev))
		return prev;
	cpu = find_idle_cpu(e, c, allowed, prev);
	return cpu >= 0 && scx_bpf_test_and_clear_cpu_idle(cpu) ? cpu : -1;
}

/* A CPU of e's that idles is to look around. */
static void kick_any_idle(struct enclave *e, s32 here)
{
	const struct cpumask *online;
	struct core *c = the_core();
	s32 cpu;

	if (!c)
		return;
	online = scx_bpf_get_online_cpumask();
	cpu = claim_idle_cpu(e, c, online, here);
	scx_bpf_put_cpumask(online);
	if (cpu >= 0)
		scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
}

/*
 * A task on a CPU's own queue waits there as long as a higher class wants the CPU. Only kernels from 6.19 on can
 * take it back at any time.
 */
#ifdef HAVE_scx_bpf_reenqueue_local___v2
#define CAN_TAKE_BACK 1

static void take_back(void)
{
	scx_bpf_reenqueue_local___v2();
}
#else
#define CAN_TAKE_BACK 0
#endif

/*
 * Since 7.3 the kernel ends a scheduler that re-enqueues a task more than 256 times before it runs. After half of that no
 * local queue is re-enqueued for a while: a task then runs from its local queue, or waits for 128 such pauses, longer than
 * the kernel's watchdog allows a task to wait anyway.
 */
#define MOST_REENQUEUES 128
#define REENQUEUE_PAUSE (1000 * 1000000ULL)

static void note_reenqueue(struct task_struct *p)
{
	struct task_ctx *t = tasks.task_storage_get(p, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	struct core *c = the_core();

	if (t && c && ++t->reenqueued >= MOST_REENQUEUES)
		c->reenqueue_after = bpf_ktime_get_ns() + REENQUEUE_PAUSE;
}

/* On a CPU that goes offline the kernel returns tasks to the local queue without asking. */
static bool may_reenqueue(s32 here)
{
	struct core *c = the_core();

	return c && has_bit(c->online, here) && elapsed(c->reenqueue_after, bpf_ktime_get_ns());
}

/* Who is on its CPU for longer after it woke another was not about to sleep. */
#define LINGER (1000 * 1000ULL)

/* Can tasks of e wait on CPUs' own queues? */
static bool has_cpu_queues(struct enclave *e)
{
	return (e->bank ? e->queues[1] : e->queues[0]) || e->draining;
}

/* Does a task of e wait for any of its CPUs, or for this one? */
static bool is_waited_for(u32 id, struct enclave *e, s32 cpu)
{
	return scx_bpf_dsq_nr_queued(PENDING_DSQ(id)) || (has_cpu_queues(e) && scx_bpf_dsq_nr_queued(VTIME_DSQ(cpu)));
}

/*
 * The CPU that we run on, if its task, the waker, is about to sleep and leaves it: it is e's, as is the task, and nobody
 * waits for either; -1 otherwise. Some do not sleep though it is said of them, as of everyone who writes to a pipe: what
 * the waker did the last time tells.
 */
static s32 wakers_cpu(u32 id, struct enclave *e, struct core *c, const struct cpumask *allowed)
{
	s32 here = bpf_get_smp_processor_id();
	struct cpu *cpu = cpu_of(here);

	if (!cpu || cpu->running != id || !is_usable(e, c, allowed, here) ||
	    scx_bpf_dsq_nr_queued(SCX_DSQ_LOCAL_ON | here) || is_waited_for(id, e, here))
		return -1;
	cpu->sync_wake_at = scx_bpf_now();
	return cpu->sync_waker_stays ? -1 : here;
}

/*
 * ops.select_cpu for most policies: an idle CPU runs p at once, for slice ns; otherwise p will be enqueued.
 *
 * Where none idles, a waker that is about to sleep (WAKE_SYNC) leaves its CPU to p, unless somebody waits: that spares p
 * the queue. Should it not sleep after all, the next tick lets p have its turn.
 *
 * Where p could not be taken back, if a fair task that wakes just then takes the CPU first, it goes through the
 * queue even so: enqueue_pending() finds the CPU that was chosen here idle, and kicks it.
 */
static s32 select_idle(u32 id, struct task_struct *p, s32 prev, u64 wake_flags, u64 slice)
{
	struct enclave *e = enclave_of(id);
	struct core *c = the_core();
	s32 cpu;

	if (!e || !c)
		return prev;
#if CAN_TAKE_BACK
	cpu = claim_idle_cpu(e, c, p->cpus_ptr, prev);
	if (cpu < 0 && wake_flags & SCX_WAKE_SYNC)
		cpu = wakers_cpu(id, e, c, p->cpus_ptr);
	if (cpu >= 0)
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice, 0);
#else
	cpu = find_idle_cpu(e, c, p->cpus_ptr, prev);
#endif
	if (cpu >= 0) {
		COUNT(id, idle);
		return cpu;
	}
	cpu = home_cpu(e, c, p->cpus_ptr, prev);
	return cpu >= 0 ? cpu : prev;
}

/*
 * ops.enqueue with SCX_ENQ_LAST: p, the last runnable task of CPU here, goes on.
 *
 * The CPU has chosen to idle by now, and an insert from enqueue() makes kernels up to 6.18 at least not choose
 * again: without the kick, p would wait until something else woke the CPU.
 */
static void go_on(struct task_struct *p, s32 here, u64 slice, u64 enq_flags)
{
	scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice, enq_flags);
	scx_bpf_kick_cpu(here, 0);
}

/* Is it still p's turn, since a higher class came between? Then *slice is what p has left of its own. */
static bool is_interrupted(struct task_struct *p, u64 *slice, u64 enq_flags)
{
	struct task_ctx *t;
	u64 left;

	if (enq_flags & SCX_ENQ_WAKEUP)
		return false;
	if (enq_flags & SCX_ENQ_REENQ)
		return true;
	t = task_ctx_of(p);
	if (!t || !t->left_ns)
		return false;
	left = t->left_ns;
	t->left_ns = 0;
	if (left < *slice)
		*slice = left;
	return true;
}

/*
 * p waits on the enclave's queue for a slice, and a CPU that has nothing to do is told.
 *
 * Tells whether p waits: nobody was free for it. A kick is delivered after the insert has taken effect. A CPU that
 * turns idle between the look at the idle mask and the insert is not told; if it is p's own, the kernel reschedules it,
 * and if p's own is not the enclave's, one of the enclave's is kicked whatever it does; else the next tick in the
 * enclave finds p.
 */
static bool enqueue_for(u32 id, struct task_struct *p, u64 slice, u64 enq_flags)
{
	struct enclave *e = enclave_of(id);
	struct core *c = the_core();
	s32 here = scx_bpf_task_cpu(p), cpu;

	COUNT(id, queued);
	/* Nobody else wants the CPU that p is on: p goes on, unless the CPU is not the enclave's. */
	if (enq_flags & SCX_ENQ_LAST && e && c && is_usable(e, c, p->cpus_ptr, here)) {
		go_on(p, here, slice, enq_flags);
		return false;
	}
	scx_bpf_dsq_insert(p, PENDING_DSQ(id), slice, enq_flags);
	if (!e || !c)
		return true;
	cpu = claim_idle_cpu(e, c, p->cpus_ptr, here);
	if (cpu >= 0) {
		/* The kernel itself makes an idle CPU look up where a task wakes. */
		if (cpu != here || !(enq_flags & SCX_ENQ_WAKEUP))
			scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
		return false;
	}
	if (!is_usable(e, c, p->cpus_ptr, here)) {
		cpu = home_cpu(e, c, p->cpus_ptr, here);
		if (cpu >= 0)
			scx_bpf_kick_cpu(cpu, 0);
	}
	return true;
}

/* ops.enqueue for most policies: p waits at the end of the enclave's queue, or at its head if p was interrupted. */
static void enqueue_pending(u32 id, struct task_struct *p, u64 slice, u64 enq_flags)
{
	if (is_interrupted(p, &slice, enq_flags))
		enq_flags |= SCX_ENQ_HEAD;
	enqueue_for(id, p, slice, enq_flags);
}

#endif
