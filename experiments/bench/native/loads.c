/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loads that measure themselves, for `ghostbpf bench`. The result is one JSON object on stdout, times in nanoseconds.
 *
 *   loads wakeup -m 1 -t 2 -r 5     as schbench: messengers wake workers, workers compute
 *   loads threads -t 1000 -b 100    threads that wake all at once
 *   loads percentiles <NUMBERS      what the histogram makes of numbers
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "histogram.h"

#define STACK_BYTES (64 << 10)

static void print(const char *name, const struct histogram *h)
{
	printf("\"%s\": {\"count\": %" PRIu64 ", \"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f, \"p99.9\": %.1f, \"max\": %" PRIu64 "}",
	       name, h->count, percentile(h, 500), percentile(h, 900), percentile(h, 990), percentile(h, 999), h->max);
}

static void __attribute__((noreturn, format(printf, 1, 2))) fail(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	fputs("error: ", stderr);
	vfprintf(stderr, format, arguments);
	fputc('\n', stderr);
	exit(1);
}

static void *zeroed(size_t count, size_t size)
{
	void *memory = calloc(count, size);

	if (!memory)
		fail("out of memory");
	return memory;
}

static uint64_t now_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ULL + time.tv_nsec;
}

static void sleep_ns(uint64_t ns)
{
	struct timespec time = {ns / 1000000000, ns % 1000000000};

	while (clock_nanosleep(CLOCK_MONOTONIC, 0, &time, &time) == EINTR)
		;
}

static void futex_wait(atomic_uint *word, unsigned value)
{
	syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(atomic_uint *word, int count)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

static void start(pthread_t *thread, void *(*body)(void *), void *argument)
{
	pthread_attr_t attributes;
	int error;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK_BYTES);
	error = pthread_create(thread, &attributes, body, argument);
	pthread_attr_destroy(&attributes);
	if (error)
		fail("cannot start a thread: %s", strerror(error));
}

static unsigned allowed_cpus(void)
{
	cpu_set_t cpus;

	/* A machine with more than 1,024 CPUs does not fit. */
	return sched_getaffinity(0, sizeof(cpus), &cpus) ? sysconf(_SC_NPROCESSORS_ONLN) : CPU_COUNT(&cpus);
}

/* ---- wakeup ---- */

struct messenger;

struct worker {
	struct messenger *messenger;
	struct worker *next;
	atomic_uint is_woken;
	uint64_t woken_at, *matrices;
	struct histogram wakeup, request;
	pthread_t thread;
};

struct messenger {
	_Atomic(struct worker *) waiting;
	atomic_uint is_posted, workers;
	pthread_t thread;
};

static unsigned matrix_size, operations, network_us = 100;
static atomic_bool recording, stopping;

static void post(struct messenger *messenger)
{
	if (!atomic_exchange(&messenger->is_posted, 1))
		futex_wake(&messenger->is_posted, 1);
}

/* Multiply two matrices, which together with the product fill the cache footprint. */
static void compute(uint64_t *a)
{
	uint64_t *b = a + matrix_size * matrix_size, *c = b + matrix_size * matrix_size;

	for (unsigned n = 0; n < operations; n++)
		for (unsigned row = 0; row < matrix_size; row++)
			for (unsigned column = 0; column < matrix_size; column++) {
				uint64_t sum = 0;

				for (unsigned k = 0; k < matrix_size; k++)
					sum += a[row * matrix_size + k] * b[k * matrix_size + column];
				c[row * matrix_size + column] = sum;
				/* The product is used nowhere: without this the compiler drops it. */
				atomic_signal_fence(memory_order_seq_cst);
			}
}

static void *work(void *argument)
{
	struct worker *self = argument;
	struct messenger *messenger = self->messenger;

	while (!stopping) {
		uint64_t began;

		atomic_store(&self->is_woken, 0);
		self->next = atomic_load(&messenger->waiting);
		while (!atomic_compare_exchange_weak(&messenger->waiting, &self->next, self))
			;
		post(messenger);
		while (!atomic_load(&self->is_woken))
			futex_wait(&self->is_woken, 0);
		began = now_ns();
		if (recording)
			record(&self->wakeup, began - self->woken_at);
		sleep_ns(network_us * 1000ULL);
		compute(self->matrices);
		if (recording)
			record(&self->request, now_ns() - began);
	}
	atomic_fetch_sub(&messenger->workers, 1);
	post(messenger);
	return NULL;
}

static void *send(void *argument)
{
	struct messenger *self = argument;

	while (atomic_load(&self->workers)) {
		struct worker *worker, *next;

		atomic_store(&self->is_posted, 0);
		for (worker = atomic_exchange(&self->waiting, NULL); worker; worker = next) {
			next = worker->next; /* once woken, it may queue again */
			worker->woken_at = now_ns();
			atomic_store(&worker->is_woken, 1);
			futex_wake(&worker->is_woken, 1);
		}
		if (atomic_load(&self->workers))
			futex_wait(&self->is_posted, 0);
	}
	return NULL;
}

static int wakeup(unsigned messengers, unsigned workers, double seconds, double warm_up)
{
	struct messenger *messenger = zeroed(messengers, sizeof(*messenger));
	struct worker *worker = zeroed((size_t)messengers * workers, sizeof(*worker));
	struct histogram *all = zeroed(2, sizeof(*all));
	uint64_t began, took;

	for (unsigned n = 0; n < messengers * workers; n++) {
		worker[n].messenger = &messenger[n / workers];
		worker[n].matrices = zeroed(3 * matrix_size * matrix_size + 1, sizeof(uint64_t));
	}
	for (unsigned n = 0; n < messengers; n++) {
		messenger[n].workers = workers;
		start(&messenger[n].thread, send, &messenger[n]);
	}
	for (unsigned n = 0; n < messengers * workers; n++)
		start(&worker[n].thread, work, &worker[n]);
	sleep_ns(warm_up * 1e9);
	recording = true;
	began = now_ns();
	sleep_ns(seconds * 1e9);
	recording = false;
	took = now_ns() - began;
	stopping = true;
	for (unsigned n = 0; n < messengers * workers; n++) {
		pthread_join(worker[n].thread, NULL);
		merge(&all[0], &worker[n].wakeup);
		merge(&all[1], &worker[n].request);
	}
	for (unsigned n = 0; n < messengers; n++)
		pthread_join(messenger[n].thread, NULL);
	if (!all[1].count)
		fail("no request was complete within %g s: give it more seconds", seconds);
	printf("{");
	print("wakeup", &all[0]);
	printf(", ");
	print("request", &all[1]);
	printf(", \"requests_per_s\": %.3f}\n", all[1].count / (took / 1e9));
	return 0;
}

/* ---- threads ---- */

static atomic_uint burst, left;
static unsigned loops;

static void *wait_for_bursts(void *argument)
{
	unsigned bursts = *(unsigned *)argument;

	for (unsigned n = 1; n <= bursts; n++) {
		unsigned seen;

		while ((seen = atomic_load(&burst)) < n)
			futex_wait(&burst, seen);
		for (volatile unsigned count = 0; count < loops; count++)
			;
		if (atomic_fetch_sub(&left, 1) == 1)
			futex_wake(&left, 1);
	}
	return NULL;
}

static int threads(unsigned count, unsigned bursts)
{
	struct histogram *times = zeroed(1, sizeof(*times));
	pthread_t *thread = zeroed(count, sizeof(*thread));

	for (unsigned n = 0; n < count; n++)
		start(&thread[n], wait_for_bursts, &bursts);
	for (unsigned n = 0; n < bursts; n++) {
		uint64_t began = now_ns();
		unsigned missing;

		atomic_store(&left, count);
		atomic_fetch_add(&burst, 1);
		futex_wake(&burst, INT_MAX);
		while ((missing = atomic_load(&left)))
			futex_wait(&left, missing);
		record(times, now_ns() - began);
	}
	for (unsigned n = 0; n < count; n++)
		pthread_join(thread[n], NULL);
	printf("{");
	print("burst", times);
	printf("}\n");
	return 0;
}

/* ---- command line ---- */

static int percentiles(void)
{
	struct histogram *values = zeroed(1, sizeof(*values));
	uint64_t value;

	while (scanf("%" SCNu64, &value) == 1)
		record(values, value);
	printf("{");
	print("values", values);
	printf("}\n");
	return 0;
}

static double number(const char *text, double least, double most)
{
	char *end;
	double value = strtod(text, &end);

	if (end == text || *end || !(value >= least && value <= most))
		fail("\"%s\" is not a number from %g to %g", text, least, most);
	return value;
}

int main(int argc, char **argv)
{
	const char *load = argc > 1 ? argv[1] : "";
	unsigned messengers = 1, count = 0, bursts = 100, footprint_kb = 256;
	double seconds = 5, warm_up = 0.5;
	int option;

	operations = 5;
	loops = 20000;
	optind = 2;
	while (argc > 1 && (option = getopt(argc, argv, "m:t:r:w:n:F:s:b:l:")) != -1) {
		switch (option) {
		case 'm':
			messengers = number(optarg, 1, 1000);
			break;
		case 't':
			count = number(optarg, 1, 100000);
			break;
		case 'r':
			seconds = number(optarg, 0.001, 86400);
			break;
		case 'w':
			warm_up = number(optarg, 0, 3600);
			break;
		case 'n':
			operations = number(optarg, 0, 1000000);
			break;
		case 'F':
			footprint_kb = number(optarg, 1, 1 << 20);
			break;
		case 's':
			network_us = number(optarg, 0, 1000000);
			break;
		case 'b':
			bursts = number(optarg, 1, 1000000);
			break;
		case 'l':
			loops = number(optarg, 0, 1000000000);
			break;
		default:
			return 2;
		}
	}
	while ((uint64_t)(matrix_size + 1) * (matrix_size + 1) * 3 * sizeof(uint64_t) <= footprint_kb * 1024ULL)
		matrix_size++;
	if (!strcmp(load, "wakeup"))
		return wakeup(messengers, count ? count : allowed_cpus(), seconds, warm_up);
	if (!strcmp(load, "threads"))
		return threads(count ? count : 1000, bursts);
	if (!strcmp(load, "percentiles"))
		return percentiles();
	fprintf(stderr, "usage: loads wakeup|threads|percentiles [OPTION...]\n");
	return 2;
}
