/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The dispatcher, which hands requests to idle workers, and the workers, which serve them: an operation of the database,
 * then a spin until the service has taken its CPU time.
 */
#ifndef GHOSTBPF_EXPERIMENTS_WORKERS_H
#define GHOSTBPF_EXPERIMENTS_WORKERS_H

#include "database.h"
#include "load.h"

#define MAX_BATCH 64
#define MAX_WORKERS 4000
/* Threads that record at the same time mostly use different copies. */
#define SHARDS 4

enum { WAIT_SPIN, WAIT_FUTEX, WAIT_TABLE };
enum { INGRESS_QUEUE, REPEATABLE_HANDLE, WORKER_QUEUE, WORKER_HANDLE, TOTAL, STAGES };
enum { GET, RANGE, KINDS };

struct service {
	struct load *load;
	struct database *database;
	uint64_t entries, range_entries;
	uint64_t get_ns, get_exponential_ns, range_ns;
	unsigned wait, batch, workers;
	int nice;
	const unsigned *worker_cpus; /* a worker's CPU is that of its number modulo their count; none: any CPU */
	unsigned worker_cpu_count;
	int dispatcher_cpu; /* -1: any */
	struct ghostbpf_hints *hints; /* or NULL */
	unsigned first_item, work_class;
	struct histogram *stages; /* [SHARDS][KINDS][STAGES] */
	/* Requests that have ended, the measured and the others; missing entries of the database. */
	_Atomic uint64_t ended, missing;
	uint64_t unfinished;
	bool prints_distribution; /* of each stage, and not of the total alone */
};

void service_start(struct service *service);

/* Wait up to until_ns for the requests that have arrived; those that still wait are counted with their present age. */
void service_end(struct service *service, uint64_t until_ns);

static inline struct histogram *histogram_of(struct service *s, unsigned shard, unsigned kind, unsigned stage)
{
	return &s->stages[((size_t)(shard % SHARDS) * KINDS + kind) * STAGES + stage];
}

#endif
