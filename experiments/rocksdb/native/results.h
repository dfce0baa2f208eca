/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GHOSTBPF_EXPERIMENTS_RESULTS_H
#define GHOSTBPF_EXPERIMENTS_RESULTS_H

#include "workers.h"

/* Print one JSON object; times are in ns. */
void print_results(struct service *service);
void print_histogram(const struct histogram *histogram, bool with_distribution);

#endif
