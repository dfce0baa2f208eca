/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ghOSt's microbenchmarks, for `ghostbpf experiment`. Each prints "ready", begins after a line on stdin, and prints its
 * result as JSON on stdout; times are in nanoseconds.
 *
 *   micro yield --threads 10 --loops 1000    threads that yield in a loop
 *   micro costs                              a null system call, and context switches of two threads on one CPU
 *   micro TEST --threads 1000 ...            the simple experiments, see simple.c
 */
#define _GNU_SOURCE
#include <getopt.h>
#include <linux/perf_event.h>
#include <sys/ioctl.h>

#include "micro.h"

/* ---- threads that yield ---- */

static atomic_uint is_open;

static void *yield_in_loop(void *argument)
{
	struct setting *setting = argument;

	atomic_fetch_add(&ready, 1);
	while (!atomic_load(&is_open))
		futex_wait(&is_open, 0);
	for (uint64_t n = 0; n < setting->loops; n++)
		sched_yield();
	return NULL;
}

static void yield_all(struct setting *setting)
{
	pthread_t *threads = zeroed(setting->threads, sizeof(*threads));
	uint64_t began;

	for (unsigned n = 0; n < setting->threads; n++)
		start(&threads[n], yield_in_loop, setting);
	while (atomic_load(&ready) < setting->threads)
		usleep(1000);
	wait_for_driver();
	began = now_ns();
	atomic_store(&is_open, 1);
	syscall(SYS_futex, &is_open, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
	for (unsigned n = 0; n < setting->threads; n++)
		pthread_join(threads[n], NULL);
	printf("{\"ns\": %" PRIu64 ", \"scheds\": %" PRIu64 "}\n", now_ns() - began, setting->threads * setting->loops);
}

/* ---- costs ---- */

/* Of each cost, the least of so many times counts: all that disturbs makes it larger. */
#define TIMES 5
#define NOP_ROUNDS 100000

struct counter {
	int fd; /* of instructions, of this thread and those that it starts; -1: there is no such counter here */
	uint64_t began_ns, began_count;
};

struct cost {
	double ns, instructions;
};

static int open_instructions(void)
{
	struct perf_event_attr attributes = {
		.type = PERF_TYPE_HARDWARE, .size = sizeof(attributes), .config = PERF_COUNT_HW_INSTRUCTIONS,
		.inherit = 1, .exclude_hv = 1,
	};

	return syscall(SYS_perf_event_open, &attributes, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
}

static uint64_t instructions(const struct counter *counter)
{
	uint64_t count;

	return counter->fd < 0 || read(counter->fd, &count, sizeof(count)) != sizeof(count) ? 0 : count;
}

static void begin(struct counter *counter)
{
	counter->began_count = instructions(counter);
	counter->began_ns = now_ns();
}

static void end(const struct counter *counter, double count, struct cost *least)
{
	double ns = (now_ns() - counter->began_ns) / count;

	if (!least->ns || ns < least->ns) {
		least->ns = ns;
		least->instructions = (instructions(counter) - counter->began_count) / count;
	}
}

#define TEN_NOPS "nop\n nop\n nop\n nop\n nop\n nop\n nop\n nop\n nop\n nop\n"

static uint64_t loop_ns(bool with_nops)
{
	uint64_t began = now_ns();

	for (unsigned n = 0; n < NOP_ROUNDS; n++) {
		__asm__ volatile("nop");
		if (with_nops)
			__asm__ volatile(TEN_NOPS);
	}
	return now_ns() - began;
}

/* By this clock. QEMU's -icount (`ghostbpf vm --exact`) makes it 1; a CPU takes a tenth of that, and plain TCG nothing. */
static double ns_of_nop(void)
{
	uint64_t with = UINT64_MAX, without = UINT64_MAX;

	for (unsigned n = 0; n < TIMES; n++) {
		uint64_t ns = loop_ns(true);

		with = ns < with ? ns : with;
		ns = loop_ns(false);
		without = ns < without ? ns : without;
	}
	return ((double)with - (double)without) / (10.0 * NOP_ROUNDS);
}

static struct cost null_call(struct counter *counter, uint64_t loops)
{
	struct cost least = {0};

	for (unsigned n = 0; n < TIMES; n++) {
		begin(counter);
		for (uint64_t k = 0; k < loops; k++)
			syscall(SYS_getppid);
		end(counter, loops, &least);
	}
	return least;
}

struct pair {
	uint64_t loops;
	bool yields;
	atomic_uint turn;
	_Atomic uint64_t switches;
};

static void take_turns(struct pair *pair, unsigned own)
{
	for (uint64_t n = 0; n < pair->loops; n++) {
		while (atomic_load(&pair->turn) != own) {
			if (pair->yields)
				sched_yield();
			else
				futex_wait(&pair->turn, !own);
		}
		atomic_store(&pair->turn, !own);
		if (!pair->yields)
			futex_wake(&pair->turn);
	}
}

static void count_switches(struct pair *pair)
{
	struct rusage usage;

	getrusage(RUSAGE_THREAD, &usage);
	atomic_fetch_add(&pair->switches, usage.ru_nvcsw + usage.ru_nivcsw);
}

static void *partner(void *argument)
{
	take_turns(argument, 1);
	count_switches(argument);
	return NULL;
}

static void *first(void *argument)
{
	struct pair *pair = argument;
	pthread_t other;

	start(&other, partner, pair);
	take_turns(pair, 0);
	pthread_join(other, NULL);
	count_switches(pair);
	return NULL;
}

/* Of two threads on one CPU that take turns; the divisor is the number of switches that the kernel counted. */
static struct cost context_switch(struct counter *counter, uint64_t loops, bool yields)
{
	struct cost least = {0};

	for (unsigned n = 0; n < TIMES; n++) {
		struct pair pair = {.loops = loops, .yields = yields};
		pthread_t thread;

		begin(counter);
		start(&thread, first, &pair);
		pthread_join(thread, NULL);
		end(counter, atomic_load(&pair.switches), &least);
	}
	return least;
}

static void print_cost(const char *name, struct cost cost, const struct counter *counter)
{
	printf("\"%s\": {\"ns\": %.3f, \"instructions\": ", name, cost.ns);
	if (counter->fd < 0)
		printf("null}, ");
	else
		printf("%.1f}, ", cost.instructions);
}

static void measure_costs(struct setting *setting)
{
	struct counter counter = {.fd = open_instructions()};
	int cpu = sched_getcpu();

	pin(cpu < 0 ? 0 : cpu);
	wait_for_driver();
	printf("{");
	print_cost("null", null_call(&counter, setting->loops), &counter);
	print_cost("yield", context_switch(&counter, setting->loops, true), &counter);
	print_cost("futex", context_switch(&counter, setting->loops, false), &counter);
	printf("\"ns_of_nop\": %.4f}\n", ns_of_nop());
}

/* ---- command line ---- */

static const struct option OPTIONS[] = {
	{"threads", required_argument, 0, 't'},
	{"loops", required_argument, 0, 'l'},
	{"spin", required_argument, 0, 's'},
	{"seconds", required_argument, 0, 'S'},
	{"hints", required_argument, 0, 'h'},
	{"policy", required_argument, 0, 'p'},
	{"stages", required_argument, 0, 'n'},
	{0},
};

int main(int argc, char **argv)
{
	static struct setting setting = {
		.threads = 1, .loops = 1000, .spin_ns = 10000000, .seconds = 10, .stages = 5,
	};
	const char *what = argc > 1 ? argv[1] : "";
	int option, at;

	optind = 2;
	while (argc > 1 && (option = getopt_long(argc, argv, "", OPTIONS, &at)) != -1) {
		const char *name = option == '?' ? "" : OPTIONS[at].name;

		switch (option) {
		case 't': setting.threads = number(name, optarg, 1, 100000); break;
		case 'l': setting.loops = number(name, optarg, 1, 1e12); break;
		case 's': setting.spin_ns = number(name, optarg, 0, 1e12); break;
		case 'S': setting.seconds = number(name, optarg, 0.001, 86400); break;
		case 'h': setting.hints = optarg; break;
		case 'p': setting.policy = number(name, optarg, 0, 100); break;
		case 'n': setting.stages = number(name, optarg, 1, 100); break;
		default: return 2;
		}
	}
	if (!strcmp(what, "yield"))
		yield_all(&setting);
	else if (!strcmp(what, "costs"))
		measure_costs(&setting);
	else if (!run_simple(what, &setting)) {
		fputs("usage: micro yield|costs|TEST ...\n", stderr);
		return 2;
	}
	return 0;
}
