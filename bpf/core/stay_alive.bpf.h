/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Stay-alive: an enclave whose policy lets a runnable task wait for too long goes back to the built-in FIFO, before the
 * kernel's watchdog ends the core and with it all enclaves.
 *
 * Hot ops do nothing for this. A software clock event, the pulse, looks at the kernel's own lists of waiting tasks (one
 * per CPU: the watchdog's), each task with the time since when it is runnable. A pulse also notes which CPUs a task in
 * the ext class could have used at that moment. The policy is to blame if a CPU of the enclave that the task may use was
 * available at a quarter of the pulses of the wait. Otherwise a higher class held the CPUs, and no policy could help.
 *
 * The FIFO becomes live by one store to enclave.bank. Tasks that the policy left where no CPU serves them are fetched by
 * the next dispatch on a CPU of the enclave (DRAINING_LOST): only ops.dispatch may insert a task that is on no queue,
 * because ops.enqueue did not insert it.
 */
#ifndef GHOSTBPF_STAY_ALIVE_BPF_H
#define GHOSTBPF_STAY_ALIVE_BPF_H

#include "abi.h"
#include "bits.bpf.h"
#include "cpus.bpf.h"
#include "exit.bpf.h"
#include "full_mode.bpf.h"
#include "iterate.bpf.h"
#include "state.bpf.h"

BPF_F_TABLE("array", u32, struct fallback, fallbacks, MAX_ENCLAVES, BPF_F_MMAPABLE);

#define PULSE_PERIOD (500 * 1000000ULL)
#define PULSES_KEPT 63
#define MIN_RUNNABLE_TIMEOUT (2 * PULSE_PERIOD)
#define SCAN_MAX 32 /* waiting tasks of a CPU that one look examines; the first have waited longest */
#define JUDGED_MAX 64 /* overdue tasks that one pulse examines */
#define DSQ_BUILTIN (1ULL << 63)

/* A position in the kernel's list of the tasks that wait, and were last on one CPU. */
struct waiting_list {
	u64 head;
	u64 node;
};

#ifdef HAVE_scx_bpf_cpu_curr
static struct task_struct *current_on(s32 cpu)
{
	return scx_bpf_cpu_curr(cpu);
}
#else
static struct task_struct *current_on(s32 cpu)
{
	struct rq *rq = scx_bpf_cpu_rq(cpu);

	return rq ? ((struct rq *)bpf_rdonly_cast(rq, TYPE_ID(rq)))->curr : NULL;
}
#endif

/*
 * Begin with the list of a CPU; return false if it has none. A task of any class, also the idle task, has a pointer to
 * its CPU's fair runqueue, and that has one to the rq. (Kernels from 7.3 on have no function that returns another CPU's
 * rq. Offsets come from BTF: C cannot express the alignment of these structs.)
 */
static bool begin_waiting(struct waiting_list *list, s32 cpu)
{
	struct task_struct *current_task = current_on(cpu);
	void *fair;
	u64 rq = 0;

	if (!current_task)
		return false;
	fair = untrusted(current_task)->se.cfs_rq;
	bpf_probe_read_kernel(&rq, sizeof(rq), fair + LINK_CONSTANT(cfs_rq_rq));
	list->head = list->node = rq + LINK_CONSTANT(rq_runnable_list);
	return rq;
}

/*
 * The next task's pid, and how long it has been runnable; 0 at the end. No lock is held: if the task leaves its list
 * meanwhile, the rest of the look may go through another CPU's list, but never beyond SCAN_MAX tasks.
 */
static u32 next_waiting(struct waiting_list *list, u64 *wait_ns)
{
	u64 node = 0, task, since = 0;
	s32 pid = 0;

	bpf_probe_read_kernel(&node, sizeof(node), (void *)list->node);
	if (!node || node == list->head)
		return 0;
	list->node = node;
	task = node - __builtin_offsetof(struct task_struct, scx.runnable_node);
	bpf_probe_read_kernel(&pid, sizeof(pid), (void *)task + __builtin_offsetof(struct task_struct, pid));
	bpf_probe_read_kernel(&since, sizeof(since), (void *)task + __builtin_offsetof(struct task_struct, scx.runnable_at));
	*wait_ns = elapsed(since, bpf_jiffies64()) * LINK_CONSTANT(tick_ns);
	return pid;
}

/* Each task that waits and was last on CPU `number`: its pid, and how long it has been runnable. */
#define for_each_runnable(number, pid, wait_ns)                                                                 \
	for (struct waiting_list __list, *__once = begin_waiting(&__list, number) ? &__list : NULL; __once;     \
	     __once = NULL)                                                                                     \
		for_each_number(__n, 0, SCAN_MAX)                                                               \
			if (!(pid = next_waiting(&__list, &wait_ns)))                                           \
				break;                                                                          \
			else

/* Note for each CPU whether a task in the ext class could run there now. A missed pulse counts as "could not". */
static void note_availability(struct core *c, u64 periods)
{
	for_each_number(number, 0, scx_bpf_nr_cpu_ids()) {
		struct cpu *cpu = cpu_of(number);
		struct task_struct *current_task;
		u64 history;

		if (!cpu)
			return;
		history = periods > PULSES_KEPT ? 0 : cpu->availability << periods;
		current_task = current_on(number);
		if (current_task && has_bit(c->online, number) && !is_higher_class(current_task, FULL_MODE))
			history |= 1;
		cpu->availability = history;
	}
}

static u32 count_ones(u64 word)
{
	word -= word >> 1 & 0x5555555555555555ULL;
	/* As in lowest_bit(): otherwise LLVM reads a constant table, which bcc cannot place. */
	asm volatile("" : "+r"(word));
	word = (word & 0x3333333333333333ULL) + (word >> 2 & 0x3333333333333333ULL);
	word = (word + (word >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	return word * 0x0101010101010101ULL >> 56;
}

/*
 * The CPU, among those that e has or may get and that p may use, that was available at most of the last pulses; how
 * often, in *available. -1 if none was.
 */
static s32 most_available_cpu(struct enclave *e, struct core *c, struct task_struct *p, u32 pulses, u32 *available)
{
	const struct cpumask *allowed = untrusted(p)->cpus_ptr;
	u64 during = (1ULL << pulses) - 1;
	volatile u32 most = 0;
	volatile s32 best = -1;

	for_each_number(number, 0, scx_bpf_nr_cpu_ids()) {
		struct cpu *cpu = cpu_of(number);
		u32 ones;

		if (!cpu || reachable_cpu(e, c, allowed, number) != number)
			continue;
		ones = count_ones(cpu->availability & during);
		if (ones > most) {
			most = ones;
			best = number;
		}
	}
	*available = most;
	return best;
}

static void kick_each_cpu(u32 id, u64 flags)
{
	for_each_number(number, 0, scx_bpf_nr_cpu_ids()) {
		struct cpu *cpu = cpu_of(number);

		if (cpu && cpu->enclave == id)
			scx_bpf_kick_cpu(number, flags);
	}
}

/*
 * Return true if the arbiters of e's tree know that p waits: p then gets a CPU sooner or later, also if its leaf starves,
 * for which no policy is to blame.
 */
static bool is_demand(u32 id, struct enclave *e, struct task_struct *p)
{
	u64 queue = queue_of_task(p), cpu = queue & 0xffff, kind = queue - cpu;

	return queue == PENDING_DSQ(id) || queue & DSQ_BUILTIN ||
	       ((kind == CPU_DSQS || kind == VTIME_DSQS) && has_bit(e->reach, cpu & (MAX_CPUS - 1)));
}

/* Have a CPU of e fetch lost tasks. The turns of its tasks end: the policy may have made them endless. */
static void request_recovery(u32 id, struct enclave *e, u32 draining)
{
	e->draining |= draining;
	kick_each_cpu(id, SCX_KICK_PREEMPT);
	/* A leaf may have no CPU now: the arbiter gives it an idle one that asks for a task. */
	if (e->leaf)
		kick_each_cpu(e->tree, SCX_KICK_IDLE);
}

static void fall_back(u32 id, struct enclave *e, struct task_struct *p, struct fallback *why)
{
	struct fallback *record = fallbacks.lookup(&id);
	struct task_struct *running;
	u64 bank = e->bank;

	if (!record || bank & FELL_BACK)
		return;
	e->draining |= DRAINING_QUEUES;
	/* If a loader replaces the policy at this moment, the new one is not to blame. */
	if (!compare_and_swap(&e->bank, bank, bank | FELL_BACK * BOTH_HALVES))
		return;
	record->at_ns = bpf_ktime_get_ns();
	record->wait_ns = why->wait_ns;
	record->queue = why->queue;
	/* One load each: the verifier refuses the one 8-byte load that LLVM would make of both. */
	record->tid = *(volatile s32 *)&p->pid;
	record->tgid = *(volatile s32 *)&p->tgid;
	record->task_cpu = scx_bpf_task_cpu(p);
	record->cpu = why->cpu;
	record->pulses = why->pulses;
	record->available = why->available;
	record->has_agent = e->agents[bank & LIVE_BANK];
	bpf_probe_read_kernel_str(record->comm, sizeof(record->comm), p->comm);
	bpf_probe_read_kernel_str(record->policy, sizeof(record->policy), e->policy[bank & LIVE_BANK]);
	running = current_on(why->cpu);
	record->running = running ? running->pid : 0;
	if (running)
		bpf_probe_read_kernel_str(record->running_comm, sizeof(record->running_comm), running->comm);
	count_up(&record->count);
}

/* p, of e, has waited longer than e's timeout. What it waited before the policy became live is not the policy's doing. */
static void judge(u32 id, struct enclave *e, struct core *c, struct task_struct *p, u64 wait_ns, u64 now)
{
	struct fallback why = { .wait_ns = wait_ns, .queue = queue_of_task(p) };
	u64 live_ns = elapsed(e->policy_since_ns, now), blamed_ns = wait_ns < live_ns ? wait_ns : live_ns;
	u32 draining = DRAINING_QUEUES | DRAINING_LOST;
	bool is_lost;

	if (why.queue == FALLBACK_DSQ || why.queue == THROTTLED_DSQ(id))
		return;
	why.pulses = wait_ns / PULSE_PERIOD;
	if (why.pulses > PULSES_KEPT)
		why.pulses = PULSES_KEPT;
	why.cpu = most_available_cpu(e, c, p, why.pulses, &why.available);
	if (why.cpu < 0 || why.available * 4 < why.pulses)
		return;
	is_lost = wait_ns > live_ns && why.queue != PENDING_DSQ(id);
	if (e->bank & FELL_BACK || is_lost) {
		draining = e->bank & FELL_BACK ? draining : DRAINING_LOST;
	} else if (blamed_ns > e->runnable_timeout_ns) {
		fall_back(id, e, p, &why);
	} else {
		return;
	}
	request_recovery(id, e, draining);
}

/* Return true if the task is overdue. */
static bool check_waiting_task(struct core *c, u32 pid, u64 wait_ns, u64 now)
{
	struct task_struct *p = bpf_task_from_pid(pid);
	struct enclave *e = NULL;
	bool is_overdue;
	u32 id;

	if (!p)
		return false;
	id = membership(task_ctx_of(p), &e);
	is_overdue = id && e && e->runnable_timeout_ns && wait_ns > e->runnable_timeout_ns && !is_percpu_kthread(p) &&
		     !(e->tree && is_demand(id, e, p));
	if (is_overdue)
		judge(id, e, c, p, wait_ns, now);
	bpf_task_release(p);
	return is_overdue;
}

/* Each pulse begins with another CPU, in case it cannot examine all overdue tasks. */
static void check_waiting_tasks(struct core *c, u64 now)
{
	u32 total = scx_bpf_nr_cpu_ids(), first = now / PULSE_PERIOD;
	volatile u32 judged = 0;

	for_each_number(number, 0, total) {
		u64 wait_ns;
		u32 pid;

		for_each_runnable((first + (u32)number) % total, pid, wait_ns)
			if (wait_ns >= MIN_RUNNABLE_TIMEOUT && check_waiting_task(c, pid, wait_ns, now) && ++judged >= JUDGED_MAX)
				return;
	}
}

/* The pulse. A few CPUs have one, in case some go offline; the first to come in each period does the work. */
int perf_stay_alive(struct bpf_perf_event_data *ctx)
{
	struct core *c = the_core();
	u64 now = bpf_ktime_get_ns(), before, since;

	if (!c || has_exited())
		return 0;
	before = c->pulsed_at;
	since = elapsed(before, now);
	if (since < PULSE_PERIOD / 4 * 3 || !compare_and_swap(&c->pulsed_at, before, now))
		return 0;
	note_availability(c, (since + PULSE_PERIOD / 2) / PULSE_PERIOD);
	check_waiting_tasks(c, now);
	return 0;
}

/*
 * Move a task to the enclave's queue, unless it is there, on a local queue, or about to run. Return true if it was
 * moved. The kernel ignores the insert of a task that is not waiting any more.
 */
static bool recover_task(u32 id, struct core *c, u32 pid)
{
	struct task_struct *p = bpf_task_from_pid(pid);
	struct enclave *e = NULL;
	bool is_moved = false;

	if (!p)
		return false;
	if (membership(task_ctx_of(p), &e) == id && e && !is_percpu_kthread(p)) {
		u64 from = queue_of_task(p), to = may_run_in(e, c, untrusted(p)->cpus_ptr) ? PENDING_DSQ(id) : FALLBACK_DSQ;

		if (!from) {
			is_moved = scx_bpf_dispatch_nr_slots();
			if (is_moved)
				scx_bpf_dsq_insert(p, to, SCX_SLICE_DFL, 0);
		} else if (from != to && from != FALLBACK_DSQ && from != THROTTLED_DSQ(id) && !(from & DSQ_BUILTIN)) {
			for_each_waiting(waiting, first, from, 0) {
				is_moved = scx_bpf_dsq_move(&waiting, p, to, 0);
				break;
			}
		}
	}
	bpf_task_release(p);
	return is_moved;
}

/*
 * Fetch lost tasks of an enclave; called from ops.dispatch on one of its CPUs. While the policy is live, only those that
 * are overdue. As long as some are found, the next dispatch looks again.
 */
static void recover_tasks(u32 id, struct enclave *e, struct core *c)
{
	volatile u32 moved = 0;

	e->draining &= ~DRAINING_LOST;
	for_each_number(number, 0, scx_bpf_nr_cpu_ids()) {
		u64 wait_ns;
		u32 pid;

		for_each_runnable(number, pid, wait_ns)
			if (e->bank & FELL_BACK || wait_ns > e->runnable_timeout_ns)
				moved += recover_task(id, c, pid);
	}
	if (!moved)
		return;
	e->draining |= DRAINING_LOST;
	kick_each_cpu(id, SCX_KICK_IDLE);
}

#endif
