/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Hints from a C or C++ application; docs/hints.md is the guide. It needs hints.h and the C library.
 *
 *     struct ghostbpf_hints hints;
 *     int error = ghostbpf_hints_open(&hints, NULL);
 *
 *     error = ghostbpf_hints_set_class(&hints, 1, HINT_ONE_SHOT, 2, 500000, 0);
 *     error = ghostbpf_hints_set_item(&hints, 7, gettid(), 1, HINT_RUNNABLE, deadline_ns);
 *
 * Functions return 0 or a negative errno. -EBUSY: the item or class belongs to another living process, or another thread
 * is writing it. -EINVAL: the table has no such item or class, or the map is not a table. -EXDEV: this process is not in
 * the initial pid namespace (it is in a container); tasks are identified by their pids in that namespace.
 */
#ifndef GHOSTBPF_HINTS_APPLICATION_H
#define GHOSTBPF_HINTS_APPLICATION_H

#include <errno.h>
#include <linux/bpf.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define u32 uint32_t
#define u64 uint64_t
#include "../bpf/hints.h"
#undef u32
#undef u64

#define GHOSTBPF_HINTS_LOCK_ATTEMPTS 1000
#define GHOSTBPF_HINTS_INITIAL_PIDS 0xEFFFFFFCU /* the inode of the initial pid namespace */

/* A mapped table. Other processes can write its header at any time: the sizes are copied, and checked, when it is mapped. */
struct ghostbpf_hints {
	union hint_record *records;
	uint32_t count;
	uint32_t slots, classes, items;
	int fd;
};

static inline struct hints_header *ghostbpf_hints_header(struct ghostbpf_hints *h)
{
	return &h->records[0].header;
}

/* Copy the sizes from the header. Returns whether they are those of a table of this many records. */
static inline int ghostbpf_hints_take_sizes(struct ghostbpf_hints *h)
{
	struct hints_header *header = ghostbpf_hints_header(h);

	h->slots = __atomic_load_n(&header->slots, __ATOMIC_RELAXED);
	h->classes = __atomic_load_n(&header->classes, __ATOMIC_RELAXED);
	h->items = __atomic_load_n(&header->items, __ATOMIC_RELAXED);
	return header->version == HINTS_VERSION && h->slots && h->slots % HINTS_SLOTS_PER_RECORD == 0 && h->classes &&
	       h->items && (uint64_t)1 + h->slots / HINTS_SLOTS_PER_RECORD + h->classes + h->items == h->count;
}

static inline void ghostbpf_hints_close(struct ghostbpf_hints *h)
{
	munmap(h->records, (size_t)h->count * sizeof(*h->records));
	close(h->fd);
}

/* Returns whether this process is outside the initial pid namespace; 0 without /proc, where that is unknown. */
static inline int ghostbpf_hints_is_contained(void)
{
	struct stat space;

	return !stat("/proc/self/ns/pid", &space) && space.st_ino != GHOSTBPF_HINTS_INITIAL_PIDS;
}

/* Map the table behind fd; on success, the table owns fd. */
static inline int ghostbpf_hints_from_fd(struct ghostbpf_hints *h, int fd)
{
	struct bpf_map_info info;
	union bpf_attr attr;
	void *memory;

	memset(h, 0, sizeof(*h));
	if (ghostbpf_hints_is_contained())
		return -EXDEV;
	memset(&info, 0, sizeof(info));
	memset(&attr, 0, sizeof(attr));
	attr.info.bpf_fd = fd;
	attr.info.info_len = sizeof(info);
	attr.info.info = (uintptr_t)&info;
	if (syscall(SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &attr, sizeof(attr)))
		return -errno;
	if (info.type != BPF_MAP_TYPE_ARRAY || info.value_size != sizeof(union hint_record))
		return -EINVAL;
	memory = mmap(NULL, (size_t)info.max_entries * info.value_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED)
		return -errno;
	h->records = (union hint_record *)memory;
	h->count = info.max_entries;
	h->fd = fd;
	if (ghostbpf_hints_take_sizes(h))
		return 0;
	munmap(memory, (size_t)info.max_entries * info.value_size);
	return -EINVAL;
}

/* Open the table pinned at path; NULL: at the path in GHOSTBPF_HINTS, which `ghostbpf run` sets. */
static inline int ghostbpf_hints_open(struct ghostbpf_hints *h, const char *path)
{
	union bpf_attr attr;
	int fd, error;

	memset(h, 0, sizeof(*h));
	if (!path && !(path = getenv("GHOSTBPF_HINTS")))
		return -ENOENT;
	memset(&attr, 0, sizeof(attr));
	attr.pathname = (uintptr_t)path;
	fd = (int)syscall(SYS_bpf, BPF_OBJ_GET, &attr, sizeof(attr));
	if (fd < 0)
		return -errno;
	error = ghostbpf_hints_from_fd(h, fd);
	if (error)
		close(fd);
	return error;
}

static inline struct hint_item *ghostbpf_hints_item_at(struct ghostbpf_hints *h, uint32_t index)
{
	uint32_t first = 1 + h->slots / HINTS_SLOTS_PER_RECORD + h->classes;

	return index < h->items ? &h->records[first + index].item : NULL;
}

static inline struct hint_class *ghostbpf_hints_class_at(struct ghostbpf_hints *h, uint32_t index)
{
	return index < h->classes ? &h->records[1 + h->slots / HINTS_SLOTS_PER_RECORD + index].work_class : NULL;
}

/* Returns whether the owner is another living process. */
static inline int ghostbpf_hints_is_others(uint32_t owner)
{
	return owner && owner != (uint32_t)getpid() && (!kill((pid_t)owner, 0) || errno == EPERM);
}

/*
 * Make this process the owner of a record, and this thread its only writer; *odd is its seq until the unlock. *used is 0
 * in a free record. An odd seq means that another thread of this process writes it, or that its owner died while writing.
 */
static inline int ghostbpf_hints_lock(uint32_t *seq, uint32_t *owner, const uint32_t *used, uint32_t *odd)
{
	uint32_t before, current;
	int i, dead;

	for (i = 0; i < GHOSTBPF_HINTS_LOCK_ATTEMPTS; i++) {
		before = __atomic_load_n(seq, __ATOMIC_ACQUIRE);
		current = __atomic_load_n(owner, __ATOMIC_RELAXED);
		if ((before & 1 || __atomic_load_n(used, __ATOMIC_RELAXED)) && ghostbpf_hints_is_others(current))
			return -EBUSY;
		dead = current != (uint32_t)getpid();
		__atomic_store_n(owner, (uint32_t)getpid(), __ATOMIC_RELAXED);
		*odd = (before + 1) | 1;
		if ((dead || !(before & 1)) &&
		    __atomic_compare_exchange_n(seq, &before, *odd, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
			__atomic_thread_fence(__ATOMIC_RELEASE);
			return 0;
		}
		sched_yield();
	}
	return -EBUSY;
}

/* Unlock the record; returns the stream entry that announces the update of record index. */
static inline uint64_t ghostbpf_hints_unlock(uint32_t *seq, uint32_t odd, uint32_t index)
{
	__atomic_store_n(seq, odd + 1, __ATOMIC_RELEASE);
	return (uint64_t)(odd + 1) << 32 | index;
}

static inline void ghostbpf_hints_announce(struct ghostbpf_hints *h, uint32_t index, uint64_t entry)
{
	uint32_t slot = index % h->slots;

	__atomic_store_n(&h->records[1 + slot / HINTS_SLOTS_PER_RECORD].slots[slot % HINTS_SLOTS_PER_RECORD], entry,
			 __ATOMIC_RELEASE);
	__atomic_store_n(&ghostbpf_hints_header(h)->last, entry, __ATOMIC_RELEASE);
}

static inline uint64_t ghostbpf_hints_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* Set all of item index: tid 0 frees it; flags are 0 or HINT_RUNNABLE; deadline_ns 0 is no deadline. */
static inline int ghostbpf_hints_set_item(struct ghostbpf_hints *h, uint32_t index, uint32_t tid, uint32_t work_class,
					  uint64_t flags, uint64_t deadline_ns)
{
	struct hint_item *item = ghostbpf_hints_item_at(h, index);
	uint32_t odd, before;
	uint64_t entry;
	int error;

	if (!item || work_class >= h->classes)
		return -EINVAL;
	error = ghostbpf_hints_lock(&item->seq, &item->owner, &item->tid, &odd);
	if (error)
		return error;
	before = item->tid;
	__atomic_store_n(&item->tid, tid, __ATOMIC_RELAXED);
	__atomic_store_n(&item->work_class, work_class, __ATOMIC_RELAXED);
	__atomic_store_n(&item->flags, flags, __ATOMIC_RELAXED);
	__atomic_store_n(&item->deadline_ns, deadline_ns, __ATOMIC_RELAXED);
	__atomic_store_n(&item->updated_ns, ghostbpf_hints_now(), __ATOMIC_RELAXED);
	entry = ghostbpf_hints_unlock(&item->seq, odd, index);
	ghostbpf_hints_announce(h, index, entry);
	if (before != tid)
		__atomic_store_n(&ghostbpf_hints_header(h)->members, entry, __ATOMIC_RELEASE);
	return 0;
}

/* Set whether the task of item index, which this process owns, has work, and its deadline. */
static inline int ghostbpf_hints_set_runnable(struct ghostbpf_hints *h, uint32_t index, int runnable, uint64_t deadline_ns)
{
	struct hint_item *item = ghostbpf_hints_item_at(h, index);
	uint32_t odd;
	int error;

	if (!item || !__atomic_load_n(&item->tid, __ATOMIC_RELAXED))
		return -EINVAL;
	error = ghostbpf_hints_lock(&item->seq, &item->owner, &item->tid, &odd);
	if (error)
		return error;
	__atomic_store_n(&item->flags, runnable ? HINT_RUNNABLE : 0, __ATOMIC_RELAXED);
	__atomic_store_n(&item->deadline_ns, deadline_ns, __ATOMIC_RELAXED);
	__atomic_store_n(&item->updated_ns, ghostbpf_hints_now(), __ATOMIC_RELAXED);
	ghostbpf_hints_announce(h, index, ghostbpf_hints_unlock(&item->seq, odd, index));
	return 0;
}

/* Set all of work class index: flags are HINT_ONE_SHOT or HINT_REPEATING; 0 frees it. */
static inline int ghostbpf_hints_set_class(struct ghostbpf_hints *h, uint32_t index, uint32_t flags, uint32_t qos,
					   uint64_t exectime_ns, uint64_t period_ns)
{
	struct hint_class *work_class = ghostbpf_hints_class_at(h, index);
	uint32_t odd;
	int error;

	if (!work_class || (flags == HINT_REPEATING && !period_ns) || flags > HINT_REPEATING)
		return -EINVAL;
	error = ghostbpf_hints_lock(&work_class->seq, &work_class->owner, &work_class->flags, &odd);
	if (error)
		return error;
	__atomic_store_n(&work_class->flags, flags, __ATOMIC_RELAXED);
	__atomic_store_n(&work_class->qos, qos, __ATOMIC_RELAXED);
	__atomic_store_n(&work_class->exectime_ns, exectime_ns, __ATOMIC_RELAXED);
	__atomic_store_n(&work_class->period_ns, period_ns, __ATOMIC_RELAXED);
	__atomic_store_n(&ghostbpf_hints_header(h)->rescan,
			 ghostbpf_hints_unlock(&work_class->seq, odd, HINTS_CLASS_ENTRY | index), __ATOMIC_RELEASE);
	return 0;
}

#endif
