/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The core's programs in front of the policy's, for enclaves that run tasks of cgroups with a limit: they charge run
 * time, and throttle tasks. Then they call the policy's program.
 *
 * Run time is not charged at each switch. A CPU adds up what tasks of one cgroup have run, and settles it with their
 * limits when a task of another cgroup leaves the CPU, at each tick, and when a task leaves it SETTLE_PERIOD after the
 * last time. Only then it finds that a limit is used up: the enclave throttles tasks from then on (THROTTLING), until
 * the timer finds that no limit is used up. So a cgroup may use SETTLE_PERIOD on each CPU, or what a task runs between
 * two ticks, in advance, and pays for it in its next period.
 */
#ifndef GHOSTBPF_LIMITED_BPF_H
#define GHOSTBPF_LIMITED_BPF_H

#include "abi.h"
#include "limits.bpf.h"
#include "sched.bpf.h"
#include "slots.bpf.h"
#include "state.bpf.h"
#include "throttle.bpf.h"

#define SETTLE_PERIOD (200 * 1000ULL)

/* At a tick: the enclave has limits from now on if p, which runs, has one. */
static void find_limits(u32 id, struct enclave *e, struct task_struct *p)
{
	struct limit_timer *timer;
	u64 now;

	if (e->bank & LIMITED || e->unlimited || !has_limit(p))
		return;
	timer = limit_timer_of(id);
	if (!timer)
		return;
	now = scx_bpf_now();
	timer->used_at = now;
	set_limited(e, true);
	set_release(timer, now + RELEASE_LATEST, now);
}

/* When tasks with this limit may run again; 0 if they may run now. */
static u64 used_up_until(u32 number, u64 now)
{
	return !number || has_runtime(number, now) ? 0 : throttled_until(number, now);
}

/* When p, which has limits, may run again; 0 if it may run now. */
static u64 throttles(struct task_struct *p, u32 number, u64 now)
{
	return is_ending(p) ? 0 : used_up_until(number, now);
}

static void throttle(u32 id, struct task_struct *p, struct task_ctx *t, u64 until, u64 now, u64 enq_flags)
{
	struct limit_timer *timer = limit_timer_of(id);

	note_throttled(t->limit, now);
	if (!t->bounced)
		t->waits_since = now;
	t->bounced = 0;
	t->throttled_at = now;
	t->slice_left_ns = 0;
	COUNT(id, queued);
	scx_bpf_dsq_insert_vtime(p, THROTTLED_DSQ(id), SCX_SLICE_DFL, t->waits_since, enq_flags);
	if (timer) {
		timer->used_at = now;
		set_release(timer, until, now);
	}
}

/* A throttled task gets no CPU at once: it goes to limited_enqueue(). */
BPF_PROG(limited_select_cpu, struct task_struct *p, s32 prev, u64 wake_flags)
{
	struct task_ctx *t = task_ctx_of(p);
	struct enclave *e = NULL;
	u32 id = membership(t, &e);
	u64 now;

	if (!id || !e)
		return prev;
	if (t && t->limit && !e->unlimited) {
		now = scx_bpf_now();
		if (throttles(p, limit_of(p, t, now), now))
			return prev;
	}
	slot_select_cpu.call(ctx, slot_of(id, e));
	return select_idle(id, p, prev, wake_flags, SCX_SLICE_DFL);
}

BPF_PROG(limited_enqueue, struct task_struct *p, u64 enq_flags)
{
	struct task_ctx *t = task_ctx_of(p);
	struct enclave *e = NULL;
	u32 id = membership(t, &e);
	u64 now, until;

	if (!id || !e)
		return 0;
	if (t && (t->limit || t->limit_group != (u64)p->sched_task_group)) {
		now = scx_bpf_now();
		until = e->unlimited ? 0 : throttles(p, limit_of(p, t, now), now);
		if (until) {
			throttle(id, p, t, until, now, enq_flags);
			slot_throttle.call(ctx, slot_of(id, e));
			return 0;
		}
		t->bounced = 0;
	}
	slot_enqueue.call(ctx, slot_of(id, e));
	enqueue_pending(id, p, SCX_SLICE_DFL, enq_flags);
	return 0;
}

/* A task that was queued before its cgroup was throttled leaves at once. */
BPF_PROG(limited_running, struct task_struct *p)
{
	s32 here = scx_bpf_task_cpu(p);
	struct cpu *cpu = cpu_of(here);
	struct task_ctx *t = task_ctx_of(p);
	struct enclave *e;
	u32 id;

	if (!cpu)
		return 0;
	id = cpu->running;
	e = enclave_of(id);
	if (!id || !e)
		return 0;
	if (t) {
		u64 now = cpu->running_since;

		t->bounced = !e->unlimited && throttles(p, limit_of(p, t, now), now);
		if (t->bounced) {
			cpu->bounced_since = now;
			scx_bpf_kick_cpu(here, SCX_KICK_PREEMPT);
		}
	}
	slot_running.call(ctx, slot_of(id, e));
	return 0;
}

/* What the task on this CPU has run since it came, or since the last tick; nothing if it leaves at once. */
static u64 uncharged_ns(struct cpu *cpu, u64 now)
{
	u64 since = cpu->running_since;

	if (since == cpu->bounced_since)
		return 0;
	return elapsed(since > cpu->limit_since ? since : cpu->limit_since, now);
}

/* Another cgroup's tasks use the CPU, or the number of their limit may have changed. */
static void charge_former(struct cpu *cpu, struct task_struct *p, u64 now)
{
	struct task_ctx *t = task_ctx_of(p);
	u64 owed = cpu->limit_owed_ns;

	if (owed)
		charge_limits(cpu->limit, owed);
	cpu->limit_owed_ns = 0;
	cpu->limit_group = (u64)p->sched_task_group;
	cpu->limit = t ? limit_of(p, t, now) : 0;
}

/* Charge to p's limits what p ran, and the CPU owes; return when they allow tasks to run again, 0: they do now. */
static u64 settle(u32 id, struct enclave *e, struct cpu *cpu, struct task_struct *p, u64 ran, u64 now)
{
	struct limit_timer *timer = limit_timer_of(id);
	u64 until;
	u32 number;

	charge_former(cpu, p, now);
	cpu->limit_settled_at = now;
	number = cpu->limit;
	if (!number || !timer)
		return 0;
	charge_limits(number, ran);
	if (e->unlimited)
		return 0;
	timer->used_at = now;
	until = used_up_until(number, now);
	if (!until)
		return 0;
	if (elapsed(timer->used_up_until, until))
		timer->used_up_until = until;
	set_throttling(e, true);
	set_release(timer, until, now);
	return until;
}

BPF_PROG(limited_tick, struct task_struct *p)
{
	struct cpu *cpu = cpu_of(scx_bpf_task_cpu(p));
	struct task_ctx *t = task_ctx_of(p);
	struct enclave *e = NULL;
	u32 id = membership(t, &e);

	if (!id || !e || !cpu)
		return 0;
	if (t) {
		u64 now = scx_bpf_now(), ran = uncharged_ns(cpu, now);

		cpu->limit_since = now;
		cpu->bounced_since = 0;
		find_limit(p, t, now);
		if (settle(id, e, cpu, p, ran, now) && !is_ending(p)) {
			set_slice(p, 0);
			return 0;
		}
		t->bounced = 0;
	}
	slot_tick.call(ctx, slot_of(id, e));
	return 0;
}

BPF_PROG(limited_stopping, struct task_struct *p, bool runnable)
{
	struct cpu *cpu = cpu_of(scx_bpf_task_cpu(p));
	struct enclave *e;
	u64 now, ran;
	u32 id;

	if (!cpu)
		return 0;
	id = cpu->ran;
	e = enclave_of(id);
	if (!e)
		return 0;
	now = scx_bpf_now();
	ran = uncharged_ns(cpu, now);
	if (now - cpu->limit_settled_at >= SETTLE_PERIOD) {
		settle(id, e, cpu, p, ran, now);
	} else {
		if (cpu->limit_group != (u64)p->sched_task_group)
			charge_former(cpu, p, now);
		cpu->limit_owed_ns += ran;
	}
	slot_stopping.call(ctx, slot_of(id, e));
	return 0;
}

BPF_PROG(core_cgroup_exit, struct cgroup *cgroup)
{
	forget_limit(cgroup->kn->id);
	return 0;
}

#define TELL_NOTHING(p) true

/*
 * A callback's second argument, when nothing has been called yet. (bcc reads the arguments of a function with more than
 * one from its first, as a context.)
 */
static __always_inline u32 *second_argument(void)
{
	u32 *argument;

	asm volatile("%0 = r2" : "=r"(argument));
	return argument;
}

/* The timer function of an enclave without an agent; its second argument is the timer's key in the map. */
int release_throttled(void *map)
{
	u32 *key = second_argument(), id;
	struct limit_timer *timer;
	volatile u64 next;
	struct core *c = the_core();
	struct enclave *e;
	u64 now;

	id = *key & (MAX_ENCLAVES - 1);
	timer = limit_timer_of(id);
	e = enclave_of(id);
	if (!timer || !e || !c)
		return 0;
	now = scx_bpf_now();
	timer->due = 0;
	next = now + RELEASE_LATEST;
	bpf_rcu_read_lock();
	RELEASE_THROTTLED(id, e, c, now, &next, TELL_NOTHING);
	bpf_rcu_read_unlock();
	continue_limits(id, e, timer, next, now);
	return 0;
}

/* Let release_throttled() be the timer function of enclave args->enclave. */
int call_set_release(struct join_args *args)
{
	struct limit_timer *timer = limit_timer_of(args->enclave);

	if (!timer)
		return -3; /* ESRCH */
	bpf_timer_init(&timer->timer, LINK_ADDRESS(limit_timers), CLOCK_MONOTONIC); /* fails where it was done before */
	return bpf_timer_set_callback(&timer->timer, LINK_ADDRESS(release_throttled));
}

#endif
