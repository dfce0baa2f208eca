/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GHOSTBPF_EXPERIMENTS_MICRO_H
#define GHOSTBPF_EXPERIMENTS_MICRO_H

#include "../../rocksdb/native/common.h"

struct setting {
	unsigned threads, stages;
	uint64_t loops, spin_ns;
	double seconds;
	int policy; /* that each thread must have: the threads of a task in an enclave are in it, too */
	const char *hints;
	struct ghostbpf_hints table;
};

extern atomic_uint ready;

/* Run a simple experiment by name; returns whether there is one of this name. */
bool run_simple(const char *name, struct setting *setting);

#endif
