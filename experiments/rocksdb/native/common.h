/* SPDX-License-Identifier: Apache-2.0 */
/* What the experiments' programs share: options, clocks, threads, hints, and the start on a signal of the driver. */
#ifndef GHOSTBPF_EXPERIMENTS_COMMON_H
#define GHOSTBPF_EXPERIMENTS_COMMON_H

#include <errno.h>
#include <inttypes.h>
#include <linux/futex.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "../../../hints/ghostbpf_hints.h"

#define STACK_BYTES (128 << 10)
#define MAX_CPUS 1024

static inline void __attribute__((noreturn, format(printf, 1, 2))) fail(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	fputs("error: ", stderr);
	vfprintf(stderr, format, arguments);
	fputc('\n', stderr);
	va_end(arguments);
	/* Other threads may still run: no destructors. */
	_exit(1);
}

static inline void *zeroed(size_t count, size_t size)
{
	void *memory = calloc(count, size);

	if (!memory)
		fail("out of memory");
	return memory;
}

static inline uint64_t clock_ns(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return time.tv_sec * 1000000000ULL + time.tv_nsec;
}

static inline uint64_t now_ns(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

/* The CPU time of this thread: unlike the time of day, it stands still while the thread is preempted. */
static inline uint64_t cpu_ns(void)
{
	return clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

static inline void sleep_until(uint64_t ns)
{
	struct timespec time = {ns / 1000000000, ns % 1000000000};

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL) == EINTR)
		;
}

static inline void spin_cpu_ns(uint64_t began, uint64_t ns)
{
	while (cpu_ns() - began < ns)
		for (volatile unsigned n = 0; n < 32; n++)
			;
}

static inline void pause_cpu(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#endif
}

static inline void futex_wait(atomic_uint *word, unsigned value)
{
	syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static inline void futex_wake(atomic_uint *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* splitmix64: the same numbers from the same seed, on every machine. */
static inline uint64_t mixed(uint64_t value)
{
	value += 0x9E3779B97F4A7C15ULL;
	value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9ULL;
	value = (value ^ (value >> 27)) * 0x94D049BB133111EBULL;
	return value ^ (value >> 31);
}

/* A number above 0 and at most 1. */
static inline double uniform(uint64_t seed, uint64_t index)
{
	return ((mixed(mixed(seed) + index) >> 11) + 1) * 0x1p-53;
}

static inline double exponential(double mean, uint64_t seed, uint64_t index)
{
	return -mean * log(uniform(seed, index));
}

static inline double number(const char *name, const char *text, double least, double most)
{
	char *end;
	double value = strtod(text, &end);

	if (end == text || *end || !(value >= least && value <= most))
		fail("%s: \"%s\" is not a number from %.15g to %.15g", name, text, least, most);
	return value;
}

/* Parse "1,2,5" into cpus, and return their number. */
static inline unsigned cpu_list(const char *name, const char *text, unsigned *cpus)
{
	unsigned count = 0;

	for (const char *at = text; *at; at++) {
		char *end;
		unsigned long cpu = strtoul(at, &end, 10);

		if (end == at || (*end && *end != ',') || cpu >= MAX_CPUS || count == MAX_CPUS)
			fail("%s: \"%s\" is not a list of CPUs such as 1,2", name, text);
		cpus[count++] = cpu;
		at = *end ? end : end - 1;
	}
	return count;
}

static inline void pin(unsigned cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		fail("cannot use CPU %u: %s", cpu, strerror(errno));
}

static inline void set_nice(int nice)
{
	/* On Linux, this is of the calling thread. */
	if (nice && setpriority(PRIO_PROCESS, syscall(SYS_gettid), nice))
		fail("cannot set nice %d: %s", nice, strerror(errno));
}

static inline void start(pthread_t *thread, void *(*function)(void *), void *argument)
{
	pthread_attr_t attributes;
	int error;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK_BYTES);
	error = pthread_create(thread, &attributes, function, argument);
	if (error)
		fail("cannot start a thread: %s", strerror(error));
	pthread_attr_destroy(&attributes);
}

static inline void open_hints(struct ghostbpf_hints *hints, const char *path, unsigned class, unsigned qos)
{
	int error = ghostbpf_hints_open(hints, path);

	if (!error)
		error = ghostbpf_hints_set_class(hints, class, HINT_ONE_SHOT, qos, 0, 0);
	if (error)
		fail("cannot use the table of hints %s: %s", path, strerror(-error));
}

/* Give this thread an item with work. */
static inline void hint_thread(struct ghostbpf_hints *hints, unsigned item, unsigned class)
{
	int error = ghostbpf_hints_set_item(hints, item, syscall(SYS_gettid), class, HINT_RUNNABLE, 0);

	if (error)
		fail("cannot write item %u of the table of hints: %s", item, strerror(-error));
}

/* Tell the driver that all threads are there, and wait for its line. */
static inline void wait_for_driver(void)
{
	char line[16];

	puts("ready");
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		_exit(1);
}

#endif
