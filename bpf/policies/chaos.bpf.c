/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Chaos: Biff with random decisions, to find races in the programs that it runs.
 *
 * A race shows when tasks run in an order that is possible, but rare. This policy makes rare orders common:
 *
 *   - delay: a task that wakes is held back, although a CPU is idle;
 *   - preempt: a turn is cut off at a random moment, and the task is held back while the others go on;
 *   - reorder: a task that has to wait goes to the head of the queue instead of the tail;
 *   - migrate: a task that wakes gets a random idle CPU, not its own or a near one;
 *   - degrade: a turn has a shorter slice.
 *
 * Decisions are random, and yet repeatable: each follows from the seed, the task, and the number of its wakeup, or of
 * its turn since that wakeup. A task is known by its descent (the n-th child of the m-th child of the first task that
 * joined), so that neither pids nor the order in which two parents fork matter. Time is not repeatable: a held task
 * may meet another task a microsecond earlier than in the run before.
 *
 * A held task waits on its CPU's own queue, in order of the time at which it may go on. A timer then moves it to
 * PENDING. Timers also cut off turns: a tick would do so at a few moments only.
 *
 * No task starves. A task is held for at most delay_ns, and never after two turns in a row; and it goes to the head of
 * the queue at most every other time, so each other task passes a waiting one at most once.
 *
 * Good for: tests of programs with several threads or processes. Not good for: anything else.
 *
 * It demonstrates timers in a policy.
 */
#include "abi.h"
#include "sched.bpf.h"
#include "chaos.h"

#define CLOCK_MONOTONIC 1
#define BPF_F_TIMER_CPU_PIN 2

#define CHANCE_ONE 10000

/* How often a random time is halved at most: held tasks wait for 1/64 to all of delay_ns, turns last 1/1024 of a slice. */
#define DELAY_OCTAVES 6
#define TURN_OCTAVES 10

/* While tasks are held, the timer looks at least this often: an insert takes effect after the timer is set for it. */
#define RELEASE_PERIOD (5 * 1000000ULL)

struct chaos_task {
	u64 id; /* chaos_decision.task */
	u64 wakeups;
	u64 turns; /* since the last wakeup */
	u64 children;
	u64 wakeup; /* the random number of the last wakeup */
	u64 last; /* that of the last wakeup or turn */
	u32 is_decided; /* select_cpu() has counted the wakeup that enqueue() sees */
	u32 is_held;
	u32 is_cut; /* its turn was cut off, and it is to be held */
	u32 may_be_cut;
	u32 was_first; /* it went to the head of the queue last time */
	u32 reserved;
};

/* The end of the turn on a CPU. */
struct cut {
	struct bpf_timer timer;
	u64 at; /* CLOCK_MONOTONIC; 0: the turn is not cut off */
	u32 holds; /* the task is held afterwards */
	u32 is_done;
};

struct release {
	struct bpf_timer timer;
	u64 at; /* when the timer runs; CLOCK_MONOTONIC, 0: never */
	u64 nr_held; /* tasks that were held, and have not run since */
	u64 nr_joined; /* tasks that came from outside the enclave */
	u64 nr_decisions;
};

BPF_F_TABLE("array", u32, struct chaos_params, params, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct chaos_decision, decisions, CHAOS_DECISIONS_KEPT, BPF_F_MMAPABLE);
BPF_TASK_STORAGE(chaos_tasks, struct chaos_task);
BPF_ARRAY(cuts, struct cut, MAX_CPUS);
BPF_ARRAY(releases, struct release, 1);

static struct chaos_params *the_params(void)
{
	u32 zero = 0;

	return params.lookup(&zero);
}

static struct release *the_release(void)
{
	u32 zero = 0;

	return releases.lookup(&zero);
}

static struct cut *cut_of(s32 cpu)
{
	u32 key = cpu;

	return cuts.lookup(&key);
}

/* The numbers of a sequence, in which each bit is random: the generator SplitMix64. */
static u64 random(u64 seed, u64 n)
{
	u64 x = seed + n * 0x9e3779b97f4a7c15ULL;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
	return x ^ x >> 31;
}

static bool happens(u64 event, u32 action, u64 chance)
{
	return random(event, action) % CHANCE_ONE < chance;
}

/* A random time up to `most`, of any order of magnitude down to a 2^octaves-th of it. */
static u64 random_time(u64 event, u32 action, u64 most, u32 octaves)
{
	u64 number = random(random(event, action), 1), half = most >> (1 + number % octaves);

	return half + (number >> 32) % (half + 1);
}

static void note_decision(struct chaos_task *t, u32 action, u64 ns)
{
	struct release *release = the_release();
	struct chaos_decision *decision;
	u32 key;

	if (!release)
		return;
	key = (count_up(&release->nr_decisions) - 1) % CHAOS_DECISIONS_KEPT;
	decision = decisions.lookup(&key);
	if (!decision)
		return;
	decision->task = t->id;
	decision->wakeup = t->wakeups;
	decision->turn = t->turns;
	decision->ns = ns;
	decision->action = action;
}

/* Name a task: by its parent, which runs at this moment, if the task is new. */
static void name_task(struct task_struct *p, struct chaos_task *t, struct chaos_params *param)
{
	struct release *release = the_release();
	struct chaos_task *parent = NULL;

	if (!p->se.sum_exec_runtime)
		parent = chaos_tasks.task_storage_get(bpf_get_current_task_btf(), 0, 0);
	if (parent && parent != t && parent->id)
		t->id = random(parent->id, ++parent->children) | 1;
	else if (release)
		t->id = random(param->seed, count_up(&release->nr_joined)) | 1;
	t->may_be_cut = 1;
}

static struct chaos_task *chaos_task_of(struct task_struct *p, struct chaos_params *param)
{
	struct chaos_task *t = chaos_tasks.task_storage_get(p, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (t && !t->id)
		name_task(p, t, param);
	return t;
}

static void begin_wakeup(struct chaos_task *t)
{
	t->turns = 0;
	t->wakeup = t->last = random(t->id, ++t->wakeups);
}

/* Run the timer at this time or before; see RELEASE_PERIOD for times that two CPUs set at once. */
static void set_release(struct release *release, u64 at, u64 now)
{
	u64 before = release->at;

	if (before && !elapsed(at, before))
		return;
	release->at = at;
	bpf_timer_start(&release->timer, elapsed(now, at), 0);
}

static void end_hold(struct chaos_task *t)
{
	struct release *release = the_release();

	if (!t->is_held || !release)
		return;
	t->is_held = 0;
	__sync_fetch_and_add(&release->nr_held, -1);
}

/* Let p wait for ns, whether a CPU is idle or not. Return false if that is not possible. */
static bool hold(struct task_struct *p, struct chaos_task *t, u64 ns, u64 slice, u64 enq_flags)
{
	struct task_ctx *member = task_ctx_of(p);
	struct release *release = the_release();
	struct enclave *e = enclave_of(ENCLAVE);
	struct core *c = the_core();
	u64 now;
	s32 cpu;

	if (!release || !e || !c)
		return false;
	cpu = home_cpu(e, c, p->cpus_ptr, scx_bpf_task_cpu(p));
	if (cpu < 0)
		return false;
	if (!t->is_held) {
		t->is_held = 1;
		count_up(&release->nr_held);
	}
	if (member)
		note_latch(member, false);
	COUNT(ENCLAVE, queued);
	now = bpf_ktime_get_ns();
	scx_bpf_dsq_insert_vtime(p, VTIME_DSQ(cpu), slice, now + ns, enq_flags);
	set_release(release, now + ns, now);
	return true;
}

/* An idle CPU for p: the first from a random one on. Where an idle CPU can be claimed for p, it is then marked busy. */
static s32 find_random_idle(struct task_struct *p, u64 number)
{
	struct enclave *e = enclave_of(ENCLAVE);
	struct core *c = the_core();
	struct cpu *cpu;
	s32 id;

	if (!e || !c)
		return -1;
	for_each_cpu_from((u32)(number % scx_bpf_nr_cpu_ids()), ENCLAVE, e, cpu, id) {
		if (!is_usable(e, c, p->cpus_ptr, id))
			continue;
#if CAN_REENQUEUE
		if (scx_bpf_test_and_clear_cpu_idle(id))
			return id;
#else
		if (is_idle(id))
			return id;
#endif
	}
	return -1;
}

BPF_PROG(chaos_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	struct chaos_params *param = the_params();
	struct chaos_task *t = param ? chaos_task_of(p, param) : NULL;
	s32 cpu;

	if (!t || !param)
		return prev_cpu;
	begin_wakeup(t);
	t->is_decided = 1;
	/* The task is held in enqueue(). */
	if (happens(t->last, CHAOS_DELAY, param->delay))
		return prev_cpu;
	if (!happens(t->last, CHAOS_MIGRATE, param->migrate))
		return select_idle(ENCLAVE, p, prev_cpu, wake_flags, param->slice_ns);
	note_decision(t, CHAOS_MIGRATE, 0);
	cpu = find_random_idle(p, random(random(t->last, CHAOS_MIGRATE), 1));
	if (cpu < 0)
		return prev_cpu;
#if CAN_REENQUEUE
	COUNT(ENCLAVE, idle);
	scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, param->slice_ns, 0);
#endif
	return cpu;
}

/* How long p is to be held; 0: not at all. */
static u64 hold_ns(struct chaos_task *t, struct chaos_params *param, bool wakes)
{
	u32 action = t->is_cut ? CHAOS_PREEMPT : CHAOS_DELAY;
	u64 ns;

	if (!t->is_cut && !(wakes && happens(t->last, CHAOS_DELAY, param->delay)))
		return 0;
	t->is_cut = 0;
	ns = random_time(t->last, action, param->delay_ns, DELAY_OCTAVES);
	note_decision(t, action, ns);
	return ns;
}

/* Return true if a task that has to wait goes to the head of the queue. */
static bool goes_first(struct chaos_task *t, struct chaos_params *param)
{
	t->was_first = !t->was_first && happens(t->last, CHAOS_REORDER, param->reorder);
	if (t->was_first)
		note_decision(t, CHAOS_REORDER, 0);
	return t->was_first;
}

BPF_PROG(chaos_enqueue, struct task_struct *p, u64 enq_flags)
{
	struct chaos_params *param = the_params();
	struct chaos_task *t;
	bool wakes;
	u64 ns;

	if (!param) {
		enqueue_pending(ENCLAVE, p, SCX_SLICE_DFL, enq_flags);
		return 0;
	}
	t = chaos_task_of(p, param);
	if (!t || enq_flags & SCX_ENQ_REENQ) {
		enqueue_pending(ENCLAVE, p, param->slice_ns, enq_flags);
		return 0;
	}
	/* select_cpu() is not called for a task that may use one CPU alone. */
	wakes = enq_flags & SCX_ENQ_WAKEUP || !t->wakeups || t->is_decided;
	if (wakes && !t->is_decided)
		begin_wakeup(t);
	t->is_decided = 0;
	ns = hold_ns(t, param, wakes);
	if (ns && hold(p, t, ns, param->slice_ns, enq_flags))
		return 0;
	if (goes_first(t, param))
		enq_flags |= SCX_ENQ_HEAD;
	enqueue_pending(ENCLAVE, p, param->slice_ns, enq_flags);
	return 0;
}

BPF_PROG(chaos_dispatch, s32 cpu, struct task_struct *prev)
{
	scx_bpf_dsq_move_to_local(PENDING);
	return 0;
}

/* Cut off this turn after a random time. */
static void set_cut(struct cut *cut, struct chaos_task *t, struct chaos_params *param, u32 action)
{
	u64 ns = random_time(t->last, action, param->slice_ns, TURN_OCTAVES);

	note_decision(t, action, ns);
	cut->holds = action == CHAOS_PREEMPT;
	cut->at = bpf_ktime_get_ns() + ns;
	bpf_timer_start(&cut->timer, ns, BPF_F_TIMER_CPU_PIN);
}

BPF_PROG(chaos_running, struct task_struct *p)
{
	struct cut *cut = cut_of(scx_bpf_task_cpu(p));
	struct chaos_params *param = the_params();
	struct chaos_task *t = param ? chaos_task_of(p, param) : NULL;
	bool preempts;

	if (!cut || !param || !t)
		return 0;
	end_hold(t);
	t->is_decided = 0;
	t->last = random(t->wakeup, ++t->turns);
	cut->at = 0;
	cut->is_done = 0;
	preempts = t->may_be_cut && happens(t->last, CHAOS_PREEMPT, param->preempt);
	t->may_be_cut = !preempts;
	if (preempts)
		set_cut(cut, t, param, CHAOS_PREEMPT);
	else if (happens(t->last, CHAOS_DEGRADE, param->degrade))
		set_cut(cut, t, param, CHAOS_DEGRADE);
	return 0;
}

BPF_PROG(chaos_stopping, struct task_struct *p, bool runnable)
{
	struct chaos_task *t = chaos_tasks.task_storage_get(p, 0, 0);
	struct cut *cut = cut_of(scx_bpf_task_cpu(p));

	if (!cut || !t)
		return 0;
	t->is_cut = runnable && cut->is_done && cut->holds;
	cut->at = 0;
	cut->is_done = 0;
	return 0;
}

/* Tasks that the previous policy ran or queued have the slice that it gave them. */
BPF_PROG(chaos_tick, struct task_struct *p)
{
	struct chaos_params *param = the_params();

	if (param && p->scx.slice > param->slice_ns)
		set_slice(p, param->slice_ns);
	return 0;
}

BPF_PROG(chaos_disable, struct task_struct *p)
{
	struct chaos_task *t = chaos_tasks.task_storage_get(p, 0, 0);

	if (t)
		end_hold(t);
	return 0;
}

/*
 * The timer function of a CPU's cut; it runs on that CPU. If the CPU has gone offline, another CPU runs it, and finds a
 * cut of its own that is not due.
 */
int cut_off(void *map)
{
	s32 here = bpf_get_smp_processor_id();
	struct cut *cut = cut_of(here);

	if (!cut || !cut->at || elapsed(bpf_ktime_get_ns(), cut->at))
		return 0;
	cut->at = 0;
	cut->is_done = 1;
	COUNT(ENCLAVE, preempted);
	scx_bpf_kick_cpu(here, SCX_KICK_PREEMPT);
	return 0;
}

/* Move the tasks whose time has come to PENDING, and kick idle CPUs for them. Sets *next to the time of the next one. */
static void release_due(struct enclave *e, struct core *c, u64 now, volatile u64 *next)
{
	struct cpu *cpu;
	s32 id, idle;

	for_each_cpu_of(ENCLAVE, e, cpu, id) {
		if (!scx_bpf_dsq_nr_queued(VTIME_DSQ(id)))
			continue;
		for_each_waiting(waiting, p, VTIME_DSQ(id), 0) {
			u64 at = p->scx.dsq_vtime;

			if (elapsed(now, at)) {
				if (elapsed(at, *next))
					*next = at;
				break;
			}
			if (!scx_bpf_dsq_move(&waiting, p, PENDING, 0))
				continue;
			idle = claim_idle_cpu(e, c, p->cpus_ptr, id);
			if (idle >= 0)
				scx_bpf_kick_cpu(idle, SCX_KICK_IDLE);
		}
	}
}

/* The timer function of held tasks. */
int release_held(void *map)
{
	struct enclave *e = enclave_of(ENCLAVE);
	struct release *release = the_release();
	struct core *c = the_core();
	u64 now = bpf_ktime_get_ns();
	volatile u64 next = now + RELEASE_PERIOD;

	if (!release || !e || !c)
		return 0;
	release->at = 0;
	bpf_rcu_read_lock();
	release_due(e, c, now, &next);
	bpf_rcu_read_unlock();
	if (release->nr_held)
		set_release(release, next, now);
	return 0;
}

/* Called once when the policy is loaded. */
int call_init(void *nothing)
{
	struct release *release = the_release();
	s32 error;

	if (!release)
		return -3; /* ESRCH */
	error = bpf_timer_init(&release->timer, LINK_ADDRESS(releases), CLOCK_MONOTONIC);
	if (!error)
		error = bpf_timer_set_callback(&release->timer, LINK_ADDRESS(release_held));
	if (error)
		return error;
	for_each_number(cpu, 0, scx_bpf_nr_cpu_ids()) {
		struct cut *cut = cut_of(cpu);

		if (!cut)
			break;
		error = bpf_timer_init(&cut->timer, LINK_ADDRESS(cuts), CLOCK_MONOTONIC);
		if (!error)
			error = bpf_timer_set_callback(&cut->timer, LINK_ADDRESS(cut_off));
		if (error)
			return error;
	}
	return 0;
}
