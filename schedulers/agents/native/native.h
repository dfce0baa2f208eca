/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The native half of the agent runtime: what every agent does for each message and each decision, without the
 * interpreter. userspace/ has the same in Python, which is the reference; tests run both.
 *
 * It uses Python's limited API, so one build serves every Python from 3.11 on.
 */
#ifndef GHOSTBPF_NATIVE_H
#define GHOSTBPF_NATIVE_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <structmember.h>

#include <stdbool.h>
#include <stdint.h>

/* Increment it with each change that the Python code must know of: a build of another version is not used. */
#define NATIVE_VERSION 5

/* As in bpf/abi.h. */
#define CPU_WORDS 16

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

typedef uint64_t u64;
typedef uint32_t u32;
typedef int32_t s32;

/* A task's place in one queue. */
struct place {
	struct place *before, *after; /* in the queue */
	struct place *next; /* of the same task, in another queue */
	struct task *task;
	struct queue *queue;
};

/* The members are those of the Python class. */
struct task {
	PyObject_HEAD
	u64 gtid, runtime_ns, since_ns;
	u64 allowed[CPU_WORDS];
	u32 seq, word, tid;
	s32 state, cpu, next_cpu, tgid, weight;
	char boosted;
	struct place *places;
};

/* A queue of tasks; a circular list through `ends`. With has_ranks, it is a priority queue. */
struct queue {
	PyObject_HEAD
	struct place ends;
	Py_ssize_t length;
	bool has_ranks;
};

/* One integer member of each of an array of records, in the memory that is shared with the kernel. */
struct column {
	Py_buffer buffer;
	char *first;
	Py_ssize_t stride, length;
};

/* The state of an agent's CPUs. */
struct cpus {
	PyObject_HEAD
	struct column running, latched, preempted, spinner, online;
	Py_ssize_t count;
	s32 *ids;
};

extern PyTypeObject *task_type, *queue_type, *priority_queue_type, *cpus_type, *turns_type;

PyTypeObject *make_task_type(void);
PyTypeObject *make_queue_type(void);
PyTypeObject *make_priority_queue_type(void);
PyTypeObject *make_cpus_type(void);
PyTypeObject *make_turns_type(void);

/* Transaction.__new__(cls, task, cpu, slice_ns=0, flags=0) */
PyObject *new_transaction(PyObject *module, PyObject *const *args, Py_ssize_t count, PyObject *names);

/* Whether the mask, an int of any size, has the bit of cpu: 1, 0, or -1 with an exception. */
int has_bit(PyObject *mask, long cpu);

/* Whether the task's affinity allows cpu. */
static inline bool task_may_run(const struct task *task, long cpu)
{
	return cpu >= 0 && cpu < 64 * CPU_WORDS && task->allowed[cpu / 64] >> cpu % 64 & 1;
}

/* Add task to a RunQueue as its method add() does; false with an exception. */
bool queue_add(struct queue *queue, struct task *task);
/* Take task from the queue; whether it was in it. */
bool queue_discard(struct queue *queue, struct task *task);
/* A reference to the first task that may run on cpu; otherwise as queue_pop(). */
struct task *queue_first(struct queue *queue, long cpu, PyObject *near);
/* Take the first task that may run on cpu, with near as pop_near() does. NULL without an exception: there is none. */
struct task *queue_pop(struct queue *queue, long cpu, PyObject *near);

/* Which CPUs: those that run no task of an enclave, or those that run one. */
enum which { IDLE, BUSY };

/*
 * A walk over the idle or the busy CPUs among cpus: those with nothing committed that no other class holds. The agent's
 * own CPU is held by the agent itself, and will be free when it sleeps. It comes first, since it needs no interrupt.
 */
struct walk {
	struct cpus *cpus;
	enum which which;
	s32 own;
	Py_ssize_t at;
};

struct walk walk_of(struct cpus *cpus, enum which which);
/* The next CPU; -1: there is none. */
s32 walk_next(struct walk *walk);

/* Take hold of a memoryview of integers of `size` bytes; false with an exception if it is something else. */
bool column_open(struct column *column, PyObject *view, Py_ssize_t size);
void column_close(struct column *column);

static inline u64 *column_u64(const struct column *column, Py_ssize_t at)
{
	return (u64 *)(column->first + at * column->stride);
}

static inline u32 *column_u32(const struct column *column, Py_ssize_t at)
{
	return (u32 *)(column->first + at * column->stride);
}

/* Put value in the place of *member, which may be NULL. */
static inline void replace(PyObject **member, PyObject *value)
{
	PyObject *before = *member;

	*member = value;
	Py_XDECREF(before);
}

/* Free an object of a heap type. */
void free_object(PyObject *self);

#endif
