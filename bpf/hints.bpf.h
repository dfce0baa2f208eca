/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Hints for policies in BPF: what applications say about their tasks.
 *
 *     struct hint_item item;
 *     struct hint_class class;
 *
 *     if (hint_of(p, &item) && hint_class_at(item.work_class, &class))
 *             …
 *
 * The first policy of an enclave that includes this file makes the enclave's table; later ones share it.
 *
 * Accepted race: only the processor orders the loads of a copy. On a processor that reorders loads (x86 does not) a
 * copy is torn now and then.
 */
#ifndef GHOSTBPF_HINTS_BPF_H
#define GHOSTBPF_HINTS_BPF_H

#include "hints.h"
#include "core/iterate.bpf.h"

/* The result of a task's last item search. */
struct hint_ref {
	u64 members; /* hints_header.members at that time */
	u32 index;
	u32 found;
};

BPF_F_TABLE("array", u32, union hint_record, hints, 1, BPF_F_MMAPABLE);
BPF_TASK_STORAGE(hint_refs, struct hint_ref);

#define COPY_ATTEMPTS 3

/* Copy a record that its owner may be writing; false if the owner wrote it during each attempt. */
#define copy_record(from, to)                                           \
	({                                                              \
		bool __whole = false;                                   \
		_Pragma("unroll") for (u32 __i = 0; __i < COPY_ATTEMPTS; __i++) { \
			u32 __seq = *(volatile u32 *)&(from)->seq;      \
			asm volatile("" ::: "memory");                  \
			*(to) = *(from);                                \
			asm volatile("" ::: "memory");                  \
			if (!(__seq & 1) && *(volatile u32 *)&(from)->seq == __seq) { \
				__whole = true;                         \
				break;                                  \
			}                                               \
		}                                                       \
		__whole;                                                \
	})

static union hint_record *hint_record_at(u32 number)
{
	return hints.lookup(&number);
}

static struct hints_header *hints_header(void)
{
	union hint_record *record = hint_record_at(0);

	return record ? &record->header : NULL;
}

static struct hint_item *hint_item_at(struct hints_header *h, u32 index)
{
	union hint_record *record;

	if (index >= h->items)
		return NULL;
	record = hint_record_at(1 + h->slots / HINTS_SLOTS_PER_RECORD + h->classes + index);
	return record ? &record->item : NULL;
}

/* Copy a work class; return false if it is not in use. */
static bool hint_class_at(u32 index, struct hint_class *copy)
{
	struct hints_header *h = hints_header();
	union hint_record *record;

	if (!h || index >= h->classes)
		return false;
	record = hint_record_at(1 + h->slots / HINTS_SLOTS_PER_RECORD + index);
	return record && copy_record(&record->work_class, copy) && copy->flags;
}

static bool find_item(struct hints_header *h, u32 tid, u32 *index)
{
	for_each_number(i, 0, h->items) {
		struct hint_item *item = hint_item_at(h, i);

		if (!item)
			return false;
		if (item->tid == tid) {
			*index = i;
			return true;
		}
	}
	return false;
}

/*
 * Copy p's item; return false if p has none. The table is searched only if the item found last is no longer p's and an
 * item has changed its task since the last search.
 */
static bool hint_of(struct task_struct *p, struct hint_item *copy)
{
	struct hint_ref *ref = hint_refs.task_storage_get(p, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	struct hints_header *h = hints_header();
	struct hint_item *item;
	u32 tid = p->pid;

	if (!ref || !h)
		return false;
	item = ref->found ? hint_item_at(h, ref->index) : NULL;
	if (!item || item->tid != tid) {
		u64 members = *(volatile u64 *)&h->members;

		if (ref->members == members)
			return false;
		ref->members = members;
		ref->found = find_item(h, tid, &ref->index);
		item = ref->found ? hint_item_at(h, ref->index) : NULL;
	}
	return item && copy_record(item, copy) && copy->tid == tid;
}

#endif
