/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Hierarchy: a tree of policies that share CPUs, as ghOSt's flux has it. Arbiters give CPUs to their children: to other
 * arbiters, and in the end to leaves. A leaf is an enclave with any BPF policy. The root is an enclave without tasks: it
 * is the policy "idle", which has the CPUs that no leaf wants, and halts them.
 *
 * This is a layer between the core and the leaves' policies. The core's slots of all enclaves of the tree hold the
 * programs below, and each of them calls the policy's own program for that op, which is in an array of this file.
 * Enclaves in no tree have no such layer.
 *
 * To grant a CPU to a leaf is to change the CPU's owner, as a resize does, but from an op: the CPU leaves the set of one
 * enclave and enters that of another. So policies, and the rest of the core, see sets of CPUs that change, and nothing
 * else. What a leaf demands is not counted: tasks that wait, beyond idle CPUs of the leaf, are its demand for more.
 *
 *   request   A task of a leaf is queued, and no CPU of the leaf idles: take an idle CPU from the root, or else one from
 *             another leaf, if the arbiter above both says so, and preempt the task there. Ticks repeat the request for
 *             tasks that still wait: each tick for up to PREEMPT_MAX tasks of one leaf, in turns.
 *   yield     A CPU asks for a task, and its leaf has none for it: it goes to the leaf that the arbiters choose among
 *             those with a waiting task, or to the root.
 *   turn      A leaf that gets no CPU starves, and the kernel would end the core after 30 s. A task that has waited for
 *             STARVES_AFTER gets its leaf a CPU until the next tick; see give_turn().
 *
 * Arbiters: roci has its children in strict order; prov gives them whole CPUs by weight. Both respect max_cpus. Leaves are
 * in the order in which the configuration names them, and victims are taken from the last leaf first; of one leaf, the CPU
 * where the task ran before, or else the one granted last.
 */
#include "abi.h"
#include "sched.bpf.h"
#include "grant.bpf.h"
#include "priority_cpus.bpf.h"
#include "tree.bpf.h"

#define LOOK_AT_MAX 32 /* tasks at the head of a queue that are looked at */
#define PREEMPT_MAX 5 /* CPUs that one tick takes from other leaves at most, as in ghOSt */

#define TURN (2 * 1000000ULL) /* less than a tick: the first tick afterwards ends it */
#define TURN_PERIOD (1000 * 1000000ULL)
#define TURN_CHECK_PERIOD (20 * 1000000ULL)
#define STARVES_AFTER (1000 * 1000000ULL)
#define STARVES_BADLY_AFTER (10 * 1000000000ULL) /* the kernel ends the core after 30 s */

/* Yield: */

/* Return true if one of the first tasks on this queue may run on CPU `here`. */
static bool has_task_for(u64 dsq, s32 here)
{
	COUNTER(seen);

	if (!scx_bpf_dsq_nr_queued(dsq))
		return false;
	for_each_waiting(waiting, p, dsq, 0)
		if (has_bit(p->cpus_ptr->bits, here) || ++seen.n >= LOOK_AT_MAX)
			return true;
	return false;
}

static bool has_first_task_for(u64 dsq, s32 here)
{
	if (!scx_bpf_dsq_nr_queued(dsq))
		return false;
	for_each_waiting(waiting, p, dsq, 0)
		return has_bit(p->cpus_ptr->bits, here);
	return false;
}

/* Return true if a task of this enclave waits that may run on CPU `here`; of each CPU's own queue, the first one counts. */
static bool wants(u32 id, struct enclave *e, s32 here)
{
	struct cpu *cpu;
	s32 number;

	if (e->draining & DRAINING_LOST || has_task_for(PENDING_DSQ(id), here))
		return true;
	if (!has_cpu_queues(e))
		return false;
	for_each_cpu_of(id, e, cpu, number)
		if (has_first_task_for(VTIME_DSQ(number), here))
			return true;
	return false;
}

/* The leaf to which CPU `here`, for which its holder has no task, goes. `wanting`: a leaf that is known to want it. */
static u32 choose_leaf(struct tree *tree, s32 here, u32 holder, u32 wanting)
{
	COUNTER(order);

	for_each_number(i, 0, MAX_LEAVES) {
		u32 number = i & (MAX_LEAVES - 1), id, best = NO_LEAF - order.n;
		struct enclave *e;

		if (number >= tree->nr_leaves)
			break;
		id = leaf_at(tree, number)->enclave;
		e = enclave_of(id);
		if (number == holder || leaf_of(e) != number || !e || !goes_before(tree, number, best) ||
		    is_at_limit(tree, number, holder))
			continue;
		if (number == wanting || wants(id, e, here))
			order.n = NO_LEAF - number;
	}
	return NO_LEAF - order.n;
}

/* Give CPU `here` away if its holder has no task for it; return the enclave that has it now. */
static u32 yield_cpu(struct tree *tree, struct cpu *cpu, s32 here, struct task_struct *prev)
{
	u32 id = cpu->enclave, leaf, wanting = NO_LEAF, to;
	struct enclave *e = enclave_of(id), *of_prev = NULL;

	leaf = leaf_of(e);
	if (prev && prev->scx.flags & SCX_TASK_QUEUED && has_bit(prev->cpus_ptr->bits, here) &&
	    membership(task_ctx_of(prev), &of_prev) && !leaves_for_priority_cpu(tree, of_prev, id))
		wanting = leaf_of(of_prev);
	if (leaf != NO_LEAF && e && (wanting == leaf || wants(id, e, here)))
		return id;
	to = leaf_at(tree, choose_leaf(tree, here, leaf, wanting))->enclave;
	return grant(tree, cpu, here, id, to, 0) ? to : cpu->enclave;
}

/*
 * The core looks at the CPU's own queues, and has just done so, for some time after a grant. If an op that knew the former
 * holder has queued a task there later still, have it look again.
 */
static void find_stale(struct cpu *cpu, s32 here)
{
	struct enclave *e = enclave_of(cpu->enclave);

	if (cpu->stale_queues) {
		if (ns_since(cpu->granted_at) > OPS_END)
			cpu->stale_queues = 0;
	} else if (e && !has_cpu_queues(e) && scx_bpf_dsq_nr_queued(VTIME_DSQ(here))) {
		cpu->stale_queues = 1;
		scx_bpf_kick_cpu(here, SCX_KICK_IDLE);
	}
}

BPF_PROG(hierarchy_dispatch, s32 here, struct task_struct *prev)
{
	struct cpu *cpu = cpu_of(here);
	struct tree *tree = the_tree();
	struct enclave *e;
	u32 id;

	if (!cpu || !tree)
		return 0;
	find_stale(cpu, here);
	id = yield_cpu(tree, cpu, here, prev);
	e = enclave_of(id);
	if (!e || id == ROOT)
		return 0;
	/* Lost tasks are fetched before the policy is asked: let the CPU ask again if it idles. */
	if (e->draining)
		scx_bpf_kick_cpu(here, SCX_KICK_IDLE);
	inner_dispatch.call(ctx, inner_slot_of(id, e));
	scx_bpf_dsq_move_to_local(PENDING_DSQ(id));
	return 0;
}

/* Request: */

/* The busy CPU of leaf `id` that is taken from it for a task that ran on CPU `near`; -1 if there is none. */
static s32 find_victim(u32 id, struct enclave *e, struct core *c, const struct cpumask *allowed, s32 near)
{
	u64 now = bpf_ktime_get_ns();
	volatile u64 latest = 0;
	volatile s32 best = -1;
	struct cpu *cpu;
	s32 number;

	for_each_cpu_of(id, e, cpu, number) {
		u64 rank = number == near ? -1ULL : cpu->granted_at;

		if (rank <= latest || now < cpu->turn_until || cpu->preempted_by_class || !is_usable(e, c, allowed, number))
			continue;
		latest = rank;
		best = number;
	}
	return best;
}

/*
 * Where leaf `to` gets a CPU for one task: an idle one of the root, or of a leaf that has one to spare, or else, with
 * `preempt`, one that another leaf uses. The number of the idle CPU is in *idle; -1 if there is none.
 */
static u32 find_source(struct tree *tree, struct core *c, u32 to, const struct cpumask *allowed, s32 near, bool preempt,
		       s32 *idle)
{
	COUNTER(source); /* 0: none, 1: the root, then the last leaf, and so on */
	COUNTER(cpu); /* 1 + the idle CPU */

	for_each_number(i, 0, MAX_LEAVES + 1) {
		u32 from = i ? tree->nr_leaves - i : NO_LEAF;
		struct enclave *e;
		bool by_right;
		s32 number;

		if ((u32)i > tree->nr_leaves)
			break;
		e = enclave_of(leaf_at(tree, from)->enclave);
		if (from == to || !e || is_at_limit(tree, to, from))
			continue;
		number = find_idle_cpu(e, c, allowed, near);
		by_right = may_take(tree, to, from);
		/* A CPU that was granted just now is about to run a task. */
		if (number >= 0 && (by_right || is_settled(number))) {
			source.n = 1 + i;
			cpu.n = 1 + number;
			break;
		}
		if (preempt && by_right && !source.n && is_any_usable(e, c, allowed))
			source.n = 1 + i;
	}
	*idle = (s32)cpu.n - 1;
	return source.n < 2 ? NO_LEAF : tree->nr_leaves + 1 - source.n;
}

/* Give leaf `to` a CPU for one task. Return false if there is none. */
static bool request(struct tree *tree, struct core *c, u32 to, const struct cpumask *allowed, s32 near, bool preempt)
{
	s32 idle, number;
	u32 from = find_source(tree, c, to, allowed, near, preempt, &idle), id = leaf_at(tree, from)->enclave;
	struct enclave *e = enclave_of(id);

	if (!e)
		return false;
	number = idle >= 0 ? idle : from == NO_LEAF ? -1 : find_victim(id, e, c, allowed, near);
	return take_cpu(tree, to, id, number, idle >= 0);
}

/* An idle CPU becomes the leaf's, and then its policy finds the CPU idle. Preemption is left to enqueue. */
BPF_PROG(hierarchy_select_cpu, struct task_struct *p, s32 prev, u64 wake_flags)
{
	struct tree *tree = the_tree();
	struct core *c = the_core();
	struct enclave *e = NULL;
	u32 id = membership(task_ctx_of(p), &e), leaf;
	s32 cpu;

	if (!id || !e || !c || !tree)
		return prev;
	leaf = leaf_of(e);
	if (leaf != NO_LEAF && find_idle_cpu(e, c, p->cpus_ptr, prev) < 0 &&
	    !request(tree, c, leaf, p->cpus_ptr, prev, false) && !is_any_usable(e, c, p->cpus_ptr)) {
		/* If this CPU turns idle now, the kernel makes it ask for a task when p is queued. */
		cpu = reachable_cpu(e, c, p->cpus_ptr, prev);
		return cpu >= 0 ? cpu : prev;
	}
	inner_select_cpu.call(ctx, inner_slot_of(id, e));
	return select_idle(id, p, prev, wake_flags, SCX_SLICE_DFL);
}

/* p is about to be queued: get a CPU for it. Kicks are delivered when p is on its queue. */
BPF_PROG(hierarchy_enqueue, struct task_struct *p, u64 enq_flags)
{
	struct tree *tree = the_tree();
	struct core *c = the_core();
	struct enclave *e = NULL;
	u32 id = membership(task_ctx_of(p), &e), leaf;
	s32 here = scx_bpf_task_cpu(p);
	bool stays;

	if (!id || !e || !c || !tree)
		return 0;
	leaf = leaf_of(e);
	stays = is_usable(e, c, p->cpus_ptr, here);
	if (leaf != NO_LEAF && !(enq_flags & SCX_ENQ_LAST && stays) && find_idle_cpu(e, c, p->cpus_ptr, here) < 0 &&
	    !request(tree, c, leaf, p->cpus_ptr, here, true) && !stays)
		scx_bpf_kick_cpu(here, SCX_KICK_IDLE);
	inner_enqueue.call(ctx, inner_slot_of(id, e));
	enqueue_pending(id, p, SCX_SLICE_DFL, enq_flags);
	return 0;
}

/* Tick: */

/* Repeat the request for tasks of leaf `number` that wait. A CPU's own queue is that of CPU `here`. */
static void repeat_request(struct tree *tree, struct core *c, u32 number, u32 id, struct enclave *e, s32 here, bool is_here)
{
	u64 dsq = PENDING_DSQ(id);
	COUNTER(asked);

	if (!scx_bpf_dsq_nr_queued(dsq)) {
		if (!is_here || !has_cpu_queues(e) || !scx_bpf_dsq_nr_queued(VTIME_DSQ(here)))
			return;
		dsq = VTIME_DSQ(here);
	}
	for_each_waiting(waiting, p, dsq, 0)
		if (!request(tree, c, number, p->cpus_ptr, scx_bpf_task_cpu(p), true) || ++asked.n >= PREEMPT_MAX)
			return;
}

/*
 * How long the first task on this queue that may run on CPU `here` has been runnable without running, by the kernel's
 * watchdog: 0 if there is none.
 */
static u64 longest_wait(u64 dsq, s32 here)
{
	COUNTER(seen);

	if (!scx_bpf_dsq_nr_queued(dsq))
		return 0;
	for_each_waiting(waiting, p, dsq, 0) {
		if (has_bit(p->cpus_ptr->bits, here))
			return elapsed(p->scx.runnable_at, bpf_jiffies64()) * LINK_CONSTANT(tick_ns);
		if (++seen.n >= LOOK_AT_MAX)
			return 0;
	}
	return 0;
}

/*
 * Give CPU `here` to leaf `number` until the next tick, whatever the arbiters say, if a task of it starves. A leaf gets a
 * turn each TURN_PERIOD. If a task has starved badly, since many do, or since it may use this CPU alone, it gets one each
 * TURN_CHECK_PERIOD of each CPU, and then its own leaf's tasks give way, too.
 */
static bool give_turn(struct tree *tree, struct cpu *cpu, s32 here, u32 number, struct enclave *e, u64 now)
{
	struct tree_leaf *leaf = leaf_at(tree, number);
	u64 last = leaf->turn_at, wait_ns;
	u32 holder = cpu->enclave;
	bool is_own = leaf->enclave == holder;

	if (elapsed(cpu->turn_checked_at, now) < TURN_CHECK_PERIOD)
		return false;
	wait_ns = e->draining & DRAINING_LOST ? STARVES_AFTER : longest_wait(PENDING_DSQ(leaf->enclave), here);
	if (wait_ns < STARVES_AFTER ||
	    (wait_ns < STARVES_BADLY_AFTER && (is_own || elapsed(last, now) < TURN_PERIOD)) ||
	    !compare_and_swap(&leaf->turn_at, last, now))
		return false;
	cpu->turn_checked_at = now;
	if (!is_own && !grant(tree, cpu, here, holder, leaf->enclave, TURN))
		return false;
	count_up(&leaf->turns);
	return true;
}

/* Each tick of each CPU looks at one leaf, in turns. */
static void arbitrate(struct tree *tree, struct core *c, struct cpu *cpu, s32 here)
{
	u64 now = bpf_ktime_get_ns();
	u32 number = (u32)(bpf_jiffies64() + here) % tree->nr_leaves, holder = cpu->enclave, id;
	struct enclave *e;

	if (now < cpu->turn_until)
		return;
	id = leaf_at(tree, number)->enclave;
	e = enclave_of(id);
	if (!e || leaf_of(e) != number)
		return;
	repeat_request(tree, c, number, id, e, here, id == holder);
	if (cpu->enclave == holder && give_turn(tree, cpu, here, number, e, now))
		scx_bpf_kick_cpu(here, SCX_KICK_PREEMPT);
}

BPF_PROG(hierarchy_tick, struct task_struct *p)
{
	s32 here = scx_bpf_task_cpu(p);
	struct cpu *cpu = cpu_of(here);
	struct tree *tree = the_tree();
	struct core *c = the_core();
	struct enclave *e = NULL;
	u32 id = membership(task_ctx_of(p), &e);

	if (!cpu || !tree || !c)
		return 0;
	arbitrate(tree, c, cpu, here);
	/* The CPU has been taken from the policy: the kick ends the task's turn. */
	if (cpu->enclave != id || !e)
		return 0;
	inner_tick.call(ctx, inner_slot_of(id, e));
	return 0;
}

/* The number of tasks of enclave args->enclave that wait, for tools. */
int call_count_waiting(struct join_args *args)
{
	u32 id = args->enclave & (MAX_ENCLAVES - 1);
	struct enclave *e = enclave_of(id);
	volatile u32 waiting = 0;
	struct cpu *cpu;
	s32 number;

	if (!e)
		return 0;
	waiting = scx_bpf_dsq_nr_queued(PENDING_DSQ(id));
	for_each_cpu_of(id, e, cpu, number)
		waiting += scx_bpf_dsq_nr_queued(VTIME_DSQ(number));
	return waiting;
}
