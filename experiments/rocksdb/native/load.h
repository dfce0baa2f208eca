/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The load generator: an open loop with Poisson arrivals, on a thread of its own.
 *
 * Arrival times follow from the rate and the seed alone. The generator never waits for a reply: if it is late, it sends
 * at once, and latencies count from the intended arrival.
 */
#ifndef GHOSTBPF_EXPERIMENTS_LOAD_H
#define GHOSTBPF_EXPERIMENTS_LOAD_H

#include "../../bench/native/histogram.h"
#include "common.h"

/* Requests that wait; more are dropped, and counted. */
#define RING_BITS 21
#define RING_SIZE (1ULL << RING_BITS)

/* One producer, one consumer; a request is its arrival time in ns and, in the last bit, whether it is a range query. */
struct ring {
	_Atomic uint64_t pushed;
	char apart[120];
	_Atomic uint64_t popped;
	char apart_too[120];
	uint64_t *slots;
};

/* How the dispatcher sleeps, and for what: a signal of another kind does not wake it. */
struct event {
	atomic_uint word, awaited;
};

enum { AWAKE, AWAITS_REQUEST, AWAITS_WORKER };
enum { SLEEP, SPIN };
enum { STARTS, READY, BEGUN };

struct load {
	double rate; /* requests a second */
	double range_ratio;
	uint64_t seed;
	uint64_t began_ns, measured_from_ns, ends_ns;
	unsigned how; /* it waits for the next arrival: SLEEP or SPIN */
	uint64_t slack_ns; /* how much later than an arrival its sleep may end, to spare wakeups */
	int cpu; /* -1: any */
	atomic_uint state;
	struct ring ring;
	struct event event;
	/* Of the arrivals that are measured: */
	uint64_t sent, dropped;
	struct histogram lateness; /* from the intended arrival until it is sent */
	uint64_t last_ns;
	uint64_t cpu_ns; /* of the generator itself */
};

struct arrival {
	uint64_t ns; /* since the beginning */
	bool is_range;
};

/* Arrivals, one after the other. */
struct arrivals {
	double rate, range_ratio, at_ns;
	uint64_t seed, index;
};

static inline struct arrival next_arrival(struct arrivals *a)
{
	struct arrival arrival;

	a->at_ns += exponential(1e9 / a->rate, a->seed, 2 * a->index);
	arrival.ns = a->at_ns;
	arrival.is_range = a->range_ratio && uniform(a->seed, 2 * a->index + 1) <= a->range_ratio;
	a->index++;
	return arrival;
}

/* Start the generator's thread; returns once it is outside of what is measured. */
void load_start(struct load *load, pthread_t *thread);
/* Begin with the first arrival, after the times are set. */
void load_begin(struct load *load);

static inline bool ring_is_empty(struct ring *ring)
{
	return atomic_load(&ring->popped) == atomic_load(&ring->pushed);
}

static inline bool ring_pop(struct ring *ring, uint64_t *request)
{
	uint64_t at = atomic_load_explicit(&ring->popped, memory_order_relaxed);

	if (at == atomic_load_explicit(&ring->pushed, memory_order_acquire))
		return false;
	*request = ring->slots[at & (RING_SIZE - 1)];
	atomic_store_explicit(&ring->popped, at + 1, memory_order_release);
	return true;
}

static inline void event_signal(struct event *event, unsigned what)
{
	/* Sequentially consistent: either this sees the sleeper, or the sleeper sees what happened before this. */
	if (atomic_load(&event->awaited) == what) {
		atomic_fetch_add(&event->word, 1);
		futex_wake(&event->word);
	}
}

#endif
