/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "results.h"

/* Fractions of the distribution, in 1 / WHOLE. */
#define WHOLE 100000

static const char *const STAGE_NAMES[] = {
	"ingress_queue", "repeatable_handle", "worker_queue", "worker_handle", "total",
};

void print_histogram(const struct histogram *h, bool with_distribution)
{
	static const unsigned TAIL[] = {99100, 99200, 99300, 99400, 99500, 99600, 99700, 99800, 99900, 99950, 99990, WHOLE};
	const char *comma = "";

	printf("{\"count\": %" PRIu64, h->count);
	if (h->count) {
		printf(", \"min\": %" PRIu64 ", \"p50\": %.1f, \"p99\": %.1f, \"p99.5\": %.1f, \"p99.9\": %.1f",
		       ~h->low, percentile(h, 500), percentile(h, 990), percentile(h, 995), percentile(h, 999));
		printf(", \"max\": %" PRIu64, h->max);
	}
	if (h->count && with_distribution) {
		printf(", \"distribution\": [");
		for (unsigned part = 2000; part < 99000; part += part < 90000 ? 2000 : 1000, comma = ", ")
			printf("%s[%g, %.0f]", comma, (double)part / WHOLE, quantile(h, part, WHOLE));
		for (unsigned n = 0; n < sizeof(TAIL) / sizeof(*TAIL); n++)
			printf(", [%g, %.0f]", (double)TAIL[n] / WHOLE, quantile(h, TAIL[n], WHOLE));
		printf("]");
	}
	printf("}");
}

static void print_kind(const struct service *s, const char *name, struct histogram *stages)
{
	printf("\"%s\": {", name);
	for (unsigned stage = 0; stage < STAGES; stage++) {
		printf("%s\"%s\": ", stage ? ", " : "", STAGE_NAMES[stage]);
		print_histogram(&stages[stage], s->prints_distribution || stage == TOTAL);
	}
	printf("}");
}

void print_results(struct service *s)
{
	struct load *load = s->load;
	struct histogram *all;

	/* The first copy takes up the others. */
	for (unsigned shard = 1; shard < SHARDS; shard++)
		for (unsigned n = 0; n < KINDS * STAGES; n++)
			merge(histogram_of(s, 0, 0, n), histogram_of(s, shard, 0, n));
	printf("{");
	print_kind(s, "get", histogram_of(s, 0, GET, 0));
	printf(", ");
	print_kind(s, "range", histogram_of(s, 0, RANGE, 0));
	all = histogram_of(s, 0, GET, 0);
	for (unsigned n = 0; n < STAGES; n++)
		merge(&all[n], histogram_of(s, 0, RANGE, n));
	printf(", ");
	print_kind(s, "all", all);
	printf(", \"generator\": {\"sent\": %" PRIu64 ", \"dropped\": %" PRIu64 ", \"cpu_ns\": %" PRIu64, load->sent,
	       load->dropped, load->cpu_ns);
	printf(", \"wanted_ns\": %" PRIu64 ", \"reached_ns\": %" PRIu64 ", \"lateness\": ",
	       load->ends_ns - load->measured_from_ns,
	       load->last_ns > load->measured_from_ns ? load->last_ns - load->measured_from_ns : 0);
	print_histogram(&load->lateness, false);
	printf("}, \"unfinished\": %" PRIu64 ", \"missing\": %" PRIu64 "}\n", s->unfinished, atomic_load(&s->missing));
}
