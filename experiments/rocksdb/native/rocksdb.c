/* SPDX-License-Identifier: Apache-2.0 */
/*
 * RocksDB under an open-loop load, for `ghostbpf experiment`. Times are in nanoseconds, results are JSON on stdout.
 *
 *   rocksdb create PATH ENTRIES     a new database
 *   rocksdb check PATH ENTRY...     whether entries, and ranges FIRST+COUNT, are there
 *   rocksdb arrivals RATE RATIO SEED COUNT   times of arrivals and kinds of requests
 *   rocksdb percentiles [COPIES] <NUMBERS    what the histogram makes of numbers
 *   rocksdb run PATH --option value...       a load; prints "ready", and begins after a line on stdin
 */
#define _GNU_SOURCE
#include <getopt.h>
#include <sys/mman.h>

#include "results.h"

/* After the end, requests may take this part of the measured time to end. */
#define DRAIN_PART 10

/* ---- parts alone ---- */

static int check_entries(char **arguments)
{
	struct database *database = database_open(*arguments);

	while (*++arguments) {
		char *end;
		uint64_t first = strtoull(*arguments, &end, 10);

		printf("%d\n", *end == '+' ? database_range(database, first, strtoull(end + 1, NULL, 10)) :
					     database_get(database, first));
	}
	database_close(database);
	return 0;
}

static int show_arrivals(double rate, double range_ratio, uint64_t seed, uint64_t count)
{
	struct arrivals arrivals = {.rate = rate, .range_ratio = range_ratio, .seed = seed};

	while (count--) {
		struct arrival arrival = next_arrival(&arrivals);

		printf("%" PRIu64 " %d\n", arrival.ns, arrival.is_range);
	}
	return 0;
}

static int percentiles(unsigned copies)
{
	struct histogram *values = zeroed(1, sizeof(*values));
	uint64_t value;

	while (scanf("%" SCNu64, &value) == 1)
		for (unsigned n = 0; n < copies; n++)
			record(values, value);
	print_histogram(values, true);
	puts("");
	return 0;
}

/* ---- the load ---- */

static const struct option OPTIONS[] = {
	{"throughput", required_argument, 0, 't'},
	{"range_query_ratio", required_argument, 0, 'r'},
	{"get_duration", required_argument, 0, 'g'},
	{"get_exponential_mean", required_argument, 0, 'e'},
	{"range_duration", required_argument, 0, 'R'},
	{"entries", required_argument, 0, 'E'},
	{"range_entries", required_argument, 0, 'N'},
	{"num_workers", required_argument, 0, 'w'},
	{"batch", required_argument, 0, 'b'},
	{"wait_type", required_argument, 0, 'W'},
	{"generator", required_argument, 0, 'G'},
	{"generator_slack", required_argument, 0, 'S'},
	{"load_generator_cpu", required_argument, 0, 'l'},
	{"dispatcher_cpu", required_argument, 0, 'd'},
	{"worker_cpus", required_argument, 0, 'c'},
	{"experiment_duration", required_argument, 0, 'D'},
	{"discard_duration", required_argument, 0, 'x'},
	{"seed", required_argument, 0, 's'},
	{"nice", required_argument, 0, 'n'},
	{"hints", required_argument, 0, 'h'},
	{"qos", required_argument, 0, 'q'},
	{"print_distribution", required_argument, 0, 'p'},
	{0},
};

struct setting {
	const char *path, *hints;
	unsigned qos;
	uint64_t duration_ns, discard_ns;
	unsigned worker_cpus[MAX_CPUS];
};

static unsigned choice(const char *name, const char *text, const char *const *choices)
{
	for (unsigned n = 0; choices[n]; n++)
		if (!strcmp(text, choices[n]))
			return n;
	fail("%s: there is no \"%s\"", name, text);
}

static void parse(int argc, char **argv, struct setting *setting, struct service *s)
{
	static const char *const waits[] = {"spin", "futex", "table", NULL}, *const generators[] = {"sleep", "spin", NULL};
	struct load *load = s->load;
	int option, at;

	while ((option = getopt_long(argc, argv, "", OPTIONS, &at)) != -1) {
		const char *name = option == '?' ? "" : OPTIONS[at].name;

		switch (option) {
		case 't': load->rate = number(name, optarg, 1e-3, 1e8); break;
		case 'r': load->range_ratio = number(name, optarg, 0, 1); break;
		case 'g': s->get_ns = number(name, optarg, 0, 1e12); break;
		case 'e': s->get_exponential_ns = number(name, optarg, 0, 1e12); break;
		case 'R': s->range_ns = number(name, optarg, 0, 1e12); break;
		case 'E': s->entries = number(name, optarg, 1, 1e15); break;
		case 'N': s->range_entries = number(name, optarg, 1, 1e15); break;
		case 'w': s->workers = number(name, optarg, 1, MAX_WORKERS); break;
		case 'b': s->batch = number(name, optarg, 1, MAX_BATCH); break;
		case 'W': s->wait = choice(name, optarg, waits); break;
		case 'G': load->how = choice(name, optarg, generators); break;
		case 'S': load->slack_ns = number(name, optarg, 0, 1e9); break;
		case 'l': load->cpu = number(name, optarg, 0, MAX_CPUS - 1); break;
		case 'd': s->dispatcher_cpu = number(name, optarg, 0, MAX_CPUS - 1); break;
		case 'c': s->worker_cpu_count = cpu_list(name, optarg, setting->worker_cpus); break;
		case 'D': setting->duration_ns = number(name, optarg, 1e6, 1e15); break;
		case 'x': setting->discard_ns = number(name, optarg, 0, 1e15); break;
		case 's': load->seed = number(name, optarg, 0, 1e15); break;
		case 'n': s->nice = number(name, optarg, -20, 19); break;
		case 'h': setting->hints = optarg; break;
		case 'p': s->prints_distribution = number(name, optarg, 0, 1); break;
		case 'q': setting->qos = number(name, optarg, 0, 1000); break;
		default: exit(2);
		}
	}
	if (s->range_entries > s->entries)
		fail("range_entries: %" PRIu64 " are more than the database's %" PRIu64, s->range_entries, s->entries);
	if (s->wait == WAIT_TABLE && !setting->hints)
		fail("wait_type table needs hints");
}

static int run(int argc, char **argv)
{
	struct setting setting = {.path = argv[2], .qos = 2, .duration_ns = 1e9};
	struct load *load = zeroed(1, sizeof(*load));
	struct service service = {
		.load = load, .entries = 1000000, .range_entries = 5000, .get_ns = 10000, .range_ns = 5000000,
		.workers = 1, .batch = 1, .dispatcher_cpu = -1, .work_class = 1,
	};
	struct ghostbpf_hints hints;
	pthread_t generator;

	load->rate = 20000;
	load->cpu = -1;
	optind = 3;
	parse(argc, argv, &setting, &service);
	if (setting.hints) {
		service.hints = &hints;
		open_hints(&hints, setting.hints, service.work_class, setting.qos);
		hint_thread(&hints, service.workers + 1, service.work_class);
	}
	service.worker_cpus = setting.worker_cpus;
	service.stages = zeroed(SHARDS * KINDS * STAGES, sizeof(struct histogram));
	load->ring.slots = mmap(NULL, RING_SIZE * sizeof(uint64_t), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (load->ring.slots == MAP_FAILED)
		fail("out of memory");
	service.database = database_open(setting.path);
	service_start(&service);
	load_start(load, &generator);
	wait_for_driver();
	load->began_ns = now_ns();
	load->measured_from_ns = load->began_ns + setting.discard_ns;
	load->ends_ns = load->measured_from_ns + setting.duration_ns;
	load_begin(load);
	sleep_until(load->ends_ns);
	pthread_join(generator, NULL);
	service_end(&service, load->ends_ns + setting.duration_ns / DRAIN_PART);
	database_close(service.database);
	if (service.hints) {
		ghostbpf_hints_set_item(&hints, service.workers + 1, 0, 0, 0, 0);
		ghostbpf_hints_close(&hints);
	}
	print_results(&service);
	return 0;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (!strcmp(what, "create") && argc == 4) {
		database_create(argv[2], number("ENTRIES", argv[3], 1, 1e12));
		return 0;
	}
	if (!strcmp(what, "check") && argc > 2)
		return check_entries(argv + 2);
	if (!strcmp(what, "arrivals") && argc == 6)
		return show_arrivals(number("RATE", argv[2], 1e-3, 1e8), number("RATIO", argv[3], 0, 1),
				     number("SEED", argv[4], 0, 1e15), number("COUNT", argv[5], 0, 1e9));
	if (!strcmp(what, "percentiles"))
		return percentiles(argc > 2 ? number("COPIES", argv[2], 1, 1e9) : 1);
	if (!strcmp(what, "run") && argc > 2)
		return run(argc, argv);
	fputs("usage: rocksdb create|check|arrivals|percentiles|run ...\n", stderr);
	return 2;
}
