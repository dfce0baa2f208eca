/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "load.h"

static bool push(struct ring *ring, uint64_t request)
{
	uint64_t at = atomic_load_explicit(&ring->pushed, memory_order_relaxed);

	if (at - atomic_load_explicit(&ring->popped, memory_order_acquire) == RING_SIZE)
		return false;
	ring->slots[at & (RING_SIZE - 1)] = request;
	atomic_store(&ring->pushed, at + 1);
	return true;
}

/* Leave the enclave of the process: the load comes from outside of what is measured. */
static void leave_scheduler(void)
{
	struct sched_param none = {0};

	if (sched_getscheduler(0) != SCHED_OTHER && sched_setscheduler(0, SCHED_OTHER, &none))
		fail("the load generator cannot become SCHED_OTHER: %s", strerror(errno));
}

static void wait_until(uint64_t ns, unsigned how)
{
	if (how == SLEEP)
		sleep_until(ns);
	else
		while (now_ns() < ns)
			pause_cpu();
}

static void *generate(void *argument)
{
	struct load *load = argument;
	struct arrivals arrivals = {.rate = load->rate, .range_ratio = load->range_ratio, .seed = load->seed};
	uint64_t cpu_began = 0;

	leave_scheduler();
	if (load->cpu >= 0)
		pin(load->cpu);
	prctl(PR_SET_TIMERSLACK, load->slack_ns ? load->slack_ns : 1, 0, 0, 0);
	atomic_store(&load->state, READY);
	while (atomic_load(&load->state) == READY)
		futex_wait(&load->state, READY);
	for (;;) {
		struct arrival arrival = next_arrival(&arrivals);
		uint64_t intended = load->began_ns + arrival.ns, now;
		bool is_measured = intended >= load->measured_from_ns;

		if (intended >= load->ends_ns)
			break;
		if (is_measured && !cpu_began)
			cpu_began = cpu_ns();
		now = now_ns();
		if (now < intended) {
			wait_until(intended, load->how);
			now = now_ns();
		}
		/* Without this, a generator that is too slow would go on long after the end. */
		if (now >= load->ends_ns)
			break;
		if (!push(&load->ring, intended << 1 | arrival.is_range)) {
			load->dropped += is_measured;
			continue;
		}
		event_signal(&load->event, AWAITS_REQUEST);
		load->last_ns = intended;
		if (is_measured) {
			load->sent++;
			record(&load->lateness, now - intended);
		}
	}
	load->cpu_ns = cpu_began ? cpu_ns() - cpu_began : 0;
	return NULL;
}

/* A new thread is in its parent's enclave, where it may wait for long until it can leave. */
void load_start(struct load *load, pthread_t *thread)
{
	start(thread, generate, load);
	while (atomic_load(&load->state) == STARTS)
		usleep(1000);
}

void load_begin(struct load *load)
{
	atomic_store(&load->state, BEGUN);
	futex_wake(&load->state);
}
