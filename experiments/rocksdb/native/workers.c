/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "workers.h"

enum { IDLE, ASSIGNED };

struct request {
	uint64_t arrived_ns, received_ns, index;
	bool is_range;
};

struct worker {
	/* Handed over by `state`: of the dispatcher while IDLE, of the worker while ASSIGNED. */
	struct request requests[MAX_BATCH];
	unsigned count;
	uint64_t assigned_ns;
	char apart[128];
	atomic_uint state;
	atomic_bool has_left;
	struct service *service;
	unsigned number;
	pthread_t thread;
};

static struct worker *workers;
static pthread_t dispatcher;
/* A worker counts itself before it is idle: a number above 0 means that a worker is idle, or is about to be. */
static _Atomic int64_t free_workers;
static atomic_uint ready;
static atomic_bool quitting;

static unsigned item_of(const struct worker *worker)
{
	return worker->service->first_item + 1 + worker->number;
}

static void set_hint(struct worker *worker, bool has_work)
{
	int error = ghostbpf_hints_set_runnable(worker->service->hints, item_of(worker), has_work, 0);

	if (error)
		fail("cannot write item %u of the table of hints: %s", item_of(worker), strerror(-error));
}

/* ---- workers ---- */

static void serve(struct worker *self, const struct request *request)
{
	struct service *s = self->service;
	uint64_t seed = mixed(s->load->seed ^ 0x5EED), began = cpu_ns(), target;
	bool is_there;

	if (request->is_range) {
		uint64_t starts = s->entries - s->range_entries + 1;

		target = s->range_ns;
		is_there = database_range(s->database, mixed(seed + request->index) % starts, s->range_entries);
	} else {
		target = s->get_ns;
		if (s->get_exponential_ns)
			target += exponential(s->get_exponential_ns, seed, request->index);
		is_there = database_get(s->database, mixed(seed + request->index) % s->entries);
	}
	if (!is_there)
		atomic_fetch_add(&s->missing, 1);
	spin_cpu_ns(began, target);
}

static void serve_all(struct worker *self)
{
	struct service *s = self->service;
	uint64_t began = now_ns();

	for (unsigned n = 0; n < self->count; n++) {
		const struct request *request = &self->requests[n];
		unsigned kind = request->is_range ? RANGE : GET;
		uint64_t ended;

		serve(self, request);
		ended = now_ns();
		if (request->arrived_ns >= s->load->measured_from_ns) {
			record(histogram_of(s, self->number, kind, INGRESS_QUEUE),
			       request->received_ns - request->arrived_ns);
			record(histogram_of(s, self->number, kind, REPEATABLE_HANDLE),
			       self->assigned_ns - request->received_ns);
			record(histogram_of(s, self->number, kind, WORKER_QUEUE), began - self->assigned_ns);
			record(histogram_of(s, self->number, kind, WORKER_HANDLE), ended - began);
			record(histogram_of(s, self->number, kind, TOTAL), ended - request->arrived_ns);
		}
		began = ended;
		atomic_fetch_add_explicit(&s->ended, 1, memory_order_relaxed);
	}
}

/* In a table, the item is what says that the worker is idle: once it does, the agent may take the CPU for good. */
static bool is_idle(struct worker *worker)
{
	struct hint_item *item;
	uint32_t seq;
	uint64_t flags;

	if (worker->service->wait != WAIT_TABLE)
		return atomic_load(&worker->state) == IDLE;
	item = ghostbpf_hints_item_at(worker->service->hints, item_of(worker));
	seq = __atomic_load_n(&item->seq, __ATOMIC_ACQUIRE);
	flags = __atomic_load_n(&item->flags, __ATOMIC_ACQUIRE);
	return !(seq & 1) && !flags && atomic_load(&worker->state) == IDLE;
}

static void become_idle(struct worker *self)
{
	atomic_fetch_add(&free_workers, 1);
	event_signal(&self->service->load->event, AWAITS_WORKER);
	atomic_store(&self->state, IDLE);
	if (self->service->wait == WAIT_TABLE)
		set_hint(self, false);
}

static void *work(void *argument)
{
	struct worker *self = argument;
	struct service *s = self->service;

	if (s->worker_cpu_count)
		pin(s->worker_cpus[self->number % s->worker_cpu_count]);
	set_nice(s->nice);
	if (s->hints)
		hint_thread(s->hints, item_of(self), s->work_class);
	atomic_fetch_add(&ready, 1);
	while (!atomic_load(&quitting)) {
		become_idle(self);
		while (atomic_load(&self->state) == IDLE && !atomic_load(&quitting)) {
			if (s->wait == WAIT_FUTEX)
				futex_wait(&self->state, IDLE);
			else
				pause_cpu();
		}
		if (atomic_load(&self->state) == ASSIGNED)
			serve_all(self);
	}
	if (s->hints)
		ghostbpf_hints_set_item(s->hints, item_of(self), 0, 0, 0, 0);
	atomic_store(&self->has_left, true);
	return NULL;
}

/* ---- the dispatcher ---- */

static bool hand_over(struct service *s, struct worker *worker, uint64_t *index)
{
	uint64_t request;

	for (worker->count = 0; worker->count < s->batch && ring_pop(&s->load->ring, &request); worker->count++)
		worker->requests[worker->count] =
			(struct request){request >> 1, now_ns(), (*index)++, request & 1};
	if (!worker->count)
		return false;
	atomic_fetch_sub(&free_workers, 1);
	worker->assigned_ns = now_ns();
	/* In this order: a worker that spins still could serve, and be idle again, before its hint says that it has work. */
	if (s->wait == WAIT_TABLE)
		set_hint(worker, true);
	atomic_store(&worker->state, ASSIGNED);
	if (s->wait == WAIT_FUTEX)
		futex_wake(&worker->state);
	return true;
}

/* In the order of their numbers, the worker that has been idle for longest is likely to be next. */
static struct worker *next_idle(struct service *s, unsigned *at)
{
	for (unsigned n = 0; n < s->workers; n++) {
		struct worker *worker = &workers[(*at + n) % s->workers];

		if (is_idle(worker)) {
			*at = (worker->number + 1) % s->workers;
			return worker;
		}
	}
	return NULL;
}

static bool can_hand_over(struct service *s)
{
	return !ring_is_empty(&s->load->ring) && atomic_load(&free_workers) > 0;
}

static void *dispatch(void *argument)
{
	struct service *s = argument;
	struct event *event = &s->load->event;
	uint64_t index = 0;
	unsigned at = 0;

	if (s->dispatcher_cpu >= 0)
		pin(s->dispatcher_cpu);
	set_nice(s->nice);
	if (s->hints)
		hint_thread(s->hints, s->first_item, s->work_class);
	atomic_fetch_add(&ready, 1);
	while (!atomic_load(&quitting)) {
		unsigned seen = atomic_load(&event->word);
		struct worker *worker;
		bool is_empty;

		if (can_hand_over(s)) {
			worker = next_idle(s, &at);
			if (worker)
				hand_over(s, worker, &index);
			else
				sched_yield();
			continue;
		}
		if (s->wait == WAIT_SPIN) {
			pause_cpu();
			continue;
		}
		is_empty = ring_is_empty(&s->load->ring);
		atomic_store(&event->awaited, is_empty ? AWAITS_REQUEST : AWAITS_WORKER);
		/* A request for which no worker is free: sleep again, for a worker. */
		if (!can_hand_over(s) && is_empty == ring_is_empty(&s->load->ring) && !atomic_load(&quitting))
			futex_wait(&event->word, seen);
		atomic_store(&event->awaited, AWAKE);
	}
	if (s->hints)
		ghostbpf_hints_set_item(s->hints, s->first_item, 0, 0, 0, 0);
	return NULL;
}

void service_start(struct service *service)
{
	workers = zeroed(service->workers, sizeof(*workers));
	for (unsigned n = 0; n < service->workers; n++) {
		workers[n].service = service;
		workers[n].number = n;
		atomic_store(&workers[n].state, ASSIGNED); /* until it runs */
		start(&workers[n].thread, work, &workers[n]);
	}
	start(&dispatcher, dispatch, service);
	while (atomic_load(&ready) < service->workers + 1)
		usleep(1000);
}

static void count_unfinished(struct service *s, uint64_t now)
{
	uint64_t request;

	while (ring_pop(&s->load->ring, &request)) {
		if (request >> 1 < s->load->measured_from_ns)
			continue;
		s->unfinished++;
		record(histogram_of(s, 0, request & 1 ? RANGE : GET, TOTAL), now - (request >> 1));
	}
}

void service_end(struct service *s, uint64_t until_ns)
{
	uint64_t pushed = atomic_load(&s->load->ring.pushed);

	while (atomic_load(&s->ended) < pushed && now_ns() < until_ns)
		usleep(1000);
	atomic_store(&quitting, true);
	atomic_fetch_add(&s->load->event.word, 1);
	futex_wake(&s->load->event.word);
	pthread_join(dispatcher, NULL);
	count_unfinished(s, now_ns());
	for (unsigned n = 0; n < s->workers; n++) {
		struct worker *worker = &workers[n];

		/* A worker may look at `quitting` just before that is set, and then wait: this is repeated. */
		for (; !atomic_load(&worker->has_left); usleep(1000)) {
			if (s->wait == WAIT_FUTEX) {
				unsigned idle = IDLE;

				/* An empty assignment. */
				if (atomic_load(&worker->state) == IDLE) {
					worker->count = 0;
					atomic_compare_exchange_strong(&worker->state, &idle, ASSIGNED);
				}
				futex_wake(&worker->state);
			} else if (s->wait == WAIT_TABLE) {
				/* -EINVAL: it has left, and has freed its item. */
				ghostbpf_hints_set_runnable(s->hints, item_of(worker), true, 0);
			}
		}
		pthread_join(worker->thread, NULL);
	}
}
