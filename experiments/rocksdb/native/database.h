/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GHOSTBPF_EXPERIMENTS_DATABASE_H
#define GHOSTBPF_EXPERIMENTS_DATABASE_H

#include <stdbool.h>
#include <stdint.h>

/* Keys and values are the entry's number, in 16 digits. */
#define DIGITS 16

struct database;

/* Fill a new database with entries 0 to entries - 1. Failures end the program with a message. */
void database_create(const char *path, uint64_t entries);

/* Open a database for reading. */
struct database *database_open(const char *path);
void database_close(struct database *database);

/* Read an entry; returns whether it is there. Any number of threads may read. */
bool database_get(struct database *database, uint64_t entry);

/* Read entries first to first + count - 1; returns whether all are there. */
bool database_range(struct database *database, uint64_t first, uint64_t count);

#endif
