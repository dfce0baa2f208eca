/* SPDX-License-Identifier: Apache-2.0 */
/*
 * RocksDB in its quickest format for small entries: PlainTable, read through mmap. PlainTable needs a prefix extractor:
 * without one, puts succeed and each flush fails. Here the prefix is the whole key, so that a seek finds an existing key
 * only. The entries are in one level, so that the steps from there on meet each of them.
 */
#define _GNU_SOURCE
#include "database.h"

#include <rocksdb/c.h>
#include <string.h>

#include "common.h"

#define BLOOM_BITS_PER_KEY 10
#define HASH_TABLE_RATIO 0.75
#define KEYS_PER_INDEX_ENTRY 16
#define BATCH 1000

struct database {
	rocksdb_options_t *options;
	rocksdb_readoptions_t *read;
	rocksdb_t *db;
};

static rocksdb_options_t *plain_table(void)
{
	rocksdb_options_t *options = rocksdb_options_create();

	rocksdb_options_set_plain_table_factory(options, DIGITS, BLOOM_BITS_PER_KEY, HASH_TABLE_RATIO,
						KEYS_PER_INDEX_ENTRY);
	rocksdb_options_set_prefix_extractor(options, rocksdb_slicetransform_create_fixed_prefix(DIGITS));
	rocksdb_options_set_allow_mmap_reads(options, 1);
	rocksdb_options_set_compression(options, rocksdb_no_compression);
	/* Its own threads would run under the scheduler that is measured. */
	rocksdb_options_set_stats_dump_period_sec(options, 0);
	rocksdb_options_set_max_background_jobs(options, 1);
	return options;
}

static void check(const char *what, const char *path, char *error)
{
	if (error)
		fail("%s %s: %s", what, path, error);
}

static void format(char *text, uint64_t entry)
{
	for (int n = DIGITS - 1; n >= 0; n--, entry /= 10)
		text[n] = '0' + entry % 10;
}

void database_create(const char *path, uint64_t entries)
{
	rocksdb_options_t *options = plain_table();
	rocksdb_writeoptions_t *write = rocksdb_writeoptions_create();
	rocksdb_flushoptions_t *flush = rocksdb_flushoptions_create();
	rocksdb_writebatch_t *batch = rocksdb_writebatch_create();
	char *error = NULL, text[DIGITS + 1] = "";
	rocksdb_t *db;

	rocksdb_options_set_create_if_missing(options, 1);
	rocksdb_options_set_error_if_exists(options, 1);
	rocksdb_writeoptions_disable_WAL(write, 1);
	db = rocksdb_open(options, path, &error);
	check("cannot create the database", path, error);
	for (uint64_t entry = 0; entry < entries; entry++) {
		format(text, entry);
		rocksdb_writebatch_put(batch, text, DIGITS, text, DIGITS);
		if ((entry + 1) % BATCH && entry + 1 < entries)
			continue;
		rocksdb_write(db, write, batch, &error);
		check("cannot fill the database", path, error);
		rocksdb_writebatch_clear(batch);
	}
	rocksdb_flush(db, flush, &error);
	check("cannot write the database", path, error);
	/* It reports no error: what it could not write is missing below. */
	rocksdb_compact_range(db, NULL, 0, NULL, 0);
	rocksdb_close(db);
	rocksdb_writebatch_destroy(batch);
	rocksdb_flushoptions_destroy(flush);
	rocksdb_writeoptions_destroy(write);
	rocksdb_options_destroy(options);

	struct database *database = database_open(path);

	if (!database_range(database, 0, entries))
		fail("cannot fill the database %s: entries are missing", path);
	database_close(database);
}

struct database *database_open(const char *path)
{
	struct database *database = zeroed(1, sizeof(*database));
	char *error = NULL;

	database->options = plain_table();
	database->read = rocksdb_readoptions_create();
	rocksdb_readoptions_set_verify_checksums(database->read, 0);
	database->db = rocksdb_open_for_read_only(database->options, path, 0, &error);
	check("cannot open the database", path, error);
	return database;
}

void database_close(struct database *database)
{
	rocksdb_close(database->db);
	rocksdb_readoptions_destroy(database->read);
	rocksdb_options_destroy(database->options);
	free(database);
}

bool database_get(struct database *database, uint64_t entry)
{
	char text[DIGITS + 1] = "", *error = NULL;
	rocksdb_pinnableslice_t *value;
	const char *found;
	size_t length = 0;
	bool is_there;

	format(text, entry);
	value = rocksdb_get_pinned(database->db, database->read, text, DIGITS, &error);
	check("cannot read entry", text, error);
	found = rocksdb_pinnableslice_value(value, &length);
	is_there = found && length == DIGITS && !memcmp(found, text, DIGITS);
	rocksdb_pinnableslice_destroy(value);
	return is_there;
}

bool database_range(struct database *database, uint64_t first, uint64_t count)
{
	rocksdb_iterator_t *at = rocksdb_create_iterator(database->db, database->read);
	char text[DIGITS + 1] = "", *error = NULL;
	uint64_t found = 0;

	format(text, first);
	for (rocksdb_iter_seek(at, text, DIGITS); found < count && rocksdb_iter_valid(at); rocksdb_iter_next(at)) {
		size_t length;
		const char *value = rocksdb_iter_value(at, &length);

		format(text, first + found);
		if (length != DIGITS || memcmp(value, text, DIGITS))
			break;
		found++;
	}
	rocksdb_iter_get_error(at, &error);
	check("cannot read from entry", text, error);
	rocksdb_iter_destroy(at);
	return found == count;
}
