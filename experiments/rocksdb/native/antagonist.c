/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads that want a share of CPU time, for `ghostbpf experiment`, and the calibration loop of its time scale. Times are
 * in nanoseconds, results are JSON on stdout.
 *
 *   antagonist run --option value...   prints "ready", and begins after a line on stdin
 *   antagonist calibrate               the times of a round of computation and of two context switches
 */
#define _GNU_SOURCE
#include <getopt.h>
#include <signal.h>

#include "common.h"

#define PERIOD_NS 100000
#define MAX_THREADS 4000

struct setting {
	double work_share;
	unsigned threads, cpu_count, cpus[MAX_CPUS], qos, first_item, class;
	uint64_t duration_ns, discard_ns, period_ns;
	int nice;
	const char *hints;
	struct ghostbpf_hints table;
};

struct worker {
	struct setting *setting;
	unsigned number;
	pthread_t thread;
	uint64_t used_ns, took_ns;
};

static uint64_t began_ns;
static atomic_uint ready, is_open;
static volatile sig_atomic_t stopping;

static void stop(int signal)
{
	(void)signal;
	stopping = 1;
}

static void *work(void *argument)
{
	struct worker *self = argument;
	struct setting *setting = self->setting;
	uint64_t from, end, cpu_from, cpu_measured = 0, measured = 0, now;

	if (setting->cpu_count)
		pin(setting->cpus[self->number % setting->cpu_count]);
	set_nice(setting->nice);
	prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
	if (setting->hints)
		hint_thread(&setting->table, setting->first_item + self->number, setting->class);
	atomic_fetch_add(&ready, 1);
	while (!atomic_load(&is_open))
		futex_wait(&is_open, 0);
	from = began_ns;
	end = from + setting->discard_ns + setting->duration_ns;
	cpu_from = cpu_ns();
	for (now = now_ns(); now < end && !stopping; now = now_ns()) {
		if (!measured && now >= from + setting->discard_ns) {
			measured = now;
			cpu_measured = cpu_ns();
		}
		if (cpu_ns() - cpu_from < setting->work_share * (now - from))
			spin_cpu_ns(cpu_ns(), setting->period_ns / 50);
		else
			sleep_until(now + setting->period_ns);
	}
	self->used_ns = measured ? cpu_ns() - cpu_measured : 0;
	self->took_ns = measured ? now - measured : 0;
	if (setting->hints)
		ghostbpf_hints_set_item(&setting->table, setting->first_item + self->number, 0, 0, 0, 0);
	return NULL;
}

static const struct option OPTIONS[] = {
	{"work_share", required_argument, 0, 'w'},
	{"num_threads", required_argument, 0, 't'},
	{"cpus", required_argument, 0, 'c'},
	{"experiment_duration", required_argument, 0, 'D'},
	{"discard_duration", required_argument, 0, 'x'},
	{"period", required_argument, 0, 'p'},
	{"nice", required_argument, 0, 'n'},
	{"hints", required_argument, 0, 'h'},
	{"first_item", required_argument, 0, 'f'},
	{"qos", required_argument, 0, 'q'},
	{0},
};

static void parse(int argc, char **argv, struct setting *setting)
{
	int option, at;

	while ((option = getopt_long(argc, argv, "", OPTIONS, &at)) != -1) {
		const char *name = option == '?' ? "" : OPTIONS[at].name;

		switch (option) {
		case 'w': setting->work_share = number(name, optarg, 0, 1); break;
		case 't': setting->threads = number(name, optarg, 1, MAX_THREADS); break;
		case 'c': setting->cpu_count = cpu_list(name, optarg, setting->cpus); break;
		case 'D': setting->duration_ns = number(name, optarg, 1e6, 1e15); break;
		case 'x': setting->discard_ns = number(name, optarg, 0, 1e15); break;
		case 'p': setting->period_ns = number(name, optarg, 1000, 1e12); break;
		case 'n': setting->nice = number(name, optarg, -20, 19); break;
		case 'h': setting->hints = optarg; break;
		case 'f': setting->first_item = number(name, optarg, 0, 1e6); break;
		case 'q': setting->qos = number(name, optarg, 0, 1000); break;
		default: exit(2);
		}
	}
}

static int run(int argc, char **argv)
{
	static struct setting setting = {
		.work_share = 1, .threads = 1, .duration_ns = 1e9, .period_ns = PERIOD_NS, .qos = 1, .class = 2,
	};
	struct sigaction action = {.sa_handler = stop};
	struct worker *workers;

	optind = 2;
	parse(argc, argv, &setting);
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	if (setting.hints) {
		open_hints(&setting.table, setting.hints, setting.class, setting.qos);
		hint_thread(&setting.table, setting.first_item + setting.threads, setting.class);
	}
	workers = zeroed(setting.threads, sizeof(*workers));
	for (unsigned n = 0; n < setting.threads; n++) {
		workers[n].setting = &setting;
		workers[n].number = n;
		start(&workers[n].thread, work, &workers[n]);
	}
	while (atomic_load(&ready) < setting.threads)
		usleep(1000);
	wait_for_driver();
	began_ns = now_ns();
	atomic_store(&is_open, 1);
	syscall(SYS_futex, &is_open, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
	printf("[");
	for (unsigned n = 0; n < setting.threads; n++) {
		pthread_join(workers[n].thread, NULL);
		printf("%s[%" PRIu64 ", %" PRIu64 "]", n ? ", " : "", workers[n].used_ns, workers[n].took_ns);
	}
	puts("]");
	return 0;
}

/* ---- calibration ---- */

#define ROUNDS 5
#define MULTIPLICATIONS 1000000
#define SWITCHES 500

static atomic_uint turn;

static void take_turns(unsigned own)
{
	for (unsigned n = 0; n < SWITCHES; n++) {
		while (atomic_load(&turn) != own)
			futex_wait(&turn, !own);
		atomic_store(&turn, !own);
		futex_wake(&turn);
	}
}

static void *partner(void *unused)
{
	(void)unused;
	take_turns(1);
	return NULL;
}

static int calibrate(void)
{
	uint64_t computation = UINT64_MAX, switches = UINT64_MAX;
	int cpu = sched_getcpu();

	pin(cpu < 0 ? 0 : cpu);
	for (unsigned n = 0; n < ROUNDS; n++) {
		volatile uint64_t result;
		uint64_t value = n, began = now_ns();
		pthread_t thread;

		for (unsigned k = 0; k < MULTIPLICATIONS; k++)
			value = value * 6364136223846793005ULL + 1442695040888963407ULL;
		result = value;
		(void)result;
		if (now_ns() - began < computation)
			computation = now_ns() - began;
		start(&thread, partner, NULL);
		began = now_ns();
		take_turns(0);
		pthread_join(thread, NULL);
		if ((now_ns() - began) / SWITCHES < switches)
			switches = (now_ns() - began) / SWITCHES;
	}
	printf("{\"computation\": %g, \"switches\": %" PRIu64 "}\n", (double)computation / MULTIPLICATIONS, switches);
	return 0;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (!strcmp(what, "run"))
		return run(argc, argv);
	if (!strcmp(what, "calibrate"))
		return calibrate();
	fputs("usage: antagonist run|calibrate ...\n", stderr);
	return 2;
}
