/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tests of ghOSt's simple_exp, simple_cfs and simple_edf. A test fails if a thread is not scheduled by the policy that
 * it inherits; with hints, each thread has a scheduling item, and the agent runs it while that is runnable.
 */
#define _GNU_SOURCE
#include <sys/wait.h>

#include "micro.h"

#define MS 1000000ULL
#define PERIOD_NS (100 * MS)
#define NICES 3

enum { ONE_SHOT = 1, REPEATING };
enum { WAITS, RELEASED, MOVED };

struct worker {
	struct setting *setting;
	void (*body)(struct worker *self);
	unsigned number;
	atomic_uint is_released, has_begun;
	pid_t tid;
	pthread_t thread;
	int nice;
	_Atomic int cpu;
	uint64_t counters[2];
};

atomic_uint ready;
static atomic_uint stage, arrived;
static atomic_bool stopping;

static void sleep_ms(unsigned ms)
{
	sleep_until(now_ns() + ms * MS);
}

static int policy_of(pid_t tid)
{
	return sched_getscheduler(tid) & ~SCHED_RESET_ON_FORK;
}

static void check_policy(int wanted)
{
	int policy = policy_of(0);

	if (policy != wanted)
		fail("a thread has scheduling policy %d, not %d", policy, wanted);
}

/* ---- hints ---- */

static void set_item(struct worker *worker, bool is_runnable)
{
	int error = ghostbpf_hints_set_runnable(&worker->setting->table, worker->number, is_runnable, 0);

	if (error)
		fail("cannot write item %u of the table of hints: %s", worker->number, strerror(-error));
}

static bool is_runnable(const struct worker *worker)
{
	struct hint_item *item = ghostbpf_hints_item_at(&worker->setting->table, worker->number);

	return __atomic_load_n(&item->flags, __ATOMIC_ACQUIRE) & HINT_RUNNABLE;
}

static void spin_until_runnable(const struct worker *worker)
{
	while (!is_runnable(worker))
		pause_cpu();
}

/* ---- threads that all run one body ---- */

static void *run_body(void *argument)
{
	struct worker *self = argument;

	self->tid = syscall(SYS_gettid);
	/* Before others know of the thread: race() has it moved to another policy. */
	check_policy(self->setting->policy);
	atomic_store(&self->has_begun, 1);
	futex_wake(&self->has_begun);
	/* An item is written before its thread runs: the agent sees no thread without a hint. */
	while (atomic_load(&self->is_released) == WAITS)
		futex_wait(&self->is_released, WAITS);
	self->body(self);
	return NULL;
}

static void release(struct worker *worker, unsigned class)
{
	if (worker->setting->hints) {
		int error = ghostbpf_hints_set_item(&worker->setting->table, worker->number, worker->tid, class,
						    HINT_RUNNABLE, ghostbpf_hints_now() + 100 * MS);

		if (error)
			fail("cannot write item %u of the table of hints: %s", worker->number, strerror(-error));
	}
	atomic_store(&worker->is_released, RELEASED);
	futex_wake(&worker->is_released);
}

static struct worker *start_all(struct setting *setting, void (*body)(struct worker *self), unsigned class)
{
	struct worker *workers = zeroed(setting->threads, sizeof(*workers));

	for (unsigned n = 0; n < setting->threads; n++) {
		workers[n].setting = setting;
		workers[n].body = body;
		workers[n].number = n;
		start(&workers[n].thread, run_body, &workers[n]);
		while (!atomic_load(&workers[n].has_begun))
			futex_wait(&workers[n].has_begun, 0);
	}
	for (unsigned n = 0; n < setting->threads; n++)
		release(&workers[n], class);
	return workers;
}

static void join_all(struct setting *setting, struct worker *workers)
{
	for (unsigned n = 0; n < setting->threads; n++) {
		pthread_join(workers[n].thread, NULL);
		if (setting->hints)
			ghostbpf_hints_set_item(&setting->table, n, 0, 0, 0, 0);
	}
	free(workers);
}

/* ---- what threads do ---- */

static void *check_inherited(void *argument)
{
	check_policy(((struct worker *)argument)->setting->policy);
	return NULL;
}

static void nap(struct worker *self)
{
	pthread_t child;

	sleep_ms(10);
	sched_yield();
	start(&child, check_inherited, self);
	pthread_join(child, NULL);
}

static void nap_twice(struct worker *self)
{
	sleep_ms(10);
	sched_yield();
	sleep_ms(10);
	if (self->setting->hints) {
		set_item(self, false);
		spin_until_runnable(self);
	}
}

static void spin(struct worker *self)
{
	spin_cpu_ns(cpu_ns(), self->setting->spin_ns);
}

/* Once it has no work, the agent takes its CPU until the next period. */
static void repeat(struct worker *self)
{
	uint64_t began = now_ns();

	for (unsigned n = 1; n <= 10; n++) {
		spin_cpu_ns(cpu_ns(), self->setting->spin_ns);
		set_item(self, false);
		while (now_ns() - began < n * PERIOD_NS)
			pause_cpu();
	}
}

static void become_other(pid_t tid)
{
	struct sched_param none = {0};

	if (sched_setscheduler(tid, SCHED_OTHER, &none))
		fail("a thread cannot become SCHED_OTHER: %s", strerror(errno));
	if (policy_of(tid) != SCHED_OTHER)
		fail("a thread has scheduling policy %d, not SCHED_OTHER", policy_of(tid));
}

static void depart(struct worker *self)
{
	(void)self;
	sleep_ms(10);
	become_other(0);
}

/* The main thread moves it out of the enclave while it runs, sleeps and wakes. */
static void race(struct worker *self)
{
	while (atomic_load(&self->is_released) != MOVED)
		sleep_until(now_ns() + MS / 10);
	check_policy(SCHED_OTHER);
}

/* ---- the tests of simple_exp and simple_edf ---- */

static void run_all(struct setting *setting, void (*body)(struct worker *self), unsigned class)
{
	struct worker *workers = start_all(setting, body, class);

	if (setting->hints && body == nap_twice)
		for (unsigned n = 0; n < setting->threads; n++) {
			while (is_runnable(&workers[n]))
				usleep(100);
			set_item(&workers[n], true);
		}
	if (body == race)
		for (unsigned n = 0; n < setting->threads; n++) {
			become_other(workers[n].tid);
			atomic_store(&workers[n].is_released, MOVED);
		}
	join_all(setting, workers);
}

/* ---- simple_cfs: nice values ---- */

static void *count(void *argument)
{
	struct worker *self = argument;
	int nices[] = {0, self->nice};

	check_policy(self->setting->policy);
	for (unsigned n = 0; n < 2; n++) {
		/* A nice value of 0 is also set: it may be that of the parent. */
		if (setpriority(PRIO_PROCESS, syscall(SYS_gettid), nices[n]))
			fail("cannot set nice %d: %s", nices[n], strerror(errno));
		atomic_fetch_add(&arrived, 1);
		while (atomic_load(&stage) < 2 * n + 1)
			futex_wait(&stage, 2 * n);
		while (atomic_load_explicit(&stage, memory_order_relaxed) == 2 * n + 1)
			self->counters[n]++;
	}
	return NULL;
}

static void enter(unsigned next)
{
	atomic_store(&stage, next);
	syscall(SYS_futex, &stage, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

/* Three threads on one CPU, which is where their weights matter; this thread does not compete with them. */
static void simple_nice(struct setting *setting)
{
	static const int NICE[NICES] = {19, -20, 0};
	struct worker workers[NICES] = {0};
	struct sched_param none = {0};
	int cpu = sched_getcpu();
	cpu_set_t all;

	sched_getaffinity(0, sizeof(all), &all);
	pin(cpu < 0 ? 0 : cpu);
	for (unsigned n = 0; n < NICES; n++) {
		workers[n].setting = setting;
		workers[n].nice = NICE[n];
		start(&workers[n].thread, count, &workers[n]);
	}
	sched_setaffinity(0, sizeof(all), &all);
	sched_setscheduler(0, SCHED_OTHER, &none);
	for (unsigned n = 0; n < 2; n++) {
		while (atomic_load(&arrived) < NICES * (n + 1))
			usleep(1000);
		enter(2 * n + 1);
		sleep_until(now_ns() + setting->seconds * 1e9);
		enter(2 * n + 2);
	}
	printf("{\"counters\": [");
	for (unsigned n = 0; n < NICES; n++) {
		pthread_join(workers[n].thread, NULL);
		printf("%s[%" PRIu64 ", %" PRIu64 "]", n ? ", " : "", workers[n].counters[0], workers[n].counters[1]);
	}
	printf("]}\n");
}

/* ---- simple_cfs: load balancing ---- */

static void *move_about(void *argument)
{
	struct worker *self = argument;

	check_policy(self->setting->policy);
	atomic_store(&self->cpu, sched_getcpu());
	atomic_fetch_add(&arrived, 1);
	while (!atomic_load(&stopping))
		atomic_store_explicit(&self->cpu, sched_getcpu(), memory_order_relaxed);
	return NULL;
}

/* All threads begin on one CPU. How many are on each is looked at when all may move, and at equal distances until the end. */
static void simple_load_balancing(struct setting *setting)
{
	struct worker *workers = zeroed(setting->threads, sizeof(*workers));
	struct sched_param none = {0};
	int cpu = sched_getcpu();
	cpu_set_t all;

	sched_getaffinity(0, sizeof(all), &all);
	pin(cpu < 0 ? 0 : cpu);
	for (unsigned n = 0; n < setting->threads; n++) {
		workers[n].setting = setting;
		start(&workers[n].thread, move_about, &workers[n]);
	}
	sched_setaffinity(0, sizeof(all), &all);
	sched_setscheduler(0, SCHED_OTHER, &none);
	while (atomic_load(&arrived) < setting->threads)
		usleep(1000);
	printf("{\"stages\": [");
	for (unsigned n = 0; n < setting->stages; n++) {
		printf("%s[", n ? ", " : "");
		for (unsigned k = 0; k < setting->threads; k++)
			printf("%s%d", k ? ", " : "", atomic_load(&workers[k].cpu));
		printf("]");
		for (unsigned k = 0; !n && k < setting->threads; k++)
			if (pthread_setaffinity_np(workers[k].thread, sizeof(all), &all))
				fail("cannot let a thread move");
		if (n + 1 < setting->stages)
			sleep_until(now_ns() + setting->seconds * 1e9 / (setting->stages - 1));
	}
	printf("]}\n");
	atomic_store(&stopping, true);
	for (unsigned n = 0; n < setting->threads; n++)
		pthread_join(workers[n].thread, NULL);
}

/* ---- by name ---- */

static const struct {
	const char *name;
	void (*body)(struct worker *self);
	unsigned class;
} TESTS[] = {
	{"SimpleExp", nap, ONE_SHOT},
	{"SimpleExpMany", nap_twice, ONE_SHOT},
	{"SimpleRepeatable", repeat, REPEATING},
	{"BusyExp", spin, ONE_SHOT},
	{"TaskDeparted", depart, ONE_SHOT},
	{"TaskDepartedMany", depart, ONE_SHOT},
	{"TaskDepartedManyRace", race, ONE_SHOT},
};

static void open_table(struct setting *setting)
{
	open_hints(&setting->table, setting->hints, ONE_SHOT, 0);
	if (ghostbpf_hints_set_class(&setting->table, ONE_SHOT, HINT_ONE_SHOT, 0, 10 * MS, 0) ||
	    ghostbpf_hints_set_class(&setting->table, REPEATING, HINT_REPEATING, 0, 10 * MS, PERIOD_NS))
		fail("cannot write the work classes of the table of hints");
}

bool run_simple(const char *name, struct setting *setting)
{
	if (!strcmp(name, "SimpleNice") || !strcmp(name, "SimpleLoadBalancing")) {
		wait_for_driver();
		(name[6] == 'N' ? simple_nice : simple_load_balancing)(setting);
		return true;
	}
	for (unsigned n = 0; n < sizeof(TESTS) / sizeof(*TESTS); n++) {
		uint64_t began;

		if (strcmp(name, TESTS[n].name))
			continue;
		if (setting->hints)
			open_table(setting);
		wait_for_driver();
		began = now_ns();
		run_all(setting, TESTS[n].body, TESTS[n].class);
		printf("{\"ns\": %" PRIu64 "}\n", now_ns() - began);
		return true;
	}
	return false;
}
