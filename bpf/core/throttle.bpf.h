/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Throttling: tasks whose cgroup has used up its CPU time wait on their enclave's THROTTLED queue, which no CPU serves.
 *
 * A timer per enclave releases them: it moves them to the queue of the enclave's policy. The core and the kernel half of
 * agents each have such a timer function; set_release() tells which one runs. The queue is in the order in which the
 * tasks began to wait.
 *
 * The kernel ends a scheduler that lets a task wait for 30 s, however good the reason. So a task that has been throttled
 * for ROTATION is released, too. When it gets a CPU, it leaves at once (it is `bounced`), and keeps its place.
 */
#ifndef GHOSTBPF_THROTTLE_BPF_H
#define GHOSTBPF_THROTTLE_BPF_H

#include "abi.h"
#include "cpus.bpf.h"
#include "full_mode.bpf.h"
#include "iterate.bpf.h"
#include "limits.bpf.h"
#include "queues.bpf.h"
#include "state.bpf.h"

#define CLOCK_MONOTONIC 1

#define ROTATION (10 * 1000000000ULL)
#define RELEASE_SOONEST (50 * 1000ULL)
#define RELEASE_LATEST (100 * 1000000ULL)

/* How much of its quota each released task is supposed to need: this many are released at once, the rest 1 ms later. */
#define RELEASE_SHARE (100 * 1000ULL)
#define RELEASE_REST (1000 * 1000ULL)

/* An enclave in which no task with a limit has run for this long has no more limits. */
#define LIMITS_UNUSED (2 * 1000000000ULL)

struct limit_timer {
	struct bpf_timer timer;
	u64 due; /* when it runs; ns of scx_bpf_now(), 0: never */
	u64 used_at; /* when a task with a limit was last charged or throttled in the enclave */
	u64 used_up_until; /* until when the limits that were found used up stay so */
};

BPF_ARRAY(limit_timers, struct limit_timer, MAX_ENCLAVES);

static struct limit_timer *limit_timer_of(u32 enclave)
{
	return limit_timers.lookup(&enclave);
}

/*
 * Run the enclave's timer at this time or before. Two CPUs that set it at once may leave the later time: the timer runs
 * at least each RELEASE_LATEST while the enclave has limits.
 */
static void set_release(struct limit_timer *timer, u64 at, u64 now)
{
	u64 delay = elapsed(now, at), due = timer->due;

	if (delay < RELEASE_SOONEST)
		delay = RELEASE_SOONEST;
	if (delay > RELEASE_LATEST)
		delay = RELEASE_LATEST;
	if (due && (s64)(due - now - delay) <= 0)
		return;
	timer->due = now + delay;
	bpf_timer_start(&timer->timer, delay, 0);
}

/* Return true if p, whose limit has CPU time, may be released in this pass, which began at `now`. */
static bool is_in_budget(u32 number, u64 now)
{
	struct cgroup_limit *l = limit_at(number);

	if (!l)
		return true;
	if (l->budget_at != now) {
		l->budget_at = now;
		l->budget = 1 + (l->runtime_ns > 0 ? (u64)l->runtime_ns / RELEASE_SHARE : 0);
	}
	if (!l->budget)
		return false;
	l->budget--;
	return true;
}

/* When p is to be released; 0: now. */
static u64 release_at(struct task_struct *p, struct task_ctx *t, bool all, u64 now)
{
	volatile u32 number = t->limit;
	volatile u64 until = 0;

	if (all || is_ending(p) || t->limit_group != (u64)untrusted(p)->sched_task_group)
		return 0;
	for_each_number(level, 0, MAX_CGROUP_DEPTH) {
		struct cgroup_limit *l = number ? limit_at(number) : NULL;

		if (!l)
			break;
		if (l->ready_at > until)
			until = l->ready_at;
		number = l->parent;
	}
	if (until <= now)
		return is_in_budget(t->limit, now) ? 0 : now + RELEASE_REST;
	return elapsed(t->throttled_at, now) < ROTATION ? until : 0;
}

/*
 * Move the tasks of an enclave that need not wait any more to the queue that their policy serves, and kick idle CPUs. A
 * task that has left the enclave, or may use none of its CPUs, or for which TELL(p) is false, goes to the fallback
 * queue. Sets *next to the time when the next task may be released.
 */
#if CAN_LIMIT
#define RELEASE_THROTTLED(id, e, c, now, next, TELL)                                                           \
	do {                                                                                                    \
		update_limits(now);                                                                             \
		for_each_waiting(waiting, p, THROTTLED_DSQ(id), 0) {                                            \
			struct task_ctx *t = task_ctx_of(p);                                                    \
			bool all = (e)->state != ENCLAVE_ACTIVE || (e)->unlimited;                              \
			u64 at = t ? release_at(p, t, all, now) : 0;                                            \
			struct enclave *own = NULL;                                                             \
                                                                                                                \
			if (at) {                                                                               \
				if ((s64)(at - *(next)) < 0)                                                    \
					*(next) = at;                                                           \
				continue;                                                                       \
			}                                                                                       \
			if (membership(t, &own) != (id) || !may_run_in(e, c, untrusted(p)->cpus_ptr) || !TELL(p)) { \
				if (scx_bpf_dsq_move(&waiting, p, FALLBACK_DSQ, 0))                             \
					kick_idle_for(p, NULL, c);                                              \
				continue;                                                                       \
			}                                                                                       \
			scx_bpf_dsq_move(&waiting, p, PENDING_DSQ(id), 0);                                      \
			kick_idle_for(p, e, c);                                                                 \
		}                                                                                               \
	} while (0)
#else
#define RELEASE_THROTTLED(id, e, c, now, next, TELL)
#endif

/* Set or clear LIMITED, or THROTTLING, with one store, which changes no other bit. */
static void set_limited(struct enclave *e, bool is_limited)
{
	((volatile u8 *)&e->bank)[1] = is_limited;
}

static void set_throttling(struct enclave *e, bool is_throttling)
{
	((volatile u8 *)&e->bank)[5] = is_throttling;
}

/*
 * After a pass: throttle no more tasks if none waits and no limit is used up, and set the timer again while the enclave
 * has limits. A CPU that finds a limit used up at this moment finds it again at its next look.
 */
static void continue_limits(u32 id, struct enclave *e, struct limit_timer *timer, u64 next, u64 now)
{
	if (!scx_bpf_dsq_nr_queued(THROTTLED_DSQ(id))) {
		if (e->unlimited || !elapsed(now, timer->used_up_until))
			set_throttling(e, false);
		if (elapsed(timer->used_at, now) > LIMITS_UNUSED) {
			set_throttling(e, false);
			set_limited(e, false);
			return;
		}
	}
	set_release(timer, next, now);
}

#endif
